"""Reexec: another version of the program takes over in place, or is found unable to and changes nothing."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import site
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

import portguard
from portguard.gateway.messages import VERSION
from tests.counting import steady_zone
from tests.e2e import conftest
from tests.e2e.conftest import PORTGUARD
from tests.patience import PATIENCE_S
from tests.unharmed import descriptors, echoes, processes, workers


@pytest.fixture
def program(tmp_path):
    """A copy of the program, which a test can change as an upgrade would."""
    folder = tmp_path / "installed"
    shutil.copytree(Path(portguard.__file__).parent, folder / "portguard")
    return folder


@pytest.fixture
def gateway(start_gateway, echo, program):
    policy = f"""timezone = "{steady_zone()}"
[[roles]]
name = "team"
members = ["alice"]
services = ["*"]
quota = ["1TB/day"]
"""
    return start_gateway({"echo": echo}, policy=policy, env=os.environ | {"PYTHONPATH": str(program)})


def upgrade(program, version):
    init = program / "portguard" / "__init__.py"
    text = re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', init.read_text())
    assert version in text
    init.write_text(text)


def run(gateway, *arguments, code=0):
    command = [*PORTGUARD, *arguments, "-c", str(gateway.folder / "portguard.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def metric(gateway, name):
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.metrics_port}/metrics", timeout=PATIENCE_S) as answer:
        [value] = re.findall(rf"^portguard_{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(value)


class Transfer:
    """An echo that goes on in a thread until finish(), checked piece by piece."""

    def __init__(self, gateway):
        self._client = gateway.connect("echo")
        self._over = threading.Event()
        self.moved = 0
        self.failure = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        try:
            while not self._over.is_set():
                piece = os.urandom(20_000)
                self._client.sendall(piece)
                received = b""
                while len(received) < len(piece):
                    data = self._client.recv(65536)
                    assert data, "expected an echo, got the end"
                    received += data
                assert hashlib.sha256(received).digest() == hashlib.sha256(piece).digest()
                self.moved += len(piece)
        except (OSError, AssertionError) as error:
            self.failure = error

    def finish(self):
        self._over.set()
        self._thread.join(PATIENCE_S)
        assert self.failure is None, self.failure
        self._client.unwrap()
        self._client.close()


@contextlib.contextmanager
def transfers(gateway, count):
    running = [Transfer(gateway) for _ in range(count)]
    try:
        yield running
    finally:
        for transfer in running:
            transfer.finish()


def test_a_new_version_takes_over_while_sessions_go_on(gateway, program):
    pid, before = gateway.program.process.pid, set(workers(gateway))
    with transfers(gateway, 4) as running:
        gateway.program.wait_until(lambda: all(one.moved for one in running), "bytes moved")
        upgrade(program, "9.9.9")
        out = run(gateway, "reexec")
        assert "version 9.9.9 has taken over; sessions: 4" in out
        assert gateway.program.process.pid == pid
        moved = [one.moved for one in running]
        gateway.program.wait_until(
            lambda: all(one.moved > then for one, then in zip(running, moved, strict=True)), "sessions went on"
        )
        echoes(gateway)
        assert len(set(workers(gateway)) - before) == 2
    gateway.wait_for_log(r"session\.close .*reason=client_closed", count=5)
    gateway.wait_for_log("worker.retired", count=2)
    total = sum(one.moved for one in running) + 1000
    assert metric(gateway, r'received_bytes_total\{identity="alice",service="echo"\}') == total
    assert metric(gateway, r'sessions_active\{role="team",service="echo"\}') == 0
    assert f"{2 * total}" in run(gateway, "quota", "show", "--json")
    assert "gateway.fault" not in gateway.log
    assert gateway.program.stop() == 0
    run(gateway, "audit", "verify")


def test_what_an_identity_was_refused_is_remembered(gateway):
    with pytest.raises(ssl.SSLError), gateway.connect("echo", "bob") as client:
        client.recv(1)
    gateway.wait_for_log("session.refuse .*identity=bob .*reason=no_role")
    run(gateway, "reload", "--message", "CHG-7")  # nothing has changed, so nobody has had it loaded
    policy = gateway.folder / "policy.toml"
    policy.write_text(policy.read_text().replace("1TB", "2TB"))
    run(gateway, "reload", "--message", "CHG-8")
    run(gateway, "reexec")
    with gateway.connect_with(gateway.context("bob"), None) as client:
        client.sendall(f"GET /v1/whoami HTTP/1.1\r\nHost: {gateway.name}\r\n\r\n".encode())
        answer = b""
        while data := client.recv(65536):
            answer += data
    assert b'"no_role"' in answer
    assert json.loads(run(gateway, "status", "--json"))["loaded"]["message"] == "CHG-8"


def test_old_workers_are_as_old_as_they_were(gateway):
    def uptimes():
        return {each["pid"]: each["uptime"] for each in json.loads(run(gateway, "status", "--json"))["workers"]}

    with gateway.connect("echo") as client:
        gateway.wait_for_log("session.open")
        before = uptimes()
        began_s = time.monotonic()
        run(gateway, "reexec")
        between_s = time.monotonic() - began_s
        after = uptimes()
        old = before.keys() & after.keys()
        assert old, "expected the worker that has the session"
        for pid in old:
            assert after[pid] >= before[pid] + between_s - 0.01  # they are rounded
        client.unwrap()


def test_what_needs_a_restart_is_told_until_it_is_so_no_more(gateway):
    def waiting():
        return json.loads(run(gateway, "status", "--json"))["needs_restart"]

    assert waiting() == []
    configuration = gateway.folder / "portguard.toml"
    text = configuration.read_text()
    path = gateway.folder / "control.sock"
    assert f'control = "{path.name}"' in text
    changed = re.sub(r"workers = \d+", "workers = 1", text)
    configuration.write_text(f'{changed}\n[capacity]\nmax_sessions = 77\n[control]\ngroup = "root"\n')
    assert "needs a restart: gateway.workers, capacity.max_sessions, control.group" in run(gateway, "reload")
    assert waiting() == ["gateway.workers", "capacity.max_sessions", "control.group"]
    run(gateway, "reexec")
    # What the new version does not make anew is as it was, and reloads of it know that too.
    assert waiting() == ["capacity.max_sessions", "control.group"]
    assert json.loads(run(gateway, "status", "--json"))["sessions_limit"] != 77
    assert "needs a restart: capacity.max_sessions, control.group" in run(gateway, "reload")
    run(gateway, "reexec")
    assert "needs a restart: capacity.max_sessions, control.group" in run(gateway, "reload")
    configuration.write_text(changed)
    run(gateway, "reload")
    assert waiting() == []


def test_it_can_be_done_again_and_again(gateway):
    with transfers(gateway, 2) as running:
        for _ in range(3):
            run(gateway, "reexec")
            echoes(gateway)
        moved = [one.moved for one in running]
        gateway.program.wait_until(
            lambda: all(one.moved > then for one, then in zip(running, moved, strict=True)), "sessions went on"
        )
    gateway.wait_for_log("worker.retired", count=6)
    gateway.program.wait_until(lambda: len(workers(gateway)) == 2, "only the workers of the last version were left")
    held = descriptors(gateway)
    run(gateway, "reexec")
    gateway.program.wait_until(
        lambda: descriptors(gateway)[gateway.program.process.pid] <= held[gateway.program.process.pid],
        "no descriptor was left behind",
    )
    assert gateway.program.stop() == 0


def test_nobody_is_refused_meanwhile(gateway):
    made, over = [], threading.Event()

    def connect():
        while not over.is_set():
            try:
                echoes(gateway)
            except (OSError, AssertionError) as error:
                made.append(error)
                return
            made.append(None)

    clients = threading.Thread(target=connect)
    clients.start()
    run(gateway, "reexec")
    enough = len(made) + 10
    gateway.program.wait_until(lambda: len(made) >= enough or not clients.is_alive(), "clients got in afterwards")
    over.set()
    clients.join(PATIENCE_S)
    assert set(made) == {None}
    assert gateway.program.stop() == 0


def test_what_could_not_be_written_is_not_left_behind(gateway):
    before = processes(gateway)
    echoes(gateway)
    with contextlib.closing(sqlite3.connect(gateway.folder / "state" / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        gateway.wait_for_log("ledger.unavailable")  # what was used a moment ago cannot be settled
        assert "expected an audit and a ledger that can be written" in run(gateway, "reexec", code=1)
        other.execute("ROLLBACK")
    gateway.wait_for_log("ledger.resume")
    assert processes(gateway) == before
    run(gateway, "reexec")
    assert gateway.program.stop() == 0


def test_sigusr2_does_the_same(gateway, program):
    upgrade(program, "9.9.9")
    gateway.program.process.send_signal(signal.SIGUSR2)
    gateway.wait_for_log("gateway.take_over .*version=9.9.9")
    echoes(gateway)


def test_a_version_whose_workers_ours_would_not_understand_says_that_a_restart_is_needed(gateway, program):
    path = program / "portguard" / "gateway" / "messages.py"
    text = path.read_text()
    assert f"\nVERSION = {VERSION}\n" in text
    path.write_text(text.replace(f"\nVERSION = {VERSION}\n", f"\nVERSION = {VERSION + 1}\n"))
    before = processes(gateway)
    with transfers(gateway, 2):
        out = run(gateway, "reexec", code=1)
        assert f"handover: expected protocol {VERSION + 1}, got {VERSION}: a restart is needed" in out
    assert processes(gateway) == before
    echoes(gateway)
    assert "gateway.take_over" not in gateway.log


@pytest.mark.parametrize("broken", ["trial", "worker", "configuration"])
def test_a_version_that_fails_its_trial_changes_nothing(gateway, program, broken):
    if broken == "configuration":
        with (gateway.folder / "portguard.toml").open("a") as file:
            file.write("nonsense")
    else:
        module = {"trial": "handover.py", "worker": "worker.py"}[broken]
        path = program / "portguard" / "gateway" / module
        path.write_text("raise SystemExit(7)\n" + path.read_text())
    before = processes(gateway)
    with transfers(gateway, 2):
        out = run(gateway, "reexec", code=2 if broken == "configuration" else 1)
        assert ("trial: expected" in out) == (broken != "configuration")
    assert processes(gateway) == before
    echoes(gateway)
    assert "gateway.take_over" not in gateway.log
    assert gateway.program.stop() == 0


def test_a_version_that_is_gone_after_its_trial_ends_the_gateway_with_its_books_closed(
    start_gateway, echo, program, tmp_path, monkeypatch
):
    interpreter = tmp_path / "python"
    interpreter.symlink_to(Path(sys.executable).resolve())
    monkeypatch.setattr(conftest, "PORTGUARD", (str(interpreter), *PORTGUARD[1:]))
    packages = os.pathsep.join([str(program), *site.getsitepackages()])
    gateway = start_gateway({"echo": echo}, env=os.environ | {"PYTHONPATH": packages})
    echoes(gateway)
    trial = program / "portguard" / "gateway" / "trial.py"
    trial.write_text(f"import atexit, os\natexit.register(os.unlink, {str(interpreter)!r})\n{trial.read_text()}")
    gateway.program.process.send_signal(signal.SIGUSR2)
    assert gateway.program.process.wait(PATIENCE_S) == 1
    assert re.search('gateway.reexec_failed .*message="No such file or directory"', gateway.log)
    assert "gateway.fault" not in gateway.log
    run(gateway, "audit", "verify")


def test_what_operators_see_and_do_goes_on_with_the_new_version(gateway, program):
    with gateway.connect("echo") as kept, gateway.connect("echo") as killed:
        for client, text in ((kept, b"kept"), (killed, b"killed")):
            client.sendall(text)
            assert client.recv(100) == text
        before = sessions(gateway)
        assert run(gateway, "drain") == "sessions left: 2\n"
        upgrade(program, "9.9.9")
        run(gateway, "reexec")
        assert sessions(gateway) == before
        status = json.loads(run(gateway, "status", "--json", code=1))
        assert (status["state"], status["version"], status["sessions"]) == ("draining", "9.9.9", 2)
        assert [worker["connections"] for worker in status["workers"] if worker["retiring"]] == [1, 1]
        with pytest.raises((ssl.SSLError, ConnectionResetError)), gateway.connect("echo") as refused:
            refused.recv(1)
        [session] = [each for each, _, received in before if received == len(b"killed")]
        run(gateway, "sessions", "kill", session)
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            killed.recv(1)
        kept.sendall(b"still")
        assert kept.recv(100) == b"still"
        run(gateway, "resume")
        echoes(gateway)


def sessions(gateway):
    """Id, upstream and bytes received of each."""
    listed = json.loads(run(gateway, "sessions", "list", "--json"))["sessions"]
    return [(each["session"], each["upstream"], each["received"]) for each in listed]
