"""What has happened to connections and sessions, counted for the metrics.

The supervisor counts, as it outlives workers. What it cannot know they send with messages that they send anyway, or
leave in the session's slot. So nothing that was counted is lost with a worker, and no counter goes back.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from portguard.gateway.admission import Account, Session
from portguard.gateway.slots import CONNECTED, RECEIVED, SENT, SlotTable
from portguard.observe.metrics import OTHER, Totals
from portguard.reasons import Reason

# A session that ends so before its service is reached was not refused: one side of it went away.
_WENT_AWAY = {Reason.CLIENT_RESET, Reason.WORKER_LOST}


class Meter:
    """Counts. `sessions` are those that are admitted, by slot, kept by others.

    `written(trust, name)` is how an identity is shown; the first `max_identities` that a role lets in are, and all
    others count as `other`. Which they are is forgotten only when the gateway ends: a series that changed its meaning
    would be worse than one that is missing.
    """

    def __init__(
        self,
        slots: SlotTable,
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
        self._up: dict[str, bool] = {}  # by upstream, of those that were tried

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

    def take(self) -> "Moment":
        """Return all that is counted now. It copies and leaves the work to `Moment`, which a thread can do."""
        for slot in list(self._connecting):
            if (connected_s := self._slots.connected_s(slot)) is not None:
                self._open(self._sessions[slot], connected_s)
        return Moment(
            self.totals.copy(), dict(self._sessions), self._slots.copy(), self._labels.copy(), self._up.copy()
        )

    def _open(self, session: Session, connected_s: float) -> None:
        self._connecting.discard(session.slot)
        who = session.trust, session.name
        if who not in self._labels and len(self._labels) < self._max_identities:
            self._labels[who] = self._written(*who)
        key = self._label(session), session.service
        totals = self.totals
        totals.opened[key] += 1
        totals.received[key] += 0  # series begin at zero, or rate() would miss what comes first
        totals.sent[key] += 0
        totals.connect(session.service, connected_s)

    def _label(self, session: Session) -> str:
        return self._labels.get((session.trust, session.name), OTHER)


@dataclass(frozen=True, slots=True)
class Moment:
    """What was counted at one moment."""

    totals: Totals  # of sessions that have ended, until `read`
    sessions: Mapping[int, Session]
    cells: memoryview = field(repr=False)  # the slot table
    labels: Mapping[tuple[str, str], str] = field(repr=False)
    up: Mapping[str, bool]

    def read(self) -> tuple[Totals, Counter[tuple[str, str]]]:
        """Return the totals with what live sessions have moved, and how many there are by service and role.

        To be called once.
        """
        active: Counter[tuple[str, str]] = Counter()
        totals, cells = self.totals, self.cells
        for slot, session in self.sessions.items():
            active[session.service, session.role] += 1
            base = SlotTable.base(slot)
            if cells[base + CONNECTED]:
                key = self.labels.get((session.trust, session.name), OTHER), session.service
                totals.received[key] += cells[base + RECEIVED]
                totals.sent[key] += cells[base + SENT]
        return totals, active
