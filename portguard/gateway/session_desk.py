"""Live sessions as operators see and end them over the control socket: `/v1/sessions`."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from operator import itemgetter

from portguard.control.access import Level, Peer
from portguard.control.routes import Arguable, Arguments, BadArgument, NotFound, Pieces, Route
from portguard.gateway.admission import Session
from portguard.gateway.slot_tables import SlotsCopy, SlotTables
from portguard.gateway.slots import ACTIVITY, CONNECTED, RECEIVED, SENT, UPSTREAM
from portguard.identity.names import Identity, Malformed, Namespace, parse_identity
from portguard.instants import written_instant
from portguard.reasons import Reason

_MOST_SESSIONS = 10_000_000
_MOST_TOLD = 1000  # ids in the answer to a kill
_AT_A_TIME = 200  # others want to run in between
_NS = 1_000_000_000

_ID = re.compile(r"[0-9a-f]{8,32}")


@dataclass(frozen=True, slots=True)
class Clock:
    """Monotonic time in ns, as slots have it, and seconds since the epoch."""

    now_ns: Callable[[], int] = time.monotonic_ns
    now_s: Callable[[], float] = time.time


@dataclass(frozen=True, slots=True)
class _Moment:
    """The slots at one moment: sessions may end, and their slots be others', while an answer is made."""

    slots: SlotsCopy
    now_ns: int
    now_s: float
    namespace: Namespace

    def moved(self, session: Session) -> int:
        cells = self.slots[session.slot]
        return cells[RECEIVED] + cells[SENT]

    def idle_ns(self, session: Session) -> int:
        return max(0, self.now_ns - self.slots[session.slot][ACTIVITY])

    def written(self, session: Session) -> str:
        return Identity(session.owner.trust, session.owner.name).written(self.namespace.default)


# The first is what whoever asks for this order looks for: most bytes, oldest, longest idle.
_ORDERS: Mapping[str, Callable[[_Moment, Session], object]] = {
    "age": lambda _, session: session.opened_ns,
    "bytes": lambda moment, session: -moment.moved(session),
    "idle": lambda moment, session: -moment.idle_ns(session),
    "identity": lambda moment, session: (moment.written(session), session.service, session.opened_ns),
}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which sessions are meant; None: any."""

    session: str | None
    identity: Identity | None
    service: str | None
    role: str | None

    def __call__(self, session: Session) -> bool:
        owner = session.owner
        return (
            (self.session is None or session.id.startswith(self.session))
            and (self.identity is None or (owner.trust, owner.name) == (self.identity.trust, self.identity.name))
            and self.service in (None, session.service)
            and self.role in (None, owner.role)
        )

    @property
    def everything(self) -> bool:
        return (self.session, self.identity, self.service, self.role) == (None,) * 4


class SessionDesk:
    """Serves the routes.

    `sessions` are those that are admitted, by slot, kept by others. `namespace()` says how identities are written now.
    `end(session, reason)` has one ended.
    """

    def __init__(
        self,
        sessions: Mapping[int, Session],
        slots: SlotTables,
        namespace: Callable[[], Namespace],
        end: Callable[[Session, Reason], None],
        clock: Clock | None = None,
    ):
        self._sessions = sessions
        self._slots = slots
        self._namespace = namespace
        self._end = end
        self._clock = clock or Clock()

    @property
    def routes(self) -> tuple[Route, ...]:
        """What is served, and to whom."""
        return (
            Route("GET", "/v1/sessions", Level.VIEWER, self._list),
            Route("POST", "/v1/sessions/kill", Level.OPERATOR, self._kill),
        )

    async def _list(self, _peer: Peer, given: Arguable) -> Pieces:
        arguments = Arguments(given)
        wanted = self._wanted(arguments)
        order = arguments.text("sort") or "age"
        most = arguments.integer("limit", 1, _MOST_SESSIONS)
        arguments.finish()
        if order not in _ORDERS:
            raise BadArgument(f"sort: expected {', '.join(_ORDERS)}, got {order!a}")
        moment = _Moment(self._slots.copy(), self._clock.now_ns(), self._clock.now_s(), self._namespace())
        return Pieces(self._document(list(self._sessions.values()), moment, wanted, order, most))

    async def _document(
        self, sessions: Sequence[Session], moment: _Moment, wanted: _Wanted, order: str, most: int | None
    ) -> AsyncIterator[str]:
        key = _ORDERS[order]
        found: list[tuple[object, str, Session]] = []
        for begin in range(0, len(sessions), _AT_A_TIME):
            some = sessions[begin : begin + _AT_A_TIME]
            found += [(key(moment, session), session.id, session) for session in some if wanted(session)]
            await asyncio.sleep(0)
        found.sort(key=itemgetter(0, 1))  # of 10,000 in 10 ms
        yield f'{{"total": {len(found)}, "sessions": ['
        chosen = islice(found, most)
        separator = ""
        while lines := [_line(moment, session) for _, _, session in islice(chosen, _AT_A_TIME)]:
            yield separator + json.dumps(lines)[1:-1]
            separator = ", "
            await asyncio.sleep(0)
        yield f'], "more": {json.dumps(most is not None and len(found) > most)}}}\n'

    async def _kill(self, _peer: Peer, given: Arguable) -> object:
        arguments = Arguments(given)
        wanted = self._wanted(arguments)
        arguments.finish()
        if wanted.everything:
            raise BadArgument("session, identity, service, role: expected at least one of them")
        # All at one moment: one that is let in while others are ended is not among those that were meant.
        chosen = [session for session in self._sessions.values() if wanted(session)]
        if not chosen:
            raise NotFound("expected a live session that fits, got none")
        if wanted.session is not None and len(chosen) > 1:
            raise BadArgument(f"session: expected the id of one session, got the beginning of {len(chosen)} ids")
        for session in chosen:
            self._end(session, Reason.KILLED)
        return {"killed": len(chosen), "sessions": [session.id for session in chosen[:_MOST_TOLD]]}

    def _wanted(self, arguments: Arguments) -> _Wanted:
        session = arguments.text("session")
        if session is not None and not _ID.fullmatch(session):
            raise BadArgument(f"session: expected an id, or at least 8 of its digits, got {session[:60]!a}")
        identity = arguments.text("identity")
        try:
            who = parse_identity(identity, self._namespace()) if identity is not None else None
        except Malformed as error:
            raise BadArgument(f"identity: {error}") from None
        return _Wanted(session, who, arguments.text("service"), arguments.text("role"))


def _line(moment: _Moment, session: Session) -> dict[str, object]:
    cells = moment.slots[session.slot]
    age_ns = max(0, moment.now_ns - session.opened_ns)
    opened = datetime.fromtimestamp(moment.now_s - age_ns / _NS, UTC)
    reached = cells[UPSTREAM]
    return {
        "session": session.id,
        "identity": moment.written(session),
        "trust": session.owner.trust,
        "name": session.owner.name,
        "groups": session.client.groups,
        "serial": session.client.serial,
        "fingerprint": session.client.fingerprint,
        "source": session.client.source,
        "service": session.service,
        "role": session.owner.role,
        "upstream": session.upstreams[reached - 1] if 0 < reached <= len(session.upstreams) else None,
        "connected": cells[CONNECTED] > 0,
        "worker": session.worker,
        "opened": written_instant(opened),
        "age": round(age_ns / _NS, 3),
        "idle": round(moment.idle_ns(session) / _NS, 3),
        "received": cells[RECEIVED],
        "sent": cells[SENT],
    }
