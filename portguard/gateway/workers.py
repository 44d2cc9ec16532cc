"""The worker processes as the supervisor has them: started, configured, watched, and replaced when they die."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

from portguard.errors import PortguardError
from portguard.gateway.bundle import Bundle
from portguard.gateway.channel import Channel
from portguard.gateway.messages import (
    VERSION,
    Apply,
    Beat,
    Configure,
    Configured,
    Drain,
    Hello,
    Message,
    Misconduct,
    Prepare,
    Prepared,
    Rechecked,
    Stop,
)
from portguard.gateway.outdated import Outdated
from portguard.gateway.processes import Adopted, Process, start, wait_or_kill
from portguard.gateway.slot_tables import SlotTables
from portguard.observe import log
from portguard.reasons import Reason

_BACK_OFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)  # before a dead worker's replacement, by deaths in a row
_PROVEN_S = 30.0  # a worker that lived so long starts a new row
_HUNG_S = 30.0  # without a beat; reading a very large policy takes a good part of it
_UNHEARD_S = 5.0  # between two ticks: the supervisor itself was stopped
_FRESH_S = 5.0  # a beat comes every second
_ANSWER_S = 120.0  # to a configuration to make ready, or sessions to look at
_LONGEST_FAILURE = 1000
_FLUSH_S = 2.0  # for what was said to workers


_Answer = Prepared | Rechecked | None


class NotPrepared(PortguardError):
    """Workers cannot work by a configuration that was found to be good: the host, or one of the two, is at fault."""


class Worker:
    """A worker as the supervisor sees it. What it is told goes through `channel`."""

    def __init__(self, number: int, process: Process, resolver: object = None):
        self.number = number
        self.process = process
        self.resolver = resolver  # by which files it resolves names
        self.started_s = self.beat_s = time.monotonic()
        self.bundle: Bundle | None = None  # by which it works, or will when it has said hello
        self.prepared: Bundle | None = None  # by which it is ready to work
        self.answer: asyncio.Future[_Answer] | None = None  # to what it was asked
        self.reload = 0  # about which it was asked
        self.greeted = False  # it has said hello
        self.disowned = False  # what it says counts no more
        self.retiring = False  # it serves until those after it do, and ends with its last session
        self.channel: Channel  # set right after


class Workers:
    """All workers. Iterating gives those whose channel is open. Belongs to the running loop.

    `on_message(worker, message)` gets what is not about the process itself. `on_ready()` is called when a worker has
    begun to serve, `on_gone(worker)` when one is no more, after its last message; its slots can be read until that
    returns. `on_exit(worker, status)` has the exit status of one that ended unasked, negative for a signal.
    `greeting()` is what each is told before all else. When the answer of `resolver()` has changed, those that were
    started before are replaced: they could not resolve names any more.

    A worker parses what strangers send, and may come into the hands of one. Of whom `on_message` raises Misconduct, or
    that says nonsense or is disowned, nothing is heard any more: it is killed, and its sessions are lost with it.
    """

    def __init__(
        self,
        bundle: Bundle,
        slots: SlotTables,
        *,
        on_message: Callable[[Worker, Message], None],
        on_ready: Callable[[], None],
        on_gone: Callable[[Worker], None],
        on_exit: Callable[[Worker, int], None],
        greeting: Callable[[], Iterable[Message]] = tuple,
        resolver: Callable[[], object] = tuple,
    ):
        self.serving: dict[int, Worker] = {}  # by number, those that have said that they work by the configuration
        self._bundle = bundle
        self._slots = slots
        self._on_message = on_message
        self._on_ready = on_ready
        self._on_gone = on_gone
        self._on_exit = on_exit
        self._greeting = greeting
        self._resolver = resolver
        self._outdated = Outdated()
        self._loop = asyncio.get_running_loop()
        self._all: dict[int, Worker] = {}  # by number
        self._next_number = 0
        self._reload = 0  # the number of the last one
        self._deaths_in_a_row = 0
        self._draining = False
        self._ticked_s = time.monotonic()
        self._reaping: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def pause(self) -> None:
        """Hear nothing of anybody; what they say waits."""
        for worker in self:
            worker.channel.pause()

    async def flush(self) -> bool:
        """Have all sent that was said, and ended processes collected; return whether that was possible in time."""
        await asyncio.gather(*self._reaping)
        flushes = [asyncio.ensure_future(worker.channel.flush()) for worker in self]
        if not flushes:
            return True
        _, late = await asyncio.wait(flushes, timeout=_FLUSH_S)
        for flush in late:
            flush.cancel()
        return not late

    def resume(self) -> None:
        """Hear again."""
        for worker in self:
            worker.channel.resume()

    def state(self) -> dict[str, Any]:
        """The processes, for another program that goes on with them: what json.dumps() takes."""
        return {
            "next": self._next_number,
            "workers": [
                [
                    worker.number,
                    worker.process.pid,
                    worker.channel.descriptor,
                    worker.number in self.serving,
                    worker.started_s,
                ]
                for worker in self
            ],
        }

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Go on with another program's workers, whose `state` this is: until ours serve, and their sessions end."""
        self._next_number = state["next"]
        for number, pid, descriptor, serves, started_s in state["workers"]:
            os.set_inheritable(descriptor, False)
            worker = self._add(Worker(number, Adopted(pid)), socket.socket(fileno=descriptor))
            worker.retiring = True
            worker.started_s = started_s  # of the host's clock, which both programs go by
            worker.bundle = self._bundle
            if serves:
                self.serving[number] = worker
            else:
                worker.channel.send(Drain())

    def _retire(self) -> None:
        """Once enough of those after them serve, let those of the other program, or of before, end."""
        if sum(not worker.retiring for worker in self.serving.values()) < self.wanted:
            return
        for worker in list(self.serving.values()):
            if worker.retiring:
                del self.serving[worker.number]
                worker.channel.send(Drain())

    @property
    def wanted(self) -> int:
        """How many are to serve: all but those that are retiring."""
        return sum(not worker.retiring for worker in self)

    def start(self, count: int) -> None:
        """Start so many. What cannot be started now is tried again later."""
        for _ in range(count):
            self._start_one_or_try_later()

    def send(self, number: int, message: Message) -> None:
        """Send a message to the worker of that number; nothing when it is gone."""
        if (worker := self._all.get(number)) is not None:
            worker.channel.send(message)

    def disown(self, number: int, error: Misconduct) -> None:
        """Hear nothing more of the worker of that number, and end it; nothing when it is gone."""
        if (worker := self._all.get(number)) is not None:
            self._disown(worker, error)

    def tell(self, message: Message) -> None:
        """Send a message to all."""
        for worker in self:
            worker.channel.send(message)

    async def prepare(self, bundle: Bundle) -> None:
        """Have all that serve make ready to work by another bundle. Raises NotPrepared when they are not able to.

        Those who are not, while as many others are, are broken or in somebody else's hands: they are killed, or one of
        them could keep a configuration that takes a right away from all. One that ends meanwhile does not count: its
        replacement gets what is in force then.
        """
        self._reload += 1
        failures = await self._make_ready(
            [worker for worker in self if worker.retiring or self._serves(worker)], bundle
        )
        if again := [worker for worker, failure in failures.items() if failure is not None]:
            # All at once they may have met a bound of the host's, which one by itself does not.
            for worker in again:
                del failures[worker]
            failures |= await self._make_ready(again, bundle)
        unable = []
        for worker in failures:
            if worker.retiring:
                worker.channel.send(Stop(Reason.POLICY_CHANGED))  # what it cannot look at by the new one must end
            else:
                unable.append(worker)
        able = sum(worker.prepared is bundle for worker in self.serving.values() if not worker.retiring)
        for worker in unable:
            failure = failures[worker] or f"no answer within {_ANSWER_S:.0f} s"
            if len(unable) > able:  # the supervisor has found it good, too, so at a tie they are in the minority
                raise NotPrepared(f"worker {worker.number}: expected it to take the configuration, got {failure}")
            self._disown(worker, Misconduct(f"reload: expected it to take what others took, got {failure}"))

    async def _make_ready(self, workers: Iterable[Worker], bundle: Bundle) -> dict[Worker, str | None]:
        """Have them make ready; return those that are there and are not, and why. None: they did not answer in time.

        Raises NotPrepared.
        """
        answers = {}
        for worker in workers:
            try:
                descriptor = _memory_file(bundle)
            except OSError as error:
                raise NotPrepared(f"expected memory for the configuration, got {error.strerror}") from error
            answers[worker] = self._ask(worker, Prepare(self._reload), descriptor)
        if answers:
            await asyncio.wait(answers.values(), timeout=_ANSWER_S)
        failures = {}
        for worker, answer in answers.items():
            said = answer.result() if answer.done() else None
            if isinstance(said, Prepared) and said.failure is None:
                worker.prepared = bundle
            elif worker.retiring or self._serves(worker):
                failure = said.failure if isinstance(said, Prepared) else None
                failures[worker] = failure and failure[:_LONGEST_FAILURE]
        return failures

    def _serves(self, worker: Worker) -> bool:
        return worker.number in self.serving

    def apply(self, bundle: Bundle) -> Awaitable[int]:
        """Have all work by a bundle that they are prepared for, from the next message on that they are sent.

        The answer is how many sessions that closes, once all have been looked at. *Fails closed*: who does not say that
        it has looked at its own is killed.
        """
        self._bundle = bundle
        answers = {}
        for worker in self:
            if worker.prepared is bundle:
                worker.bundle = bundle
                answers[worker] = self._ask(worker, Apply(self._reload))
            elif worker.bundle is not None and not worker.retiring:  # it was started while the others were made ready
                self._configure(worker, VERSION)
        return self._closed_by(answers)

    async def _closed_by(self, answers: Mapping[Worker, "asyncio.Future[_Answer]"]) -> int:
        if not answers:
            return 0
        done, _ = await asyncio.wait(answers.values(), timeout=_ANSWER_S)
        for worker, answer in answers.items():
            if answer not in done:
                self._disown(
                    worker, Misconduct(f"reload: expected sessions looked at within {_ANSWER_S:.0f} s, got no end")
                )
        return sum(said.closed for answer in done if isinstance(said := answer.result(), Rechecked))

    def _ask(self, worker: Worker, message: Message, descriptor: int | None = None) -> "asyncio.Future[_Answer]":
        """Send a message that is answered; the answer is None when the worker ends without one."""
        worker.answer, worker.reload = self._loop.create_future(), self._reload
        worker.channel.send(message, descriptor)
        return worker.answer

    def drain(self) -> None:
        """Let each end when its last session has. From now on none is replaced, and the end of one is no news."""
        self._draining = True
        self.tell(Drain())

    def tick(self, now_s: float) -> None:
        """Kill the workers that hang, and replace those that the host has left behind.

        To be called about once a second with time.monotonic().
        """
        self._replace_outdated(now_s)
        # Who has been stopped itself finds the beats of that time still unread.
        heard = now_s - self._ticked_s < _UNHEARD_S
        self._ticked_s = now_s
        for worker in self:
            if not heard:
                worker.beat_s = now_s
            elif now_s - worker.beat_s > _HUNG_S:
                log.event("error", "worker.hung", worker=worker.number, pid=worker.process.pid, seconds=_HUNG_S)
                worker.beat_s = now_s
                worker.process.kill()

    def healthy(self, now_s: float) -> bool:
        """Whether one that serves has been heard of lately, at time.monotonic()."""
        return any(now_s - worker.beat_s < _FRESH_S for worker in self.serving.values())

    async def close(self) -> None:
        """End the processes and wait for them. Who was still there stays in the iteration; `on_gone` is not called."""
        self._draining = True
        for task in self._reaping:
            task.cancel()
        for worker in self:
            worker.channel.close()  # which ends the worker, whatever it does
        for worker in self:
            await asyncio.to_thread(wait_or_kill, worker.process)

    # One process.

    def _start_one_or_try_later(self) -> None:
        try:
            self._start_one()
        except OSError as error:  # no descriptor, memory or process left
            log.event("error", "worker.start_failed", message=error.strerror)
            self._start_one_later()

    def _start_one_later(self) -> None:
        delay_s = _BACK_OFF_S[min(self._deaths_in_a_row, len(_BACK_OFF_S) - 1)]
        self._deaths_in_a_row += 1
        self._loop.call_later(delay_s, self._replace)

    def _replace(self) -> None:
        if not self._draining:
            self._start_one_or_try_later()

    def _replace_outdated(self, now_s: float) -> None:
        """Have others take the place of those that resolve names by files that are there no more."""
        if self._draining:
            return
        outdated = self._outdated.among(list(self), self._resolver(), now_s)
        if not outdated:
            return
        message = "files that names are resolved by were replaced, which those that run cannot read"
        log.event("info", "worker.replace", workers=len(outdated), message=message)
        for worker in outdated:
            worker.retiring = True
        for _ in outdated:
            self._start_one_or_try_later()

    def _start_one(self) -> None:
        """Start one more. Raises OSError."""
        resolver = self._resolver()  # before the process can confine itself to what is there then
        table = self._slots.add(self._next_number)
        try:
            ours, theirs = Channel.pair()
            arguments = [theirs.fileno(), table.descriptor, table.capacity]
            try:
                with theirs:
                    process = start(arguments, arguments[:2])
            except OSError:
                ours.close()
                raise
        except OSError:
            self._slots.drop(self._next_number)
            raise
        self._add(Worker(self._next_number, process, resolver), ours)
        self._next_number += 1

    def _add(self, worker: Worker, sock: socket.socket) -> Worker:
        self._all[worker.number] = worker
        worker.channel = Channel(
            sock,
            on_message=lambda message, _: self._on_said(worker, message),
            on_closed=lambda: self._on_closed(worker),
            on_misconduct=lambda error: self._disown(worker, error),
            takes_descriptors=False,  # or a worker in somebody else's hands could use up ours
        )
        for message in self._greeting():
            worker.channel.send(message)
        return worker

    def _on_said(self, worker: Worker, message: Message) -> None:
        if worker.disowned:
            return
        try:
            self._hear(worker, message)
        except Misconduct as error:
            self._disown(worker, error)

    def _disown(self, worker: Worker, error: Misconduct) -> None:
        """Hear nothing more of a worker, and end it."""
        if worker.disowned:
            return
        worker.disowned = True
        log.event("error", "worker.misconduct", worker=worker.number, pid=worker.process.pid, message=str(error))
        worker.process.kill()
        # Soon, as others may be in the middle of all workers. And not left to its death: a child of its own may have
        # the channel too, and go on.
        self._loop.call_soon(self._let_go, worker)

    def _let_go(self, worker: Worker) -> None:
        if self._all.get(worker.number) is worker:
            worker.channel.close()
            self._on_closed(worker)

    def _hear(self, worker: Worker, message: Message) -> None:
        match message:
            case Beat():
                worker.beat_s = time.monotonic()
            case Hello():
                # Each would cost a descriptor until it is read.
                if worker.greeted:
                    raise Misconduct("hello: expected one, got another")
                worker.greeted = True
                self._configure(worker, message.version)
            case Prepared() | Rechecked():
                if message.reload == worker.reload:
                    self._answer(worker, message)
            case Configured():
                self.serving[worker.number] = worker
                self._retire()
                self._on_ready()
            case _:
                self._on_message(worker, message)

    def _answer(self, worker: Worker, answer: _Answer) -> None:
        if worker.answer is not None and not worker.answer.done():
            worker.answer.set_result(answer)

    def _configure(self, worker: Worker, version: int) -> None:
        try:
            if version != VERSION:
                raise OSError(f"expected a worker of version {VERSION}, got {version}")
            descriptor = _memory_file(self._bundle)
        except OSError as error:
            log.event("error", "worker.start_failed", worker=worker.number, message=error.strerror or str(error))
            worker.process.kill()  # another one is started in its place
            return
        worker.bundle = self._bundle
        worker.channel.send(Configure(), descriptor)

    def _on_closed(self, worker: Worker) -> None:
        del self._all[worker.number]
        self.serving.pop(worker.number, None)
        self._answer(worker, None)
        self._reap_later(worker)
        if not self._draining and not worker.retiring:
            if time.monotonic() - worker.started_s > _PROVEN_S:
                self._deaths_in_a_row = 0
            self._start_one_later()
        self._on_gone(worker)
        self._slots.drop(worker.number)

    def _reap_later(self, worker: Worker) -> None:
        """Collect the process, which is ending or has."""

        async def reap() -> None:
            status = await asyncio.to_thread(wait_or_kill, worker.process)
            if worker.retiring and status == 0:
                log.event("info", "worker.retired", worker=worker.number, pid=worker.process.pid)
            elif not self._draining:
                log.event("error", "worker.exit", worker=worker.number, pid=worker.process.pid, status=status)
                self._on_exit(worker, status)

        task = asyncio.create_task(reap(), name=f"reap worker {worker.number}")
        self._reaping.add(task)
        task.add_done_callback(self._reaping.discard)


def _memory_file(bundle: Bundle) -> int:
    """Return the bundle as a memory file: workers use the very bytes that were checked here. Raises OSError."""
    descriptor = os.memfd_create("portguard-bundle", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(bundle.to_bytes())
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
