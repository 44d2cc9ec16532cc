"""What one worker in somebody else's hands cannot do to the others, in gateways whose first worker is such a one."""

import contextlib
import json
import re
import socket
import sys
from pathlib import Path

import pytest

from portguard.gateway.confinement import landlock
from tests import breaking_out
from tests.breaking_out import refusable, refused, refused_anyway
from tests.e2e import conftest
from tests.held import portguard
from tests.unharmed import echoes, workers

# Runs portguard, in less patient time, and as the first worker a program that is like one of ours but for HOSTILE.
_GATEWAY = """
import subprocess, sys
from portguard.cli.main import main
from portguard.gateway import supervisor, workers

supervisor._TICK_S = 0.1
start, others = workers.start, []

def start_hostile(arguments, descriptors):
    if others:
        return start(arguments, descriptors)
    others.append(True)
    command = [sys.executable, "-P", "-c", HOSTILE, *map(str, arguments)]
    return subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

workers.start = start_hostile
main()
"""

_WORKER = """
import asyncio
from portguard.gateway import messages, worker
from portguard.gateway.worker import Worker

{}
worker.main()
"""


@pytest.fixture
def start_with(start_gateway, echo, monkeypatch):
    """`start_with(code, **more)` runs a gateway in whose first worker `code` is executed before all else."""

    def run(code, **more):
        program = f"HOSTILE = {_WORKER.format(code)!r}\n{_GATEWAY}"
        monkeypatch.setattr(conftest, "PORTGUARD", (sys.executable, "-P", "-c", program))
        return start_gateway({"echo": echo}, **more)

    return run


def pids(gateway):
    """The processes of workers, by the workers' numbers; the hostile one is 0."""
    return {each["worker"]: each["pid"] for each in json.loads(portguard(gateway, "status", "--json"))["workers"]}


def deny_everybody(gateway):
    """Return the policy as it was."""
    policy = gateway.folder / "policy.toml"
    before = policy.read_text()
    policy.write_text(before + '[[deny]]\nmembers = ["alice"]\nservices = ["*"]\n')
    return before


REFUSES = """
async def refuse(self, descriptor, reload):
    self._channel.send(messages.Prepared(reload, "MemoryError: no"))

Worker._prepare = refuse
"""


def test_a_worker_that_refuses_every_configuration_keeps_none_from_the_others(start_with):
    gateway = start_with(REFUSES)
    with contextlib.ExitStack() as clients:
        for _ in range(2):
            clients.enter_context(gateway.connect("echo"))
        gateway.wait_for_log("session.open", count=2)
        before = deny_everybody(gateway)
        assert portguard(gateway, "reload").startswith("in force: ")
        gateway.wait_for_log("session.close .*reason=denied")
        gateway.wait_for_log("session.close .*reason=worker_lost")
    gateway.wait_for_log("worker.misconduct worker=0 .*MemoryError: no")
    gateway.program.wait_until(lambda: len(workers(gateway)) == 2, "another worker came")
    (gateway.folder / "policy.toml").write_text(before)
    portguard(gateway, "reload")
    for _ in range(4):
        echoes(gateway)


def test_a_worker_alone_that_refuses_a_configuration_keeps_its_sessions_and_the_old_one(start_with):
    gateway = start_with(REFUSES, workers=1)
    before = workers(gateway)
    deny_everybody(gateway)
    answer = portguard(gateway, "reload", code=1)
    assert "worker 0: expected it to take the configuration, got MemoryError: no" in answer
    assert workers(gateway) == before
    echoes(gateway)


KEEPS = """
Worker._on_message = lambda self, message, descriptor, heard=Worker._on_message: (
    None if isinstance(message, messages.Recalled) else heard(self, message, descriptor)
)
"""

TEAM = '[[roles]]\nname = "team"\nmembers = ["alice"]\nservices = ["*"]\nquota = ["1MB/month"]\n'


def echoed(client, text):
    client.sendall(text)
    return client.recv(len(text))


def carriers(gateway):
    """The workers that carry sessions, those of older ones first."""
    return [each["worker"] for each in json.loads(portguard(gateway, "sessions", "list", "--json"))["sessions"]]


def test_a_worker_that_keeps_a_lease_that_others_need_loses_it(start_with):
    gateway = start_with(KEEPS, policy=TEAM)
    with contextlib.ExitStack() as clients:
        one = clients.enter_context(gateway.connect("echo"))
        assert echoed(one, b"hello") == b"hello"  # or the session of the other may be the older one
        two = clients.enter_context(gateway.connect("echo"))
        assert echoed(two, b"hello") == b"hello"
        other = (two, one)[carriers(gateway).index(0)]
        with contextlib.suppress(OSError):
            while echoed(other, bytes(1000)):
                pass
        gateway.wait_for_log("session.close .*reason=quota_exhausted")
    gateway.wait_for_log("worker.misconduct worker=0 .*expected what was recalled within 10 s, got less")
    gateway.wait_for_log("session.close .*reason=worker_lost")
    closed = [line for line in gateway.log.splitlines() if " session.close " in line]
    moved = [int(count) for line in closed for count in re.findall("(?:received|sent)=([0-9]+)", line)]
    assert sum(moved) == 1_000_000


FLOODS = """
def began(self, live, setup, original=Worker.began):
    original(self, live, setup)
    for _ in range(2000):
        self._channel.send(messages.Regrant(live.slot, live.grant.role))

Worker.began = began
"""


def audited(gateway, event):
    lines = map(json.loads, (gateway.folder / "state/audit/audit.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def test_a_worker_that_moves_its_sessions_over_and_over_does_not_fill_the_audit(start_with):
    gateway = start_with(FLOODS, workers=1)
    echoes(gateway)
    gateway.program.wait_until(lambda: audited(gateway, "session.close"), "the session's end is in the audit")
    told = audited(gateway, "session.regrant")
    assert 1 <= len(told) <= 100  # one a second may come on top of 21
    assert gateway.program.stop() == 0
    held_back = sum(line.get("held_back", 0) for line in told + audited(gateway, "session.regrant.flood"))
    assert len(told) + held_back == 2000


# Executed in the worker when its first session begins.
BREAKS_OUT = """
{breaking_out}
import json, sys

def began(self, live, setup, original=Worker.began):
    original(self, live, setup)
    print("tried", json.dumps(tried(supervisor=os.getppid(), **{given!r})), file=sys.stderr, flush=True)

Worker.began = began
{more}
"""


@pytest.fixture
def break_out(start_with, tmp_path):
    """`break_out(more)` has a worker, that has executed `more`, try to leave it; what came of each attempt."""
    folder, gateway_folder = tmp_path / "folder", tmp_path / "gateway"
    folder.mkdir()
    for name in ("old", "gone"):
        (folder / name).touch()
    secrets = ["ca/ca.key", "ca/certificates.db", "gateway.key", "state/ledger.db", "state/audit/audit.key"]
    with contextlib.ExitStack() as sockets:
        tcp = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix, abstract = (sockets.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        unix.bind(str(tmp_path / "unix"))
        abstract.bind("")  # the kernel picks a name, unix(7)
        unix.listen()
        abstract.listen()
        given = {
            "folder": str(folder),
            "secrets": [str(gateway_folder / path) for path in (*secrets, "state/audit/audit.jsonl")],
            "unix": str(tmp_path / "unix"),
            "abstract": abstract.getsockname(),
            "port": tcp.getsockname()[1],
            "control": str(gateway_folder / "control.sock"),
        }

        def run(more):
            text = Path(breaking_out.__file__).read_text()
            gateway = start_with(BREAKS_OUT.format(breaking_out=text, given=given, more=more), workers=1)
            echoes(gateway)
            gateway.wait_for_log("^tried ")
            assert all(Path(path).exists() for path in given["secrets"])
            answers = json.loads(re.search("^tried (.*)$", gateway.log, re.MULTILINE)[1])
            assert ("control" in refused(answers)) == (" control.refuse pid=" in gateway.log)
            return answers

        yield run


@pytest.mark.skipif(landlock().abi is None, reason=str(landlock()))
def test_a_worker_in_the_hands_of_somebody_stays_within_what_it_has(break_out):
    answers = break_out("")
    assert refused(answers) == refusable(answers, landlock().abi)
    assert {"read ca.key", "read ledger.db", "memory", "environment", "make", "control"} <= refused(answers)


def test_without_its_confinement_it_would_not(break_out):
    answers = break_out("worker._confine = lambda: None")
    assert refused(answers) == refused_anyway()


@pytest.mark.skipif(landlock().abi is None, reason=str(landlock()))
def test_a_worker_that_cannot_be_confined_does_not_serve(start_with):
    # As many domains within each other as the kernel allows: one more is too much.
    code = """
from portguard.gateway import confinement

def stack(real=confinement.confine):
    while True:
        real(1, ("/",))

worker.confine = lambda abi, readable: stack()
"""
    gateway = start_with(code)
    gateway.wait_for_log("worker.start_failed message=.confinement: expected .*, got Argument list too long")
    gateway.wait_for_log("worker.exit worker=0 .* status=1")
    echoes(gateway)  # by the others
