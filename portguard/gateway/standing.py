"""What identities may see of their own standing: how much of their limits is left, and why they were refused of late.

The supervisor keeps it, as it alone knows of all workers. Clients that come by SNI get no words when they are refused
or cut: here they find out why. Nobody learns of anybody else, nor where a service is.
"""

import json
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from portguard.gateway.accounting import Accounting
from portguard.gateway.admission import Account
from portguard.gateway.messages import (
    PastRefusal,
    PastRefusals,
    PastRefusalsWanted,
    QuotaStanding,
    RoleStanding,
    Standing,
    StandingWanted,
    TurnedAway,
)
from portguard.identity.names import Identity
from portguard.limits.accounts import QuotaLine
from portguard.limits.ledger import Owner
from portguard.reasons import Reason

KEPT = 10
"""How many refusals of an identity are remembered."""

_MOST_IDENTITIES = 10_000
_MOST_BYTES = 16 * 1024 * 1024
_ENTRY_BYTES = 250  # of a refusal without its message and service, and of an identity without its texts

_LONGEST_MESSAGE_BYTES = 1000  # as JSON: with ten of them, an answer still is one message of the channel
_POOL_AGE_S = 1.0

# What says that a session ended as its two sides wanted, or that one of them broke it off.
_OF_THEIR_OWN = frozenset(
    {
        Reason.CLIENT_CLOSED,
        Reason.UPSTREAM_CLOSED,
        Reason.CLIENT_TRUNCATED,
        Reason.CLIENT_RESET,
        Reason.UPSTREAM_RESET,
    }
)
# What was found of these may hold the addresses of upstreams.
_OF_UPSTREAMS = frozenset(
    {Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_TIMEOUT, Reason.UPSTREAM_UNRESOLVED, Reason.UPSTREAM_TLS}
)


@dataclass(slots=True)
class _Past:
    refusals: deque[PastRefusal] = field(default_factory=lambda: deque(maxlen=KEPT))  # the latest one last
    size_bytes: int = 0


class RefusalBook:
    """The last `KEPT` refusals of each identity, in memory only.

    Of more than `most_identities`, or when all take about `most_bytes`, those are forgotten who were not refused for
    the longest time. An identity can push out its own refusals only.
    """

    def __init__(self, most_identities: int = _MOST_IDENTITIES, most_bytes: int = _MOST_BYTES):
        self._most_identities = most_identities
        self._most_bytes = most_bytes
        self._by_identity: OrderedDict[Identity, _Past] = OrderedDict()
        self._size_bytes = 0

    def note(self, identity: Identity, refusal: PastRefusal) -> None:
        """Remember a refusal; a long message is cut."""
        past = self._by_identity.get(identity)
        if past is None:
            texts_bytes = sys.getsizeof(identity.name) + sys.getsizeof(identity.trust)
            past = self._by_identity[identity] = _Past(size_bytes=_ENTRY_BYTES + texts_bytes)
            self._size_bytes += past.size_bytes
        self._by_identity.move_to_end(identity)
        refusal = refusal._replace(message=_bounded(refusal.message))
        grown = _size(refusal) - (_size(past.refusals[0]) if len(past.refusals) == KEPT else 0)
        past.refusals.append(refusal)
        past.size_bytes += grown
        self._size_bytes += grown
        while len(self._by_identity) > self._most_identities or self._size_bytes > self._most_bytes:
            _, forgotten = self._by_identity.popitem(last=False)
            self._size_bytes -= forgotten.size_bytes

    def state(self) -> list[Any]:
        """All of it, for another program: what json.dumps() takes."""
        return [[identity.trust, identity.name, list(past.refusals)] for identity, past in self._by_identity.items()]

    def restore(self, state: Iterable[Any]) -> None:
        """Go on from a `state`."""
        for trust, name, refusals in state:
            for refusal in refusals:
                self.note(Identity(trust, name), PastRefusal(*refusal))

    def of(self, identity: Identity) -> list[PastRefusal]:
        """The identity's refusals, the latest one first."""
        past = self._by_identity.get(identity)
        return list(reversed(past.refusals)) if past is not None else []


class Standings:
    """Answers workers. `sessions_of` tells how many sessions an owner has; `clock` is seconds since the epoch."""

    def __init__(
        self, accounting: Accounting, sessions_of: Callable[[Owner], int], clock: Callable[[], float] = time.time
    ) -> None:
        self._accounting = accounting
        self._sessions_of = sessions_of
        self._clock = clock
        self.book = RefusalBook()
        self._pools: dict[str, tuple[float, list[QuotaLine]]] = {}  # by role, and until when they will do

    # What happens.

    def refused(self, refusal: TurnedAway) -> None:
        """Somebody was refused. *Fails closed*: of one whose identity is not known, nobody will be told."""
        if refusal.trust is None or refusal.name is None:
            return
        identity = Identity(refusal.trust, refusal.name)
        self._note(identity, refusal.service, refusal.reason, refusal.message, refusal.session)

    def ended(self, account: Account, reason: Reason) -> None:
        """A session has ended. What the gateway or a limit ended, or what never reached its service, was refused."""
        session = account.session
        if reason in _OF_THEIR_OWN:
            return
        owner = session.owner
        message = self._why_exhausted(owner) if reason is Reason.QUOTA_EXHAUSTED else reason.sentence
        self._note(Identity(owner.trust, owner.name), session.service, reason, message, session.id)

    def _note(self, identity: Identity, service: str | None, reason: Reason, message: str, session: str) -> None:
        if reason in _OF_UPSTREAMS:
            message = reason.sentence
        self.book.note(identity, PastRefusal(round(self._clock(), 3), service, str(reason), message, session))

    def _why_exhausted(self, owner: Owner) -> str:
        """Which quota it was, and when it renews; less than that when there is something again, left or in use."""
        accounts = self._accounting.accounts
        if accounts.left(owner) > 0 or accounts.short(owner).outstanding() > 0:
            return Reason.QUOTA_EXHAUSTED.sentence
        return accounts.exhausted(owner, self._clock()).message

    # What is asked.

    def answer(self, question: StandingWanted | PastRefusalsWanted) -> Standing | PastRefusals:
        """Return what an identity may know. *Fails closed*: it is of the identity that the question names, and of none
        beside it but the pool of a role.
        """
        match question:
            case PastRefusalsWanted(connection, trust, name):
                return PastRefusals(connection, self.book.of(Identity(trust, name)))
            case StandingWanted(connection, trust, name, roles):
                return Standing(connection, [self._in_role(Owner(role, trust, name)) for role in roles])

    def _in_role(self, owner: Owner) -> RoleStanding:
        lines = self._accounting.accounts.lines_of(owner, self._clock())
        return RoleStanding(
            self._sessions_of(owner),
            self._accounting.connect_wait_s(owner),
            [
                QuotaStanding(
                    line.period, line.owner.is_pool, line.limit_bytes, line.granted_bytes, line.used_bytes, line.end_s
                )
                for line in (*lines, *self._pool(owner.role))
                if line.limit_bytes is not None
            ],
        )

    def _pool(self, role: str) -> list[QuotaLine]:
        """How the role's pool stands, or stood within the last second.

        It is a sum over all who draw on it: whoever asks again and again must not have it made each time.
        """
        now_s = self._clock()
        until_s, lines = self._pools.get(role, (now_s, []))
        if not now_s < until_s <= now_s + _POOL_AGE_S:
            lines = self._accounting.accounts.lines_of(Owner(role, "", ""), now_s)
            if lines:
                self._pools[role] = now_s + _POOL_AGE_S, lines
            else:
                self._pools.pop(role, None)
        return lines


def _size(refusal: PastRefusal) -> int:
    return _ENTRY_BYTES + sys.getsizeof(refusal.message) + sys.getsizeof(refusal.service)


def _bounded(message: str) -> str:
    if len(json.dumps(message)) <= _LONGEST_MESSAGE_BYTES:
        return message
    room = _LONGEST_MESSAGE_BYTES - len(json.dumps("…"))
    for index, character in enumerate(message):
        room -= len(json.dumps(character)) - 2
        if room < 0:
            return f"{message[:index]}…"
    return message
