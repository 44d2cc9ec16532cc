"""The ways from the gateway to a service: over which sockets, to which of several addresses, with or without TLS.

Services are nginx servers, each of which answers with its own name. They are asked through CONNECT, where a refusal
has a status and a reason.
"""

import json
import re
import socket

import pytest

from tests.certificates import SERVER_AUTH, Authority, dns
from tests.curl import curl, curl_by_connect
from tests.nginx import start_nginx

# Of a service, its TLS handshake included. Long enough for nginx on a busy machine.
_CONNECT = "2s"


def _has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


HAS_IPV6 = _has_ipv6()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("upstreams")


def write(path, content):
    """Write a file that only its owner may read; return its path as text."""
    path.touch(mode=0o600)
    path.write_bytes(content)
    return str(path)


class Certificates:
    """Paths: of the authority of services, of the one that issues what they want to see, and of holders of both."""

    def __init__(self, folder):
        internal, callers = Authority.root("Internal Root"), Authority.root("Callers Root")
        names = [dns("db.internal"), dns("localhost")]
        server = internal.issue("db", sans=names, usages=[SERVER_AUTH])
        caller, stranger = callers.issue("gateway"), internal.issue("gateway")
        self.ca = write(folder / "internal-ca.crt", internal.pem)
        self.other_ca = write(folder / "other-ca.crt", Authority.root().pem)
        self.callers_ca = write(folder / "callers-ca.crt", callers.pem)
        self.server = write(folder / "server.crt", server.pem), write(folder / "server.key", server.key_pem)
        self.caller = write(folder / "caller.crt", caller.pem), write(folder / "caller.key", caller.key_pem)
        self.stranger = write(folder / "stranger.crt", stranger.pem), write(folder / "stranger.key", stranger.key_pem)


@pytest.fixture(scope="module")
def certificates(folder):
    return Certificates(folder)


@pytest.fixture(scope="module")
def ports(start_for_module, free_port, real_program, folder, certificates):
    """Ports of nginx servers: `one` and `two` on IPv4, `six` on IPv6, `tls`, and `mutual` that wants a certificate."""
    ports = {name: free_port() for name in ("one", "two", "six", "tls", "mutual")}
    listen = {name: f"listen 127.0.0.1:{port};" for name, port in ports.items()}
    listen["unix"] = f"listen unix:{folder}/nginx.sock;"
    listen["six"] = f"listen [::1]:{ports['six']} ipv6only=on;"
    if not HAS_IPV6:
        del listen["six"]
    certificate, key = certificates.server
    tls = f"""
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {certificate};
    ssl_certificate_key {key};"""
    listen["tls"] = f"listen 127.0.0.1:{ports['tls']} ssl; {tls}"
    listen["mutual"] = f"""listen 127.0.0.1:{ports["mutual"]} ssl; {tls}
    ssl_verify_client on;
    ssl_client_certificate {certificates.callers_ca};"""
    says = {name: f"{name}\\n" for name in listen}
    says["tls"] = says["mutual"] = "$ssl_protocol $ssl_server_name $ssl_client_s_dn\\n"
    servers = [f'server {{ {listen[name]} location / {{ return 200 "{says[name]}"; }} }}' for name in listen]
    nginx = start_nginx(start_for_module, real_program("nginx"), folder / "nginx", "\n".join(servers))
    nginx.wait_until_it_listens(("127.0.0.1", ports["mutual"]))
    return ports


@pytest.fixture(scope="module")
def s_server(start_for_module, free_port, real_program, certificates):
    """The port of an `openssl s_server` with TLS 1.2, where a certificate that is missing ends the handshake."""
    port = free_port()
    certificate, key = certificates.server
    command = [real_program("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-www", "-tls1_2"]
    command += ["-cert", certificate, "-key", key, "-CAfile", certificates.callers_ca, "-Verify", "1"]
    program = start_for_module([*command, "-verify_return_error"])
    program.wait_until_it_listens(("127.0.0.1", port))
    return port


@pytest.fixture(scope="module")
def silent():
    """Two addresses that answer nothing: where packets vanish, and where a connection is taken and left alone."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_connection(full.getsockname()),  # the one that fits in: Linux drops the SYN of any other
        socket.create_server(("127.0.0.1", 0)) as idle,
    ):
        yield f"127.0.0.1:{full.getsockname()[1]}", f"127.0.0.1:{idle.getsockname()[1]}"


@pytest.fixture(scope="module")
def watched():
    """The listening socket of a service that answers nobody; accept() tells whether somebody has called."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, free_port, folder, ports, s_server, silent, watched, certificates):
    one, two, tls, mutual = (f"127.0.0.1:{ports[name]}" for name in ("one", "two", "tls", "mutual"))
    # Of their own, since an address that failed is tried last for a while, whatever service it belongs to.
    dead, dead_first, dead_too = (f"127.0.0.1:{free_port()}" for _ in range(3))
    full, idle = silent

    def over_tls(address, ca, server_name="db.internal", client=None):
        keys = [f'ca = "{ca}"']
        keys += [f'server_name = "{server_name}"'] if server_name else []
        keys += [f'certificate = "{client[0]}", key = "{client[1]}"'] if client else []
        return f'upstream = ["{address}"]\ntls = {{ {", ".join(keys)} }}'

    services = {
        "watched": f"127.0.0.1:{watched.getsockname()[1]}",
        "unix": f"unix:{folder}/nginx.sock",
        "unix-gone": f"unix:{folder}/gone.sock",
        "ipv6": f"[::1]:{ports['six']}",
        "name": f"localhost:{ports['one']}",
        "name-unknown": "nowhere.invalid:80",
        "in-order": f'upstream = ["{one}", "{two}"]',
        "in-turn": f'upstream = ["{one}", "{two}"]\nbalance = "round-robin"',
        "first-dead": f'upstream = ["{dead_first}", "{two}"]',
        "first-full": f'upstream = ["{full}", "{two}"]',
        "first-unknown": f'upstream = ["elsewhere.invalid:80", "{two}"]',
        "all-dead": f'upstream = ["{dead_too}", "unix:{folder}/gone-too.sock"]',
        "dead": dead,
        "full": full,
        "tls": over_tls(tls, certificates.ca),
        "tls-by-host": over_tls(f"localhost:{ports['tls']}", certificates.ca, None),
        "tls-by-address": over_tls(tls, certificates.ca, None),
        "tls-other-ca": over_tls(tls, certificates.other_ca),
        "tls-other-name": over_tls(tls, certificates.ca, "db.example"),
        "tls-to-plain": over_tls(one, certificates.ca),
        "first-at-tls": over_tls(f'{one}", "{tls}', certificates.ca),
        "tls-silent": over_tls(idle, certificates.ca),
        "plain-to-tls": tls,
        "mutual": over_tls(mutual, certificates.ca, client=certificates.caller),
        "mutual-none": over_tls(mutual, certificates.ca),
        "mutual-stranger": over_tls(mutual, certificates.ca, client=certificates.stranger),
        "mutual-1-2": over_tls(f"127.0.0.1:{s_server}", certificates.ca, client=certificates.caller),
        "mutual-1-2-none": over_tls(f"127.0.0.1:{s_server}", certificates.ca),
        "mutual-1-2-stranger": over_tls(f"127.0.0.1:{s_server}", certificates.ca, client=certificates.stranger),
    }
    return start_gateway_for_module(services, configuration=f'[timeouts]\nconnect = "{_CONNECT}"')


@pytest.fixture
def gateway(shared, real_program):
    real_program("curl")
    return shared.from_now()


def ask(gateway, service, name="alice"):
    """What the service says to GET /."""
    answer = curl_by_connect(gateway, name, f"http://{service}/")
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def refused(gateway, service, name="alice"):
    """Status and reason of a refused CONNECT; no byte of the service came with it."""
    answer = curl_by_connect(gateway, name, f"http://{service}/", "--include")
    assert "CONNECT tunnel failed" in answer.stderr
    [status] = re.findall(r"^HTTP/1.1 (\d{3}) ", answer.stdout)
    [reason] = re.findall(r"^Portguard-Reason: (\w+)$", answer.stdout, re.MULTILINE)
    return int(status), reason


# Over which sockets.


def test_a_service_at_a_unix_socket(gateway, folder):
    assert ask(gateway, "unix") == "unix\n"
    assert refused(gateway, "unix", "bob") == (403, "no_role")
    gateway.wait_for_log(f"session.open .*service=unix .*upstream=unix:{folder}/nginx.sock")


def test_no_upstream_is_dialled_for_a_client_that_is_refused(gateway, watched):
    assert refused(gateway, "watched", "bob") == (403, "no_role")
    with pytest.raises(BlockingIOError):
        watched.accept()
    with gateway.connect("watched"):
        gateway.wait_for_log("session.open .*identity=alice .*service=watched ")
        watched.accept()[0].close()


def test_a_unix_socket_that_is_not_there_is_unreachable(gateway):
    assert refused(gateway, "unix-gone") == (502, "upstream_unreachable")
    gateway.wait_for_log(r'service=unix-gone reason=upstream_unreachable message="unix:\S+: No such file or directory"')


@pytest.mark.skipif(not HAS_IPV6, reason="IPv6: expected an address ::1 to listen on, found none")
def test_a_service_at_an_ipv6_address(gateway, ports):
    assert ask(gateway, "ipv6") == "six\n"
    gateway.wait_for_log(rf"session.open .*service=ipv6 .*upstream=\S*\[::1\]:{ports['six']}")


def test_a_service_by_host_name(gateway, ports):
    # Where localhost is ::1 too, nothing listens there: the next address is tried.
    assert ask(gateway, "name") == "one\n"
    gateway.wait_for_log(f"session.open .*service=name .*upstream=localhost:{ports['one']}")


def test_a_host_name_that_nobody_knows_is_unresolved(gateway):
    assert refused(gateway, "name-unknown") == (502, "upstream_unresolved")


# To which of several addresses.


def test_the_first_address_is_preferred(gateway):
    assert {ask(gateway, "in-order") for _ in range(4)} == {"one\n"}


def test_addresses_take_turns(gateway):
    # Each of the two workers has turns of its own: of three sessions, one worker has two.
    assert {ask(gateway, "in-turn") for _ in range(3)} == {"one\n", "two\n"}


@pytest.mark.parametrize("service", ["first-dead", "first-full", "first-unknown"])
def test_the_second_address_stands_in_for_a_first_that_fails(gateway, ports, service):
    assert ask(gateway, service) == "two\n"
    gateway.wait_for_log(f"session.open .*service={service} .*upstream=127.0.0.1:{ports['two']}")


def test_when_every_address_fails_the_log_has_each(gateway):
    assert refused(gateway, "all-dead") == (502, "upstream_unreachable")
    attempts = r"127.0.0.1:\d+: Connection refused; unix:\S+: No such file or directory"
    gateway.wait_for_log(f"session.refuse .*service=all-dead .*{attempts}")


def test_a_closed_port_is_unreachable(gateway):
    assert refused(gateway, "dead") == (502, "upstream_unreachable")


def test_an_address_where_packets_vanish_is_given_up_in_time(gateway):
    assert refused(gateway, "full") == (504, "upstream_timeout")
    gateway.wait_for_log("session.refuse .*service=full reason=upstream_timeout")


# With TLS.


def test_a_service_that_wants_tls_gets_it_with_its_name(gateway):
    assert ask(gateway, "tls").split() == ["TLSv1.3", "db.internal"]
    assert ask(gateway, "tls-by-host").split() == ["TLSv1.3", "localhost"]


def test_tls_is_spoken_only_where_the_policy_says_so(gateway):
    assert "plain HTTP request was sent to HTTPS port" in ask(gateway, "plain-to-tls")


@pytest.mark.parametrize(
    ("service", "message"),
    [
        ("tls-other-ca", "unable to get local issuer certificate"),
        ("tls-other-name", "Hostname mismatch"),
        ("tls-by-address", "IP address mismatch"),
        ("tls-to-plain", "wrong version number"),
    ],
)
def test_a_service_that_cannot_show_who_it_is_gets_no_session(gateway, service, message):
    assert refused(gateway, service) == (502, "upstream_tls")
    upstream = r"(?:127\.0\.0\.1|localhost):\d+"
    gateway.wait_for_log(f'session.refuse .*service={service} reason=upstream_tls message="{upstream}: {message}')
    assert "session.open" not in gateway.log


def test_the_second_address_stands_in_for_a_first_that_cannot_show_who_it_is(gateway, ports):
    assert ask(gateway, "first-at-tls").split() == ["TLSv1.3", "db.internal"]
    gateway.wait_for_log(f"session.open .*service=first-at-tls .*upstream=127.0.0.1:{ports['tls']}")


def test_what_is_wrong_with_a_service_stays_in_the_log(gateway):
    as_request = ["--request", "CONNECT", "--request-target", "tls-other-name"]
    answer = curl(gateway, "alice", "https://gw.localhost:{port}/", *as_request)
    assert json.loads(answer.stdout)["message"] == "TLS with the service failed"
    gateway.wait_for_log("service=tls-other-name reason=upstream_tls .*not valid for 'db.example'")


def test_a_service_that_is_silent_in_the_handshake_is_given_up_in_time(gateway):
    assert refused(gateway, "tls-silent") == (504, "upstream_timeout")


def test_a_service_that_wants_a_certificate_gets_the_gateway_s(gateway):
    assert ask(gateway, "mutual").split() == ["TLSv1.3", "db.internal", "CN=gateway"]
    assert "TLSv1.2" in ask(gateway, "mutual-1-2")


@pytest.mark.parametrize("certificate", ["none", "stranger"])
def test_a_service_that_wants_another_certificate_refuses_the_gateway(gateway, certificate):
    assert "400 Bad Request" in ask(gateway, f"mutual-{certificate}")  # that is how nginx puts it
    # With TLS 1.2 it shows in the handshake, and the client is told before a byte flows.
    assert refused(gateway, f"mutual-1-2-{certificate}") == (502, "upstream_tls")
    gateway.wait_for_log(f"session.refuse .*service=mutual-1-2-{certificate} reason=upstream_tls")
