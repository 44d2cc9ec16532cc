"""What has happened to connections and sessions, counted for the metrics.

The supervisor counts, as it outlives workers. What it cannot know they send with messages that they send anyway, or
leave in the session's slot. So nothing that was counted is lost with a worker, and no counter goes back.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from portguard.gateway.admission import Account, Session
from portguard.gateway.expiries import certificate_expiries, crl_expiries
from portguard.gateway.slot_tables import SlotsCopy, SlotTables
from portguard.gateway.slots import CONNECTED, RECEIVED, SENT
from portguard.gateway.snapshot import Snapshot
from portguard.limits.accounts import QuotaLine
from portguard.observe.metrics import OTHER, QuotaUse, Reading, Totals
from portguard.reasons import Reason

# A session that ends so before its service is reached was not refused: one side of it went away.
_WENT_AWAY = {Reason.CLIENT_RESET, Reason.WORKER_LOST}

_SESSIONS_AT_A_TIME = 1000  # about a millisecond
_LINES_AT_A_TIME = 200  # likewise


class Meter:
    """Counts. `sessions` are those that are admitted, by slot, kept by others.

    `written(trust, name)` is how an identity is shown; the first `max_identities` that a role lets in are, and all
    others count as `other`. Which they are is forgotten only when the gateway ends: a series that changed its meaning
    would be worse than one that is missing.
    """

    def __init__(
        self,
        slots: SlotTables,
        sessions: Mapping[int, Session],
        *,
        written: Callable[[str, str], str],
        max_identities: int,
    ):
        self.totals = Totals()
        self._slots = slots
        self._sessions = sessions
        self._written = written
        self._max_identities = max_identities
        self._labels: dict[tuple[str, str], str] = {}
        self._connecting: set[int] = set()  # slots of sessions that are not counted as opened yet
        self._roles: set[tuple[str, str]] = set()  # services and roles that ever had a session
        self._up: dict[str, bool] = {}  # by upstream, of those that were tried

    def configure(self, *, written: Callable[[str, str], str], max_identities: int) -> None:
        """Go on with another way to write identities, and another number of those that get a label; labels stay."""
        self._written = written
        self._max_identities = max_identities

    def state(self) -> dict[str, Any]:
        """What has been counted, for another program that goes on counting: what json.dumps() takes."""
        return {
            "totals": self.totals.state(),
            "labels": [[*who, label] for who, label in self._labels.items()],
            "connecting": sorted(self._connecting),
            "roles": sorted(self._roles),
            "up": self._up,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.totals.restore(state["totals"])
        self._labels = {(trust, name): label for trust, name, label in state["labels"]}
        self._connecting = set(state["connecting"])
        self._roles = {(service, role) for service, role in state["roles"]}
        self._up = dict(state["up"])

    def gone(self, handshake_s: float | None) -> None:
        """A connection ended before it was admitted; `handshake_s` None: its handshake was not completed."""
        if handshake_s is not None:
            self.totals.handshakes.observe(handshake_s)

    def refused(self, service: str | None, reason: str) -> None:
        """A connection was refused before it was admitted; `service` None is not known."""
        self.totals.refused[service or "", reason] += 1

    def admitted(self, slot: int, handshake_s: float) -> None:
        """A session was admitted. Its service is yet to be reached."""
        self.totals.handshakes.observe(handshake_s)
        self._connecting.add(slot)

    def ended(self, account: Account, reason: str) -> None:
        """A session ended, or could not reach its service."""
        session, totals = account.session, self.totals
        if account.connected_s is None:
            self._connecting.discard(session.slot)
            if reason not in _WENT_AWAY:
                totals.refused[session.service, reason] += 1
            return
        if session.slot in self._connecting:
            self._open(session, account.connected_s)
        key = self._label(session), session.service
        totals.received[key] += account.received
        totals.sent[key] += account.sent
        totals.closed[session.service, reason] += 1
        totals.duration(session.service, account.duration_s)

    def tried(self, upstreams: list[tuple[str, bool]]) -> None:
        """Upstreams were dialled, and the last attempt reached them or did not."""
        self._up.update(upstreams)

    def tick(self) -> None:
        """Count the sessions whose service was reached. To be called now and then, so that none finds all at once."""
        for slot in list(self._connecting):
            if (connected_s := self._slots.of(slot).connected_s(slot)) is not None:
                self._open(self._sessions[slot], connected_s)

    def take(self) -> "Moment":
        """Return all that is counted now. It copies, which is quick, and leaves the work to `Moment`."""
        self.tick()
        return Moment(
            self.totals.copy(),
            dict(self._sessions),
            self._slots.copy(),
            self._labels.copy(),
            Counter(dict.fromkeys(self._roles, 0)),
            self._up.copy(),
        )

    def _open(self, session: Session, connected_s: float) -> None:
        self._connecting.discard(session.slot)
        who = session.owner.trust, session.owner.name
        if who not in self._labels and len(self._labels) < self._max_identities:
            self._labels[who] = self._written(*who)
        key = self._label(session), session.service
        totals = self.totals
        self._roles.add((session.service, session.owner.role))
        totals.opened[key] += 1
        totals.received[key] += 0  # series begin at zero, or rate() would miss what comes first
        totals.sent[key] += 0
        totals.connect(session.service, connected_s)

    def _label(self, session: Session) -> str:
        return self._labels.get((session.owner.trust, session.owner.name), OTHER)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a scrape tells of the configuration in force; times are seconds since the epoch."""

    sessions_limit: int
    upstreams: tuple[tuple[str, str], ...]  # service and upstream
    certificates: Mapping[str, float]
    crls: Mapping[str, float]
    loaded_s: float
    revision: str
    accept_stale: frozenset[str] = frozenset()  # trusts whose clients get in by lists that are out of date, too

    @classmethod
    def of(cls, snapshot: Snapshot, read_at: datetime) -> "Loaded":
        """Look it up; `read_at` (aware) is when the files were read."""
        return cls(
            snapshot.configuration.capacity.max_sessions,
            tuple(
                (service.name, str(upstream))
                for service in snapshot.policy.services.values()
                for upstream in service.upstreams
            ),
            certificate_expiries(snapshot),
            crl_expiries(snapshot),
            read_at.timestamp(),
            snapshot.revision,
            frozenset(trust.name for trust in snapshot.trusts.every if trust.crl_expired == "accept"),
        )


@dataclass(frozen=True, slots=True)
class Moment:
    """What was counted at one moment. Bytes of live sessions are among the totals once `add_live` has run through."""

    totals: Totals
    sessions: Mapping[int, Session]
    slots: SlotsCopy = field(repr=False)
    labels: Mapping[tuple[str, str], str] = field(repr=False)
    active: Counter[tuple[str, str]]  # live sessions by service and role
    up: Mapping[str, bool]
    quotas: QuotaUse = field(default_factory=QuotaUse)

    def add_live(self) -> Iterator[None]:
        """Add what live sessions have moved, some at a time: with thousands, others want to run in between."""
        totals, slots = self.totals, self.slots
        for number, (slot, session) in enumerate(self.sessions.items(), start=1):
            self.active[session.service, session.owner.role] += 1
            cells = slots[slot]
            if cells[CONNECTED]:
                key = self.labels.get((session.owner.trust, session.owner.name), OTHER), session.service
                totals.received[key] += cells[RECEIVED]
                totals.sent[key] += cells[SENT]
            if number % _SESSIONS_AT_A_TIME == 0:
                yield

    def add_quotas(self, lines: Iterable[QuotaLine]) -> Iterator[None]:
        """Add how quotas stand, some at a time, of roles and of the identities that have a label."""
        quotas = self.quotas
        for number, line in enumerate(lines, start=1):
            role, period = line.owner.role, line.period
            if line.limit_bytes is None:
                pass  # it is only counted
            elif line.owner.is_pool:
                quotas.pooled_limits[role, period] = line.limit_bytes
                quotas.pooled_used[role, period] = line.used_bytes
            elif (label := self.labels.get((line.owner.trust, line.owner.name))) is not None:
                quotas.limits[role, period] = line.limit_bytes
                quotas.used[label, role, period] = line.used_bytes
            if number % _LINES_AT_A_TIME == 0:
                yield

    def reading(
        self,
        loaded: Loaded,
        *,
        last_load_successful: bool,
        workers: int,
        draining: bool,
        audit_failures: int,
        ledger_errors: int,
    ) -> Reading:
        """Return what a scrape shows."""
        return Reading(
            totals=self.totals,
            active=self.active,
            sessions_limit=loaded.sessions_limit,
            upstreams={pair: self.up[pair[1]] for pair in loaded.upstreams if pair[1] in self.up},
            certificates=loaded.certificates,
            crls=loaded.crls,
            last_load_successful=last_load_successful,
            loaded_s=loaded.loaded_s,
            revision=loaded.revision,
            workers=workers,
            draining=draining,
            quotas=self.quotas,
            audit_failures=audit_failures,
            ledger_errors=ledger_errors,
        )
