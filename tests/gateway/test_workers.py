"""The workers as the supervisor has them; the processes are played by the test."""

import asyncio
import errno
import io
import json
import os
import re
import socket
import subprocess
import time

import pytest

from portguard.gateway import workers as workers_module
from portguard.gateway.bundle import Bundle, read_bundle
from portguard.gateway.channel import Channel
from portguard.gateway.messages import (
    VERSION,
    Apply,
    Beat,
    Configure,
    Configured,
    Drain,
    Gone,
    Hello,
    Locked,
    Misconduct,
    Prepare,
    Prepared,
    Rechecked,
    Stop,
)
from portguard.gateway.outdated import _SETTLED_S
from portguard.gateway.workers import NotPrepared, Workers
from portguard.observe import log
from tests.descriptors import open_descriptors
from tests.gateway_folder import GatewayFolder
from tests.patience import PATIENCE_S
from tests.slots import Slots


class Process:
    """What subprocess.Popen returns: a worker that does nothing by itself."""

    def __init__(self, command, *, pass_fds, **_):
        self.pid = 1000 + int(command[-3])
        self.killed = False
        self.deaf = False  # it does not end when its channel does
        self.heard = []
        self._sock = socket.socket(fileno=os.dup(pass_fds[0]))
        self.channel = Channel(self._sock, on_message=self._on_message, on_closed=lambda: None)

    def _on_message(self, message, descriptor):
        if descriptor is not None:
            with open(descriptor, "rb") as file:
                file.seek(0)
                self.bundle = Bundle.from_bytes(file.read())
        self.heard.append(message)

    def kill(self):
        self.killed = True
        self.channel.close()

    def wait(self, timeout_s=None):
        if self.deaf and not self.killed:
            raise subprocess.TimeoutExpired("worker", timeout_s)
        return -9 if self.killed else 0


class Told:
    """What the workers called back with."""

    def __init__(self):
        self.happened = []
        self._more = asyncio.Event()

    def __call__(self, *what):
        self.happened.append(what)
        self._more.set()

    async def until(self, condition):
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._more.clear()
                await self._more.wait()

    def all(self, kind):
        return [rest for first, *rest in self.happened if first == kind]


@pytest.fixture
async def told():
    return Told()


@pytest.fixture
async def processes(monkeypatch, told):
    """Those that were started; an OSError put among `failures` is what the next start meets."""

    class Processes(list):
        def __init__(self):
            super().__init__()
            self.failures = []

        def __call__(self, *given, **named):
            if self.failures:
                raise self.failures.pop(0)
            self.append(Process(*given, **named))
            told("started")
            return self[-1]

    processes = Processes()
    monkeypatch.setattr(subprocess, "Popen", processes)
    yield processes
    for process in processes:
        process.channel.close()


@pytest.fixture
def lines(monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    log.configure(json_lines=False, level="info")
    return lambda name: [line for line in stderr.getvalue().splitlines() if f" {name} " in line]


@pytest.fixture
def delays(monkeypatch):
    """The delays before replacements, which the tests do not wait for."""
    asked = []

    class BackOff(tuple):
        def __getitem__(self, index):
            asked.append(super().__getitem__(index))
            return 0.0

    monkeypatch.setattr(workers_module, "_BACK_OFF_S", BackOff(workers_module._BACK_OFF_S))
    return asked


@pytest.fixture
def bundle(tmp_path):
    return read_bundle(GatewayFolder(tmp_path).configuration)


@pytest.fixture
async def workers(bundle, told, processes, delays, lines):
    workers = Workers(
        bundle,
        Slots(1),
        on_message=lambda worker, message: told("message", worker.number, message),
        on_ready=lambda: told("ready"),
        on_gone=lambda worker: told("gone", worker.number),
        on_exit=lambda worker, status: told("exit", worker.number, status),
    )
    yield workers
    await workers.close()


async def make_ready(process, told):
    before = len(told.all("ready"))
    process.channel.send(Configured())
    await told.until(lambda: len(told.all("ready")) > before)


async def heard(process, count):
    async with asyncio.timeout(PATIENCE_S):
        while len(process.heard) < count:  # noqa: ASYNC110  # no event, only for a test
            await asyncio.sleep(0.001)
    return process.heard


def numbers(workers):
    return [worker.number for worker in workers]


# Starting.


async def test_a_worker_gets_the_very_bundle_and_serves_once_it_says_so(workers, processes, told, bundle):
    workers.start(2)
    one, other = processes
    one.channel.send(Hello(VERSION))
    assert await heard(one, 1) == [Configure()]
    assert one.bundle == bundle
    assert (numbers(workers), list(workers.serving)) == ([0, 1], [])
    await make_ready(one, told)
    assert list(workers.serving) == [0]
    await make_ready(other, told)
    assert list(workers.serving) == [0, 1]


async def test_each_worker_is_told_what_it_must_know_before_it_is_configured(workers, processes, told):
    locked = [Locked("identity", "local", name, None) for name in ("alice", "bob")]
    workers._greeting = lambda: locked
    workers.start(1)
    processes[0].channel.send(Hello(VERSION))
    assert await heard(processes[0], 3) == [*locked, Configure()]
    locked = locked[1:]
    processes[0].kill()
    await told.until(lambda: len(processes) == 2)
    processes[1].channel.send(Hello(VERSION))
    assert await heard(processes[1], 2) == [*locked, Configure()]


async def test_a_worker_of_another_version_is_killed_and_replaced(workers, processes, told, lines):
    workers.start(1)
    processes[0].channel.send(Hello(VERSION + 1))
    await told.until(lambda: len(processes) == 2)
    assert processes[0].killed
    assert processes[0].heard == []
    (line,) = lines("worker.start_failed")
    assert f'worker=0 message="expected a worker of version {VERSION}, got {VERSION + 1}"' in line


async def test_without_memory_for_the_bundle_a_worker_is_killed_and_replaced(
    workers, processes, told, lines, monkeypatch
):
    make = os.memfd_create

    def fail(name, flags):
        if name == "portguard-bundle":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return make(name, flags)

    monkeypatch.setattr(os, "memfd_create", fail)
    workers.start(1)
    processes[0].channel.send(Hello(VERSION))
    await told.until(lambda: len(processes) == 2)
    assert processes[0].killed
    assert len(lines("worker.start_failed")) == 1


async def test_a_worker_that_cannot_be_started_is_tried_again_later(workers, processes, told, delays, lines):
    processes.failures = [OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) for _ in range(7)]
    workers.start(1)
    await told.until(lambda: len(processes) == 1)
    assert delays == [0.1, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0]
    assert len(lines("worker.start_failed")) == 7
    assert numbers(workers) == [0]


async def test_a_failed_start_leaves_no_descriptor_behind(workers, processes):
    before = open_descriptors()
    processes.failures = [OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))]
    workers._start_one_or_try_later()
    assert open_descriptors() == before


# What they say.


async def test_what_is_not_about_the_process_is_passed_on(workers, processes, told):
    workers.start(1)
    for message in (Hello(VERSION), Beat(), Gone(7, None)):
        processes[0].channel.send(message)
    await told.until(lambda: told.all("message"))
    assert told.all("message") == [[0, Gone(7, None)]]


async def test_a_worker_cannot_make_us_hold_descriptors(workers, processes, told):
    workers.start(1)
    near, far = socket.socketpair()
    processes[0].channel.send(Gone(7, None), near.detach())
    await told.until(lambda: told.all("message"))
    far.settimeout(PATIENCE_S)
    assert far.recv(1) == b""
    far.close()


async def misconduct(workers, processes, told, lines):
    """Wait until the first worker was killed and replaced for what it said; nothing that came after it was heard."""
    await told.until(lambda: len(processes) == 2)
    assert processes[0].killed
    assert told.all("gone") == [[0]]
    assert Gone(7, None) not in [message for _, message in told.all("message")]
    (line,) = lines("worker.misconduct")
    assert f" error worker.misconduct worker=0 pid={processes[0].pid} message=" in line
    assert numbers(workers) == [1]


async def test_who_says_what_is_no_message_is_killed_and_heard_no_more(workers, processes, told, lines):
    workers.start(1)
    processes[0]._sock.send(b"nonsense")
    processes[0]._sock.send(b"nonsense")
    processes[0].channel.send(Gone(7, None))
    await misconduct(workers, processes, told, lines)


async def test_who_says_what_is_not_its_to_say_is_killed_and_heard_no_more(workers, processes, told, lines):
    def refuse(worker, message):
        told("message", worker.number, message)
        raise Misconduct("slot 3: expected another")

    workers._on_message = refuse
    workers.start(1)
    processes[0].channel.send(Gone(6, None))
    processes[0].channel.send(Gone(7, None))
    await misconduct(workers, processes, told, lines)


async def test_who_says_hello_again_and_again_makes_us_hold_nothing(workers, processes, told, lines):
    workers.start(1)
    for _ in range(3):
        processes[0].channel.send(Hello(VERSION))
    processes[0].channel.send(Gone(7, None))
    await misconduct(workers, processes, told, lines)


async def test_who_is_killed_for_what_it_said_is_let_go_of_although_a_child_has_its_channel(
    workers, processes, told, lines
):
    workers.start(1)
    with socket.socket(fileno=os.dup(processes[0]._sock.fileno())) as child:
        child.send(b"nonsense")
        await misconduct(workers, processes, told, lines)
        with pytest.raises(BrokenPipeError):
            child.send(b"more")


async def test_who_is_disowned_is_killed_and_heard_no_more_and_others_are_not(workers, processes, told, lines):
    workers.start(2)
    workers.disown(0, Misconduct("account 3: expected another"))
    workers.disown(7, Misconduct("account 3: expected another"))  # it is gone
    processes[0].channel.send(Gone(7, None))
    await told.until(lambda: len(processes) == 3)
    assert [process.killed for process in processes] == [True, False, False]
    assert told.all("gone") == [[0]]
    assert told.all("message") == []
    assert len(lines("worker.misconduct")) == 1


async def test_all_are_told(workers, processes):
    workers.start(2)
    workers.tell(Stop("killed"))
    for process in processes:
        assert await heard(process, 1) == [Stop("killed")]


async def test_what_one_is_told_reaches_that_one_only_and_nobody_once_it_is_gone(workers, processes, told):
    workers.start(2)
    workers.send(1, Stop("killed"))
    assert await heard(processes[1], 1) == [Stop("killed")]
    assert processes[0].heard == []
    processes[1].kill()
    await told.until(lambda: told.all("gone"))
    workers.send(1, Stop("killed"))


# Dying.


async def test_a_worker_that_dies_is_replaced_after_its_last_message(workers, processes, told, lines):
    workers.start(2)
    await make_ready(processes[0], told)
    processes[0].channel.send(Gone(7, None))
    processes[0].kill()
    await told.until(lambda: len(processes) == 3 and told.all("exit"))
    said = [what[0] for what in told.happened]
    assert said.index("message") < said.index("gone")
    assert told.all("gone") == [[0]]
    assert told.all("exit") == [[0, -9]]
    assert (numbers(workers), list(workers.serving)) == ([1, 2], [])
    (line,) = lines("worker.exit")
    assert line.endswith(f"worker=0 pid={processes[0].pid} status=-9")


async def test_a_process_that_outlives_its_channel_is_killed(workers, processes, told):
    workers.start(1)
    processes[0].deaf = True
    processes[0].channel.close()
    await told.until(lambda: told.all("exit"))
    assert told.all("exit") == [[0, -9]]


async def test_deaths_in_a_row_are_replaced_ever_later(workers, processes, told, delays):
    workers.start(1)
    for number in range(6):
        processes[number].kill()
        await told.until(lambda number=number: len(processes) == number + 2)
    assert delays == [0.1, 0.5, 1.0, 2.0, 5.0, 5.0]


async def test_a_worker_that_lived_long_starts_a_new_row(workers, processes, told, delays):
    workers.start(1)
    processes[0].kill()
    await told.until(lambda: len(processes) == 2)
    (worker,) = workers
    worker.started_s -= workers_module._PROVEN_S
    processes[1].kill()
    await told.until(lambda: len(processes) == 3)
    assert delays == [0.1, 0.1]


# Hanging.


async def test_a_worker_without_a_beat_is_killed_once_and_the_others_are_left_alone(workers, processes, told, lines):
    workers.start(2)
    hung, other = workers
    now_s = time.monotonic()
    hung.beat_s = now_s
    for after_s in range(31):
        other.beat_s = now_s + after_s
        workers.tick(now_s + after_s)
    assert not processes[0].killed
    processes[0].kill = lambda: told("killed")  # and it does not die of it at once
    other.beat_s = now_s + 31
    workers.tick(now_s + 31)
    workers.tick(now_s + 32)
    assert len(told.all("killed")) == 1
    assert not processes[1].killed
    (line,) = lines("worker.hung")
    assert re.search(rf"worker=0 pid={processes[0].pid} ", line)


async def test_a_beat_keeps_a_worker_alive(workers, processes):
    workers.start(1)
    (worker,) = workers
    worker.beat_s = 0.0
    processes[0].channel.send(Beat())
    async with asyncio.timeout(PATIENCE_S):
        while not worker.beat_s:  # noqa: ASYNC110  # no event, only for a test
            await asyncio.sleep(0.001)
    workers.tick(time.monotonic())
    assert not processes[0].killed


async def test_workers_are_not_blamed_for_the_time_that_the_supervisor_was_stopped(workers, processes, lines):
    workers.start(1)
    now_s = time.monotonic()
    workers.tick(now_s)
    workers.tick(now_s + 100)
    workers.tick(now_s + 101)
    assert not processes[0].killed
    assert lines("worker.hung") == []


# The end.


async def test_who_drains_is_not_replaced_and_its_end_is_no_news(workers, processes, told, lines):
    workers.start(2)
    workers.drain()
    for process in processes:
        assert await heard(process, 1) == [Drain()]
        process.channel.close()
    await told.until(lambda: len(told.all("gone")) == 2)
    await asyncio.gather(*workers._reaping)
    assert len(workers) == 0
    assert len(processes) == 2
    assert told.all("exit") == []
    assert lines("worker.exit") == []


async def test_a_replacement_that_is_due_after_the_drain_is_not_started(workers, processes):
    workers.start(1)
    workers.drain()
    workers._replace()
    assert len(processes) == 1


async def test_the_close_ends_processes_and_tells_of_none(workers, processes, told):
    workers.start(2)
    processes[1].deaf = True
    await workers.close()
    assert [process.killed for process in processes] == [False, True]
    assert told.all("gone") == []
    assert numbers(workers) == [0, 1]


async def test_one_that_serves_and_beats_is_enough_for_all_to_be_healthy(workers, processes, told):
    assert not workers.healthy(time.monotonic())
    workers.start(2)
    assert not workers.healthy(time.monotonic())  # neither serves yet
    processes[0].channel.send(Configured())
    await told.until(lambda: workers.serving)
    beat_s = workers.serving[0].beat_s
    assert workers.healthy(beat_s + 4.9)
    assert not workers.healthy(beat_s + 5.0)
    del workers.serving[0]
    assert not workers.healthy(beat_s)


# Reload.


async def serving(workers, processes, told, count=2):
    """So many that have said hello and serve."""
    workers.start(count)
    for process in processes[:count]:
        process.channel.send(Hello(VERSION))
        await make_ready(process, told)
        await heard(process, 1)
        process.heard.clear()
    return processes[:count]


@pytest.fixture
def other_bundle(tmp_path):
    folder = GatewayFolder(tmp_path / "other")
    folder.add("policy.toml", "\n# other\n")
    return read_bundle(folder.configuration)


async def test_all_make_ready_with_the_very_bundle_and_are_counted_once_it_is_applied(
    workers, processes, told, other_bundle
):
    both = await serving(workers, processes, told)
    preparing = asyncio.create_task(workers.prepare(other_bundle))
    for process in both:
        assert await heard(process, 1) == [Prepare(1)]
        assert process.bundle == other_bundle
        assert not preparing.done()
        process.channel.send(Prepared(1, None))
    await preparing
    closing = asyncio.ensure_future(workers.apply(other_bundle))
    for process, closed in zip(both, (2, 3), strict=True):
        assert (await heard(process, 2))[1] == Apply(1)
        process.channel.send(Rechecked(1, closed))
    assert await closing == 5
    assert all(worker.bundle is other_bundle for worker in workers)


async def test_without_any_worker_there_is_nothing_to_wait_for(workers, processes, told, other_bundle):
    await workers.prepare(other_bundle)
    assert await workers.apply(other_bundle) == 0
    workers.start(1)
    processes[0].channel.send(Hello(VERSION))
    await heard(processes[0], 1)
    assert processes[0].bundle == other_bundle


async def refuse(process, failure, count=2):
    """Be asked to make ready as often as that, and not be able to."""
    for asked in range(1, count + 1):
        await heard(process, asked)
        process.channel.send(Prepared(1, failure))


@pytest.mark.parametrize(("count", "unable"), [(1, 1), (3, 2)])
async def test_where_fewer_are_able_to_than_are_not_one_is_named_and_none_is_told_to_apply(
    workers, processes, told, lines, other_bundle, count, unable
):
    serve = await serving(workers, processes, told, count)
    preparing = asyncio.create_task(workers.prepare(other_bundle))
    for process in serve[unable:]:
        await heard(process, 1)
        process.channel.send(Prepared(1, None))
    await asyncio.gather(*(refuse(process, "ValueError: no") for process in serve[:unable]))
    with pytest.raises(NotPrepared, match=r"^worker 0: .* take the configuration, got ValueError: no"):
        await preparing
    assert {type(message) for process in serve for message in process.heard} == {Prepare}
    assert not any(process.killed for process in serve)
    assert lines("worker.misconduct") == []


async def test_one_that_is_not_able_to_is_asked_again_by_itself(workers, processes, told, lines, other_bundle):
    one, other = await serving(workers, processes, told)
    preparing = asyncio.create_task(workers.prepare(other_bundle))
    await refuse(one, "OSError: no memory", 1)
    assert one.heard == [Prepare(1)]  # while the other is at it
    await heard(other, 1)
    other.channel.send(Prepared(1, None))
    await heard(one, 2)
    assert one.bundle == other_bundle
    one.channel.send(Prepared(1, None))
    await preparing
    assert (one.heard, other.heard) == ([Prepare(1)] * 2, [Prepare(1)])
    assert lines("worker.misconduct") == []


@pytest.mark.parametrize(("count", "unable"), [(2, 1), (3, 1), (4, 2)])
async def test_those_who_refuse_what_as_many_others_took_are_killed_and_the_others_go_on(
    workers, processes, told, lines, other_bundle, count, unable
):
    serve = await serving(workers, processes, told, count)
    preparing = asyncio.create_task(workers.prepare(other_bundle))
    for process in serve[unable:]:
        await heard(process, 1)
        process.channel.send(Prepared(1, None))
    await asyncio.gather(*(refuse(process, "x" * 5000) for process in serve[:unable]))
    await preparing
    assert [process.killed for process in serve] == [True] * unable + [False] * (count - unable)
    assert len(lines("worker.misconduct")) == unable
    assert all(f"got {'x' * 1000}" in line and "x" * 1001 not in line for line in lines("worker.misconduct"))
    closing = asyncio.ensure_future(workers.apply(other_bundle))
    for process in serve[unable:]:
        assert (await heard(process, 2))[1] == Apply(1)
        process.channel.send(Rechecked(1, 1))
    assert await closing == count - unable
    await told.until(lambda: len(processes) == count + unable)
    processes[-1].channel.send(Hello(VERSION))
    await heard(processes[-1], 1)
    assert processes[-1].bundle == other_bundle


@pytest.fixture
def patience_ends(monkeypatch):
    """Let no answer be waited for that comes after the first one."""
    wait = asyncio.wait
    monkeypatch.setattr(asyncio, "wait", lambda answers, timeout: wait(answers, return_when=asyncio.FIRST_COMPLETED))


@pytest.mark.usefixtures("patience_ends")
async def test_one_that_does_not_answer_while_another_does_is_killed(workers, processes, told, lines, other_bundle):
    one, other = await serving(workers, processes, told)
    preparing = asyncio.create_task(workers.prepare(other_bundle))
    await heard(other, 1)
    other.channel.send(Prepared(1, None))
    await preparing
    assert (one.killed, one.heard) == (True, [Prepare(1)])
    (line,) = lines("worker.misconduct")
    assert "reload: expected it to take what others took, got no answer within 120 s" in line


async def test_one_that_does_not_say_that_it_has_looked_at_its_sessions_is_killed(
    workers, processes, told, lines, other_bundle, request
):
    one, other = await serving(workers, processes, told)
    preparing = asyncio.create_task(workers.prepare(other_bundle))
    for process in (one, other):
        await heard(process, 1)
        process.channel.send(Prepared(1, None))
    await preparing
    request.getfixturevalue("patience_ends")
    closing = asyncio.ensure_future(workers.apply(other_bundle))
    await heard(other, 2)
    other.channel.send(Rechecked(1, 3))
    assert await closing == 3
    assert (one.killed, other.killed) == (True, False)
    (line,) = lines("worker.misconduct")
    assert "reload: expected sessions looked at within 120 s, got no end" in line


async def test_one_that_ends_meanwhile_does_not_count(workers, processes, told, other_bundle):
    one, other = await serving(workers, processes, told)
    preparing = asyncio.create_task(workers.prepare(other_bundle))
    await heard(other, 1)
    one.channel.send(Prepared(1, None))
    other.kill()
    await preparing
    closing = asyncio.ensure_future(workers.apply(other_bundle))
    assert (await heard(one, 2))[1] == Apply(1)
    one.kill()  # nor does one that ends while it looks at its sessions
    assert await closing == 0


async def test_one_that_does_not_answer_in_time_is_named_and_its_late_answer_is_none_to_the_next(
    workers, processes, told, other_bundle, bundle, monkeypatch
):
    (one,) = await serving(workers, processes, told, 1)
    monkeypatch.setattr(workers_module, "_ANSWER_S", 0.01)
    with pytest.raises(NotPrepared, match=r"^worker 0: .*, got no answer within 0 s"):
        await workers.prepare(other_bundle)
    monkeypatch.undo()
    preparing = asyncio.create_task(workers.prepare(bundle))
    assert (await heard(one, 2))[1] == Prepare(2)
    one.channel.send(Prepared(1, None))
    one.channel.send(Rechecked(1, 7))
    one.channel.send(Gone(7, None))
    await told.until(lambda: told.all("message"))
    assert not preparing.done()
    one.channel.send(Prepared(2, None))
    await preparing


async def test_one_that_was_started_meanwhile_is_configured_anew(workers, processes, told, other_bundle, bundle):
    (one,) = await serving(workers, processes, told, 1)
    preparing = asyncio.create_task(workers.prepare(other_bundle))
    await heard(one, 1)
    workers.start(2)
    late, later = processes[1:]
    late.channel.send(Hello(VERSION))
    await heard(late, 1)
    assert late.bundle == bundle
    await make_ready(late, told)
    one.channel.send(Prepared(1, None))
    await preparing
    closing = asyncio.ensure_future(workers.apply(other_bundle))
    assert await heard(late, 2) == [Configure()] * 2
    assert late.bundle == other_bundle
    one.channel.send(Rechecked(1, 1))
    assert await closing == 1
    later.channel.send(Hello(VERSION))
    assert await heard(later, 1) == [Configure()]
    assert later.bundle == other_bundle


async def test_without_memory_for_the_bundle_nobody_makes_ready(workers, processes, told, other_bundle, monkeypatch):
    await serving(workers, processes, told, 1)

    def fail(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "memfd_create", fail)
    with pytest.raises(NotPrepared, match="expected memory for the configuration, got Too many open files"):
        await workers.prepare(other_bundle)
    assert processes[0].heard == []


def spawned():
    """A child process, which is about to end."""
    return os.posix_spawn("/bin/true", ["true"], {})


async def test_the_workers_of_another_program_are_as_old_as_they_are(workers):
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    state = {"next": 8, "workers": [[7, spawned(), near.detach(), True, 12.5]]}
    with far:
        workers.adopt(json.loads(json.dumps(state)))
        assert [worker.started_s for worker in workers] == [12.5]
        assert workers.state() == state


# What the host replaces.


async def see(workers, resolver):
    """Have the host's files be others, and look until they have settled."""
    workers._resolver = lambda: resolver
    began_s = time.monotonic()
    for now_s in (began_s, began_s + _SETTLED_S, began_s + _SETTLED_S + 1.0):
        workers.tick(now_s)


async def test_workers_that_cannot_resolve_names_any_more_serve_until_others_do(workers, processes, told, lines):
    workers.start(2)
    for process in list(processes):
        await make_ready(process, told)
    workers._resolver = lambda: "other files"
    workers.tick(time.monotonic())
    assert len(processes) == 2  # they may change once more
    await see(workers, "other files")
    assert (len(processes), list(workers.serving)) == (4, [0, 1])
    await make_ready(processes[2], told)
    assert processes[0].heard == []
    await make_ready(processes[3], told)
    for old in processes[:2]:
        assert await heard(old, 1) == [Drain()]
        old.channel.close()
    await told.until(lambda: len(told.all("gone")) == 2)
    assert (numbers(workers), list(workers.serving), workers.wanted) == ([2, 3], [2, 3], 2)
    await see(workers, "other files")
    assert len(processes) == 4
    assert len(lines("worker.replace")) == 1
    assert lines("worker.exit") == []


async def test_workers_for_whom_nothing_has_changed_stay(workers, processes, told):
    workers.start(1)
    await make_ready(processes[0], told)
    await see(workers, ())
    assert len(processes) == 1


async def test_a_host_that_changes_all_the_time_does_not_fill_up_with_workers(workers, processes, told, lines):
    workers.start(1)
    for change in range(5):
        await make_ready(processes[-1], told)  # and the one before goes on, for a session
        await see(workers, change)
    assert len(processes) == 4
    assert len(lines("worker.outdated")) == 2  # once for each change that was too much
    processes[0].channel.close()
    await told.until(lambda: told.all("gone"))
    await see(workers, 4)
    assert len(processes) == 5


async def test_workers_that_are_to_end_are_not_replaced_for_what_the_host_has_changed(workers, processes, told):
    workers.start(1)
    await make_ready(processes[0], told)
    workers.drain()
    await see(workers, "other files")
    assert len(processes) == 1
