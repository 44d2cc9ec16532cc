"""The supervisor: the control plane, which never touches a client's bytes.

It owns the listening sockets, accepts, and passes each connection to the worker with the fewest. It grants sessions
and frees their slots, starts workers and replaces those that die.
"""

import asyncio
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from functools import lru_cache
from ipaddress import ip_address

import uvloop

from portguard.errors import ConfigurationError, Problem, Refused
from portguard.gateway.admission import MOST_LINGERING, Account, Admission, Session
from portguard.gateway.audit_trail import AuditTrail, open_recorder
from portguard.gateway.bundle import Bundle, read_bundle
from portguard.gateway.listeners import Listener, bind, bind_address, listeners, written_address
from portguard.gateway.meter import Loaded, Meter
from portguard.gateway.operator_http import OperatorHttp
from portguard.gateway.protocol import (
    VERSION,
    Accepted,
    Admit,
    Beat,
    Channel,
    Configure,
    Configured,
    Drain,
    Ended,
    Gone,
    Hello,
    Message,
    Refusal,
    Stop,
    Ticket,
    Tried,
    TurnedAway,
)
from portguard.gateway.slots import SlotTable
from portguard.gateway.snapshot import Snapshot, build
from portguard.observe import log
from portguard.observe.audit.recorder import Recorder
from portguard.observe.faults import Faults
from portguard.observe.metrics import Reading
from portguard.reasons import Reason

# Connections taken from one listener before the loop turns to something else.
_ACCEPT_BATCH = 64
_PAUSE_S = 1.0  # of accepting, when the host has no descriptor left
_STOP_S = 10.0  # for workers to end once told to; more than a connection lingers
_BACK_OFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)  # before a dead worker's replacement, by deaths in a row
_PROVEN_S = 30.0  # a worker that lived so long starts a new row
_HUNG_S = 30.0  # without a beat; reading a very large policy takes a good part of it
_TICK_S = 1.0
_EXIT_S = 5.0  # for the process of a worker that has closed its channel

# Beside its sessions a process has descriptors for the channel, listeners, epoll, log and such.
_DESCRIPTORS_BESIDE = 64
_DESCRIPTORS_PER_SESSION = 2

# Clients come back, and taking an address apart costs more than remembering it.
_address = lru_cache(maxsize=4096)(ip_address)

_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# What accept() tells of one connection that broke before it was accepted, accept(2).
_BROKEN_ALREADY = {
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENONET,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.EPERM,  # a firewall's rule
    errno.EPROTO,
    errno.ETIMEDOUT,
}


def serve(configuration_path: str) -> int:
    """Run the gateway until it is told to end; return the exit code, 1 when sessions were cut.

    Raises ConfigurationError before anything listens.
    """
    bundle = read_bundle(configuration_path)
    snapshot = build(bundle)
    settings = snapshot.configuration.log
    log.configure(json_lines=settings.format == "json", level=settings.level)
    for warning in snapshot.warnings:
        log.event("warning", "configuration.warning", message=warning)
    _raise_descriptor_limit(configuration_path, snapshot)
    bound = [(listener, bind(listener, configuration_path)) for listener in _listeners(snapshot)]
    metrics = bind_address(snapshot.configuration.metrics.listen, configuration_path, "metrics.listen")
    recorder = open_recorder(snapshot.configuration)
    floods = log.Floods()
    Faults(floods).watch_process()
    return uvloop.run(_run(bundle, snapshot, bound, metrics, floods, recorder))


async def _run(
    bundle: Bundle,
    snapshot: Snapshot,
    bound: list[tuple[Listener, socket.socket]],
    metrics: socket.socket,
    floods: log.Floods,
    recorder: Recorder,
) -> int:
    trail = AuditTrail(recorder, required=snapshot.configuration.audit.required)
    return await Supervisor(bundle, snapshot, bound, metrics, floods, trail).run()


def _listeners(snapshot: Snapshot) -> tuple[Listener, ...]:
    return listeners(snapshot.configuration, snapshot.policy)


def _raise_descriptor_limit(configuration_path: str, snapshot: Snapshot) -> None:
    """Take all descriptors that the system gives. Raises ConfigurationError when the capacity does not fit in them.

    Any worker may come to carry all sessions, when the others have died.
    """
    capacity = snapshot.configuration.capacity
    beside = capacity.pending_handshakes + MOST_LINGERING + _DESCRIPTORS_BESIDE
    needed = capacity.max_sessions * _DESCRIPTORS_PER_SESSION + beside
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and needed > hard:
        room = (hard - beside) // _DESCRIPTORS_PER_SESSION
        expected = f"at most {max(room, 0)}, which is what the limit of {hard} open files allows"
        raise ConfigurationError(
            [Problem(configuration_path, "capacity.max_sessions", expected, str(capacity.max_sessions))]
        )


class _Worker:
    """A worker as the supervisor sees it."""

    def __init__(self, number: int, process: subprocess.Popen[bytes]):
        self.number = number
        self.process = process
        self.started_s = self.beat_s = time.monotonic()
        self.ready = False  # it has said that it works by the configuration
        self.channel: Channel  # set right after


class Supervisor:
    """The gateway's one supervisor."""

    def __init__(
        self,
        bundle: Bundle,
        snapshot: Snapshot,
        bound: list[tuple[Listener, socket.socket]],
        metrics: socket.socket,
        floods: log.Floods,
        trail: AuditTrail,
    ):
        configuration = snapshot.configuration
        capacity = configuration.capacity
        self._loop = asyncio.get_running_loop()
        faults = Faults(floods)
        faults.watch_loop(self._loop)
        self._bundle = bundle
        self._snapshot = snapshot
        self._bound = bound
        self._metrics = metrics
        self._trail = trail
        self._slots = SlotTable.create(capacity.max_sessions)
        self._admission = Admission(
            self._slots,
            max_pending=capacity.pending_handshakes,
            max_pending_per_address=capacity.pending_handshakes_per_address,
            # Behind a balancer all clients come from its address.
            exempt=(*capacity.pending_handshakes_exempt, *configuration.gateway.accept_proxy_protocol_from),
        )
        self._meter = Meter(
            self._slots,
            self._admission.sessions,
            written=snapshot.written,
            max_identities=configuration.metrics.max_identities,
        )
        self._loaded = Loaded.of(snapshot, bundle.read_at)
        self._http = OperatorHttp(read=self._read, not_ready=self._not_ready, faults=faults)
        self._workers: dict[int, _Worker] = {}
        self._next_worker = 0
        self._deaths_in_a_row = 0
        self._floods = floods
        self._accepting = False
        self._draining = False
        self._stopping = False
        self._cut = False  # a session did not end by itself
        self._announced = False
        self._background: set[asyncio.Task[None]] = set()
        self._over: asyncio.Future[int] = self._loop.create_future()

    async def run(self) -> int:
        """Serve; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_stop_signal)
        self._trail.start(self._snapshot.configuration.gateway.name)
        self._trail.loaded(self._bundle, self._snapshot)
        for listener, sock in self._bound:
            log.event(
                "info",
                "gateway.listen",
                address=written_address(sock),
                service=listener.service.name if listener.service is not None else None,
            )
        log.event("info", "metrics.listen", address=written_address(self._metrics))
        await self._http.start(self._metrics)
        for _ in range(self._snapshot.configuration.gateway.workers or os.cpu_count() or 1):
            self._start_worker_or_try_later()
        ticker = asyncio.create_task(self._tick(), name="tick")
        try:
            code = await self._over
        finally:
            ticker.cancel()
            for task in self._background:
                task.cancel()
            self._stop_accepting()
            for _, sock in self._bound:
                sock.close()
            await self._reap()
            await self._http.stop()
        for worker in self._workers.values():
            self._log_lost(worker)
        await self._trail.stop(code)
        log.event("info", "gateway.stop", exit_code=code)
        return code

    # Workers.

    def _start_worker_or_try_later(self) -> None:
        try:
            self._start_worker()
        except OSError as error:  # no descriptor, memory or process left
            log.event("error", "worker.start_failed", message=error.strerror)
            self._start_worker_later()

    def _start_worker_later(self) -> None:
        delay_s = _BACK_OFF_S[min(self._deaths_in_a_row, len(_BACK_OFF_S) - 1)]
        self._deaths_in_a_row += 1
        self._loop.call_later(delay_s, self._replace_worker)

    def _replace_worker(self) -> None:
        if not self._draining:
            self._start_worker_or_try_later()

    def _start_worker(self) -> None:
        """Start one more. Raises OSError."""
        ours, theirs = Channel.pair()
        command = [sys.executable, "-P", "-m", "portguard.gateway.worker"]
        arguments = [theirs.fileno(), self._slots.descriptor, self._slots.capacity]
        try:
            with theirs:
                process = subprocess.Popen(
                    [*command, *map(str, arguments)],
                    pass_fds=(theirs.fileno(), self._slots.descriptor),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
        except OSError:
            ours.close()
            raise
        worker = _Worker(self._next_worker, process)
        self._next_worker += 1
        self._workers[worker.number] = worker
        worker.channel = Channel(
            ours,
            on_message=lambda message, _: self._on_message(worker, message),
            on_closed=lambda: self._on_worker_gone(worker),
        )

    def _on_message(self, worker: _Worker, message: Message) -> None:
        match message:
            case Admit():
                self._admit(worker, message)
            case Ended():
                account = self._admission.end(message.slot, time.monotonic_ns())
                self._meter.ended(account, message.reason)
                self._trail.closed(account, message.reason, message.upstream)
                self._end_if_drained()
            case TurnedAway():
                self._meter.refused(message.service, message.reason)
                self._trail.refused(message, time.monotonic())
            case Gone():
                self._meter.gone(message.handshake_s)
                self._admission.gone(message.connection)
            case Hello():
                self._configure(worker, message.version)
            case Configured():
                worker.ready = True
                self._on_ready()
            case Beat():
                worker.beat_s = time.monotonic()
            case Tried():
                self._meter.tried(message.upstreams)

    def _configure(self, worker: _Worker, version: int) -> None:
        try:
            if version != VERSION:
                raise OSError(f"expected a worker of version {VERSION}, got {version}")
            descriptor = self._bundle_file()
        except OSError as error:
            log.event("error", "worker.start_failed", worker=worker.number, message=error.strerror or str(error))
            worker.process.kill()  # another one is started in its place
            return
        worker.channel.send(Configure(), descriptor)

    def _bundle_file(self) -> int:
        """Return the bundle as a memory file: workers use the very bytes that were checked here. Raises OSError."""
        descriptor = os.memfd_create("portguard-bundle", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(self._bundle.to_bytes())
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _admit(self, worker: _Worker, request: Admit) -> None:
        try:
            if self._draining:
                raise Refused(Reason.DRAINING)
            session = self._admission.admit(
                request.connection,
                session_id=request.session,
                trust=request.trust,
                name=request.name,
                service=request.service,
                role=request.role,
                now_ns=time.monotonic_ns(),
            )
        except Refused as refused:
            worker.channel.send(Refusal(request.connection, refused.reason, refused.message, refused.retry_after_s))
        else:
            self._trail.opens(request, lambda may: self._on_decided(worker, request, session, may=may))

    def _on_decided(self, worker: _Worker, request: Admit, session: Session, *, may: bool) -> None:
        if self._admission.sessions.get(session.slot) is not session:
            return  # its worker died while the audit was written, and the slot may be another session's by now
        if may:
            self._meter.admitted(session.slot, request.handshake_s)
            worker.channel.send(Ticket(request.connection, session.slot))
            return
        account = self._admission.end(session.slot, time.monotonic_ns())
        self._trail.closed(account, Reason.AUDIT_UNAVAILABLE, None)
        reason = Reason.AUDIT_UNAVAILABLE
        worker.channel.send(Refusal(request.connection, reason, reason.sentence, None))

    def _on_ready(self) -> None:
        if self._draining:
            return
        self._start_accepting()
        if not self._announced and all(worker.ready for worker in self._workers.values()):
            self._announced = True
            log.event("info", "gateway.ready", workers=len(self._workers))

    def _on_worker_gone(self, worker: _Worker) -> None:
        del self._workers[worker.number]
        self._log_lost(worker)
        self._reap_later(worker)
        if self._draining:
            self._end_if_drained()
            return
        if not any(other.ready for other in self._workers.values()):
            self._stop_accepting()
        if time.monotonic() - worker.started_s > _PROVEN_S:
            self._deaths_in_a_row = 0
        self._meter.totals.worker_restarts += 1
        self._start_worker_later()

    def _log_lost(self, worker: _Worker) -> None:
        """End, in the books, what a worker that is no more still had."""
        for account in self._admission.lose(worker.number, time.monotonic_ns()):
            self._cut = self._cut or self._draining
            self._log_lost_session(account)

    def _log_lost_session(self, account: Account) -> None:
        session = account.session
        reason = Reason.GATEWAY_STOPPED if self._stopping else Reason.WORKER_LOST
        self._meter.ended(account, reason)
        self._trail.closed(account, reason, None)
        log.event(
            "warning",
            "session.close",
            session=session.id,
            identity=self._snapshot.written(session.trust, session.name),
            service=session.service,
            role=session.role,
            received=account.received,
            sent=account.sent,
            duration=account.duration_s,
            reason=reason,
        )

    def _reap_later(self, worker: _Worker) -> None:
        """Collect the process, which is ending or has."""

        async def reap() -> None:
            code = await asyncio.to_thread(_wait_or_kill, worker.process)
            if not self._draining:
                log.event("error", "worker.exit", worker=worker.number, pid=worker.process.pid, status=code)
                self._trail.worker_exited(worker.number, worker.process.pid, code)

        task = asyncio.create_task(reap(), name=f"reap worker {worker.number}")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _reap(self) -> None:
        for worker in self._workers.values():
            worker.channel.close()  # which ends the worker, whatever it does
        for worker in self._workers.values():
            await asyncio.to_thread(_wait_or_kill, worker.process)

    # Accepting.

    def _start_accepting(self) -> None:
        if self._accepting or self._draining or not any(worker.ready for worker in self._workers.values()):
            return
        self._accepting = True
        for number, (_, sock) in enumerate(self._bound):
            self._loop.add_reader(sock, self._on_acceptable, number, sock)

    def _stop_accepting(self) -> None:
        if not self._accepting:
            return
        self._accepting = False
        for _, sock in self._bound:
            self._loop.remove_reader(sock)

    def _on_acceptable(self, number: int, listening: socket.socket) -> None:
        for _ in range(_ACCEPT_BATCH):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _BROKEN_ALREADY:
                    continue
                if error.errno not in _NO_DESCRIPTOR:
                    raise
                # The listener stays readable: without a pause the loop would do nothing but fail.
                log.event("error", "gateway.accept_paused", message=error.strerror, seconds=_PAUSE_S)
                self._stop_accepting()
                self._loop.call_later(_PAUSE_S, self._start_accepting)
                return
            self._pass_on(number, sock, address)

    def _pass_on(self, number: int, sock: socket.socket, address: tuple[str, int]) -> None:
        worker = min(
            (worker for worker in self._workers.values() if worker.ready),
            key=lambda worker: self._admission.load(worker.number),
        )
        try:
            connection = self._admission.begin(worker.number, _address(address[0]))
        except Refused as refused:
            sock.close()
            self._floods.event(
                time.monotonic(),
                "warning",
                "connection.refuse",
                source=address[0],
                reason=refused.reason,
                message=refused.message,
            )
            self._meter.refused(None, refused.reason)
            self._trail.refused_at_once(address[0], refused.reason, time.monotonic())
            return
        worker.channel.send(Accepted(connection, number, address[0], address[1]), sock.detach())

    # What operators see.

    async def _read(self) -> Reading:
        moment, workers, draining = self._meter.take(), self._serving, self._draining
        for _ in moment.add_live():
            await asyncio.sleep(0)
        return moment.reading(self._loaded, workers=workers, draining=draining)

    @property
    def _serving(self) -> int:
        return sum(worker.ready for worker in self._workers.values())

    def _not_ready(self) -> list[str]:
        if self._draining:
            return ["draining: no new sessions are taken"]
        if not self._serving:
            return [f"workers: expected at least one that serves, got none of {len(self._workers)}"]
        if not self._accepting:
            return ["listeners: the host has no descriptor left for connections"]
        if self._trail.refuses:
            return ["audit: its lines cannot be written; the log says why"]
        return []

    # The end.

    def _on_stop_signal(self) -> None:
        if self._stopping:
            self._end()
            return
        if self._draining:
            self._cut_sessions()
            return
        self._draining = True
        self._stop_accepting()
        for _, sock in self._bound:
            sock.close()
        log.event("info", "gateway.drain", sessions=len(self._admission.sessions))
        for worker in self._workers.values():
            worker.channel.send(Drain())
        drain_s = self._snapshot.configuration.timeouts.drain_s
        if drain_s is not None:
            self._loop.call_later(drain_s, self._cut_sessions)
        self._end_if_drained()

    def _cut_sessions(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._cut = self._cut or bool(self._admission.sessions)
        for worker in self._workers.values():
            worker.channel.send(Stop(Reason.GATEWAY_STOPPED))
        self._loop.call_later(_STOP_S, self._end)

    def _end_if_drained(self) -> None:
        if self._draining and not self._workers:
            self._end()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(1 if self._cut else 0)

    async def _tick(self) -> None:
        last_s = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            self._floods.report()
            now_s = time.monotonic()
            self._trail.tick(now_s)
            self._meter.tick()
            # Who has been stopped itself finds the beats of that time still unread.
            self._end_hung(now_s, heard=now_s - last_s < _TICK_S * 5)
            last_s = now_s

    def _end_hung(self, now_s: float, *, heard: bool) -> None:
        for worker in self._workers.values():
            if not heard:
                worker.beat_s = now_s
            elif now_s - worker.beat_s > _HUNG_S:
                log.event("error", "worker.hung", worker=worker.number, pid=worker.process.pid, seconds=_HUNG_S)
                worker.beat_s = now_s
                worker.process.kill()


def _wait_or_kill(process: subprocess.Popen[bytes]) -> int:
    """Return the exit status of a process that is ending; what does not end is made to."""
    try:
        return process.wait(_EXIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
