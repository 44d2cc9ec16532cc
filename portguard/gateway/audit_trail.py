"""What of the gateway's doings goes into the audit, and whose line is waited for: a session's, a new certificate's."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from portguard import __version__
from portguard.control.access import Peer
from portguard.gateway.acts import act_arguments, act_event
from portguard.gateway.admission import Account, Session
from portguard.gateway.bundle import Bundle, policy_files
from portguard.gateway.condition import Failing
from portguard.gateway.configuration import Configuration
from portguard.gateway.credentials import AUDIT_KEY, credential
from portguard.gateway.kept_policies import keep_policy, record_load
from portguard.gateway.messages import CLAIM_FIELDS, Admit, TurnedAway
from portguard.gateway.snapshot import Snapshot
from portguard.limits.accounts import Warned
from portguard.limits.ledger import LockRow
from portguard.observe import log
from portguard.observe.audit.floods import RefusalGates
from portguard.observe.audit.recorder import Entry, Recorder, Settings
from portguard.observe.audit.records import Fields
from portguard.observe.audit.writer import Answers, Writer
from portguard.policy.quantities import format_quota
from portguard.reasons import Reason

PATIENCE_S = 2.0
"""How long a session, or a certificate, waits for its line."""

_LATEST_S = 0.05
"""How long an entry that nobody waits for may wait for others: to wake the writer costs more than to write."""

_CLOSE_S = 5.0

_REGRANT_S = 3600.0
"""How long after a session has moved on another move is taken to come of hours that begin and end, and no reload."""


def open_recorder(configuration: Configuration) -> Recorder:
    """Make ready to record as `[audit]` says. Raises ConfigurationError."""
    settings = configuration.audit
    return Recorder(
        Settings(
            path=settings.path,
            state=configuration.gateway.state,
            sync=settings.sync,
            rotate_bytes=settings.rotate_size,
            rotate_after=timedelta(seconds=settings.rotate_age_s) if settings.rotate_age_s is not None else None,
            journal=settings.copy == "journal",
            key=credential(AUDIT_KEY),
        ),
        datetime.now(UTC),
    )


@dataclass(frozen=True, slots=True)
class Loading:
    """A configuration that comes into force; who had it loaded, and why, where somebody did."""

    bundle: Bundle
    snapshot: Snapshot
    by: str | None = None
    message: str | None = None

    def keep(self) -> bool:
        """Keep its policy for later; return whether that was possible. Waits for the disk."""
        configuration = self.snapshot.configuration
        try:
            keep_policy(self.bundle, configuration)
            record_load(configuration, self.snapshot.revision, datetime.now(UTC), by=self.by, message=self.message)
        except OSError as error:
            log.event("error", "policy.keep_failed", file=error.filename, message=error.strerror)
            return False
        return True


@dataclass(slots=True)
class _Waiting:
    deadline_s: float
    on_decided: Callable[[bool], None]
    entry: Entry | None = None


class AuditTrail:
    """The supervisor's way into the audit. It lives in the running loop, and never waits for the disk."""

    def __init__(self, recorder: Recorder, *, required: bool):
        self._recorder = recorder
        self._required = required
        self._loop = asyncio.get_running_loop()
        self._writer = Writer(recorder, self._deliver)
        self._gates = RefusalGates()
        self._refused_acts = RefusalGates()  # by user
        self._refused_invitations = RefusalGates()  # by whom they are for
        self._regrants = RefusalGates()  # by worker, of more than are always recorded
        self._regranted: dict[str, tuple[int, float]] = {}  # by session: at which load, and when
        self._loads = 0  # how many policies have come into force
        self._policy: str | None = None  # the revision in force
        self._sessions: dict[str, Fields] = {}  # by id, those whose opening is recorded: what their closing repeats
        # By session id, or what stands for a certificate; in the order of their deadlines.
        self._waiting: dict[str, _Waiting] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wake: asyncio.TimerHandle | None = None

    # The gateway.

    def start(self, name: str) -> None:
        """The gateway starts."""
        self._writer.start()
        self._note(
            "gateway.start",
            {"gateway": name, "version": __version__, "key": self._recorder.fingerprint, "clean": self._recorder.clean},
        )

    def loaded(self, loading: Loading, *, kept: bool) -> None:
        """A policy comes into force, and was `kept` or could not be."""
        snapshot = loading.snapshot
        self._policy = snapshot.revision
        self._loads += 1
        files = [path for path, _ in policy_files(snapshot.configuration, loading.bundle.files)]
        self._note(
            "policy.load",
            {"policy": snapshot.revision, "files": files, "kept": kept, "by": loading.by, "message": loading.message},
        )

    def not_loaded(self, problem: str, *, by: str | None, message: str | None) -> None:
        """A reload has failed, and what was in force stays so."""
        self._note("policy.load_failed", {"policy": self._policy, "problem": problem, "by": by, "message": message})

    @property
    def is_deciding(self) -> bool:
        """Whether a session, or a certificate, waits for its line."""
        return bool(self._waiting)

    def state(self) -> dict[str, Any]:
        """What is to be told when sessions close, for another program: what json.dumps() takes."""
        return {"policy": self._policy, "sessions": self._sessions}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self._policy = state["policy"]
        self._sessions.update(state["sessions"])

    async def suspend(self, by: str) -> bool:
        """Another program goes on with the audit: write what waits; return whether that was possible."""
        self._report(time.monotonic(), at_once=True)
        self._note("gateway.reexec", {"version": __version__, "by": by})
        return await asyncio.to_thread(self._writer.close, _CLOSE_S)

    def worker_exited(self, number: int, pid: int, status: int) -> None:
        """A worker process has ended unasked; `status` is negative for a signal."""
        self._note("worker.exit", {"worker": number, "pid": pid, "status": status})

    def lock_expired(self, lock: LockRow) -> None:
        """A lock has ended by itself."""
        kind, trust, value = lock.target
        self._note(
            "lock.expire",
            {
                "trust": trust or None,
                "identity": value if kind == "identity" else None,
                "serial": value if kind == "serial" else None,
                "fingerprint": value if kind == "fingerprint" else None,
                "by": lock.by,
                "message": lock.reason,
            },
        )

    def quota_warning(self, warned: Warned) -> None:
        """Somebody has used most of a quota."""
        owner = warned.owner
        self._note(
            "quota.warning",
            {
                "trust": owner.trust or None,
                "identity": owner.name or None,
                "role": owner.role,
                "quota": format_quota(warned.quota),
                "used": warned.used_bytes,
                "policy": self._policy,
            },
        )

    def acted(
        self, peer: Peer, method: str, path: str, given: Mapping[str, object], outcome: str, *, now_s: float
    ) -> None:
        """Somebody did something over the control socket, or tried to; `outcome` is "done" or the code of an error.

        What was done is always recorded; of what was not, only so many a second.
        """
        who: Fields = {"uid": peer.uid, "user": peer.name}
        held_back = 0
        if outcome != "done":
            admitted = self._refused_acts.admit(peer.uid, who, now_s)
            if admitted is None:
                return
            held_back = admitted
        about: Fields = {**who, "arguments": act_arguments(given) or None, "outcome": outcome}
        self._note(act_event(method, path), {**about, "policy": self._policy, "held_back": held_back or None})

    @property
    def refuses(self) -> bool:
        """Whether sessions are refused at once, because their lines could not be written for a while."""
        failing_s = self._writer.failing_s()
        return self._required and failing_s is not None and failing_s > PATIENCE_S

    @property
    def failing(self) -> Failing | None:
        """For how long, and why, the log could not be written; None when it can."""
        failing_s, trouble = self._writer.failing_s(), self._writer.trouble
        if failing_s is None or trouble is None:
            return None
        return Failing(failing_s, f"{trouble.lower()}: {self._recorder.path}")

    def configure(self, *, required: bool) -> None:
        """From now on sessions do, or do not, wait for their lines."""
        self._required = required

    @property
    def failures(self) -> int:
        """How many attempts at writing have failed."""
        return self._writer.failures

    def tick(self, now_s: float) -> None:
        """To be called about once a second."""
        self._report(now_s, at_once=False)

    async def stop(self, exit_code: int) -> None:
        """The gateway has stopped: the last record."""
        self._report(time.monotonic(), at_once=True)
        self._note("gateway.stop", {"status": exit_code})
        if not await asyncio.to_thread(self._writer.close, _CLOSE_S):
            log.event("error", "audit.unavailable", message=f"expected the last lines written in {_CLOSE_S:.0f} s")

    # Sessions.

    def opens(self, request: Admit, on_decided: Callable[[bool], None]) -> None:
        """Record that a session opens. `on_decided` tells whether it may, maybe before this returns.

        With `audit.required` it may once its line is acknowledged, and may not when that takes longer than
        `PATIENCE_S`. *Fails closed.* Nothing is decided any more once closed() was called for the session.
        """
        about: Fields = {
            "session": request.session,
            "trust": request.trust,
            "identity": request.name,
            "source": request.source,
            "service": request.service,
            "role": request.role,
            "policy": self._policy,
        }
        more: Fields = {"groups": request.groups, "serial": request.serial, "fingerprint": request.fingerprint}
        if not self._required:
            self._sessions[request.session] = about
            self._note("session.open", {**about, **more})
            on_decided(True)
            return
        if self.refuses:
            on_decided(False)
            return
        self._sessions[request.session] = about
        self._await_line(request.session, "session.open", {**about, **more}, on_decided)

    def issues(self, serial: str, fields: Fields, on_decided: Callable[[bool], None]) -> None:
        """Record that a certificate is issued. `on_decided` tells, as that of `opens`, whether it may leave.

        *Fails closed*. `serial` is its own, in hex.
        """
        if not self._required:
            self._note("certificate.issue", fields)
            on_decided(True)
        elif self.refuses:
            on_decided(False)
        else:
            self._await_line(f"certificate {serial}", "certificate.issue", fields, on_decided)

    def moved(self, session: Session, now_s: float) -> None:
        """A live session goes on in another role, or under other limits.

        That is its worker's word, and no worker may fill the disk with it. Once for each policy, and once an hour, it
        is always recorded; more often only so many a second.
        """
        about = self._sessions.get(session.id)
        if about is None:
            return
        about = self._sessions[session.id] = {**about, "role": session.owner.role, "policy": self._policy}
        held_back: int | None = 0
        loads, at_s = self._regranted.get(session.id, (None, 0.0))
        if loads != self._loads or now_s - at_s >= _REGRANT_S:
            self._regranted[session.id] = self._loads, now_s
        else:
            held_back = self._regrants.admit(session.worker, {"worker": session.worker}, now_s)
        if held_back is not None:
            self._note("session.regrant", {**about, "held_back": held_back or None})

    def closed(self, account: Account, reason: str, upstream: str | None) -> None:
        """Record that a session has closed, unless its opening is not recorded."""
        session = account.session
        about = self._sessions.pop(session.id, None)
        self._regranted.pop(session.id, None)
        waiting = self._waiting.pop(session.id, None)
        if about is None or (waiting is not None and self._withdrawn(waiting)):
            return
        self._note(
            "session.close",
            {
                **about,
                "upstream": upstream,
                "reason": reason,
                "received": account.received,
                "sent": account.sent,
                "duration": round(account.duration_s, 6),
            },
        )

    def _await_line(self, key: str, event: str, fields: Fields, on_decided: Callable[[bool], None]) -> None:
        """Record what waits for its line, for as long as `PATIENCE_S`."""
        waiting = self._waiting[key] = _Waiting(time.monotonic() + PATIENCE_S, on_decided)
        waiting.entry = self._writer.append(event, fields, partial(self._on_written, key))
        if self._timer is None:
            self._timer = self._loop.call_later(PATIENCE_S, self._on_timer)

    def _note(self, event: str, fields: Fields) -> None:
        """Record what nothing waits for."""
        self._writer.append(event, fields)
        if self._wake is None:
            self._wake = self._loop.call_later(_LATEST_S, self._on_wake)

    def _on_wake(self) -> None:
        self._wake = None
        self._writer.wake()

    def _on_written(self, key: str, written: bool) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            waiting.on_decided(written)

    def _on_timer(self) -> None:
        self._timer = None
        now_s = time.monotonic()
        while self._waiting:
            key, waiting = next(iter(self._waiting.items()))
            if waiting.deadline_s > now_s:
                self._timer = self._loop.call_later(waiting.deadline_s - now_s, self._on_timer)
                return
            del self._waiting[key]
            if self._withdrawn(waiting):
                # Its line will never be written, so neither is that of its end.
                self._sessions.pop(key, None)
            waiting.on_decided(False)

    def _withdrawn(self, waiting: _Waiting) -> bool:
        return waiting.entry is not None and self._writer.withdraw(waiting.entry)

    def _deliver(self, answers: Answers) -> None:
        self._loop.call_soon_threadsafe(_answer, answers)

    # Refusals.

    def refused(self, refusal: TurnedAway, now_s: float) -> None:
        """Record that somebody was refused, unless too many were of late."""
        if refusal.name is None:
            self._refuse("handshake.fail", refusal, self._gates, now_s)
        else:
            self._refuse("session.refuse", refusal, self._gates, now_s)

    def invitation_refused(self, refusal: TurnedAway, now_s: float) -> None:
        """Record that somebody who was invited was refused a certificate, unless too many were of late.

        That an invitation was stolen comes to light here. So neither strangers nor sessions can have it held back.
        """
        if refusal.name is None:
            self.refused(refusal, now_s)
        else:
            self._refuse("certificate.refuse", refusal, self._refused_invitations, now_s)

    def refused_at_once(self, source: str, reason: Reason, now_s: float) -> None:
        """Record that a connection was refused before anything was read from it."""
        held_back = self._gates.admit(None, {}, now_s)
        if held_back is not None:
            self._note("handshake.fail", {"source": source, "reason": reason, "held_back": held_back or None})

    def _refuse(self, event: str, refusal: TurnedAway, gates: RefusalGates, now_s: float) -> None:
        known = refusal.name is not None
        about: Fields = {"trust": refusal.trust, "identity": refusal.name} if known else {}
        held_back = gates.admit((refusal.trust, refusal.name) if known else None, about, now_s)
        if held_back is None:
            return
        claimed = dict(zip(CLAIM_FIELDS, refusal.claim, strict=True)) if refusal.claim is not None else {}
        fields: Fields = {
            "session": refusal.session,
            **about,
            "groups": refusal.groups,
            "serial": refusal.serial,
            "fingerprint": refusal.fingerprint,
            "source": refusal.source,
            "service": refusal.service,
            "reason": refusal.reason,
            "message": refusal.message,
            **claimed,
            "policy": self._policy,
            "held_back": held_back or None,
        }
        self._note(event, fields)

    def _report(self, now_s: float, *, at_once: bool) -> None:
        for about, held_back in self._gates.report(now_s, at_once=at_once):
            event = "session.refuse.flood" if about else "handshake.fail.flood"
            self._note(event, {**about, "held_back": held_back})
        for about, held_back in self._refused_invitations.report(now_s, at_once=at_once):
            self._note("certificate.refuse.flood", {**about, "held_back": held_back})
        for about, held_back in self._refused_acts.report(now_s, at_once=at_once):
            self._note("admin.refuse.flood", {**about, "held_back": held_back})
        for about, held_back in self._regrants.report(now_s, at_once=at_once):
            self._note("session.regrant.flood", {**about, "held_back": held_back})


def _answer(answers: Answers) -> None:
    for on_written, written in answers:
        on_written(written)
