"""Limits of roles and services by real clients: who is refused, in which words, and when there is room again."""

import contextlib
import re
import selectors
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from tests.audited import audited, wait_for_audit
from tests.counting import (
    MB,
    PATIENCE_S,
    Transfers,
    connect_answer,
    counting,
    download,
    get,
    metric,
    moved,
    steady_zone,
    upload,
)
from tests.curl import curl, curl_by_connect
from tests.e2e.conftest import PORTGUARD
from tests.profiles import write_profile
from tests.unharmed import echoes


@pytest.fixture
def start_limited(start_gateway, echo):
    """`start_limited(limits, services, **more)` runs a gateway that limits alice; bob is in a role without limits."""

    def run(limits, services=None, **more):
        policy = f"""
timezone = "{steady_zone()}"
[[roles]]
name = "team"
members = ["alice"]
services = ["*"]
{limits}
[[roles]]
name = "free"
members = ["bob"]
services = ["*"]
"""
        return start_gateway({"echo": echo, **(services or {})}, policy=policy, **more)

    return run


@contextlib.contextmanager
def session(gateway, name="alice", service="echo"):
    """A session that is open for as long as the block; the byte shows that it was let in."""
    with gateway.connect(service, name) as client:
        exchange(client)
        yield client
        client.unwrap()


def exchange(client, data=b"!"):
    client.sendall(data)
    received = b""
    while len(received) < len(data):
        received += client.recv(65536) or pytest.fail("expected an echo, got the end")
    assert received == data


# Sessions.


def test_one_session_too_many_is_refused_and_one_that_closes_makes_room(start_limited, real_program):
    real_program("curl")
    gateway = start_limited("max_sessions = 2")
    with session(gateway) as one, session(gateway):
        status, headers, document = connect_answer(gateway, "echo")
        assert (status, headers["Retry-After"], headers["Portguard-Reason"]) == (429, "5", "max_sessions")
        assert re.fullmatch("[0-9a-f]{32}", document.pop("session"))
        message = "role team allows 2 sessions at once, and as many are open"
        assert document == {"reason": "max_sessions", "message": message}
        answer = curl_by_connect(gateway, "alice", "http://echo/", "--include")
        assert (answer.returncode, "429" in answer.stdout) == (56, True)
        assert "Portguard-Reason: max_sessions" in answer.stdout
        assert curl(gateway, "alice", "https://echo.gw.localhost:{port}/").returncode in {52, 56}
        gateway.wait_for_log("session.refuse .*identity=alice .*service=echo reason=max_sessions", count=3)
        echoes(gateway, name="bob")
        exchange(one)
    wait_for_audit(gateway, "session.close", 3)  # the log has it before the supervisor knows
    echoes(gateway)
    assert metric(gateway, "sessions_refused_total", service="echo", reason="max_sessions") == 3


def test_a_service_that_is_full_takes_nobody_until_there_is_room(start_limited, echo):
    gateway = start_limited("", {"small": f'upstream = ["{echo}"]\nmax_sessions = 1'})
    with session(gateway, "alice", "small"):
        status, headers, document = connect_answer(gateway, "small", "bob")
        assert (status, headers["Retry-After"], document["reason"]) == (429, "5", "service_full")
        assert document["message"] == "service small allows 1 session at once, and as many are open"
        echoes(gateway, "echo", "bob")
    wait_for_audit(gateway, "session.close", 2)
    echoes(gateway, "small", "bob")


def test_a_service_that_cannot_be_reached_gives_the_place_back(start_limited, free_port):
    gateway = start_limited("max_sessions = 1", {"down": f"127.0.0.1:{free_port()}"})
    for count in (1, 2, 3):
        assert connect_answer(gateway, "down")[0] == 502
        wait_for_audit(gateway, "session.close", count)  # the client has its answer before the supervisor knows
    echoes(gateway)


# Connects.


def test_who_connects_too_often_is_told_when_to_come_back(start_limited):
    gateway = start_limited('connect_rate = "3/h"')
    for _ in range(3):
        echoes(gateway)
    status, headers, document = connect_answer(gateway, "echo")
    assert (status, document["reason"]) == (429, "connect_rate")
    assert document["message"] == "role team allows 3 connections an hour"
    assert 3400 < int(headers["Retry-After"]) <= 3660
    echoes(gateway, name="bob")


def test_connects_are_remembered_over_a_restart(start_limited, start_again):
    gateway = start_limited('connect_rate = "2/h"')
    for _ in range(2):
        echoes(gateway)
    assert gateway.program.stop() == 0
    assert connect_answer(start_again(gateway), "echo")[2]["reason"] == "connect_rate"


# Quotas.


@pytest.fixture
def exhausted(start_limited):
    """A gateway at which alice has used up what she has for the day."""
    with counting(3 * MB) as source:
        gateway = start_limited('quota = ["2MB/day"]', {"source": source.address})
        assert download(gateway) == 2 * MB
        wait_for_audit(gateway, "session.close")
        yield gateway


def zone_of(gateway):
    """That of its policy: by now another one may be the steady one."""
    return ZoneInfo(re.search('^timezone = "(.+)"$', (gateway.folder / "policy.toml").read_text(), re.MULTILINE)[1])


def test_a_quota_that_is_used_up_says_when_it_renews(exhausted, real_program):
    real_program("curl")
    zone = zone_of(exhausted)
    midnight = datetime.combine(datetime.now(zone).date() + timedelta(days=1), datetime.min.time(), zone)
    status, headers, document = connect_answer(exhausted, "echo")
    left_s = (midnight - datetime.now(UTC)).total_seconds()
    assert (status, headers["Content-Type"], headers["Portguard-Reason"]) == (
        429,
        "application/json",
        "quota_exhausted",
    )
    assert left_s <= int(headers["Retry-After"]) < left_s + PATIENCE_S
    assert document == {
        "reason": "quota_exhausted",
        "message": f"daily quota of 2 MB is used up; it renews at 00:00 {zone}",
        "session": headers["Portguard-Session"],
    }
    answer = curl_by_connect(exhausted, "alice", "http://echo/", "--include")
    assert re.search(r"^HTTP/1.1 429 .*^Retry-After: \d+\s*$", answer.stdout, re.MULTILINE | re.DOTALL)
    echoes(exhausted, name="bob")


def test_the_client_helper_says_it_in_words_and_exits_3(exhausted, tmp_path):
    profile = write_profile(exhausted, "alice", tmp_path)
    done = subprocess.run(
        [*PORTGUARD, "connect", "echo", "--stdio", "--profile", profile],
        input="", capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    sentence = f"daily quota of 2 MB is used up; it renews at 00:00 {zone_of(exhausted)}"
    assert done.returncode == 3
    assert re.fullmatch(
        rf"portguard: echo: quota_exhausted: {sentence} \(session [0-9a-f]{{32}}, try again in \d+ (h|min)\)\n",
        done.stderr,
    )


def test_at_four_fifths_of_a_quota_log_audit_and_metrics_warn_once(start_limited):
    with counting() as sink:
        gateway = start_limited('quota = ["10MB/day"]\npooled_quota = ["100MB/day"]', {"sink": sink.address})
        upload(gateway, 7_900_000)
        wait_for_audit(gateway, "session.close")
        quota = {"role": "team", "period": "day"}
        assert metric(gateway, "quota_used_bytes", identity="alice", **quota) == 7_900_000
        assert metric(gateway, "quota_limit_bytes", **quota) == 10 * MB
        assert metric(gateway, "pooled_quota_used_bytes", **quota) == 7_900_000
        assert metric(gateway, "pooled_quota_limit_bytes", **quota) == 100 * MB
        assert metric(gateway, "quota_warnings_total") == 0
        upload(gateway, 100_000)
        gateway.wait_for_log("quota.warning identity=alice role=team quota=10MB/day used=8000000")
        upload(gateway, 1 * MB)
        gateway.wait_for_log("session.close ", count=3)
        assert gateway.program.stop() == 0
    assert gateway.log.count("quota.warning") == 1
    [line] = audited(gateway, "quota.warning")
    assert (line["identity"], line["role"], line["quota"], line["used"]) == ("alice", "team", "10MB/day", 8_000_000)


# Bandwidth.

RATE = MB
MOST_AT_ONCE = RATE // 10 + 64 * 1024


class Arrivals:
    """Bytes as they come from several sockets, and the moments at which there was nothing more to receive."""

    def __init__(self):
        self.total = 0
        self.dry = [(time.monotonic(), 0)]  # and how much had come by then
        self.seen = []

    def follow(self, sockets):
        """Receive until the end of all."""
        with selectors.DefaultSelector() as selector:
            for sock in sockets:
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ)
            while selector.get_map():
                now_s, before = time.monotonic(), self.total
                for key in list(selector.get_map().values()):
                    self._receive(key.fileobj, selector)
                if self.total == before:
                    self.dry.append((now_s, before))
                    assert not selector.get_map() or selector.select(PATIENCE_S)
                else:
                    self.seen.append((time.monotonic(), self.total))

    def _receive(self, sock, selector):
        try:
            data = sock.recv(1 << 20)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        self.total += len(data)
        if not data:
            selector.unregister(sock)

    def check(self):
        """What has come since any moment at which all had come is what the bandwidth allows, and a little."""
        assert len(self.seen) > 10
        for since_s, before in self.dry:
            for until_s, total in self.seen:
                if until_s > since_s:
                    assert total - before <= RATE * (until_s - since_s) + MOST_AT_ONCE


def test_a_bandwidth_is_shared_by_two_downloads_on_two_workers_and_never_exceeded(start_limited):
    arrivals = Arrivals()
    with counting(750_000) as source:
        gateway = start_limited('bandwidth = "1MB/s"', {"source": source.address})
        with gateway.connect("source") as one, gateway.connect("source") as two:
            arrivals.follow([one, two])
    assert arrivals.total == 1_500_000
    arrivals.check()


def test_a_bandwidth_is_shared_by_two_uploads_on_two_workers_and_never_exceeded(start_limited):
    arrivals = Arrivals()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        gateway = start_limited('bandwidth = "1MB/s"', {"sink": f"127.0.0.1:{listening.getsockname()[1]}"})
        gateway.certificate("alice")
        threads = [threading.Thread(target=upload, args=[gateway, 750_000]) for _ in range(2)]
        for thread in threads:
            thread.start()
        listening.settimeout(PATIENCE_S)
        sockets = [listening.accept()[0] for _ in threads]
        arrivals.follow(sockets)
        for sock in sockets:
            sock.close()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert arrivals.total == 1_500_000
    arrivals.check()


# The ledger.


@contextlib.contextmanager
def locked(gateway):
    """Another process has the ledger for itself."""
    with contextlib.closing(sqlite3.connect(ledger_of(gateway), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def ledger_of(gateway):
    return gateway.folder / "state" / "ledger.db"


def wait_until_ready(gateway):
    gateway.program.wait_until(lambda: get(gateway, "/readyz") == (200, "ready\n"), "it was ready again")


def wait_until_red(gateway, cause):
    """Have something written, and wait until /readyz tells that it could not be."""
    echoes(gateway, name="bob")
    expected = 503, f"not ready\nledger: {cause}\n"
    gateway.program.wait_until(lambda: get(gateway, "/readyz") == expected, f"/readyz was {expected}")


def test_a_ledger_that_is_locked_keeps_new_sessions_out_until_it_is_not(start_limited):
    gateway = start_limited('quota = ["1GB/day"]')
    with session(gateway, "bob") as live:
        with locked(gateway):
            wait_until_red(gateway, "a file that another process has locked")
            status, _, document = connect_answer(gateway, "echo")
            assert (status, document["reason"]) == (503, "ledger_unavailable")
            assert connect_answer(gateway, "echo", "bob")[0] == 503
            exchange(live, bytes(100_000))
            assert metric(gateway, "ledger_errors_total") > 0
            assert get(gateway, "/healthz") == (200, "ok\n")
        wait_until_ready(gateway)
        gateway.wait_for_log("ledger.resume ")
        echoes(gateway)
        echoes(gateway, name="bob")
        exchange(live)


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(folder)` puts a disk of 2 MB there."""
    mounted = []

    def mount(folder):
        command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=PATIENCE_S)


def fill(path):
    """Write until there is no room."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_ledger_on_a_full_disk_keeps_new_sessions_out_until_there_is_room(
    start_limited, start_again, small_disk, tmp_path
):
    gateway = start_limited("", configuration=f'[audit]\npath = "{tmp_path}/audit/audit.jsonl"\n')
    assert gateway.program.stop() == 0
    small_disk(gateway.folder / "state")
    gateway = start_again(gateway)
    filler = gateway.folder / "state" / "filler"
    with session(gateway, "bob") as live:
        fill(filler)
        wait_until_red(gateway, "a full disk")
        assert connect_answer(gateway, "echo")[2]["reason"] == "ledger_unavailable"
        exchange(live)
        filler.unlink()
        wait_until_ready(gateway)
        echoes(gateway)
    assert gateway.program.stop() == 0
    with contextlib.closing(sqlite3.connect(ledger_of(gateway))) as ledger:
        used = dict(ledger.execute("SELECT name, used_bytes FROM usage WHERE period = 'day'").fetchall())
    assert used == {"alice": 2000, "bob": 2004}


def test_a_transfer_that_waits_for_the_ledger_goes_on_where_it_was(start_limited):
    with counting(12 * MB) as source:
        gateway = start_limited('quota = ["1GB/day"]\nbandwidth = "6MB/s"', {"source": source.address})
        transfers = Transfers()
        transfers.begin(1, download, gateway)
        gateway.program.wait_until(lambda: moved(gateway) > 100_000, "it had begun")
        with locked(gateway):
            gateway.wait_for_log("ledger.unavailable ")
        assert transfers.wait() == 12 * MB
        gateway.wait_for_log("session.close .*reason=upstream_closed")


def test_with_allow_a_ledger_that_is_locked_lifts_quotas_and_rates_for_as_long_as_it_is(start_limited):
    with counting(3 * MB) as source:
        gateway = start_limited(
            'quota = ["1MB/day"]\nconnect_rate = "1/h"',
            {"source": source.address},
            configuration='[ledger]\nwhen_unavailable = "allow"\n',
        )
        assert download(gateway) == 1 * MB
        wait_for_audit(gateway, "session.close")
        assert connect_answer(gateway, "echo")[2]["reason"] == "quota_exhausted"
        with locked(gateway):
            echoes(gateway, name="bob")
            gateway.program.wait_until(lambda: connect_answer(gateway, "echo")[0] == 200, "alice was let in")
            assert download(gateway) == 3 * MB
            assert get(gateway, "/readyz") == (200, "ready\n")
        gateway.wait_for_log("ledger.resume ")
        wait_for_audit(gateway, "session.close", 4)
        assert connect_answer(gateway, "echo")[2]["reason"] == "quota_exhausted"


def test_a_ledger_whose_file_is_gone_keeps_new_sessions_out_until_it_is_back(start_limited):
    gateway = start_limited("")
    elsewhere = ledger_of(gateway).rename(gateway.folder / "elsewhere.db")
    echoes(gateway, name="bob")
    gateway.program.wait_until(lambda: "\nledger: " in get(gateway, "/readyz")[1], "/readyz told of the ledger")
    assert connect_answer(gateway, "echo")[2]["reason"] == "ledger_unavailable"
    elsewhere.rename(ledger_of(gateway))
    wait_until_ready(gateway)
    echoes(gateway)


def test_a_damaged_ledger_keeps_the_gateway_from_starting_and_it_says_why(start_limited):
    gateway = start_limited("")
    assert gateway.program.stop() == 0
    ledger_of(gateway).write_bytes(b"not a ledger at all, " * 1000)
    done = subprocess.run(
        [*PORTGUARD, "serve", "-c", str(gateway.folder / "portguard.toml")],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"portguard: {ledger_of(gateway)}: expected a ledger that can be read and written (gateway.state), "
        "got a file that is no database\n"
    )
