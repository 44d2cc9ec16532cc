"""The supervisor: the control plane, which never touches a client's bytes.

It makes the parts, has them hear of each other, and passes what they know on to the program that comes after this one.
A connection is taken (`accepting`) and goes to a worker (`assigning`), which asks for a session (`sessions`).
"""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Collection, Mapping
from functools import partial
from typing import Any

from portguard import __version__
from portguard.control.access import Access, Peer
from portguard.control.listening import ControlSocket
from portguard.control.routes import Arguable, Forbidden
from portguard.control.server import ControlServer
from portguard.gateway.accepting import Acceptor
from portguard.gateway.accounting import Accounting
from portguard.gateway.admission import Admission, PendingBounds
from portguard.gateway.assigning import Assigner
from portguard.gateway.audit_trail import AuditTrail, Loading
from portguard.gateway.certificate_desk import CertificateDesk
from portguard.gateway.configuration import Configuration
from portguard.gateway.confinement import is_confined, landlock, resolver_files
from portguard.gateway.draining import DrainDesk
from portguard.gateway.ending import Ending
from portguard.gateway.handover import Handover
from portguard.gateway.lock_desk import LockDesk
from portguard.gateway.messages import (
    Admit,
    Ended,
    EnrolmentWanted,
    ForecastWanted,
    Gone,
    LeaseReturned,
    LeaseWanted,
    Message,
    PastRefusalsWanted,
    Regrant,
    RenewalWanted,
    ShareWanted,
    StandingWanted,
    Tried,
    TurnedAway,
)
from portguard.gateway.meter import Loaded, Meter
from portguard.gateway.notify import Notifier
from portguard.gateway.operator_http import OperatorHttp
from portguard.gateway.policy_desk import PolicyDesk
from portguard.gateway.quota_desk import QuotaDesk, Rules
from portguard.gateway.reexec import HELD_SIGNALS
from portguard.gateway.reload_desk import ReloadDesk
from portguard.gateway.reloading import InForce, Reloader
from portguard.gateway.scrape import scrape
from portguard.gateway.session_desk import SessionDesk
from portguard.gateway.sessions import Sessions
from portguard.gateway.slot_tables import SlotTables
from portguard.gateway.snapshot import Snapshot
from portguard.gateway.standing import Standings
from portguard.gateway.status import StatusDesk, Watched
from portguard.gateway.succession import Succession
from portguard.gateway.watching import Watcher
from portguard.gateway.workers import Worker, Workers
from portguard.limits.accounts import Warned
from portguard.limits.ledger import Store
from portguard.limits.locks import Locks
from portguard.observe import log
from portguard.observe.faults import Faults
from portguard.policy.quantities import format_quota

_TICK_S = 1.0


class Supervisor:
    """The gateway's one supervisor."""

    def __init__(
        self,
        in_force: InForce,
        slots: SlotTables,
        control: ControlSocket,
        floods: log.Floods,
        trail: AuditTrail,
        ledger: Store,
        notifier: Notifier,
    ):
        snapshot = in_force.snapshot
        configuration = snapshot.configuration
        self._loop = asyncio.get_running_loop()
        faults = Faults(floods)
        faults.watch_loop(self._loop)
        self._snapshot = snapshot  # that is in force
        self._announced = False
        self._generation = 1  # how many programs have served in this process
        self._ticker: asyncio.Task[None]  # set by run()
        self._operators = control
        self._trail = trail
        self._notifier = notifier
        self._slots = slots
        offered = landlock()
        self._workers = Workers(
            in_force.bundle,
            self._slots,
            on_message=self._on_message,
            on_ready=self._on_ready,
            on_gone=self._on_worker_gone,
            on_exit=lambda worker, status: trail.worker_exited(worker.number, worker.process.pid, status),
            greeting=lambda: self._lock_desk.greeting(),  # noqa: PLW0108  # it is made below
            resolver=resolver_files if offered.abi is not None else tuple,  # who is not confined sees what is new
        )
        self._admission = Admission(self._slots, **_pending_bounds(configuration))
        self._meter = Meter(
            self._slots,
            self._admission.sessions,
            written=snapshot.written,
            max_identities=configuration.metrics.max_identities,
        )
        self._accounting = Accounting(
            snapshot.policy,
            self._slots,
            ledger,
            when_unavailable=configuration.ledger.when_unavailable,
            send=self._workers.send,
            on_misconduct=self._workers.disown,
            on_warned=self._on_warned,
        )
        self._standings = Standings(
            self._accounting,
            lambda owner: self._admission.sessions_of(owner) + self._accounting.sessions_elsewhere(owner),
        )
        self._loaded = Loaded.of(snapshot, in_force.bundle.read_at)
        self._upstreams = _upstreams(snapshot)
        assigner = Assigner(
            self._workers.serving, admission=self._admission, meter=self._meter, trail=trail, floods=floods
        )
        self._acceptor = Acceptor([sock for _, sock in in_force.bound], assigner.assign)
        self._ending = Ending(
            acceptor=self._acceptor,
            workers=self._workers,
            sessions=self._admission.sessions,
            drain_s=lambda: self._snapshot.configuration.timeouts.drain_s,
            on_begun=lambda: notifier.stopping(self._status.line()),
        )
        self._drain = DrainDesk(
            is_ending=lambda: self._ending.begun,
            begin_to_end=self._ending.begin,
            sessions=lambda: len(self._admission.sessions),
        )
        locks = Locks(self._accounting.locks)
        self._sessions = Sessions(
            snapshot,
            locks=locks,
            ending=self._ending,
            drain=self._drain,
            admission=self._admission,
            accounting=self._accounting,
            trail=trail,
            meter=self._meter,
            standings=self._standings,
            send=self._workers.send,
        )
        self._certificates = CertificateDesk(
            snapshot,
            locks=locks,
            admission=self._admission,
            trail=trail,
            send=self._workers.send,
            on_turned_away=partial(self._meter.refused, None),
        )
        self._lock_desk = LockDesk(
            locks,
            store=ledger,
            namespace=lambda: self._snapshot.configuration.namespace,
            sessions=self._admission.sessions,
            tell=self._workers.tell,
            end=self._sessions.end,
            on_expired=trail.lock_expired,
        )
        self._reloader = Reloader(in_force, workers=self._workers, trail=trail, apply=self._apply, notifier=notifier)
        self._reload = ReloadDesk(self._reloader, lambda: self._ending.begun)
        watched = Watched(
            workers=self._workers,
            workers_wanted=_workers_wanted(snapshot),
            confinement=offered,
            acceptor=self._acceptor,
            admission=self._admission,
            accounting=self._accounting,
            trail=trail,
            drain=self._drain,
            reloader=self._reloader,
            meter=self._meter,
            loaded=lambda: self._loaded,
            ending_s=lambda: self._ending.since_s,
            generation=lambda: self._generation,
        )
        self._status = StatusDesk(watched)
        self._http = OperatorHttp(
            read=partial(scrape, watched), not_ready=lambda: self._status.condition().not_ready, faults=faults
        )
        self._succession = Succession(
            workers=self._workers,
            acceptor=self._acceptor,
            accounting=self._accounting,
            trail=trail,
            reloader=self._reloader,
            notifier=notifier,
            is_issuing=lambda: self._certificates.under_way,
            handover=self._handover,
            is_ending=lambda: self._ending.begun,
            stop=self._stop_ticking,
        )
        settings = configuration.control
        self._control = ControlServer(
            access=Access(os.getuid(), settings.viewers, settings.operators, settings.admins),
            routes=[
                *self._reload.routes,
                *QuotaDesk(
                    self._accounting.accounts,
                    lambda: Rules.of(self._snapshot),
                    self._accounting.serve_waiting,
                    ledger,
                ).routes,
                *PolicyDesk(lambda: self._reloader.in_force).routes,
                *SessionDesk(
                    self._admission.sessions,
                    self._slots,
                    lambda: self._snapshot.configuration.namespace,
                    self._sessions.end,
                ).routes,
                *self._succession.routes,
                *self._lock_desk.routes,
                *self._drain.routes,
                *self._status.routes,
            ],
            faults=faults,
            on_act=self._on_act,
            is_welcome=self._is_welcome,
        )
        self._floods = floods

    async def run(self, handover: Handover | None = None) -> int:
        """Serve, from the start or from where another program has left off; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._ending.on_signal)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload.on_hangup)
        self._loop.add_signal_handler(signal.SIGUSR2, self._succession.on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
        in_force = self._reloader.in_force
        self._trail.start(self._snapshot.configuration.gateway.name)
        if handover is None:
            loading = Loading(in_force.bundle, in_force.snapshot)
            self._trail.loaded(loading, kept=loading.keep())
            in_force.log_listening()
        else:
            self._take_over(handover.state)
        await self._http.start(in_force.metrics)
        self._control.start(self._operators)
        self._workers.start(_workers_wanted(self._snapshot))
        ticker = self._ticker = asyncio.create_task(self._tick(), name="tick")
        watcher = Watcher(self._reloader, may=lambda: not (self._ending.begun or self._succession.under_way))
        watching = asyncio.create_task(watcher.run(), name="watch")
        try:
            code = await self._ending.over
        finally:
            ticker.cancel()
            watching.cancel()
            self._acceptor.close()
            await self._workers.close()
            await self._certificates.stop()
            await self._http.stop()
            await self._control.stop()
        for worker in self._workers:
            self._sessions.lost(worker)
        self._slots.close()
        await self._accounting.stop()
        await self._trail.stop(code)
        self._notifier.close()
        log.event("info", "gateway.stop", exit_code=code)
        return code

    # Workers.

    def _on_message(self, worker: Worker, message: Message) -> None:
        """Raises Misconduct for what is not the worker's to say."""
        match message:
            case Admit():
                self._sessions.admit(worker, message)
            case Ended():
                self._sessions.ended(worker, message)
            case Regrant():
                self._sessions.regrant(worker, message)
            case LeaseWanted() | LeaseReturned() | ShareWanted():
                self._accounting.on_message(worker.number, message)
            case TurnedAway():
                # A service that is not there is not counted by its name: a worker could make up one after the other.
                known = message.service in self._snapshot.policy.services
                self._meter.refused(message.service if known else None, message.reason)
                self._standings.refused(message)
                self._trail.refused(message, time.monotonic())
            case StandingWanted() | PastRefusalsWanted():
                worker.channel.send(self._standings.answer(message))
            case ForecastWanted():
                worker.channel.send(self._sessions.forecast(message))
            case RenewalWanted() | EnrolmentWanted():
                self._certificates.ask(worker, message)
            case Gone():
                self._admission.gone(message.connection, worker.number)
                self._meter.gone(message.handshake_s)
            case Tried():
                self._meter.tried([(name, up) for name, up in message.upstreams if name in self._upstreams])

    def _on_ready(self) -> None:
        if self._ending.begun:
            return
        self._acceptor.start()
        if not self._announced and len(self._workers.serving) == self._workers.wanted:
            self._announced = True
            log.event("info", "gateway.ready", workers=len(self._workers.serving))
            self._notifier.ready(self._status.line())

    def _on_worker_gone(self, worker: Worker) -> None:
        self._ending.on_worker_gone(self._sessions.lost(worker))
        if self._ending.begun:
            return
        if not self._workers.serving:
            self._acceptor.stop()
        self._meter.totals.worker_restarts += not worker.retiring

    # What operators see.

    def _on_warned(self, warned: Warned) -> None:
        owner, quota = warned.owner, warned.quota
        identity = None if owner.is_pool else self._snapshot.written(owner.trust, owner.name)
        log.event(
            "warning",
            "quota.warning",
            identity=identity,
            role=owner.role,
            quota=format_quota(quota),
            used=warned.used_bytes,
        )
        self._meter.totals.quota_warnings[owner.role, quota.period] += 1
        self._trail.quota_warning(warned)

    def _on_act(self, peer: Peer, method: str, path: str, given: Arguable, outcome: str) -> None:
        level: log.Level = "warning" if outcome == Forbidden.code else "info"
        log.event(level, "control.act", uid=peer.uid, user=peer.name, act=f"{method} {path}", outcome=outcome)
        self._trail.acted(peer, method, path, given, outcome, now_s=time.monotonic())

    def _is_welcome(self, uid: int, pid: int, sock: socket.socket) -> bool:
        """Whether a process may ask for acts. *Fails closed*: workers are of this user, and have their channel."""
        if uid != os.getuid() or not is_confined(pid, sock):
            return True
        message = (
            "expected no worker, got one that somebody has taken over, a process that has ended, "
            "or another group than the gateway's"
        )
        self._floods.event(time.monotonic(), "error", "control.refuse", pid=pid, message=message)
        return False

    # Reload.

    async def _apply_rest(self, before: InForce, after: InForce) -> None:
        if after.metrics is not before.metrics:
            await self._http.move(after.metrics)

    def _apply(self, before: InForce, in_force: InForce) -> Awaitable[None]:
        """Work by another configuration from now on."""
        snapshot = self._snapshot = in_force.snapshot
        self._upstreams = _upstreams(snapshot)
        configuration = snapshot.configuration
        log.configure(json_lines=configuration.log.format == "json", level=configuration.log.level)
        self._acceptor.replace([sock for _, sock in in_force.bound])
        self._admission.configure(**_pending_bounds(configuration))
        self._sessions.configure(snapshot)
        self._certificates.configure(snapshot)
        self._meter.configure(written=snapshot.written, max_identities=configuration.metrics.max_identities)
        self._accounting.configure(snapshot.policy, configuration.ledger.when_unavailable)
        self._trail.configure(required=configuration.audit.required)
        self._loaded = Loaded.of(snapshot, in_force.bundle.read_at)
        settings = configuration.control
        self._control.configure(Access(os.getuid(), settings.viewers, settings.operators, settings.admins))
        return self._apply_rest(before, in_force)

    # Another version of the program.

    def _handover(self) -> Handover:
        state = {
            "generation": self._generation,
            "admission": self._admission.state(),
            "accounting": self._accounting.state(),
            "locks": self._lock_desk.state(),
            "trail": self._trail.state(),
            "meter": self._meter.state(),
            "workers": self._workers.state(),
            "drain": self._drain.state(),
            "refusals": self._standings.book.state(),
            "loaded": [self._reloader.loaded_by, self._reloader.loaded_message],
            "needs_restart": list(self._reloader.needs_restart),
        }
        return Handover.of(self._reloader.in_force, self._operators, self._slots, self._notifier, state)

    def _take_over(self, state: Mapping[str, Any]) -> None:
        """Go on where the program before this one has left off."""
        self._generation = state["generation"] + 1
        self._admission.restore(state["admission"])
        self._meter.restore(state["meter"])
        self._trail.restore(state["trail"])
        self._lock_desk.restore(state["locks"])
        self._workers.adopt(state["workers"])
        self._drain.restore(state["drain"])
        self._standings.book.restore(state["refusals"])
        self._reloader.loaded_by, self._reloader.loaded_message = state["loaded"]
        self._reloader.still_needs_restart(state["needs_restart"])
        self._status.forget_refusals()
        self._accounting.restore(state["accounting"], self._admission.sessions)
        self._acceptor.start()  # the workers that are here serve until ours do
        log.event("info", "gateway.take_over", version=__version__, sessions=len(self._admission.sessions))

    def _stop_ticking(self) -> None:
        self._ticker.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._floods.report()
            now_s = time.monotonic()
            self._trail.tick(now_s)
            self._meter.tick()
            self._lock_desk.tick()
            await self._accounting.tick()
            self._workers.tick(now_s)
            self._status.tick(now_s)
            # That the loop turns is said by saying anything; a gateway that drains is alive without workers too.
            healthy = self._ending.begun or self._workers.healthy(now_s)
            self._notifier.tick(now_s, status=self._status.line(), healthy=healthy, stopping=self._ending.begun)


def _workers_wanted(snapshot: Snapshot) -> int:
    return snapshot.configuration.gateway.workers or os.cpu_count() or 1


def _upstreams(snapshot: Snapshot) -> Collection[str]:
    return {str(upstream) for service in snapshot.policy.services.values() for upstream in service.upstreams}


def _pending_bounds(configuration: Configuration) -> PendingBounds:
    capacity = configuration.capacity
    return {
        "max_pending": capacity.pending_handshakes,
        "max_pending_per_address": capacity.pending_handshakes_per_address,
        # Behind a balancer all clients come from its address.
        "exempt": (*capacity.pending_handshakes_exempt, *configuration.gateway.accept_proxy_protocol_from),
    }
