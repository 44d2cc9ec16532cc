"""`/v1/status`: how the gateway is, what is wrong, and what somebody who is woken up by it wants to know next."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from portguard import __version__
from portguard.control.access import Level, Peer
from portguard.control.routes import Arguable, Arguments, Route
from portguard.gateway.accepting import Acceptor
from portguard.gateway.accounting import Accounting
from portguard.gateway.admission import Admission
from portguard.gateway.audit_trail import AuditTrail
from portguard.gateway.condition import Condition, Failing, State, Trouble, Troubles
from portguard.gateway.confinement import Landlock
from portguard.gateway.draining import DrainDesk
from portguard.gateway.ledger_health import PATIENCE_S
from portguard.gateway.meter import Loaded, Meter
from portguard.gateway.recent_refusals import SPAN_S, RecentRefusals
from portguard.gateway.reloading import Reloader
from portguard.gateway.workers import Workers
from portguard.instants import written_second
from portguard.reasons import Reason

_MOST_REASONS = 5


@dataclass(frozen=True, slots=True)
class Watched:
    """The parts of the supervisor that have something to say, here and to a scrape, and what it knows itself.

    `ending_s()` is since when it drains to end, in seconds since the epoch, None while it does not; `generation()` how
    many programs have served in this process.
    """

    workers: Workers
    workers_wanted: int
    confinement: Landlock
    acceptor: Acceptor
    admission: Admission
    accounting: Accounting
    trail: AuditTrail
    drain: DrainDesk
    reloader: Reloader
    meter: Meter
    loaded: Callable[[], Loaded]
    ending_s: Callable[[], float | None]
    generation: Callable[[], int]


class StatusDesk:
    """Serves the route, and is asked by whoever else wants to know. `clock()` is seconds since the epoch."""

    def __init__(self, watched: Watched, clock: Callable[[], float] = time.time):
        self._watched = watched
        self._clock = clock
        self._troubles = Troubles(self._look, clock)
        self.refusals = RecentRefusals(watched.meter.totals.refused, time.monotonic())

    @property
    def routes(self) -> tuple[Route, ...]:
        """What is served, and to whom."""
        return (Route("GET", "/v1/status", Level.VIEWER, self._show),)

    def condition(self) -> Condition:
        """How the gateway is now."""
        return Condition(self._troubles.now(), len(self._watched.admission.sessions))

    def tick(self, now_s: float) -> None:
        """To be called about once a second, at time.monotonic()."""
        self._troubles.now()
        self.refusals.tick(now_s)

    def line(self) -> str:
        """One line for `systemctl status`."""
        watched, condition = self._watched, self.condition()
        if condition.state is State.DRAINING:
            return f"draining, {condition.sessions} sessions left"
        if problems := condition.not_ready:
            return "not ready: " + "; ".join(problems)
        workers = f"{len(watched.workers.serving)} of {watched.workers_wanted} workers"
        return f"{condition.state}, {condition.sessions} sessions, {workers}"

    def forget_refusals(self) -> None:
        """What was counted up to now was not of late."""
        self.refusals = RecentRefusals(self._watched.meter.totals.refused, time.monotonic())

    # What is wrong.

    def _look(self) -> Iterator[Trouble]:
        watched = self._watched
        serving, wanted = len(watched.workers.serving), watched.workers_wanted
        if (ending_s := watched.ending_s()) is not None:
            problem = "draining: no new sessions are taken"
            yield Trouble("draining", State.DRAINING, "the gateway is ending", problem, ending_s)
        elif (drained := watched.drain.drained) is not None:
            problem = "draining: an operator has new sessions refused"
            detail = f"new sessions are refused, by {drained.by}"
            yield Trouble("draining", State.DRAINING, detail, problem, drained.since_s)
        if not serving and not ending_s:
            problem = f"workers: expected at least one that serves, got none of {wanted}"
            yield Trouble("no_worker", State.REFUSING, f"0 of {wanted} workers serve", problem)
        elif serving < wanted and not ending_s:
            detail = f"{serving} of {wanted} workers serve"
            yield Trouble("workers_missing", State.DEGRADED, detail, f"workers: {detail}")
        if serving and not watched.acceptor.active and not ending_s:
            detail = "the host has no descriptor left for connections"
            yield Trouble("no_descriptor", State.REFUSING, detail, f"listeners: {detail}")
        yield from self._look_at_the_disk()
        yield from self._look_at_what_is_loaded()

    def _look_at_the_disk(self) -> Iterator[Trouble]:
        trail, ledger = self._watched.trail, self._watched.accounting.health
        if (failing := trail.failing) is not None and failing.seconds > PATIENCE_S:
            state = State.REFUSING if trail.refuses else State.DEGRADED
            detail = failing.why if trail.refuses else f"audit lines are not written: {failing.why}"
            problem = "audit: its lines cannot be written; the log says why"
            yield Trouble(Reason.AUDIT_UNAVAILABLE, state, detail, problem, self._clock() - failing.seconds)
        if (failing := ledger.failing) is not None and failing.seconds > PATIENCE_S:
            state = State.REFUSING if ledger.refuses else State.DEGRADED
            detail = failing.why if ledger.refuses else f"use is not written to the ledger: {failing.why}"
            problem = f"ledger: {failing.why}"
            yield Trouble(Reason.LEDGER_UNAVAILABLE, state, detail, problem, self._clock() - failing.seconds)

    def _look_at_what_is_loaded(self) -> Iterator[Trouble]:
        watched, now_s = self._watched, self._clock()
        loaded = watched.loaded()
        if (failed := watched.reloader.failed) is not None:
            detail = f"the last reload failed, and what was in force stays so: {failed.problem}"
            yield Trouble("reload_failed", State.DEGRADED, detail, f"reload: {failed.problem}", failed.at_s)
        if len(watched.admission.sessions) >= loaded.sessions_limit:
            detail = f"all {loaded.sessions_limit} sessions are taken (capacity.max_sessions)"
            yield Trouble(Reason.GATEWAY_FULL, State.DEGRADED, detail, f"sessions: {detail}")
        for use, end_s in loaded.certificates.items():
            if end_s <= now_s:
                detail = f"a certificate has expired: {use}"
                yield Trouble(f"certificate_expired {use}", State.DEGRADED, detail, f"certificates: {detail}", end_s)
        for trust, end_s in loaded.crls.items():
            if end_s <= now_s:
                so = "its clients are refused"
                if trust in loaded.accept_stale:
                    so = "what was revoked since is not known"
                detail = f"a revocation list of the trust {trust} is out of date, and {so}"
                yield Trouble(f"{Reason.CRL_EXPIRED} {trust}", State.DEGRADED, detail, f"trusts: {detail}", end_s)

    # What is answered.

    async def _show(self, _peer: Peer, given: Arguable) -> object:
        Arguments(given).finish()
        watched, condition, now_s = self._watched, self.condition(), self._clock()
        loaded = watched.loaded()
        return {
            "verdict": condition.verdict(datetime.fromtimestamp(now_s).astimezone()),
            "state": condition.state,
            "since": _time(condition.since_s),
            "problems": [
                {"code": trouble.code, "state": trouble.state, "detail": trouble.detail, "since": _time(since_s)}
                for trouble, since_s in condition.troubles
            ],
            "sessions": condition.sessions,
            "sessions_limit": loaded.sessions_limit,
            "workers": self._workers(),
            "workers_wanted": watched.workers_wanted,
            "worker_restarts": watched.meter.totals.worker_restarts,
            "confinement": {
                "by": "landlock" if watched.confinement.abi is not None else None,
                "abi": watched.confinement.abi,
                "message": watched.confinement.missing or None,
            },
            "policy": loaded.revision,
            "loaded": {
                "at": _time(loaded.loaded_s),
                "by": watched.reloader.loaded_by,
                "message": watched.reloader.loaded_message,
            },
            "needs_restart": list(watched.reloader.needs_restart),
            "expires": _soonest(loaded, now_s),
            "refusals": {
                "seconds": SPAN_S,
                "reasons": [{"reason": reason, "count": count} for reason, count in self.refusals.top(_MOST_REASONS)],
            },
            "audit": _store(watched.trail.failing, watched.trail.failures),
            "ledger": _store(watched.accounting.health.failing, watched.accounting.health.errors),
            "version": __version__,
            "pid": os.getpid(),
            "generation": watched.generation(),
        }

    def _workers(self) -> list[dict[str, object]]:
        watched, now_s = self._watched, time.monotonic()
        return [
            {
                "worker": worker.number,
                "pid": worker.process.pid,
                "serving": worker.number in watched.workers.serving,
                "retiring": worker.retiring,
                "connections": watched.admission.load(worker.number),
                "uptime": round(now_s - worker.started_s, 3),
            }
            for worker in watched.workers
        ]


def _store(failing: Failing | None, errors: int) -> dict[str, object]:
    return {
        "ok": failing is None,
        "failing": round(failing.seconds, 3) if failing is not None else None,
        "message": failing.why if failing is not None else None,
        "errors": errors,
    }


def _soonest(loaded: Loaded, now_s: float) -> dict[str, object] | None:
    """Which certificate or revocation list goes out of date first."""
    ends = {**loaded.certificates, **{f"crl:{trust}": end_s for trust, end_s in loaded.crls.items()}}
    if not ends:
        return None
    use = min(ends, key=ends.__getitem__)
    return {"use": use, "at": _time(ends[use]), "seconds": round(ends[use] - now_s)}


def _time(instant_s: float | None) -> str | None:
    return None if instant_s is None else written_second(instant_s)
