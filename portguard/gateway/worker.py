"""A worker process: the data plane, one event loop that carries sessions.

Started by the supervisor as `python -m portguard.gateway.worker`, with the descriptors of its channel and of the slot
table. It ends when the supervisor does.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import datetime

import uvloop

from portguard.errors import Refused
from portguard.gateway.allowances import Allowances
from portguard.gateway.bundle import Bundle
from portguard.gateway.channel import Channel
from portguard.gateway.confinement import NotConfined, confine, landlock, needed_files
from portguard.gateway.connection import Connection
from portguard.gateway.dial import Dialer
from portguard.gateway.gates import Gate
from portguard.gateway.lingerers import Lingerers
from portguard.gateway.live import Live, now
from portguard.gateway.messages import (
    VERSION,
    Accepted,
    Admit,
    Apply,
    Beat,
    CertificateWanted,
    Closed,
    Configure,
    Configured,
    Drain,
    End,
    Ended,
    Forecast,
    ForecastWanted,
    ForeseenRefusal,
    Gone,
    Hello,
    Issued,
    Leased,
    Locked,
    Message,
    PastRefusal,
    PastRefusals,
    PastRefusalsWanted,
    Prepare,
    Prepared,
    Recalled,
    Rechecked,
    Refusal,
    Regrant,
    Regranted,
    RoleStanding,
    Share,
    Standing,
    StandingWanted,
    Stop,
    Ticket,
    Tried,
    TurnedAway,
    Unlocked,
)
from portguard.gateway.setup import Setup
from portguard.gateway.slots import SlotTable
from portguard.gateway.snapshot import build
from portguard.identity.trust import Caller
from portguard.limits.ledger import LockRow, LockTarget
from portguard.limits.locks import Locks
from portguard.observe import log
from portguard.observe.faults import Faults
from portguard.reasons import Reason
from portguard.tls.contexts import count_unreadable_names

_SWEEP_S = 1.0
_RECHECKED_AT_A_TIME = 20  # each takes 50 µs or so, and up to a millisecond where trusts have changed
_LONGEST_FAILURE = 1000
_ANSWER_S = 10.0  # for the supervisor to decide about a session; the audit has 2 s of it
_SWITCH_S = 0.0005  # the usual 5 ms make a round of 20 sessions take up to 100 ms meanwhile, this 15 ms
_MOST_TRIED = 25  # upstreams in one message: a name may have 253 characters

_Question = Admit | StandingWanted | ForecastWanted | PastRefusalsWanted | CertificateWanted
_Answer = Ticket | Refusal | Standing | Forecast | PastRefusals | Issued


@dataclass(slots=True)
class _Asked:
    """A connection that waits for the supervisor's answer."""

    deadline_s: float
    answer: asyncio.Future[_Answer]


class Worker:
    """What the connections and sessions of one worker share."""

    def __init__(self, channel: socket.socket, slots: SlotTable, floods: log.Floods):
        self.loop = asyncio.get_running_loop()
        Faults(floods).watch_loop(self.loop)
        self.slots = slots
        self.dialer = Dialer()
        self.lingering = Lingerers(self._finish_if_drained)
        self.live: dict[int, Live] = {}  # sessions by slot
        self._locks = Locks()  # as the supervisor last said; without the words of operators, which nobody needs here
        self.floods = floods
        self.setup: Setup  # set by Configure, which comes before any connection
        self._prepared: tuple[int, Setup] | None = None  # made ready for that reload, and not in force yet
        self._reload = 0  # the last one to make ready for
        self._admitted: dict[int, int] = {}  # connections by slots of sessions, whether relayed yet or not
        self._doomed: dict[int, Reason] = {}  # of those that are not, which are to end
        self._background: set[asyncio.Task[object]] = set()
        self._tasks: dict[int, asyncio.Task[None]] = {}  # connections that are not sessions yet
        self._asked: dict[int, _Asked] = {}  # by connection, in the order of their deadlines
        self._draining = False
        self._done: asyncio.Future[None] = self.loop.create_future()
        self._channel = Channel(channel, on_message=self._on_message, on_closed=self._on_supervisor_gone)
        self.allowances = Allowances(self._channel.send)

    async def run(self) -> None:
        """Serve until told to end."""
        self._channel.send(Hello(VERSION))
        sweeper = asyncio.create_task(self._sweep(), name="sweep")
        try:
            await self._done
            # Or the last sessions would look as if they had been lost with their worker.
            await self._channel.flush()
        finally:
            sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sweeper
            self._channel.close()

    # What connections ask for.

    async def admit(self, request: Admit) -> Ticket:
        """Ask the supervisor for a session. Raises Refused.

        *Fails closed*: no answer, no session. With none after 10 s, or up to a second more, it is `ledger_unavailable`.
        """
        ticket = await self._ask(request)
        assert isinstance(ticket, Ticket)
        return ticket

    async def standing(self, request: StandingWanted) -> list[RoleStanding]:
        """Ask the supervisor how an identity stands, role by role. Raises Refused when there is no answer, as admit."""
        standing = await self._ask(request)
        assert isinstance(standing, Standing)
        return standing.roles

    async def forecast(self, request: ForecastWanted) -> list[ForeseenRefusal | None]:
        """Ask the supervisor how sessions would be answered now. Raises Refused when there is no answer, as admit."""
        forecast = await self._ask(request)
        assert isinstance(forecast, Forecast)
        return forecast.refusals

    async def past_refusals(self, request: PastRefusalsWanted) -> list[PastRefusal]:
        """Ask the supervisor what an identity was refused. Raises Refused when there is no answer, as admit."""
        past = await self._ask(request)
        assert isinstance(past, PastRefusals)
        return past.refusals

    async def certificate(self, request: CertificateWanted) -> str:
        """Ask the supervisor for a certificate, PEM with those above it. Raises Refused, without an answer as admit."""
        issued = await self._ask(request)
        assert isinstance(issued, Issued)
        return issued.chain

    async def _ask(self, request: _Question) -> Ticket | Standing | Forecast | PastRefusals | Issued:
        answer: asyncio.Future[_Answer] = self.loop.create_future()
        self._asked[request.connection] = _Asked(time.monotonic() + _ANSWER_S, answer)
        try:
            self._channel.send(request)
            message = await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled():  # both at once
                self._decline(answer.result())
            raise
        finally:
            del self._asked[request.connection]
        # Not an exception of the future: it would hold this frame, which holds the future, and with them the
        # connection's memory until the garbage collector comes by.
        if isinstance(message, Refusal):
            raise Refused(message.reason, message.message, retry_after_s=message.retry_after_s)
        return message

    def _decline(self, answer: _Answer) -> None:
        """Give back what nobody needs any more."""
        if isinstance(answer, Ticket):
            self.ended(answer.slot, Reason.CLIENT_RESET)

    def _refuse_unanswered(self, now_s: float) -> None:
        for connection, asked in self._asked.items():
            if asked.deadline_s > now_s:
                return
            if not asked.answer.done():
                message = f"supervisor: expected an answer within {_ANSWER_S:.0f} s, got none"
                asked.answer.set_result(Refusal(connection, Reason.LEDGER_UNAVAILABLE, message, None))

    def gone(self, connection: int, handshake_s: float | None = None) -> None:
        """Say that a connection ended without becoming a session, and how long its handshake took if it was whole."""
        self._channel.send(Gone(connection, handshake_s))

    def turned_away(self, refusal: TurnedAway) -> None:
        """Say that a client was refused before there was a session."""
        self._channel.send(refusal)

    def refuse_locked(self, caller: Caller) -> None:
        """Raise Refused with `locked` for who is locked out. *Fails closed*."""
        self._locks.refuse(caller.identity, caller.fingerprint, f"{caller.serial:x}", time.time())

    def began(self, live: Live, setup: Setup) -> None:
        """A session is about to be relayed that was decided on by `setup`, which may be in force no more."""
        if (reason := self._doomed.get(live.slot)) is not None:
            live.relay.close(reason)
        elif setup is not self.setup or self._is_locked(live.caller):
            self._recheck(live, now())

    def regrant(self, live: Live) -> None:
        """A live session goes on by another grant. It is held until the supervisor says what it may move."""
        live.relay.pass_through((Gate(), Gate()))
        self.allowances.leave(live.slot)
        live.unanswered += 1
        self._channel.send(Regrant(live.slot, live.grant.role))

    def ended(self, slot: int, reason: Reason, upstream: str | None = None) -> None:
        """Say that an admitted session has ended, and which address it had reached."""
        self.live.pop(slot, None)
        reason = self._doomed.pop(slot, reason)
        self._admitted.pop(slot, None)
        self._channel.send(Ended(slot, reason, upstream, self.allowances.close(slot)))
        self._finish_if_drained()

    # What the supervisor says.

    def _on_message(self, message: Message, descriptor: int | None) -> None:
        match message:
            case Accepted():
                self._accept(message, descriptor)
            case Ticket() | Refusal() | Standing() | Forecast() | PastRefusals() | Issued():
                if isinstance(message, Ticket):
                    self._admitted[message.slot] = message.connection
                    self.allowances.open(message)
                if (asked := self._asked.get(message.connection)) is not None and not asked.answer.done():
                    asked.answer.set_result(message)
                else:  # the connection ended, or gave up waiting, while the supervisor decided
                    self._decline(message)
            case End():
                self._end(message.slot, message.reason)
            case Regranted():
                self._go_on(message)
            case Prepare():
                assert descriptor is not None
                self._reload = message.reload
                self._start(self._prepare(descriptor, message.reload), "prepare")
            case Apply():
                self._apply(message.reload)
            case Leased():
                self.allowances.leased(message)
            case Share():
                self.allowances.share(message)
            case Recalled():
                self.allowances.recall(message.account)
            case Closed():
                for slot in self.allowances.refused(message.account):
                    if (live := self.live.get(slot)) is not None:
                        live.relay.close(message.reason)
            case Configure():
                try:
                    assert descriptor is not None
                    self._configure(descriptor)
                except Exception as error:  # noqa: BLE001  # without a configuration it could only stand about
                    if not self._done.done():
                        self._done.set_exception(error)
            case Locked():
                target = LockTarget(message.kind, message.trust, message.value)
                self._locks.add(LockRow(target, "", "", 0, message.until_s))
            case Unlocked():
                self._locks.remove(LockTarget(message.kind, message.trust, message.value))
            case Drain():
                self._draining = True
                self._finish_if_drained()
            case Stop():
                self._stop(message.reason)

    def _go_on(self, message: Regranted) -> None:
        live = self.live.get(message.slot)
        if live is not None:
            live.unanswered -= 1
            if not live.unanswered:
                self.allowances.open(message)
                live.relay.pass_through(self.allowances.gates(message.slot))
                return
            # It moves on once more: a byte that it passed now would count in the grant it leaves, and in the next.
        if message.lease_bytes:  # which is not for it any more, as for one that has ended meanwhile
            self.allowances.leased(message)

    def _end(self, slot: int, reason: Reason) -> None:
        if (live := self.live.get(slot)) is not None:
            live.relay.close(reason)
        elif slot in self._admitted:
            self._doomed[slot] = reason
            if (task := self._tasks.get(self._admitted[slot])) is not None:
                task.cancel()  # or it would hold its slot for as long as its service takes to answer

    def _is_locked(self, caller: Caller) -> bool:
        return self._locks.check(caller.identity, caller.fingerprint, f"{caller.serial:x}", time.time()) is not None

    def _configure(self, descriptor: int) -> None:
        self.setup = _read_setup(descriptor, None)
        _configure_log(self.setup)
        if self.live:  # it began to serve while the others were made ready for this configuration
            self._start(self._recheck_all(), "recheck")
        # A large policy is many objects that live long; looking through them at every collection would cost more
        # than all connections do.
        gc.collect()
        gc.freeze()
        self._channel.send(Configured())

    async def _prepare(self, descriptor: int, reload: int) -> None:
        """Make ready to work by another configuration. In a thread: with a large policy it takes seconds."""
        gc.disable()  # looking through all that it makes, again and again, would hold up every session
        try:
            setup = await asyncio.to_thread(_read_setup, descriptor, self.setup)
        except Exception as error:  # noqa: BLE001  # whatever it is, the configuration cannot come into force here
            # The name of a file may be no text, which no message could carry.
            failure = f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode()
            self._channel.send(Prepared(reload, failure[:_LONGEST_FAILURE]))
        else:
            if reload == self._reload:  # else it took too long, and another one has begun
                self._prepared = reload, setup
                self._channel.send(Prepared(reload, None))
        finally:
            gc.enable()

    def _apply(self, reload: int) -> None:
        """Work by what was made ready. At once: the next message may be a connection to an address of the new one."""
        assert self._prepared is not None
        prepared_for, self.setup = self._prepared
        assert prepared_for == reload
        self._prepared = None
        _configure_log(self.setup)
        gc.freeze()
        self.dialer.retain(self.setup.snapshot.policy.services.values())
        self._start(self._tell_rechecked(reload), "recheck")

    async def _tell_rechecked(self, reload: int) -> None:
        self._channel.send(Rechecked(reload, await self._recheck_all()))

    async def _recheck_all(self) -> int:
        """Look at all live sessions again, some at a time; return how many end by that."""
        closed = 0
        for number, live in enumerate(list(self.live.values()), start=1):
            if not live.relay.ended and not self._recheck(live, now()):
                closed += 1
            if number % _RECHECKED_AT_A_TIME == 0:
                await asyncio.sleep(0)
        return closed

    def _recheck(self, live: Live, at: datetime) -> bool:
        """Return whether the session may go on. *Fails closed*: one that cannot be decided on ends."""
        try:
            return live.recheck(self.setup, at)
        except Exception as error:  # noqa: BLE001  # a fault of ours must not leave it, and all after it, their right
            self.loop.call_exception_handler({"message": "recheck failed", "exception": error})
            live.relay.close(Reason.POLICY_CHANGED)
            return False

    def _start(self, step: Coroutine[None, None, object], name: str) -> None:
        task = self.loop.create_task(step, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _accept(self, accepted: Accepted, descriptor: int | None) -> None:
        if descriptor is None:
            # The kernel closes the connection when this process has no room for it.
            self.gone(accepted.connection)
            self.floods.event(
                time.monotonic(),
                "warning",
                "connection.refuse",
                source=accepted.source_address,
                reason=Reason.GATEWAY_FULL,
                message="expected a free descriptor, got none",
            )
            return
        connection = Connection(self, accepted, _adopt(descriptor, accepted.source_address))
        task = self.loop.create_task(connection.run(), name=f"connection {accepted.connection}")
        self._tasks[accepted.connection] = task
        task.add_done_callback(lambda task: self._on_connection_done(accepted.connection, task))

    def _on_connection_done(self, connection: int, task: asyncio.Task[None]) -> None:
        del self._tasks[connection]
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of ours. It ends this connection, and the others go on.
            self.loop.call_exception_handler({"message": "connection failed", "exception": error, "task": task})
        self._finish_if_drained()

    def _on_supervisor_gone(self) -> None:
        # Without a supervisor nothing is admitted, counted or recorded.
        os._exit(1)

    def _stop(self, reason: Reason) -> None:
        self._draining = True
        for task in self._tasks.values():
            task.cancel()
        for live in list(self.live.values()):
            live.relay.close(reason)
        self._finish_if_drained()

    def _finish_if_drained(self) -> None:
        if not (self._tasks or self.live or self.lingering) and self._draining and not self._done.done():
            self._done.set_result(None)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_ns, at = time.monotonic_ns(), now()
            for live in list(self.live.values()):
                if at.timestamp() >= live.until_s and not self._recheck(live, at):
                    continue
                live.relay.sweep(now_ns)
            self._refuse_unanswered(now_ns / 1e9)
            self.allowances.sweep()
            self.floods.report()
            self._channel.send(Beat())
            tried = [(str(upstream), up) for upstream, up in self.dialer.take_tried().items()]
            for begin in range(0, len(tried), _MOST_TRIED):
                self._channel.send(Tried(tried[begin : begin + _MOST_TRIED]))


def _read_setup(descriptor: int, before: Setup | None) -> Setup:
    """Make a setup of a bundle's memory file. What does not differ from `before` is taken from there."""
    with open(descriptor, "rb") as file:
        file.seek(0)
        snapshot = build(Bundle.from_bytes(file.read()))
    if before is not None and before.snapshot.trusts_revision == snapshot.trusts_revision:
        snapshot = replace(snapshot, trusts=before.snapshot.trusts)  # which remember who they have judged
    return Setup.make(snapshot)


def _configure_log(setup: Setup) -> None:
    settings = setup.snapshot.configuration.log
    log.configure(json_lines=settings.format == "json", level=settings.level)


def _adopt(descriptor: int, source_address: str) -> socket.socket:
    """Return the client's socket. Told its family, Python need not ask the kernel for it."""
    family = socket.AF_INET6 if ":" in source_address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, 0, descriptor)
    sock.setblocking(False)
    return sock


async def _main(channel: socket.socket, slots: SlotTable, floods: log.Floods) -> None:
    worker = Worker(channel, slots, floods)
    await worker.run()


def _confine() -> None:
    """Give up what is not needed, where the kernel knows how to. *Fails closed*: else the process ends."""
    if (abi := landlock().abi) is None:
        return  # the supervisor has said so in the log, or does not serve without
    try:
        confine(abi, needed_files())
    except NotConfined as error:
        log.event("error", "worker.start_failed", message=str(error))
        sys.exit(1)


def main() -> None:
    """Entry point: `channel descriptor, slot table descriptor, capacity`."""
    channel, slots, capacity = map(int, sys.argv[1:])
    # Each system call lets go of the interpreter, and has to wait for it while a thread makes a configuration ready.
    sys.setswitchinterval(_SWITCH_S)
    # The supervisor decides when to end, also where somebody signals all processes of a service.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    log.configure(json_lines=False, level="info")  # until the configuration says how
    floods = log.Floods()
    Faults(floods).watch_process()
    _confine()  # before a word of the supervisor's, a byte of a client's, and any thread
    count_unreadable_names(
        lambda: floods.event(
            time.monotonic(), "warning", "handshake.server_name", message="expected a server name in ASCII, got another"
        )
    )
    uvloop.run(_main(socket.socket(fileno=channel), SlotTable(slots, capacity), floods))


if __name__ == "__main__":
    main()
