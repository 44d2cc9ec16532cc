"""`openssl s_client` reaches a service with nothing but TLS: by server name, by alias and by a port of its own.

The service is a Redis, which answers PING with +PONG and closes after QUIT.
"""

import re
import subprocess
from datetime import UTC, datetime

import pytest

from portguard.pki.authority import Authority
from tests.patience import PATIENCE_S

_REFUSED = "unexpected eof while reading"


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, redis):
    """Alice may reach `cache`, by name, alias and port, and `plain`, but not `other`."""
    cache = f'''
upstream = ["{redis}"]
aliases = ["cache.example.com"]
alpn = ["redis", "resp3"]
listen = ["127.0.0.1:0"]'''
    role = '[[roles]]\nname = "team"\nmembers = ["alice"]\nservices = ["cache", "plain"]'
    return start_gateway_for_module({"cache": cache, "plain": redis, "other": redis}, policy=role)


@pytest.fixture
def gateway(shared):
    return shared.from_now()


@pytest.fixture
def s_client(real_program):
    """`s_client(gateway, name, *options)` asks the service PING as the client `name`; None: without a certificate."""
    program = real_program("openssl")

    def run(gateway, name, *options, port=None):
        command = [program, "s_client", "-connect", f"127.0.0.1:{port or gateway.port}", "-CAfile", str(gateway.ca)]
        if name is not None:
            certificate, key = gateway.certificate(name)
            command += ["-cert", str(certificate), "-key", str(key)]
        # Without -ign_eof it would close at the end of its input, before the answer is there.
        command += ["-verify_return_error", "-ign_eof", *options]
        return subprocess.run(
            command, input="PING\r\nQUIT\r\n", capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )

    return run


def by_name(service):
    return "-servername", f"{service}.gw.localhost", "-verify_hostname", f"{service}.gw.localhost"


def test_a_client_with_a_role_reaches_the_service_by_its_name(gateway, s_client, redis):
    done = s_client(gateway, "alice", *by_name("cache"))
    assert "+PONG" in done.stdout
    assert done.returncode == 0
    of_hers = r"session=[0-9a-f]{32} identity=alice"
    upstream = rf"role=team upstream={re.escape(redis)}"
    gateway.wait_for_log(rf"info session\.open {of_hers} source=127\.0\.0\.1 service=cache {upstream}$")
    moved = r"received=12 sent=12 duration=\d+\.\d{3} reason=upstream_closed"
    gateway.wait_for_log(rf"info session\.close {of_hers} service=cache {upstream} {moved}$")


def test_a_client_without_a_role_sees_the_connection_break(gateway, s_client):
    done = s_client(gateway, "bob", *by_name("cache"))
    assert "PONG" not in done.stdout
    assert _REFUSED in done.stderr
    assert done.returncode == 1
    gateway.wait_for_log("session.refuse .*identity=bob .*service=cache reason=no_role")


def test_a_role_opens_its_own_services_only(gateway, s_client):
    done = s_client(gateway, "alice", *by_name("other"))
    assert _REFUSED in done.stderr
    gateway.wait_for_log("session.refuse .*identity=alice .*service=other reason=service_not_granted")


def test_a_name_that_is_no_service_breaks_in_the_same_way(gateway, s_client):
    done = s_client(gateway, "alice", *by_name("cash"))
    assert _REFUSED in done.stderr
    assert done.returncode == 1
    gateway.wait_for_log(
        "session.refuse .*identity=alice .*reason=unknown_service message=.there is no service called cash.gw.localhost"
    )


@pytest.mark.parametrize("service", ["cache", "cash"])
def test_a_client_without_a_certificate_learns_only_that_it_needs_one(gateway, s_client, service):
    done = s_client(gateway, None, *by_name(service))
    assert "alert certificate required" in done.stderr
    assert done.returncode == 1
    gateway.wait_for_log("handshake.fail .*reason=certificate_missing")


def test_the_same_name_from_another_authority_is_refused(gateway, s_client, tmp_path):
    now = datetime.now(UTC)
    other = Authority.create(tmp_path / "other", trust_domain="gateway.test", at=now)
    certificate, key = other.issue_client("alice", at=now).write(tmp_path, "impostor")
    done = s_client(gateway, None, *by_name("cache"), "-cert", str(certificate), "-key", str(key))
    assert "alert unknown ca" in done.stderr
    assert done.returncode == 1
    gateway.wait_for_log("handshake.fail .*reason=certificate_untrusted")


@pytest.mark.parametrize("whole", [True, False], ids=["whole chain", "leaf alone"])
def test_below_an_intermediate_the_whole_chain_must_be_sent(start_gateway, redis, s_client, tmp_path, whole):
    authority = Authority.create(
        tmp_path / "ca", trust_domain="two.test", at=datetime.now(UTC), root_directory=tmp_path / "stick"
    )
    certificate, key = authority.issue_client("alice", at=datetime.now(UTC)).write(tmp_path, "alice")
    trust = f'ca = "{authority.directory / "ca.crt"}"\nidentity = "spiffe"\ntrust_domain = "two.test"'
    role = '[[roles]]\nname = "team"\nmembers = ["two:alice"]\nservices = ["cache"]'
    gateway = start_gateway({"cache": redis}, policy=role, configuration=f"[trusts.two]\n{trust}")
    chain = ("-cert_chain", str(certificate)) if whole else ()
    done = s_client(gateway, None, *by_name("cache"), "-cert", str(certificate), "-key", str(key), *chain)
    if whole:
        assert "+PONG" in done.stdout
    else:
        assert "tlsv1 alert unknown ca" in done.stderr
        gateway.wait_for_log(
            'handshake.fail .*reason=certificate_untrusted message=".*the client sent it without its intermediate" '
            'claimed_subject=spiffe://two.test/alice claimed_issuer="CN=portguard issuing CA '
        )


def test_a_client_that_trusts_another_authority_does_not_trust_the_gateway(gateway, s_client, tmp_path):
    other = Authority.create(tmp_path / "other", trust_domain="gateway.test", at=datetime.now(UTC))
    done = s_client(gateway, "alice", *by_name("cache"), "-CAfile", str(other.directory / "ca.crt"))
    assert "certificate verify failed" in done.stderr
    assert done.returncode == 1


def test_tls_1_2_is_not_spoken(gateway, s_client):
    done = s_client(gateway, "alice", *by_name("cache"), "-tls1_2")
    assert "alert protocol version" in done.stderr
    assert done.returncode == 1
    gateway.wait_for_log("handshake.fail .*reason=handshake_failed")


def test_no_session_ticket_is_handed_out(gateway, s_client):
    done = s_client(gateway, "alice", *by_name("cache"), "-msg")
    assert "EncryptedExtensions" in done.stdout
    assert "NewSessionTicket" not in done.stdout


@pytest.mark.parametrize("asked", ["cache.example.com", "CACHE.example.com", "cache.example.com."])
def test_an_alias_leads_to_the_service(gateway, s_client, asked):
    assert "+PONG" in s_client(gateway, "alice", "-servername", asked).stdout
    refused = s_client(gateway, "bob", "-servername", asked)
    assert "PONG" not in refused.stdout
    gateway.wait_for_log("session.refuse .*identity=bob .*service=cache reason=no_role")


def test_a_name_below_an_alias_is_none(gateway, s_client):
    done = s_client(gateway, "alice", "-servername", "new.cache.example.com")
    assert _REFUSED in done.stderr
    gateway.wait_for_log("session.refuse .*reason=unknown_service")


@pytest.mark.parametrize("name", [("-noservername",), by_name("other")], ids=["no-name", "another-name"])
def test_on_a_port_of_its_own_a_service_needs_no_name_and_heeds_none(gateway, s_client, name):
    done = s_client(gateway, "alice", *name, port=gateway.ports["cache"])
    assert "+PONG" in done.stdout
    assert done.returncode == 0
    gateway.wait_for_log("session.close .*service=cache .*reason=upstream_closed")


def test_a_port_of_its_own_refuses_whom_the_policy_does_not_let_in(gateway, s_client):
    done = s_client(gateway, "bob", "-noservername", port=gateway.ports["cache"])
    assert "PONG" not in done.stdout
    assert _REFUSED in done.stderr
    gateway.wait_for_log("session.refuse .*identity=bob .*service=cache reason=no_role")


def test_a_port_of_its_own_requires_a_certificate_too(gateway, s_client):
    done = s_client(gateway, None, "-noservername", port=gateway.ports["cache"])
    assert "alert certificate required" in done.stderr
    gateway.wait_for_log("handshake.fail .*reason=certificate_missing")


def test_the_service_s_own_protocol_is_selected(gateway, s_client):
    # Of what both take, the one that the service names first.
    chosen = s_client(gateway, "alice", *by_name("cache"), "-alpn", "h2,resp3,redis")
    assert "ALPN protocol: redis" in chosen.stdout
    assert "+PONG" in chosen.stdout
    on_its_port = s_client(gateway, "alice", "-noservername", "-alpn", "resp3", port=gateway.ports["cache"])
    assert "ALPN protocol: resp3" in on_its_port.stdout
    for service, offered in (("cache", "h2"), ("plain", "redis")):
        other = s_client(gateway, "alice", *by_name(service), "-alpn", offered)
        assert "No ALPN negotiated" in other.stdout
        assert "+PONG" in other.stdout


@pytest.mark.parametrize("name", ["CACHE.gw.LocalHost", "cache.gw.localhost.", "Cache.Example.COM."])
def test_a_service_s_name_has_no_case_and_no_final_dot(gateway, s_client, name):
    done = s_client(gateway, "alice", "-servername", name)
    assert "+PONG" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["gw.localhost", "GW.LocalHost", "gw.localhost."])
def test_the_gateway_s_own_name_speaks_http(gateway, s_client, name):
    done = s_client(gateway, "alice", "-servername", name, "-alpn", "h2,http/1.1")
    assert "ALPN protocol: http/1.1" in done.stdout
    assert "HTTP/1.1 400 Bad Request" in done.stdout
    assert "PONG" not in done.stdout
