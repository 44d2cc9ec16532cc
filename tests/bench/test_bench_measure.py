"""CPU time and memory of a family: its members are found, and what they used is counted once."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from bench.measure import Family

# Each program says ready once it has used 0.3 s of CPU time, or what its name says, and ends with its input.
_WAIT = """
print("ready", flush=True)
input()
"""
_BURN = """
import os, threading, time
def burn():
    began = time.thread_time()
    while time.thread_time() < began + 0.3:
        pass
"""
_IN_THE_LEADER = f"{_BURN}burn()" + _WAIT
_IN_A_THREAD_THAT_ENDED = f"{_BURN}thread = threading.Thread(target=burn); thread.start(); thread.join()" + _WAIT
_IN_A_CHILD_THAT_WAS_REAPED = f"""{_BURN}
if not os.fork():
    burn()
    os._exit(0)
os.wait()
{_WAIT}"""
_IN_A_CHILD_THAT_LIVES = f"""{_BURN}
done, when_done = os.pipe()
if not os.fork():
    burn()
    os.close(when_done)
    os.read(0, 1)
    os._exit(0)
os.close(when_done)
os.read(done, 1)
{_WAIT}"""
_AN_ORPHAN = f"""
import os
if not os.fork():
    if not os.fork():
        os.read(0, 1)
    os._exit(0)
os.wait()
{_WAIT}"""
_FOUR_THAT_SHARE_32_MIB = f"""
import os
block = os.urandom(32 << 20)
for _ in range(3):
    if not os.fork():
        os.read(0, 1)
        os._exit(0)
{_WAIT}"""

Start = Callable[[str], Family]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(program)` runs Python code in a session of its own, up to the line in which it says ready."""
    running = []

    def run(program: str) -> Family:
        command = [sys.executable, "-S", "-c", program]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return Family(process.pid)

    yield run
    for process in running:
        process.communicate("\n")


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(_IN_THE_LEADER, id="in the leader"),
        pytest.param(_IN_A_THREAD_THAT_ENDED, id="in a thread that ended"),
        pytest.param(_IN_A_CHILD_THAT_WAS_REAPED, id="in a child that was reaped"),
        pytest.param(_IN_A_CHILD_THAT_LIVES, id="in a child that lives"),
    ],
)
def test_cpu_time_is_counted_once(start: Start, program: str) -> None:
    used_s = start(program).settled_cpu_s()
    # Ended children are told in ticks of 10 ms, and the interpreter takes some time to start.
    assert 0.28 < used_s < 0.55


def test_cpu_time_of_others_is_not_counted(start: Start) -> None:
    idle = start(_WAIT)
    before_s = idle.cpu_s()
    start(_IN_THE_LEADER)
    assert idle.cpu_s() - before_s < 0.05


def test_an_orphan_stays_in_the_family(start: Start) -> None:
    family = start(_AN_ORPHAN)
    assert len(family.members()) == 2
    assert os.getpid() not in family.members()


def test_memory_that_processes_share_is_counted_once_in_pss(start: Start) -> None:
    memory = start(_FOUR_THAT_SHARE_32_MIB).memory()
    mib = 1024**2
    assert 32 * mib < memory.pss < 64 * mib
    assert memory.rss > 4 * 32 * mib


def test_a_family_that_is_gone_has_nothing() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""], start_new_session=True) as process:
        family = Family(process.pid)
    assert family.members() == []
    assert family.cpu_s() == 0
    assert family.memory().pss == 0
