"""The ledger of a fleet in Redis, written and read by a thread of its own: no event loop waits for the network.

The thread turns a few times a second, and whenever somebody waits: it writes what there is to be written, and reads
what others have written since. After any failure it connects anew, and then writes all that is this gateway's and
reads all that is there: whatever Redis has lost meanwhile, its gateways put back.

Locks are also kept in a file of the gateway's, and stay in force without Redis, at a start too.
"""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from portguard.errors import ConfigurationError, Problem
from portguard.limits.attempts import Attempts
from portguard.limits.fleet import Claim, Claimed, Counted, News, SessionsRow, StampedLock, is_long_over
from portguard.limits.fleet_folder import FleetFolder
from portguard.limits.fleet_locks import FleetLocks
from portguard.limits.ledger import (
    LATEST_S,
    Answers,
    Contents,
    LockRow,
    LockTarget,
    Owner,
    RateRow,
    Row,
    UsageRow,
)
from portguard.limits.redis_link import FAILURES, RedisSettings, because, connect, is_lasting
from portguard.limits.redis_rows import Changes, FleetRows, Loaded, Outcome
from portguard.limits.redis_texts import NotAFleet
from portguard.limits.writer_thread import WriterThread
from portguard.observe import log
from portguard.policy.quantities import Period

if TYPE_CHECKING:
    import redis

POLL_S = 0.5
"""How often to look for what others have written."""

_STUCK_S = 3.0  # longer than an answer may take: a name that is not resolved raises nothing for long
_WAIT_AT_START_S = 2.0
_TRY_AT_START_EVERY_S = 0.1
_TIDY_EVERY_S = 600.0

_Key = tuple[Owner, Period | None]


@dataclass(slots=True)
class _Work:
    """What there is to be done at a turn."""

    rows: dict[_Key, UsageRow | RateRow] = field(default_factory=dict)
    locks: dict[LockTarget, StampedLock] = field(default_factory=dict)
    sessions: dict[Counted, SessionsRow] = field(default_factory=dict)
    claims: list[tuple[Sequence[Claim], Claimed]] = field(default_factory=list)
    waiting: list[Callable[[bool], None]] = field(default_factory=list)


@dataclass(slots=True)
class _Heard:
    """What a turn has brought."""

    news: list[News] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)  # of the claims; none: they were not made


class RedisStore:
    """A `fleet.Fleet`. Make it with `open`, before the event loop runs: that waits for the network."""

    def __init__(self, settings: RedisSettings, folder: FleetFolder):
        self._settings = settings
        self._folder = folder
        self._holder = folder.holder
        self._client: redis.Redis | None = None
        self._rows_there: FleetRows | None = None  # None: not connected
        self._last = ""  # up to where the changes were read
        self._knows_own = False  # what this gateway had used before it started
        self._untold: set[_Key] = set()  # what of that the gateway has not been told yet, as it was learnt late
        self._own: dict[_Key, UsageRow | RateRow] = {}  # what Redis is to have of this gateway
        self._sessions: dict[Counted, SessionsRow] = {}  # what others are to know of this gateway
        self._sessions_stand = False  # there are no others there than these
        self._counting: set[str] = set()  # the other gateways that have told of sessions
        self._loaded = Contents((), (), ())
        self._unheard: list[News] = []
        self._deliver: Callable[[Answers], None] = _discard
        self._listeners: list[Callable[[News], None]] = []
        self._work = _Work()
        self._oldest_s = 0.0  # since when the first of its rows waits
        self._locks = FleetLocks(folder)
        self._attempts = Attempts({"server": settings.shown}, _STUCK_S, "an answer that does not come")
        self._poll_at_s = 0.0
        self._tidy_at_s = 0.0
        self._writer = WriterThread(self._turn_until_closed, self._leave_for_good, self._attempts)
        self._wake = self._writer.wake

    @classmethod
    def open(cls, settings: RedisSettings, folder: str) -> "RedisStore":
        """Connect and read what there is; `folder` is where the gateway keeps its id and the last locks.

        Where Redis cannot be reached for two seconds it goes on without, and nothing is known yet. Raises
        ConfigurationError for a folder that cannot be used, and when Redis answers that it will not do.
        """
        store = cls(settings, FleetFolder(folder))
        try:
            store._connect_at_start()
        except BaseException:
            store._leave_for_good()
            raise
        return store

    def contents(self, now_s: float) -> Contents:
        """Return what was there, and not over at `now_s`, since the epoch. The locks are there without Redis too."""
        return replace(self._loaded, locks=self._locks.in_force(now_s))

    def listen(self, hear: Callable[[News], None]) -> None:
        """Have `hear` called with what is new, in the event loop. To be called before that turns again."""
        self._listeners.append(hear)

    def start(self, deliver: Callable[[Answers], None]) -> None:
        """Begin to write. `deliver` gets the answers, in the thread, a turn's at a time."""
        self._deliver = deliver
        if self._unheard:
            self._deliver([self._told(news) for news in self._unheard])
            self._unheard.clear()
        self._writer.start()

    def write(self, rows: Sequence[Row], on_written: Callable[[bool], None] | None = None) -> None:
        """Put the rows in place of those that they follow; return at once. See `ledger.Store`."""
        with self._wake:
            notify = on_written is not None or not (self._work.rows or self._work.locks)
            if notify:
                self._oldest_s = time.monotonic()
            for row in rows:
                if isinstance(row, LockRow):
                    self._work.locks[row.target] = self._locks.decide(row)
                else:
                    self._work.rows[_key(row)] = row
            if on_written is not None:
                self._work.waiting.append(on_written)
            if notify:
                self._wake.notify()

    def tell_sessions(self, rows: Sequence[SessionsRow]) -> None:
        """Have others know how many sessions there are here now; return at once. See `fleet.Fleet`."""
        with self._wake:
            self._work.sessions |= {row.counted: row for row in rows}

    def claim(self, claims: Sequence[Claim], on_claimed: Claimed) -> None:
        """Put aside all that is claimed, or nothing; return at once. See `fleet.Fleet`."""
        with self._wake:
            self._work.claims.append((claims, on_claimed))
            self._wake.notify()

    def failing_s(self) -> float | None:
        """For how many seconds nothing could be written; None when it could."""
        return self._attempts.failing_s()

    @property
    def errors(self) -> int:
        """How many attempts to write have failed since the start."""
        return self._attempts.errors

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written now, for people; None when it can."""
        failing = self._attempts.failing()
        return None if failing is None else f"{self._settings.shown}: {failing.message}"

    def flush_and_close(self, timeout_s: float) -> bool:
        """Write what waits, and end; return False when that was not possible in time."""
        return self._writer.flush_and_close(timeout_s)

    # At the start.

    def _connect_at_start(self) -> None:
        began_s = self._attempts.begin()
        while True:
            try:
                loaded, news = self._join()
            except (*FAILURES, ValueError) as error:
                self._leave()
                if isinstance(error, ValueError) or is_lasting(error):
                    expected = error.expected if isinstance(error, NotAFleet) else "a Redis that can be used"
                    # What redis-py says of a URL may have the password in it.
                    found = (
                        "a URL that redis-py does not take" if isinstance(error, ValueError) else self._because(error)
                    )
                    raise ConfigurationError([Problem(self._settings.shown, "", expected, found)]) from error
                if time.monotonic() - began_s > _WAIT_AT_START_S:
                    self._attempts.settle(self._because(error))
                    return
                time.sleep(_TRY_AT_START_EVERY_S)
            else:
                self._loaded = Contents(tuple(loaded.own), tuple(loaded.own_connects), ())
                # contents() has the rest.
                elsewhere = [each for each in news.connects if each.gateway != self._folder.gateway]
                self._unheard.append(replace(news, connects=elsewhere, locks=(), own=()))
                self._attempts.settle(None)
                return

    # In the thread.

    def _turn_until_closed(self) -> None:
        while True:
            with self._wake:
                while (pause_s := self._pause_s(time.monotonic())) > 0:
                    self._wake.wait(pause_s)
                work, self._work = self._work, _Work()
                hopeless = self._attempts.hopeless
                if not hopeless:
                    self._attempts.begin()
                close_by_s = self._writer.close_by_s
            self._locks.keep()
            if hopeless:
                self._put_back(work)
                self._answer(work, _Heard(), written=False)
                continue
            heard = _Heard()
            cause = self._turn(work, heard)
            self._locks.keep()
            if cause is not None:
                self._put_back(work)
            self._attempts.settle(cause)
            self._answer(work, heard, written=cause is None)
            if self._writer.may_end(close_by_s, cause):
                return

    def _pause_s(self, now_s: float) -> float:
        """For how long there is nothing to do."""
        urgent = self._work.waiting or self._work.claims
        if self._attempts.failed:
            return 0.0 if urgent else self._attempts.retry_at_s - now_s
        if urgent or self._writer.close_by_s is not None:
            return 0.0
        written_s = self._oldest_s + LATEST_S if self._work.rows or self._work.locks else self._poll_at_s
        return min(written_s, self._poll_at_s) - now_s

    def _turn(self, work: _Work, heard: _Heard) -> str | None:
        """Do what there is to do; return what kept it from being done. What was heard by then is so all the same."""
        try:
            if self._rows_there is None:
                _, news = self._join()
                heard.news.append(news)
                self._untold = {_key(row) for row in news.own}
            self._write(work, heard)
            if time.monotonic() >= self._poll_at_s:
                self._read_changes(heard)
        except NotAFleet as error:
            self._leave()
            return str(error)
        except FAILURES as error:
            self._leave()
            return self._because(error)
        return None

    def _write(self, work: _Work, heard: _Heard) -> None:
        rows_there = self._rows_there
        assert rows_there is not None
        if work.locks:
            heard.news.append(News(locks=self._locks.merge(rows_there.put_locks(work.locks.values()))))
        # Who does not know yet what was used before would write that away. Better rows and claims follow.
        known = [row for key, row in work.rows.items() if key not in self._untold]
        usage = sorted((row for row in known if isinstance(row, UsageRow)), key=lambda row: row[:2])
        outcomes = rows_there.put_use(usage)
        self._own |= {_key(row): row for row in usage}
        if not self._untold:
            claimed = rows_there.claim([claims for claims, _ in work.claims])
            self._own |= {_key(row): row for outcome in claimed for row in outcome.rows}
            heard.outcomes += claimed
            outcomes += claimed
        if others := [each for outcome in outcomes for each in outcome.others]:
            heard.news.append(News(use=others))
        self._sessions |= work.sessions
        rows_there.put_sessions(work.sessions.values())
        connects = [row for row in known if isinstance(row, RateRow)]
        rows_there.put_connects(connects)
        self._own |= {_key(row): row for row in connects}

    def _read_changes(self, heard: _Heard) -> None:
        rows_there = self._rows_there
        assert rows_there is not None
        if not rows_there.hold(self._holder) or not self._sessions_stand:
            # To others we were gone, and our sessions with us.
            self._put_sessions(rows_there)
        changes = rows_there.changes(self._last)
        while True:
            if changes.missed:
                _, news = self._join()
                heard.news.append(news)
                break
            self._last = changes.last
            if changes.others or changes.connects or changes.locks or changes.sessions:
                heard.news.append(self._news(changes))
            if not changes.more:
                break
            changes = rows_there.changes(self._last)
        if gone := rows_there.gone(self._counting):
            self._counting -= gone
            heard.news.append(News(gone=gone))
        self._poll_at_s = time.monotonic() + POLL_S
        if time.monotonic() >= self._tidy_at_s:
            self._tidy(rows_there)

    def _news(self, changes: Changes) -> News:
        self._counting |= {each.gateway for each in changes.sessions}
        return News(changes.others, changes.connects, self._locks.merge(changes.locks), changes.sessions)

    def _join(self) -> tuple[Loaded, News]:
        """Connect if need be, put there what Redis is to have of this gateway, and read everything."""
        now_s = time.time()
        if self._client is None:
            self._client = connect(self._settings)
        rows_there = FleetRows(self._client, self._settings.fleet, self._folder.gateway)
        self._last = rows_there.begin(self._holder)
        rows_there.introduce(socket.gethostname(), now_s)
        if not self._knows_own and (eviction := rows_there.eviction()) not in {None, "noeviction"}:
            log.event("warning", "ledger.eviction", server=self._settings.shown, policy=eviction)
        own = [row for row in self._own.values() if row.end_s > now_s]
        rows_there.put_use(sorted((row for row in own if isinstance(row, UsageRow)), key=lambda row: row[:2]))
        rows_there.put_connects(row for row in own if isinstance(row, RateRow))
        rows_there.put_locks(lock for lock in self._locks.all() if not is_long_over(lock, now_s))
        if self._knows_own:  # else we may follow a program whose sessions go on, and do not know them yet
            self._put_sessions(rows_there)
        loaded = rows_there.load(now_s)
        self._counting = {each.gateway for each in loaded.sessions}
        late = [] if self._knows_own else loaded.own
        gateway = self._folder.gateway
        # Its own from before the start, when they are learnt late, are as those elsewhere: they count for their time.
        connects = [each for each in loaded.connects if each.gateway != gateway or not self._knows_own]
        locks = self._locks.merge(loaded.locks)
        news = News(loaded.others, connects, locks, loaded.sessions, own=late, all_there_is=True)
        if not self._knows_own:
            self._own |= {_key(row): row for row in loaded.own}
            self._own |= {_key(row): row for row in loaded.own_connects}
        self._knows_own = True
        self._rows_there = rows_there
        self._poll_at_s = time.monotonic() + POLL_S
        return loaded, news

    def _put_sessions(self, rows_there: FleetRows) -> None:
        rows_there.put_sessions(self._sessions.values(), all_there_are=True)
        self._sessions_stand = True

    def _because(self, error: Exception) -> str:
        return because(error, self._settings.secrets)

    def _leave(self) -> None:
        client, self._client, self._rows_there = self._client, None, None
        if client is not None:
            client.close()
            client.connection_pool.disconnect()

    def _leave_for_good(self) -> None:
        self._leave()
        self._folder.close()

    def _tidy(self, rows_there: FleetRows) -> None:
        now_s = time.time()
        self._tidy_at_s = time.monotonic() + _TIDY_EVERY_S
        rows_there.introduce(socket.gethostname(), now_s)
        rows_there.tidy(now_s)
        self._own = {key: row for key, row in self._own.items() if row.end_s > now_s}
        self._sessions = {counted: row for counted, row in self._sessions.items() if row.sessions}
        self._locks.forget(now_s)

    def _put_back(self, work: _Work) -> None:
        """Keep what could not be written, unless something newer has come meanwhile."""
        with self._wake:
            self._work.rows = {**work.rows, **self._work.rows}
            self._work.locks = {**work.locks, **self._work.locks}
            self._work.sessions = {**work.sessions, **self._work.sessions}

    def _answer(self, work: _Work, heard: _Heard, *, written: bool) -> None:
        """News first: who is told that nothing is left shall know why."""
        answers = [self._told(news) for news in heard.news]
        outcomes: list[Outcome | None] = (
            [*heard.outcomes] if written and heard.outcomes else [None for _ in work.claims]
        )
        for (_, on_claimed), outcome in zip(work.claims, outcomes, strict=True):
            answers.append(_call(partial(on_claimed, None if outcome is None else outcome.rows)))
        answers += [(on_written, written) for on_written in work.waiting]
        if answers:
            self._deliver(answers)

    def _told(self, news: News) -> tuple[Callable[[bool], None], bool]:
        def tell() -> None:
            early: list[tuple[Sequence[Claim], Claimed]] = []
            if news.own:
                with self._wake:
                    for key in map(_key, news.own):
                        self._work.rows.pop(key, None)
                    early, self._work.claims = self._work.claims, []
            for hear in self._listeners:
                hear(news)
            if news.own:
                self._untold = set()
            for _, on_claimed in early:
                on_claimed(None)

        return _call(tell)


def _key(row: UsageRow | RateRow) -> _Key:
    return row.owner, row.period if isinstance(row, UsageRow) else None


def _call(what: Callable[[], object]) -> tuple[Callable[[bool], None], bool]:
    def call(_written: bool) -> None:
        what()

    return call, True


def _discard(_answers: Answers) -> None:
    pass
