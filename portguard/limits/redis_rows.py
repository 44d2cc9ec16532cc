"""The ledger's rows in Redis: under which keys they are, and how they go in and out.

All keys begin with `portguard:{FLEET}:`. The braces put them into one slot, as scripts need where slots matter.

    format          "1"
    gateway:ID      which process uses this id; short-lived
    gateways        ID: when this gateway was last heard of, and on which host
    spans           which periods there is use of: `day:START`, and when each ends
    usage:SPAN      `t OWNER`: the sum of an owner's rows; `g ID OWNER`: the row of one gateway.
                    Each says used, granted and after how many resets
    sessions:ID     what has a bound: how many sessions there are now at that gateway, while it runs
    rates:HOUR      `ID OWNER`: connects to one gateway, that end within this hour since the epoch
    locks           target: the newest lock of it, or that it was taken away
    changes         a stream of what was written last, by which gateway

What is said of a method's errors holds for all: it raises redis.RedisError, OSError, and NotAFleet for rows that
portguard has not written (`redis_texts`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, NamedTuple, TypeVar

import redis

from portguard.limits import redis_scripts
from portguard.limits.fleet import (
    Claim,
    Others,
    OthersConnects,
    SessionsElsewhere,
    SessionsRow,
    StampedLock,
    is_long_over,
    written_counted,
    written_lock,
    written_owner,
)
from portguard.limits.ledger import Owner, RateRow, UsageRow
from portguard.limits.rates import Connects
from portguard.limits.redis_texts import (
    NotAFleet,
    connects_from,
    host_from,
    lock_from,
    others_from,
    own_from,
    read_number,
    read_span,
    sessions_from,
)
from portguard.policy.quantities import Period

T = TypeVar("T")

FORMAT = "1"

_GATEWAY_S = 5  # for how long an id is taken, unless its gateway says so again
_CHANGES = 20_000  # that are kept; who has missed more reads everything anew
_AT_A_TIME = 500
_GRACE_S = 3600  # for which rows stay when they are over: clocks differ
_FORGOTTEN_S = 400 * 86_400  # a fleet of which nobody has been heard for so long
_LONGEST_WINDOW_S = 86_400  # of a rate
_ABSENT_S = 30 * 86_400  # after which a gateway that was not heard of is none of the fleet's any more
_HOUR_S = 3600
_MOST_FIELDS = 1_000_000  # of one key: whoever else can write there shall not fill our memory


class Outcome(NamedTuple):
    """Which rows are written now, and what others have.

    Those of before a reset are not, and none of a claim that cannot be met.
    """

    rows: list[UsageRow]
    others: list[Others]


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that there is and is not over. `own` are the rows of the gateway that asks."""

    own: list[UsageRow]
    own_connects: list[RateRow]
    others: list[Others]
    connects: list[OthersConnects]  # of all gateways
    locks: list[StampedLock]
    sessions: list[SessionsElsewhere]


@dataclass(frozen=True, slots=True)
class Changes:
    """What others have written, and how far that goes. `missed`: there was more, which is not to be had any more."""

    last: str
    others: list[Others]
    connects: list[OthersConnects]
    locks: list[StampedLock]
    sessions: list[SessionsElsewhere]
    more: bool = False  # ask again
    missed: bool = False


class Member(NamedTuple):
    """A gateway of the fleet, as it said itself; `heard_s` is since the epoch, and may be ten minutes old."""

    gateway: str
    host: str
    heard_s: int
    runs: bool


def key_prefix(fleet: str) -> str:
    """What all keys of a fleet begin with."""
    return f"portguard:{{{fleet}}}:"


class FleetRows:
    """The rows of a fleet, as one of its gateways reads and writes them over a client that answers text."""

    def __init__(self, client: Any, fleet: str, gateway: str):
        self._client = client  # redis.Redis, whose types do not say what a command answers
        self._prefix = key_prefix(fleet)
        self._gateway = gateway
        self._changes = self._key("changes")

    def begin(self, holder: str) -> str:
        """Get ready; return the place among the changes from which all that comes later is to be read.

        Raises NotAFleet when what is there has another format, and when the id of the gateway is somebody else's.
        """
        for script in redis_scripts.ALL:
            self._do("SCRIPT LOAD", script.text)
        self._do("SET", self._key("format"), FORMAT, "NX")
        self.check_format()
        self.hold(holder)
        words = ("by", self._gateway, "what", "begin", "of", "", "is", "")
        place = str(self._do("XADD", self._changes, "MAXLEN", "~", _CHANGES, "*", *words))
        self._stay()
        return place

    def check_format(self) -> None:
        """Raise NotAFleet when what is there has another format; nothing when nothing is there."""
        found = self._do("GET", self._key("format"))
        if found not in {FORMAT, None}:
            raise NotAFleet(f"a fleet of format {FORMAT}", f"format {str(found)[:40]!a}, of another portguard")

    def hold(self, holder: str) -> bool:
        """Say that this gateway is there; return whether it was, for all others could tell.

        Raises NotAFleet when another one has the same id.
        """
        key = self._key(f"gateway:{self._gateway}")
        before = self._do("EVALSHA", redis_scripts.HOLD.digest, 1, key, holder, _GATEWAY_S)
        if not before:
            raise NotAFleet("an id of its own for each gateway", f"another gateway with {self._gateway} (state/fleet)")
        return bool(before == 1)

    def introduce(self, host: str, now_s: float) -> None:
        """Have others know on which host this gateway is. Now and then."""
        self._do("HSET", self._key("gateways"), self._gateway, f"{int(now_s)} {host}")

    def members(self) -> list[Member]:
        """Return the gateways that were there of late."""
        found = []
        for some in _in_pieces(self._introduced()):
            holders = self._do_all([["GET", self._key(f"gateway:{gateway}")] for gateway, _, _ in some])
            found += [Member(*one, holder is not None) for one, holder in zip(some, holders, strict=True)]
        return found

    def _introduced(self) -> Iterator[tuple[str, str, int]]:
        """Which gateway, on which host, and when it was last heard of."""
        for gateway, text in self._fields(self._key("gateways")):
            yield gateway, *host_from(text)

    def eviction(self) -> str | None:
        """What Redis does when its memory is full; None if it does not say."""
        try:
            found = self._do("CONFIG GET", "maxmemory-policy")
        except redis.ResponseError:
            return None
        return found.get("maxmemory-policy") if isinstance(found, dict) else None

    # Use.

    def put_use(self, rows: Iterable[UsageRow]) -> list[Outcome]:
        """Write rows of this gateway, whatever the quotas are. Those of an owner are to follow each other."""
        by_owner = ([Claim(row, 0, None) for row in some] for _, some in groupby(rows, lambda row: row.owner))
        return self._use(by_owner, claimed=False)

    def claim(self, claims: Iterable[Sequence[Claim]]) -> list[Outcome]:
        """Put aside what is claimed, each entry as a whole or not at all: as much as there is, if that is needed."""
        return self._use(claims, claimed=True)

    def _use(self, entries: Iterable[Sequence[Claim]], *, claimed: bool) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for some in _in_pieces(entries):
            answers = self._do_all([self._use_call(claims, claimed=claimed) for claims in some])
            outcomes += map(_outcome, some, answers)
        return outcomes

    def _use_call(self, claims: Sequence[Claim], *, claimed: bool) -> list[object]:
        spans = [f"{claim.row.period.value}:{claim.row.start_s}" for claim in claims]
        keys = [self._changes, self._key("spans"), *(self._key(f"usage:{span}") for span in spans)]
        words: list[object] = [self._gateway, int(claimed)]
        for span, (row, needed_bytes, limit_bytes) in zip(spans, claims, strict=True):
            limit = -1 if limit_bytes is None else limit_bytes
            words += [written_owner(row.owner), span, row.end_s, row.used_bytes, needed_bytes, limit]
            words += [row.granted_bytes, row.resets]
        return ["EVALSHA", redis_scripts.USE.digest, len(keys), *keys, *words, _FORGOTTEN_S, _CHANGES, _GRACE_S]

    # Connects.

    def put_connects(self, rows: Iterable[RateRow]) -> None:
        """Write how often owners have connected to this gateway."""
        for some in _in_pieces(rows):
            calls: list[list[object]] = []
            for row in some:
                hour = row.end_s // _HOUR_S
                key, owner = self._key(f"rates:{hour}"), written_owner(row.owner)
                calls.append(["HSET", key, f"{self._gateway} {owner}", row.connects])
                calls.append(["EXPIREAT", key, (hour + 1) * _HOUR_S + _GRACE_S])
                words = ("by", self._gateway, "what", "connects", "of", owner, "is", row.connects)
                calls.append(["XADD", self._changes, "MAXLEN", "~", _CHANGES, "*", *words])
            self._do_all(calls)

    # Sessions.

    def put_sessions(self, rows: Iterable[SessionsRow], *, all_there_are: bool = False) -> None:
        """Write how many sessions there are at this gateway; with `all_there_are`, what is not named is none."""
        key = self._key(f"sessions:{self._gateway}")
        counts = {written_counted(row.counted): row.sessions for row in rows}
        if all_there_are:
            counts = dict.fromkeys((counted for counted, _ in self._fields(key)), 0) | counts
        for some in _in_pieces(counts.items()):
            calls: list[list[object]] = []
            for counted, count in some:
                calls.append(["HSET", key, counted, count] if count else ["HDEL", key, counted])
                words = ("by", self._gateway, "what", "sessions", "of", counted, "is", count)
                calls.append(["XADD", self._changes, "MAXLEN", "~", _CHANGES, "*", *words])
            self._do_all([*calls, ["EXPIRE", key, _GRACE_S]])

    def _all_sessions(self) -> Iterator[SessionsElsewhere]:
        for member in self.members():
            if member.runs and member.gateway != self._gateway:
                for counted, count in self._fields(self._key(f"sessions:{member.gateway}")):
                    yield sessions_from(counted, member.gateway, count)

    def gone(self, gateways: Iterable[str]) -> set[str]:
        """Return those that do not run."""
        found = set()
        for some in _in_pieces(gateways):
            holders = self._do_all([["GET", self._key(f"gateway:{gateway}")] for gateway in some])
            found |= {gateway for gateway, holder in zip(some, holders, strict=True) if holder is None}
        return found

    # Locks.

    def put_locks(self, locks: Iterable[StampedLock]) -> list[StampedLock]:
        """Write those that are newer than what is there; return what is there then."""
        found = []
        for some in _in_pieces(locks):
            keys = (self._changes, self._key("locks"))
            last = (_CHANGES, _FORGOTTEN_S)
            calls = [
                ["EVALSHA", redis_scripts.LOCK.digest, 2, *keys, self._gateway, *written_lock(lock), *last]
                for lock in some
            ]
            for lock, rest in zip(some, self._do_all(calls), strict=True):
                found.append(lock_from(written_lock(lock)[0], rest))
        return found

    def _all_locks(self) -> list[StampedLock]:
        return [lock_from(target, rest) for target, rest in self._fields(self._key("locks"))]

    # All, and what is new.

    def load(self, now_s: float) -> Loaded:
        """Return what is there, and not over at `now_s`, since the epoch."""
        own: dict[tuple[Owner, Period], UsageRow] = {}
        others: list[Others] = []
        for span, end_s in self._spans(now_s):
            fields = dict(self._fields(self._key(f"usage:{span}")))
            for field, total in fields.items():
                kind, _, owner = field.partition(" ")
                if kind == "t":
                    mine = fields.get(f"g {self._gateway} {owner}")
                    others.append(others_from(owner, span, total, mine))
                    if mine is not None:
                        row = own_from(others[-1], end_s, mine)
                        # There are two where the time zone has changed. The larger one has all.
                        own[row[:2]] = max(row, own.get(row[:2], row), key=lambda row: row.used_bytes)
        connects = list(self._all_connects(now_s))
        own_connects = [
            RateRow(owner, text, Connects.from_text(text).end_s)
            for owner, gateway, text in connects
            if gateway == self._gateway
        ]
        return Loaded(list(own.values()), own_connects, others, connects, self._all_locks(), list(self._all_sessions()))

    def changes(self, last: str) -> Changes:
        """Return what others have written after `last`, a place that `begin` or this has answered."""
        entries = self._do("XRANGE", self._changes, last, "+", "COUNT", _AT_A_TIME)
        if not entries or entries[0][0] != last:
            return Changes(last, [], [], [], [], missed=True)
        use: dict[tuple[str, str], None] = {}
        connects, locks, sessions = [], [], []
        for _, words in entries[1:]:
            if words.get("by") == self._gateway:
                continue
            match words.get("what"), words.get("of"), words.get("is"):
                case "use", str() as owner, str() as spans:
                    use |= dict.fromkeys((owner, span) for span in spans.split(" "))
                case "connects", str() as owner, str() as text:
                    connects.append(connects_from(owner, str(words.get("by")), text))
                case "lock", str() as target, str() as rest:
                    locks.append(lock_from(target, rest))
                case "sessions", str() as counted, str() as count:
                    sessions.append(sessions_from(counted, str(words.get("by")), count))
        others = []
        wanted = list(use)
        calls = [
            ["HMGET", self._key(f"usage:{span}"), f"t {owner}", f"g {self._gateway} {owner}"] for owner, span in wanted
        ]
        for (owner, span), (total, mine) in zip(wanted, self._do_all(calls), strict=True):
            if total is not None:
                others.append(others_from(owner, span, total, mine))
        return Changes(entries[-1][0], others, connects, locks, sessions, more=len(entries) == _AT_A_TIME)

    def tidy(self, now_s: float) -> None:
        """Drop what is over and has no end of its own, and put off the end of what is in use. Now and then."""
        spans = self._key("spans")
        for span, end_text in list(self._fields(spans)):
            _, _, end_s = read_span(span, end_text)
            if end_s + _GRACE_S <= now_s:
                self._do("HDEL", spans, span)
        for lock in self._all_locks():
            if is_long_over(lock, now_s):
                self._do("EVALSHA", redis_scripts.FORGET.digest, 1, self._key("locks"), *written_lock(lock))
        for gateway, _, heard_s in list(self._introduced()):
            if heard_s + _ABSENT_S <= now_s:
                self._do("HDEL", self._key("gateways"), gateway)
        self._stay()

    def _spans(self, now_s: float) -> Iterator[tuple[str, int]]:
        for span, end_text in self._fields(self._key("spans")):
            _, _, end_s = read_span(span, end_text)
            if end_s > now_s:
                yield span, end_s

    def _fields(self, key: str) -> Iterator[tuple[str, str]]:
        # In pieces: others want to be served in between.
        cursor, count = "0", 0
        while True:
            cursor, some = self._do("HSCAN", key, cursor, "COUNT", _AT_A_TIME)
            count += len(some)
            if count > _MOST_FIELDS:
                raise NotAFleet(f"at most {_MOST_FIELDS} rows in {key}", "more")
            yield from some.items()
            if str(cursor) == "0":
                return

    def _all_connects(self, now_s: float) -> Iterator[OthersConnects]:
        first = int(now_s) // _HOUR_S
        newest: dict[tuple[str, str], str] = {}
        for hour in range(first, first + _LONGEST_WINDOW_S // _HOUR_S + 2):
            # What ends later is newer.
            for field, text in self._fields(self._key(f"rates:{hour}")):
                gateway, _, owner = field.partition(" ")
                newest[gateway, owner] = text
        for (gateway, owner), text in newest.items():
            yield connects_from(owner, gateway, text)

    # Redis.

    def _stay(self) -> None:
        for name in ("format", "gateways", "spans", "locks", "changes"):
            self._do("EXPIRE", self._key(name), _FORGOTTEN_S)
        self._do("EXPIRE", self._key(f"sessions:{self._gateway}"), _GRACE_S)

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _do(self, *words: Any) -> Any:
        return self._client.execute_command(*words)

    def _do_all(self, calls: Sequence[Sequence[Any]]) -> list[Any]:
        if not calls:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for words in calls:
            pipeline.execute_command(*words)
        return list(pipeline.execute())


def _outcome(claims: Sequence[Claim], answer: Sequence[str]) -> Outcome:
    rows, others = [], []
    for (row, _, _), numbers in zip(claims, _in_pieces(map(read_number, answer[1:]), 4), strict=True):
        used, granted, resets, written = numbers
        others.append(Others(row.owner, row.period, row.start_s, max(0, used), max(0, granted), resets))
        if answer[0] == "1" and resets == row.resets:
            rows.append(row._replace(used_bytes=written))
    return Outcome(rows, others)


def _in_pieces(items: Iterable[T], size: int = _AT_A_TIME) -> Iterator[list[T]]:
    remaining = iter(items)
    while piece := list(islice(remaining, size)):
        yield piece
