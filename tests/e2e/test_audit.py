"""What a real gateway records, and that its log verifies whatever happened to it."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.conftest import PORTGUARD
from tests.patience import PATIENCE_S
from tests.profiles import write_profile


@pytest.fixture
def echo(start, tmp_path):
    """The address of a service that sends back what it gets."""
    script = (
        "import socketserver\n"
        "class Echo(socketserver.BaseRequestHandler):\n"
        "    def handle(self):\n"
        "        while data := self.request.recv(65536): self.request.sendall(data)\n"
        "server = socketserver.ThreadingTCPServer(('127.0.0.1', 0), Echo)\n"
        "print('port', server.server_address[1], flush=True)\n"
        "server.serve_forever()\n"
    )
    program = start([sys.executable, "-c", script])
    program.wait_until_it_says("\n")
    return f"127.0.0.1:{program.said.split()[1]}"


def log_path(gateway):
    return gateway.folder / "state" / "audit" / "audit.jsonl"


def recorded(gateway, event=None):
    records = []
    for line in log_path(gateway).read_bytes().splitlines():
        with contextlib.suppress(ValueError):  # what a crash left
            records.append(json.loads(line))
    return [record for record in records if event in {None, record["event"]}]


def wait_for(gateway, event, count=1):
    gateway.program.wait_until(lambda: len(recorded(gateway, event)) >= count, f"{count} of {event}")
    return recorded(gateway, event)


def verify(gateway):
    command = [*PORTGUARD, "audit", "verify", "--json", "-c", str(gateway.folder / "portguard.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    return report


def again(gateway, start):
    """The same gateway started once more."""
    program = start([*PORTGUARD, "serve", "-c", str(gateway.folder / "portguard.toml")])
    program.wait_until_it_says("gateway.ready")
    port = int(re.findall(r"gateway\.listen address=\S+:(\d+)", program.said)[0])
    return replace(gateway, program=program, port=port)


def exchange(client, data=b"hello"):
    client.sendall(data)
    received = b""
    while len(received) < len(data):
        received += client.recv(65536)
    assert received == data


def test_a_session_has_a_line_at_its_beginning_and_one_at_its_end(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    with gateway.connect("echo") as client:
        exchange(client)
        (opened,) = recorded(gateway, "session.open")
        client.unwrap()
    (closed,) = wait_for(gateway, "session.close")
    common = {"trust": "local", "identity": "alice", "source": "127.0.0.1", "service": "echo", "role": "team"}
    assert {key: opened[key] for key in common} == common
    assert {key: closed[key] for key in common} == common
    assert opened["session"] == closed["session"]
    der = ssl.PEM_cert_to_DER_cert(
        gateway.certificate("alice")[0].read_text().split("-----END")[0] + "-----END CERTIFICATE-----"
    )
    fingerprint = hashlib.sha256(der).hexdigest()
    assert (opened["fingerprint"], opened["groups"]) == (fingerprint, [])
    assert (closed["received"], closed["sent"], closed["reason"]) == (5, 5, "client_closed")
    assert closed["upstream"] == echo
    assert 0 < closed["duration"] < 60
    started, loaded = recorded(gateway)[:2]
    assert (started["event"], started["clean"], loaded["event"], loaded["kept"]) == (
        "gateway.start",
        True,
        "policy.load",
        True,
    )
    kept = gateway.folder / "state" / "policies" / loaded["policy"]
    assert opened["policy"] == loaded["policy"]
    assert [path.name for path in kept.iterdir()] == ["policy.toml"]
    assert (kept / "policy.toml").read_bytes() == (gateway.folder / "policy.toml").read_bytes()
    assert gateway.program.stop() == 0
    assert [record["event"] for record in recorded(gateway)][-2:] == ["gateway.stop", "audit.checkpoint"]
    report = verify(gateway)
    assert (report["ok"], report["sealed"]) == (True, report["last"])


def test_a_refusal_is_recorded_with_who_and_why_and_opens_nothing(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    with gateway.connect("echo", "bob") as client, pytest.raises(ssl.SSLError):
        client.recv(100)
    (refused,) = wait_for(gateway, "session.refuse")
    assert (refused["identity"], refused["service"], refused["reason"]) == ("bob", "echo", "no_role")
    with contextlib.suppress(OSError), gateway.connect("echo", None) as client:
        client.recv(100)
    (failed,) = wait_for(gateway, "handshake.fail")
    assert (failed["reason"], failed["source"], "identity" in failed) == ("certificate_missing", "127.0.0.1", False)
    assert recorded(gateway, "session.open") == []


def test_a_service_that_cannot_be_reached_leaves_both_lines(start_gateway, free_port):
    gateway = start_gateway({"down": f"127.0.0.1:{free_port()}"})
    with contextlib.suppress(OSError), gateway.connect("down") as client:
        client.recv(100)
    (closed,) = wait_for(gateway, "session.close")
    assert (closed["reason"], closed["received"], closed["sent"]) == ("upstream_unreachable", 0, 0)
    assert len(recorded(gateway, "session.open")) == 1
    assert recorded(gateway, "session.refuse") == []


def test_strangers_cannot_fill_the_disk(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            sock.recv(100)
    gateway.program.stop()
    lines = [record for record in recorded(gateway) if record["event"].startswith("handshake.fail")]
    assert len(lines) < 40
    assert (
        sum(1 for line in lines if line["event"] == "handshake.fail") + sum(line.get("held_back", 0) for line in lines)
        == 60
    )


def test_the_sessions_of_a_killed_worker_are_closed_with_what_they_moved(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    with gateway.connect("echo") as client:
        exchange(client, b"x" * 1000)
        exchange(client, b"y")  # by now the worker has surely counted what came before
        leader = gateway.program.process.pid
        children = Path(f"/proc/{leader}/task/{leader}/children").read_text()
        for pid in children.split():
            os.kill(int(pid), signal.SIGKILL)
        (closed,) = wait_for(gateway, "session.close")
        assert (closed["reason"], closed["upstream"]) == ("worker_lost", echo)
        assert {closed["received"], closed["sent"]} <= {1000, 1001}
    assert {record["status"] for record in wait_for(gateway, "worker.exit", 2)} == {-9}
    gateway.program.stop()
    assert verify(gateway)["ok"]


def test_a_gateway_that_was_killed_takes_up_its_log(start_gateway, echo, start):
    gateway = start_gateway({"echo": echo})
    with gateway.connect("echo") as client:
        exchange(client)
        gateway.program.stop(signal.SIGKILL)
    assert verify(gateway)["ok"], "before it starts again"
    with log_path(gateway).open("ab") as file:
        file.write(b'{"seq":99,"time":"2026-')
    gateway = again(gateway, start)
    with gateway.connect("echo") as client:
        exchange(client)
    gateway.program.stop()
    starts = recorded(gateway, "gateway.start")
    assert [record["clean"] for record in starts] == [True, False]
    assert recorded(gateway, "audit.recover")[0]["torn_bytes"] == 23
    report = verify(gateway)
    assert (report["ok"], report["first"], report["sealed"]) == (True, 1, report["last"])
    spoiled = log_path(gateway).read_bytes().replace(b'"identity":"alice"', b'"identity":"mally"', 1)
    log_path(gateway).write_bytes(spoiled)
    (finding,) = verify(gateway)["findings"]
    assert b"mally" in spoiled.splitlines()[finding["line"] - 1]


def test_a_second_gateway_on_the_same_state_does_not_start(start_gateway, echo, start):
    gateway = start_gateway({"echo": echo})
    done = subprocess.run(
        [*PORTGUARD, "serve", "-c", str(gateway.folder / "portguard.toml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no other gateway that uses it (gateway.state), got one that does" in done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few pages; only root can mount one."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system: expected root, got another user")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


def readiness(gateway) -> str:
    """What /readyz says."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{gateway.metrics_port}/readyz", timeout=PATIENCE_S) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


def status(gateway):
    """Exit code and verdict of `portguard status`."""
    command = [*PORTGUARD, "status", "-c", str(gateway.folder / "portguard.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    return done.returncode, done.stdout.partition("\n")[0]


def connects(gateway) -> bool:
    try:
        with gateway.connect("echo") as client:
            exchange(client)
            client.unwrap()
    except OSError:
        return False
    return True


def connect_beside_true(gateway):
    """Run `portguard connect echo -- true`."""
    profile = write_profile(gateway, "alice", gateway.folder)
    command = [*PORTGUARD, "connect", "echo", "--profile", str(profile), "--", "true"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


def test_with_a_full_disk_sessions_are_refused_and_go_on_when_there_is_room(start_gateway, echo, small_disk):
    gateway = start_gateway({"echo": echo}, gateway="", configuration=f'[audit]\npath = "{small_disk}/audit.jsonl"\n')
    assert connects(gateway)
    filler = fill(small_disk)
    # The log's last page has room for some lines yet.
    gateway.program.wait_until(lambda: not connects(gateway), "a refused session")
    gateway.wait_for_log("session.refuse .*identity=alice .*reason=audit_unavailable")
    gateway.wait_for_log("audit.unavailable .*No space left on device")
    assert not connects(gateway)
    tried = connect_beside_true(gateway)
    assert (tried.returncode, tried.stderr) == (3, "portguard: echo: audit_unavailable: the audit is unavailable\n")
    gateway.program.wait_until(lambda: "audit: its lines cannot be written" in readiness(gateway), "it was not ready")
    code, verdict = status(gateway)
    assert code == 1
    assert re.fullmatch(
        rf"REFUSING ALL since [0-9: -]+: audit_unavailable \(no space left on device: {small_disk}/audit.jsonl\)",
        verdict,
    )
    filler.unlink()
    gateway.program.wait_until(lambda: connects(gateway), "a session after there is room again")
    assert connect_beside_true(gateway).returncode == 0
    gateway.program.wait_until(lambda: readiness(gateway) == "ready\n", "it was ready again")
    gateway.program.stop()
    path = small_disk / "audit.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    opened = [record["session"] for record in records if record["event"] == "session.open"]
    closed = [record["session"] for record in records if record["event"] == "session.close"]
    assert sorted(opened) == sorted(closed)
    assert any(record["event"] == "audit.resume" for record in records)
    refused = [record for record in records if record["event"] == "session.refuse"]
    assert {record["reason"] for record in refused} == {"audit_unavailable"}
    assert verify(gateway)["ok"]


def test_when_the_audit_is_not_required_sessions_go_on_with_a_full_disk(start_gateway, echo, small_disk):
    gateway = start_gateway(
        {"echo": echo}, configuration=f'[audit]\npath = "{small_disk}/audit.jsonl"\nrequired = false\n'
    )
    filler = fill(small_disk)
    for _ in range(30):
        assert connects(gateway)
    gateway.wait_for_log("audit.unavailable")
    filler.unlink()
    gateway.wait_for_log("audit.resume")
    gateway.program.stop()
    records = [json.loads(line) for line in (small_disk / "audit.jsonl").read_text().splitlines()]
    assert sum(record["event"] == "session.close" for record in records) == 30
    assert verify(gateway)["ok"]


def test_logrotate_renames_and_the_log_goes_on_in_a_new_file(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    assert connects(gateway)
    wait_for(gateway, "session.close")
    log_path(gateway).rename(f"{log_path(gateway)}.1")
    assert connects(gateway)
    gateway.program.stop()
    assert recorded(gateway)[0]["event"] == "audit.rotate"
    report = verify(gateway)
    assert (report["ok"], len(report["files"]), report["first"]) == (True, 2, 1)
    shutil.move(f"{log_path(gateway)}.1", gateway.folder / "away")
    assert verify(gateway)["ok"]
    assert "in files that are not here" in verify(gateway)["notes"][0]["message"]


def test_following_shows_sessions_as_they_come_until_interrupted(start_gateway, echo, start):
    gateway = start_gateway({"echo": echo})
    assert connects(gateway)
    command = [
        *PORTGUARD,
        "audit",
        "tail",
        "--follow",
        "--event",
        "session",
        "-c",
        str(gateway.folder / "portguard.toml"),
    ]
    tail = start(command, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    tail.wait_until_it_says("session.open")
    log_path(gateway).rename(f"{log_path(gateway)}.1")
    assert connects(gateway)
    tail.wait_until(lambda: tail.said.count("session.close") == 2, "the second session")
    assert tail.said.count("session.open") == 2
    assert tail.stop(signal.SIGINT) == 0
    assert "Traceback" not in tail.said
