"""What several gateways that share a ledger have to agree on: whose part is whose, and which lock is the newer one.

Of every account each gateway has a row of its own, which nobody else writes; the account is the sum of them. A lock is
one row for all, and the newest wins, wherever and in whatever order they are heard of.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from portguard.limits.ledger import LockRow, LockTarget, Owner, Store, UsageRow
from portguard.policy.quantities import Period

MOST_LOCKS = 20_000
"""Locks of all gateways together that are heard of. Each of them takes half as many; workers are told them all."""

KEPT_LOCKS_S = 30 * 86_400
"""For how long it is remembered that a lock is over, for gateways that were away meanwhile."""

_YEAR_9999_S = 253_370_764_800  # beyond, a time cannot be shown
_LONGEST_TEXT_BYTES = 2048  # as the longest name of a certificate; a message to workers has to hold three
_MILLISECONDS = re.compile(r"[0-9]{1,15}", re.ASCII)


class Claim(NamedTuple):
    """A gateway wants `row` to be its own, or less, but not less than `needed_bytes` of use.

    `limit_bytes` is the owner's quota in the period, which all rows together may not pass; None: it has none.
    """

    row: UsageRow
    needed_bytes: int
    limit_bytes: int | None


class Others(NamedTuple):
    """What other gateways have of an account, in the period that begins at `start_s`; and how often it was reset."""

    owner: Owner
    period: Period
    start_s: int
    used_bytes: int
    granted_bytes: int
    resets: int


class OthersConnects(NamedTuple):
    """How often an owner has connected to another gateway, as `rates.Connects.to_text` writes it."""

    owner: Owner
    gateway: str
    connects: str


Counted = Owner | str
"""Of what sessions are counted: an identity in a role, or a service by its name."""


class SessionsRow(NamedTuple):
    """How many sessions there are now at this gateway."""

    counted: Counted
    sessions: int


class SessionsElsewhere(NamedTuple):
    """How many sessions there are at another gateway."""

    counted: Counted
    gateway: str
    sessions: int


@dataclass(frozen=True, slots=True)
class News:
    """What others have written. `all_there_is`: of use, connects and sessions, what is not named is nothing.

    `own` is what this gateway had used before it started, when it learns that only now. A lock whose `until_s` is 0
    was taken away. The gateways that are `gone` have no sessions any more.
    """

    use: Sequence[Others] = ()
    connects: Sequence[OthersConnects] = ()
    locks: Sequence[LockRow] = ()
    sessions: Sequence[SessionsElsewhere] = ()
    gone: Collection[str] = ()
    own: Sequence[UsageRow] = ()
    all_there_is: bool = False


Claimed = Callable[[Sequence[UsageRow] | None], None]
"""Gets the rows that were put aside; none when there is not enough left; None when nobody could be asked."""


@runtime_checkable
class Fleet(Store, Protocol):
    """A ledger that several gateways write."""

    def listen(self, hear: Callable[[News], None]) -> None:
        """Have `hear` called with what is new, in the event loop. To be called before that turns again."""

    def tell_sessions(self, rows: Sequence[SessionsRow]) -> None:
        """Have others know how many sessions there are here now. That is for as long as this gateway runs."""

    def claim(self, claims: Sequence[Claim], on_claimed: Claimed) -> None:
        """Put aside all that is claimed, or nothing. `on_claimed` comes in the event loop, after news of the same."""


class StampedLock(NamedTuple):
    """A lock, or that it was taken away, and when somebody decided so: milliseconds since the epoch."""

    row: LockRow
    at_ms: int


def is_newer(lock: StampedLock, than: StampedLock | None) -> bool:
    """Whether it takes the other's place.

    *Fails closed*: of two at the same moment, that which locks. Of what is left, any fixed order makes all agree.
    """
    return than is None or _order(lock) > _order(than)


def is_long_over(lock: StampedLock, now_s: float) -> bool:
    """Whether nobody needs to hear any more that a lock is over."""
    until_s = lock.row.until_s
    return until_s is not None and max(until_s, lock.at_ms / 1000) + KEPT_LOCKS_S < now_s


def merge_locks(held: MutableMapping[LockTarget, StampedLock], heard: Iterable[StampedLock]) -> list[StampedLock]:
    """Put what is newer in place of what is held; return what that was."""
    newer = []
    for lock in heard:
        if is_newer(lock, held.get(lock.row.target)):
            held[lock.row.target] = lock
            newer.append(lock)
    return newer


def _order(lock: StampedLock) -> tuple[int, bool, str]:
    return lock.at_ms, lock.row.until_s != 0, written_lock(lock)[1]


def _are_times(*times_s: int) -> bool:
    return all(0 <= each < _YEAR_9999_S for each in times_s)


# As text. ASCII, so that no name, whatever is in it, can be anything but text. Others may have written it: nothing is
# read that could not be shown, or told to a worker.


def written_owner(owner: Owner) -> str:
    """The text that `read_owner` reads back."""
    return json.dumps(owner, separators=(",", ":"))


def read_owner(text: str) -> Owner:
    """Raises ValueError for what is no owner."""
    match _read(text):
        case [str() as role, str() as trust, str() as name] if _are_texts(role, trust, name):
            return Owner(role, trust, name)
    raise ValueError(f"expected role, trust and name, got {text[:100]!a}")


def written_counted(counted: Counted) -> str:
    """The text that `read_counted` reads back."""
    return json.dumps(counted) if isinstance(counted, str) else written_owner(counted)


def read_counted(text: str) -> Counted:
    """Raises ValueError for what is neither an owner nor a name."""
    read = _read(text)
    return read if isinstance(read, str) and _are_texts(read) else read_owner(text)


def written_lock(lock: StampedLock) -> tuple[str, str]:
    """The target and the rest, as text that `read_lock` reads back.

    The rest begins with what decides which is newer: digits, a space, 1 for what locks and 0 for what was taken away.
    """
    row = lock.row
    rest = json.dumps([row.reason, row.by, row.since_s, row.until_s], separators=(",", ":"))
    return json.dumps(row.target, separators=(",", ":")), f"{lock.at_ms} {int(row.until_s != 0)} {rest}"


def read_lock(target: str, rest: str) -> StampedLock:
    """Raises ValueError for what is no lock. *Fails closed*: nothing is made of a part of one."""
    at_ms, _, tail = rest.partition(" ")
    locks, _, row = tail.partition(" ")
    match _read(target), _read(row):
        case (
            ["identity" | "fingerprint" | "serial" as kind, str() as trust, str() as value],
            [str() as reason, str() as by, int() as since_s, int() | None as until_s],
        ) if (
            _MILLISECONDS.fullmatch(at_ms)
            and locks == str(int(until_s != 0))
            and _are_times(since_s, until_s or 0)
            and _are_texts(trust, value, reason, by)
        ):
            return StampedLock(LockRow(LockTarget(kind, trust, value), reason, by, since_s, until_s), int(at_ms))
    raise ValueError(f"expected a lock, got {target[:100]!a} {rest[:100]!a}")


def _read(text: str) -> Any:
    """Raises ValueError for what is no JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("expected JSON, got too many brackets") from None


def _are_texts(*texts: str) -> bool:
    """Whether all are as short as portguard writes them. Raises ValueError for what is no Unicode: lone surrogates."""
    return all(len(text.encode()) <= _LONGEST_TEXT_BYTES for text in texts)
