"""What the supervisor does about workers that hang and about faults of its own.

Neither can be had from outside in reasonable time, so these gateways run with a line of code before them.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.conftest import PORTGUARD
from tests.patience import PATIENCE_S
from tests.unharmed import echoes, workers

_SERVE = (
    "import sys; from portguard.gateway import assigning, startup, supervisor, workers; {}; "
    "sys.exit(startup.serve(sys.argv[1]))"
)


@pytest.fixture
def start_after(start, start_gateway, echo):
    """`start_after(code)` runs a gateway in whose supervisor `code` was executed before, with the modules at hand."""

    def run(code):
        gateway = start_gateway({"echo": echo})
        gateway.program.stop()
        program = start([sys.executable, "-P", "-c", _SERVE.format(code), str(gateway.folder / "portguard.toml")])
        program.wait_until_it_says("gateway.ready")
        port = re.search(r"gateway\.listen address=\S+:(\d+)", program.said)[1]
        return dataclasses.replace(gateway, program=program, port=int(port))

    return run


def test_a_worker_that_hangs_is_replaced_and_its_sessions_are_told_of(start_after):
    gateway = start_after("workers._HUNG_S = 8.0")
    with gateway.connect("echo") as one, gateway.connect("echo") as two:
        for client in (one, two):
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
        victim, other = workers(gateway)
        os.kill(victim, signal.SIGSTOP)
        gateway.wait_for_log(f"worker.hung worker=[01] pid={victim} ")
        gateway.wait_for_log("session.close .*received=5 sent=[05] .*reason=worker_lost")
        gateway.wait_for_log(f"worker.exit .*pid={victim} status=-9")
        gateway.program.wait_until(lambda: len(workers(gateway)) == 2, "another worker came")
        assert other in workers(gateway)
    for _ in range(4):
        echoes(gateway)
    assert gateway.log.count("worker.hung") == 1


def test_a_reload_waits_for_a_worker_that_hangs_until_it_is_replaced_and_no_longer(start_after):
    gateway = start_after("workers._HUNG_S = 8.0")
    victim, other = workers(gateway)
    os.kill(victim, signal.SIGSTOP)
    policy = gateway.folder / "policy.toml"
    policy.write_text(policy.read_text() + '[[deny]]\nmembers = ["alice"]\nservices = ["*"]\n')
    command = [*PORTGUARD, "reload", "-c", str(gateway.folder / "portguard.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("in force: ")
    gateway.wait_for_log(f"worker.hung worker=[01] pid={victim} ")
    gateway.program.wait_until(lambda: len(workers(gateway)) == 2, "another worker came")
    assert other in workers(gateway)
    for _ in range(4):
        with pytest.raises(OSError, match=r"EOF|reset|alert"), gateway.connect("echo") as client:
            client.recv(1)
    gateway.wait_for_log("session.refuse .*reason=denied", count=4)


def test_workers_are_not_blamed_for_a_supervisor_that_was_stopped(start_after):
    gateway = start_after("workers._HUNG_S = 4.0; workers._UNHEARD_S = 0.5; supervisor._TICK_S = 0.1")
    before = workers(gateway)
    pid = gateway.program.process.pid
    os.kill(pid, signal.SIGSTOP)
    time.sleep(6.0)  # that the time passes is what matters
    os.kill(pid, signal.SIGCONT)
    for _ in range(4):
        echoes(gateway)
    assert workers(gateway) == before
    assert "worker.hung" not in gateway.log


def test_a_fault_of_the_supervisor_is_one_line_and_it_goes_on(start_after):
    gateway = start_after(
        "original = assigning.Assigner.assign; "
        "faults = iter(range(1)); "
        "assigning.Assigner.assign = lambda *given: "
        "{}['nobody expects this'] if next(faults, None) is not None else original(*given)"
    )
    with pytest.raises(OSError, match=r"EOF|reset"):
        gateway.connect("echo")
    for _ in range(4):
        echoes(gateway)
    (line,) = [line for line in gateway.log.splitlines() if " gateway.fault " in line]
    assert "error=KeyError" in line
    assert json.loads(line.partition("traceback=")[2]).endswith("KeyError: 'nobody expects this'\n")
    assert not any(line.startswith(("Traceback", "  File")) for line in gateway.log.splitlines())


def slot_tables(pid):
    """The memory files of slot tables that a process has, as paths that open them, and which file each is."""
    folder = f"/proc/{pid}/fd"
    paths = [f"{folder}/{name}" for name in os.listdir(folder)]
    return {os.stat(path).st_ino: path for path in paths if "portguard-slots" in os.readlink(path)}


def command(gateway, *arguments):
    argv = [*PORTGUARD, *arguments, "-c", str(gateway.folder / "portguard.toml")]
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout


def live(gateway):
    lines = json.loads(command(gateway, "sessions", "list", "--json"))["sessions"]
    return {line["worker"]: (line["received"], line["sent"], line["idle"]) for line in lines}


def test_each_worker_has_a_slot_table_of_its_own_and_a_new_one_gets_another(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    victim, other = workers(gateway)
    (before,), (kept,) = slot_tables(victim), slot_tables(other)
    assert before != kept
    assert slot_tables(gateway.program.process.pid).keys() == {before, kept}
    os.kill(victim, signal.SIGKILL)
    gateway.wait_for_log("worker.exit ")
    gateway.program.wait_until(lambda: len(workers(gateway)) == 2, "another worker came")
    (new,) = set(workers(gateway)) - {other}
    gateway.program.wait_until(lambda: len(slot_tables(new)) == 1, "it has a slot table")
    (after,) = slot_tables(new)
    gateway.program.wait_until(
        lambda: slot_tables(gateway.program.process.pid).keys() == {after, kept}, "the supervisor let go of the first"
    )


def test_a_worker_that_writes_over_all_the_counts_it_has_forges_no_other_worker_s(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    with gateway.connect("echo") as one, gateway.connect("echo") as two:
        for client in (one, two):
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
        status = json.loads(command(gateway, "status", "--json"))
        pids = {each["worker"]: each["pid"] for each in status["workers"]}
        hostile, other = sorted(live(gateway))
        for path in slot_tables(pids[hostile]).values():
            with open(path, "r+b") as file:
                file.write(b"\x01" * os.fstat(file.fileno()).st_size)
        counts = live(gateway)
        assert counts[hostile][0] == 0x0101010101010101
        assert counts[other][:2] == (5, 5)
        assert counts[other][2] < 3600  # else its idle time is forged
        os.kill(pids[other], signal.SIGKILL)
        gateway.wait_for_log("session.close .*received=5 sent=5 .*reason=worker_lost")


def test_a_worker_cannot_take_the_slot_table_away_from_the_supervisor(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    for path in slot_tables(workers(gateway)[0]).values():
        with open(path, "r+b") as file, pytest.raises(PermissionError):
            os.ftruncate(file.fileno(), 0)
    echoes(gateway)
