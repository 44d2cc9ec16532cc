"""The sessions, as the supervisor leads them: from a worker's question to what the books say of the end.

asked      a worker wants to know whether a client gets a session   refused, or it is given a slot: undecided
undecided  the session's line is on its way into the audit          refused when it cannot be written, or else open
open       the worker knows it, and bytes may move                  until its worker says that it has ended, or is lost

One that is to end while it is undecided becomes open first: a worker that has not heard of a session could not end it.
"""

import time
from collections.abc import Callable

from portguard.errors import Refused
from portguard.gateway.accounting import Accounting
from portguard.gateway.admission import Account, Admission, Client, Session
from portguard.gateway.audit_trail import AuditTrail
from portguard.gateway.draining import DrainDesk
from portguard.gateway.ending import Ending
from portguard.gateway.messages import (
    Admit,
    End,
    Ended,
    Forecast,
    ForecastWanted,
    ForeseenRefusal,
    Message,
    Misconduct,
    Refusal,
    Regrant,
)
from portguard.gateway.meter import Meter
from portguard.gateway.snapshot import Snapshot
from portguard.gateway.standing import Standings
from portguard.gateway.workers import Worker
from portguard.identity.names import Identity
from portguard.limits.ledger import Owner
from portguard.limits.locks import Locks
from portguard.observe import log
from portguard.reasons import Reason


class Sessions:
    """Has sessions begin and end, in whatever order things come. Belongs to the running loop.

    `locks`, `ending`, `drain`, `admission` and `accounting` each may refuse one; the last two, `trail`, `meter` and
    `standings` keep their books about it. `send(worker, message)` reaches a worker, and does nothing for one that is
    gone.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        locks: Locks,
        ending: Ending,
        drain: DrainDesk,
        admission: Admission,
        accounting: Accounting,
        trail: AuditTrail,
        meter: Meter,
        standings: Standings,
        send: Callable[[int, Message], None],
    ):
        self._undecided: dict[str, Reason | None] = {}  # by id; why one is to end as soon as it is open
        self._locks = locks
        self._ending = ending
        self._drain = drain
        self._admission = admission
        self._accounting = accounting
        self._trail = trail
        self._meter = meter
        self._standings = standings
        self._send = send
        self.configure(snapshot)

    def configure(self, snapshot: Snapshot) -> None:
        """Let sessions begin by another policy from now on; those that there are stay as they are."""
        self._snapshot = snapshot
        self._roles = {role.name for role in snapshot.policy.roles}
        self._upstreams = {
            name: tuple(map(str, service.upstreams)) for name, service in snapshot.policy.services.items()
        }

    def admit(self, worker: Worker, request: Admit) -> None:
        """Answer a worker that asks for a session, now or when the audit has its line. *Fails closed*.

        Raises Misconduct when it does not ask for a connection of its own.
        """
        self._admission.check_pending(request.connection, worker.number)
        owner, service = Owner(request.role, request.trust, request.name), request.service
        try:
            self._check(request, owner, service, counts=True)
            session = self._admission.admit(
                request.connection,
                session_id=request.session,
                owner=owner,
                service=service,
                client=Client(tuple(request.groups), request.serial, request.fingerprint, request.source),
                upstreams=self._upstreams_of(request),
                now_ns=time.monotonic_ns(),
            )
        except Refused as refused:
            worker.channel.send(Refusal(request.connection, refused.reason, refused.message, refused.retry_after_s))
        else:
            self._undecided[session.id] = None
            self._trail.opens(request, lambda may: self._on_decided(worker, request, session, may=may))

    def forecast(self, request: ForecastWanted) -> Forecast:
        """Return how a worker that asked for each of these sessions would be answered now. Nothing is counted.

        What cannot be known before it is tried, such as whether the audit takes one more line, is taken to go well.
        """
        refusals: list[ForeseenRefusal | None] = []
        for service, role in request.sessions:
            try:
                self._check(request, Owner(role, request.trust, request.name), service, counts=False)
                self._admission.check_free()
                if self._trail.refuses:
                    raise Refused(Reason.AUDIT_UNAVAILABLE)
            except Refused as refused:
                refusals.append(ForeseenRefusal(refused.reason, refused.message, refused.retry_after_s))
            else:
                refusals.append(None)
        return Forecast(request.connection, refusals)

    def _check(self, request: Admit | ForecastWanted, owner: Owner, service: str, *, counts: bool) -> None:
        """Raise Refused when no session may begin now. *Fails closed*.

        If it `counts`, it is an attempt at the connect rate when everything else allows it.
        """
        identity = Identity(request.trust, request.name)
        self._locks.refuse(identity, request.fingerprint, request.serial, time.time())
        # Who was accepted before the gateway began to end still gets in, or a restart would turn clients away.
        if self._ending.cutting:
            raise Refused(Reason.DRAINING)
        self._drain.check()
        self._admission.check_room(
            owner,
            service,
            most_of_owner=self._accounting.accounts.limits(owner.role).max_sessions,
            most_of_service=self._most_sessions_of(service),
            elsewhere=self._accounting.sessions_elsewhere,
        )
        self._accounting.check(owner, counts=counts)

    def _most_sessions_of(self, name: str) -> int | None:
        """Raise Refused with `unknown_service` when it is not there any more, which the worker did not know yet."""
        service = self._snapshot.policy.services.get(name)
        if service is None:
            raise Refused(Reason.UNKNOWN_SERVICE)
        return service.max_sessions

    def _upstreams_of(self, request: Admit) -> tuple[str, ...]:
        """Those that the worker counts by. Right after a reload it may go by others: then they are not known."""
        return self._upstreams[request.service] if request.policy == self._snapshot.revision else ()

    def _on_decided(self, worker: Worker, request: Admit, session: Session, *, may: bool) -> None:
        doomed = self._undecided.pop(session.id, None)
        if self._admission.sessions.get(session.slot) is not session:
            return  # its worker died while the audit was written, and the slot may be another session's by now
        if may:
            self._meter.admitted(session.slot, request.handshake_s)
            worker.channel.send(self._accounting.open(request.connection, session))
            if doomed is not None:
                self.end(session, doomed)
            return
        account = self._admission.end(session.slot, time.monotonic_ns())
        self._trail.closed(account, Reason.AUDIT_UNAVAILABLE, None)
        reason = Reason.AUDIT_UNAVAILABLE
        worker.channel.send(Refusal(request.connection, reason, reason.sentence, None))

    def regrant(self, worker: Worker, request: Regrant) -> None:
        """Let a session that is open go on in another role, or under other kinds of limits.

        Where there is no such role it keeps its own: its worker has yet to apply the policy that took the other away,
        and will look at it again. Raises Misconduct when it is not the worker's, or is not open yet.
        """
        self._admission.check_session(request.slot, worker.number)
        if self._admission.sessions[request.slot].id in self._undecided:
            raise Misconduct(f"slot {request.slot}: expected a session that its worker knows of, got another")
        if request.role not in self._roles:  # a worker could make up one after the other, and each would get an account
            worker.channel.send(self._accounting.move(self._admission.sessions[request.slot]))
            return
        session = self._admission.move(request.slot, request.role)
        worker.channel.send(self._accounting.move(session))
        self._trail.moved(session, time.monotonic())

    def end(self, session: Session, reason: Reason) -> None:
        """Have a session ended that is admitted. One that its worker has not heard of yet ends as soon as it has."""
        if session.id in self._undecided:
            self._undecided[session.id] = reason
        else:
            self._send(session.worker, End(session.slot, reason))

    def ended(self, worker: Worker, end: Ended) -> None:
        """A worker says that a session of its own has ended. Raises Misconduct when it is not its own."""
        self._admission.check_session(end.slot, worker.number)
        account = self._admission.end(end.slot, time.monotonic_ns())
        self._accounting.ended(account)
        if end.returned is not None:
            self._accounting.on_message(worker.number, end.returned)
        self._meter.ended(account, end.reason)
        self._standings.ended(account, end.reason)
        self._trail.closed(account, end.reason, end.upstream)

    def lost(self, worker: Worker) -> int:
        """A worker is no more: what it still had ends in the books. Return how many sessions those were."""
        accounts = self._admission.lose(worker.number, time.monotonic_ns())
        for account in accounts:
            self._accounting.ended(account)
            self._note_lost(account)
        self._accounting.lost(worker.number)
        return len(accounts)

    def _note_lost(self, account: Account) -> None:
        session = account.session
        self._undecided.pop(session.id, None)
        reason = Reason.GATEWAY_STOPPED if self._ending.cutting else Reason.WORKER_LOST
        self._meter.ended(account, reason)
        self._standings.ended(account, reason)
        self._trail.closed(account, reason, account.upstream)
        log.event(
            "warning",
            "session.close",
            session=session.id,
            identity=self._snapshot.written(session.owner.trust, session.owner.name),
            service=session.service,
            role=session.owner.role,
            upstream=account.upstream,
            received=account.received,
            sent=account.sent,
            duration=account.duration_s,
            reason=reason,
        )
