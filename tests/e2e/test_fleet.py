"""Two gateways that share a ledger in a real Redis: what counts at both, who is locked out of both, and without it."""

import json
import os
import signal
import ssl
import subprocess
import sys

import pytest

from portguard.errors import ConfigurationError
from portguard.gateway.redis_diagnosis import diagnose_redis
from portguard.limits.redis import RedisStore
from portguard.limits.redis_link import RedisSettings
from portguard.observe.findings import Level
from tests.certificates import SERVER_AUTH, Authority, dns
from tests.counting import (
    Transfers,
    connect_answer,
    counting,
    get,
    metric,
    steady_zone,
    upload,
)
from tests.curl import curl
from tests.e2e.conftest import PORTGUARD
from tests.held import goes_on, held, is_cut, portguard
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

KB = 1000
QUOTA = 200 * KB


@pytest.fixture
def server(tmp_path, real_program):
    with RedisServer(real_program("redis-server"), tmp_path / "redis") as server:
        yield server


@pytest.fixture
def sink():
    with counting() as service:
        yield service


@pytest.fixture
def start_fleet(server, sink, echo, start_one_of_several):
    """`start_fleet(limits)` runs gateways a and b, which end before what they need; alice and bob have certificates."""

    def run(limits="", names="ab", **more):
        policy = f'timezone = "{steady_zone()}"\n[[roles]]\nname = "team"\nmembers = ["alice", "bob"]\n'
        policy += f'services = ["*"]\n{limits}\n'
        ledger = f'[ledger]\nurl = "{server.url}"\n'
        ledger += "".join(f'{key} = "{value}"\n' for key, value in more.items())
        services = {"sink": sink.address, "echo": echo}
        gateways = [start_one_of_several(name, services, policy=policy, configuration=ledger) for name in names]
        for gateway in gateways:
            for name in ("alice", "bob"):
                gateway.certificate(name)
        return gateways

    return run


def used(gateway, name="alice"):
    """What `quota show` says that somebody has used today."""
    lines = json.loads(portguard(gateway, "quota", "show", "--json"))["quotas"]
    return next((line["used"] for line in lines if line["name"] == name and line["period"] == "day"), 0)


def wait_for_use(gateway, size):
    gateway.program.wait_until(lambda: used(gateway) == size, f"{size} bytes of use")


def reason(gateway, name="alice", service="echo"):
    """Why a session is refused by CONNECT; None when it is let in."""
    try:
        status, _, document = connect_answer(gateway, service, name)
    except ssl.SSLError:
        return "let in, and cut"
    return None if status == 200 else document["reason"]


def wait_until_refused(gateway, why, name="alice"):
    gateway.program.wait_until(lambda: reason(gateway, name) == why, f"refusal with {why}")


# What somebody else writes there.


def test_what_others_write_into_redis_reaches_no_terminal_and_ends_no_gateway(start_fleet, server):
    (a,) = start_fleet('quota = ["200kB/day"]', names="a")
    with server.client() as client:
        [prefix] = {key.partition("}:")[0] + "}:" for key in client.keys("portguard:*")}
        for target, rest in (
            ('["identity","local","\\u001b]0;owned\\u0007"]', '1 1 ["\\u001b[2J","root\\u202e",7,null]'),
            ('["identity","local","alice"]', '1 1 ["","",7,null]'),
        ):
            client.hset(f"{prefix}locks", target, rest)
            client.xadd(f"{prefix}changes", {"by": "0", "what": "lock", "of": target, "is": rest})
        wait_until_refused(a, "locked")
        listed = portguard(a, "lock", "--list")
        assert "\\x1b]0;owned" in listed
        assert listed.replace("\n", "").isprintable()
        for name in ("\\ud800", "x" * 20_000):  # what no worker could be told
            target = f'["identity","local","{name}"]'
            client.hset(f"{prefix}locks", target, rest)
            client.xadd(f"{prefix}changes", {"by": "0", "what": "lock", "of": target, "is": rest})
            wait_until_refused(a, "ledger_unavailable", "bob")
            assert "locks as portguard writes them" in portguard(a, "status", code=1)
            client.hdel(f"{prefix}locks", target)
            client.delete(f"{prefix}changes")
            wait_until_refused(a, None, "bob")
    assert reason(a) == "locked"


# What counts at both.


def test_a_quota_is_one_for_all_gateways_and_is_used_up_to_its_last_byte(start_fleet, sink):
    a, b = start_fleet('quota = ["200kB/day"]')
    upload(a, QUOTA // 2)
    wait_for_use(b, QUOTA // 2)
    upload(b, QUOTA)
    assert sink.wait() == QUOTA
    wait_until_refused(a, "quota_exhausted")
    assert reason(b) == "quota_exhausted"
    assert reason(a, "bob") is None  # who has a quota of his own
    assert reason(b, "bob") is None


@pytest.mark.parametrize("limits", ['quota = ["3MB/day"]', 'pooled_quota = ["3MB/day"]'])
def test_transfers_at_once_through_both_never_pass_the_quota(start_fleet, sink, limits):
    a, b = start_fleet(limits)
    transfers = Transfers()
    for name in ("alice",) if limits.startswith("quota") else ("alice", "bob"):
        for gateway in (a, b):
            transfers.begin(2, upload, gateway, 3000 * KB, name)
    transfers.wait()
    assert 750 * KB < sink.wait() <= 3000 * KB
    # What one gateway still held when the other one ended can be used afterwards.
    for gateway in (a, b):
        gateway.program.wait_until(lambda gateway=gateway: used_by_all(gateway) == sink.received, "nothing held")
    upload(a, 3000 * KB)
    assert sink.wait() == 3000 * KB
    wait_until_refused(b, "quota_exhausted")


def used_by_all(gateway):
    return used(gateway, "alice") + used(gateway, "bob")


def test_a_connect_rate_is_one_for_all_gateways(start_fleet):
    a, b = start_fleet('connect_rate = "1/h"')
    assert wait_s(b) == 0
    assert reason(a) is None
    b.program.wait_until(lambda: wait_s(b) > 0, "a wait for what was connected elsewhere")
    assert reason(b) == reason(a) == "connect_rate"
    assert reason(b, "bob") is None


def wait_s(gateway):
    """How long alice would have to wait for her next connect, which is not counted by asking."""
    document = json.loads(curl(gateway, "alice", "https://gw.localhost:{port}/v1/services").stdout)
    return max(service["limits"]["connect_rate"]["retry_after_s"] for service in document["services"])


def test_sessions_are_bounded_over_all_gateways(start_fleet):
    a, b = start_fleet("max_sessions = 1")
    with held(a):
        wait_until_refused(b, "max_sessions")
        assert reason(b, "bob") is None
        document = json.loads(curl(b, "alice", "https://gw.localhost:{port}/v1/services").stdout)
        assert {service["limits"]["max_sessions"]["open"] for service in document["services"]} == {1}
    b.program.wait_until(lambda: reason(b) is None, "a session once the other one has ended")


def test_what_is_reset_and_granted_at_one_gateway_is_so_at_the_other(start_fleet, sink):
    a, b = start_fleet('quota = ["200kB/day"]')
    upload(a, QUOTA)
    wait_until_refused(b, "quota_exhausted")
    portguard(b, "quota", "grant", "alice", "50kB")
    wait_for_grant(a)
    upload(a, QUOTA)
    assert sink.wait() == QUOTA + 50 * KB
    wait_until_refused(b, "quota_exhausted")
    portguard(b, "quota", "reset", "alice")
    a.program.wait_until(lambda: used(a) == 0, "use that was reset")
    assert reason(a) is None


def wait_for_grant(gateway):
    def granted():
        lines = json.loads(portguard(gateway, "quota", "show", "alice", "--json"))["quotas"]
        return [(line["granted"], line["used"]) for line in lines if line["period"] == "day"] == [(50 * KB, QUOTA)]

    gateway.program.wait_until(granted, "a grant")


def test_what_was_used_counts_after_a_restart_and_a_reexec_too(start_fleet, start_again, sink):
    a, b = start_fleet('quota = ["200kB/day"]')
    upload(a, 50 * KB)
    wait_for_use(b, 50 * KB)
    portguard(a, "reexec")
    a.wait_for_log("gateway.take_over ")
    assert used(a) == 50 * KB
    upload(a, 50 * KB)
    wait_for_use(b, 100 * KB)
    a.program.stop(signal.SIGTERM)
    again = start_again(a)
    assert used(again) == 100 * KB
    upload(b, QUOTA)
    wait_until_refused(again, "quota_exhausted")
    assert sink.wait() == QUOTA


# Locks.


def test_a_lock_at_one_gateway_ends_sessions_at_the_other(start_fleet):
    a, b = start_fleet()
    with held(b) as client, held(b, "bob") as other:
        portguard(a, "lock", "alice", "--reason", "laptop stolen")
        assert is_cut(client)
        assert goes_on(other)
    b.wait_for_log("session.close .*identity=alice .*reason=locked")
    assert reason(b) == reason(a) == "locked"
    [lock] = json.loads(portguard(b, "lock", "--list", "--json"))["locks"]
    assert (lock["identity"], lock["reason"], lock["saved"]) == ("alice", "laptop stolen", True)
    portguard(b, "unlock", "alice")
    a.program.wait_until(lambda: reason(a) is None, "alice let in again")


def test_locks_hold_while_redis_is_away_and_over_a_restart(start_fleet, start_again, server):
    a, b = start_fleet()
    portguard(a, "lock", "alice", "--reason", "laptop stolen")
    wait_until_refused(b, "locked")
    server.stop()
    b.program.stop(signal.SIGTERM)
    again = start_again(b)
    assert reason(again) == reason(a) == "locked"
    assert reason(again, "bob") == "ledger_unavailable"
    said = portguard(again, "lock", "bob", "--reason", "he too", code=1)
    assert "bob: locked; in force at this gateway, and not yet in the ledger: unix://" in said
    server.start()
    a.program.wait_until(lambda: reason(a, "bob") == "locked", "the lock of bob")


# Without Redis.


def test_without_redis_sessions_are_refused_until_it_is_back(start_fleet, server, sink):
    a, b = start_fleet('quota = ["200kB/day"]')
    upload(a, 50 * KB)
    wait_for_use(b, 50 * KB)
    with held(b, "bob") as client:
        server.stop()
        for gateway in (a, b):
            wait_until_refused(gateway, "ledger_unavailable")
        assert goes_on(client)  # who has leased something goes on
        said = portguard(a, "status", code=1)
        assert said.startswith("REFUSING ALL since ")
        assert f"ledger_unavailable ({server.url}: " in said
        status, text = get(a, "/readyz")
        assert (status, text.startswith(f"not ready\nledger: {server.url}: ")) == (503, True)
        assert metric(a, "ledger_errors_total") > 0
        for words in (("reset",), ("grant", "5kB")):
            said = portguard(a, "quota", words[0], "alice", *words[1:], code=1)
            assert said.startswith(f"portguard: quota {words[0]}: expected a ledger that takes it, got {server.url}: ")
            assert said.endswith("; nothing was changed\n")
        server.start()
        for gateway in (a, b):
            gateway.program.wait_until(lambda gateway=gateway: reason(gateway) is None, "sessions again")
            gateway.wait_for_log("ledger.resume ")
    portguard(a, "status")
    wait_for_use(b, 50 * KB)
    upload(b, QUOTA)
    wait_until_refused(a, "quota_exhausted")


def test_with_allow_quotas_and_rates_are_lifted_without_redis_and_count_afterwards(start_fleet, server, sink):
    a, b = start_fleet('quota = ["200kB/day"]', when_unavailable="allow")
    upload(a, QUOTA)
    wait_until_refused(b, "quota_exhausted")
    server.stop()
    b.program.wait_until(lambda: reason(b) is None, "sessions in spite of the quota")
    said = portguard(b, "status", code=1)
    assert said.startswith("DEGRADED since ")
    upload(b, 100 * KB)
    assert sink.wait() == QUOTA + 100 * KB
    server.start()
    wait_until_refused(b, "quota_exhausted")
    a.program.wait_until(lambda: used(a) == QUOTA + 100 * KB, "all that was used")


def test_a_gateway_starts_without_redis_and_serves_once_it_is_there(start_fleet, start_again, server):
    [a] = start_fleet('quota = ["200kB/day"]', names="a")
    upload(a, 50 * KB)
    wait_for_use(a, 50 * KB)
    a.program.stop(signal.SIGTERM)
    server.stop()
    again = start_again(a)
    assert reason(again) == "ledger_unavailable"
    server.start()
    again.program.wait_until(lambda: reason(again) is None, "sessions")
    assert used(again) == 50 * KB


# What is not taken.


def serve(gateway, **environment):
    """Have a gateway that has ended start again; return its exit code and what it said."""
    command = [*PORTGUARD, "serve", "-c", str(gateway.folder / "portguard.toml")]
    env = os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=env)
    return done.returncode, done.stderr


def configure(gateway, before, after):
    path = gateway.folder / "portguard.toml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_a_wrong_password_keeps_a_gateway_from_starting_and_the_right_one_does_not(start_fleet, start_again, server):
    [a] = start_fleet(names="a")
    a.program.stop(signal.SIGTERM)
    with server.client() as client:
        client.config_set("requirepass", "s3cret-word")
    secret = a.folder / "redis.password"
    secret.write_text("wr0ng-word\n")
    secret.chmod(0o600)
    configure(a, "[ledger]\n", '[ledger]\npassword_file = "redis.password"\n')
    code, said = serve(a)
    assert code == 2
    assert f"{server.url}: expected a Redis that can be used, got one that does not take the user and password" in said
    assert "wr0ng-word" not in said
    assert "Traceback" not in said
    secret.write_text("s3cret-word\n")
    again = start_again(a)
    assert reason(again) is None
    assert "s3cret-word" not in again.log


def test_without_the_package_a_gateway_says_how_to_install_it(start_fleet, tmp_path):
    [a] = start_fleet(names="a")
    a.program.stop(signal.SIGTERM)
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text("import sys\nsys.modules['redis'] = None\n")
    code, said = serve(a, PYTHONPATH=str(hook))
    assert code == 2
    assert (
        "ledger.url: expected the package redis for such a ledger, as pip install 'portguard[fleet]' installs" in said
    )
    assert "Traceback" not in said
    configure(a, a_url(a), 'url = "sqlite"')
    command = [sys.executable, "-P", "-m", "portguard", "serve", "--check", "-c", str(a.folder / "portguard.toml")]
    env = os.environ | {"PYTHONPATH": str(hook)}
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S, env=env)


def a_url(gateway):
    lines = (gateway.folder / "portguard.toml").read_text().splitlines()
    return next(line for line in lines if line.startswith("url = "))


@pytest.fixture
def over_tls(tmp_path, real_program, free_port):
    """The URL of a Redis that only speaks TLS, as `localhost`, and the file with the authority of its certificate."""
    authority, port = Authority.root(), free_port()
    holder = authority.issue("redis", sans=[dns("localhost")], usages=[SERVER_AUTH])
    for name, content in (("ca", authority.pem), ("crt", holder.pem), ("key", holder.key_pem)):
        (tmp_path / f"redis.{name}").write_bytes(content)
    options = ["--tls-port", str(port), "--bind", "127.0.0.1", "--tls-auth-clients", "no"]
    options += ["--tls-cert-file", str(tmp_path / "redis.crt"), "--tls-key-file", str(tmp_path / "redis.key")]
    options += ["--tls-ca-cert-file", str(tmp_path / "redis.ca")]
    with RedisServer(real_program("redis-server"), tmp_path / "tls", *options):
        yield f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}/redis.ca"


def test_over_tls_a_redis_must_have_a_trusted_certificate_of_its_name(over_tls, tmp_path):
    store = RedisStore.open(RedisSettings(over_tls, "test"), str(tmp_path / "a"))
    assert store.trouble is None
    assert store.flush_and_close(PATIENCE_S)
    for wrong in (over_tls.replace("localhost", "127.0.0.1"), over_tls.partition("?")[0]):
        with pytest.raises(ConfigurationError, match=r"got a certificate that is not trusted \(") as error:
            RedisStore.open(RedisSettings(wrong, "test"), str(tmp_path / "a"))
        assert str(error.value).startswith(wrong.partition("?")[0] + ": ")
        [finding] = diagnose_redis(RedisSettings(wrong, "test"))
        assert finding.level is Level.FAILED
        assert "?ssl_ca_certs=" in finding.advice
    assert Level.FAILED not in {finding.level for finding in diagnose_redis(RedisSettings(over_tls, "test"))}


def test_another_url_needs_a_restart_and_says_so(start_fleet):
    [a] = start_fleet(names="a")
    configure(a, a_url(a), 'url = "redis://127.0.0.1:1/0"')
    answer = json.loads(portguard(a, "reload", "--json"))
    assert answer["needs_restart"] == ["ledger.url"]
    assert reason(a) is None
