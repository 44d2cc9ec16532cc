"""The ledger of a fleet in Redis, written and read by a thread of its own: no event loop waits for the network.

The thread turns a few times a second, and whenever somebody waits: it writes what there is to be written, and reads
what others have written since. After any failure it connects anew, and then writes all that is this gateway's and
reads all that is there: whatever Redis has lost meanwhile, its gateways put back.

Locks are also kept in a file of the gateway's, and stay in force without Redis, at a start too.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from portguard.errors import ConfigurationError, Problem
from portguard.limits.fleet import MOST_LOCKS, Claim, Claimed, News, StampedLock, merge_locks
from portguard.limits.fleet_folder import FleetFolder
from portguard.limits.ledger import LATEST_S, Answers, Contents, LockRow, LockTarget, Owner, RateRow, Row, UsageRow
from portguard.limits.redis_link import FAILURES, RedisSettings, because, connect, is_lasting
from portguard.limits.redis_rows import Changes, FleetRows, Loaded, NotAFleet, Outcome, is_long_over
from portguard.observe import log
from portguard.policy.quantities import Period

if TYPE_CHECKING:
    import redis

POLL_S = 0.5
"""How often to look for what others have written."""

_RETRY_S = 0.5
_STUCK_S = 3.0  # longer than an answer may take: a name that is not resolved raises nothing for long
_WAIT_AT_START_S = 2.0
_TRY_AT_START_EVERY_S = 0.1
_TIDY_EVERY_S = 600.0

_Key = tuple[Owner, Period | None]


@dataclass(frozen=True, slots=True)
class _Trouble:
    since_s: float
    message: str


@dataclass(slots=True)
class _Work:
    """What there is to be done at a turn."""

    rows: dict[_Key, UsageRow | RateRow] = field(default_factory=dict)
    locks: dict[LockTarget, StampedLock] = field(default_factory=dict)
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
        self._loaded = Contents((), (), ())
        self._unheard: list[News] = []
        self._deliver: Callable[[Answers], None] = _discard
        self._listeners: list[Callable[[News], None]] = []
        self._wake = threading.Condition()
        self._work = _Work()
        self._oldest_s = 0.0  # since when the first of its rows waits
        self._locks = {lock.row.target: lock for lock in folder.locks}  # and what is known of those taken away
        self._kept = True  # the file has them
        self._keep_failed = False
        self._began_s: float | None = None  # the turn that is going on
        self._retry_at_s = 0.0
        self._poll_at_s = 0.0
        self._tidy_at_s = 0.0
        self._close_by_s: float | None = None
        self._trouble: _Trouble | None = None
        self.errors = 0
        self._complete = False  # ended, with everything written
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

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
            store._leave()
            store._folder.close()
            raise
        return store

    def contents(self, now_s: float) -> Contents:
        """Return what was there, and not over at `now_s`, since the epoch. The locks are there without Redis too."""
        locks = tuple(lock.row for lock in self._locks.values() if lock.row.until_s is None or now_s < lock.row.until_s)
        return replace(self._loaded, locks=locks)

    def listen(self, hear: Callable[[News], None]) -> None:
        """Have `hear` called with what is new, in the event loop. To be called before that turns again."""
        self._listeners.append(hear)

    def start(self, deliver: Callable[[Answers], None]) -> None:
        """Begin to write. `deliver` gets the answers, in the thread, a turn's at a time."""
        self._deliver = deliver
        if self._unheard:
            self._deliver([self._told(news) for news in self._unheard])
            self._unheard.clear()
        self._thread.start()

    def write(self, rows: Sequence[Row], on_written: Callable[[bool], None] | None = None) -> None:
        """Put the rows in place of those that they follow; return at once. See `ledger.Store`."""
        with self._wake:
            notify = on_written is not None or not (self._work.rows or self._work.locks)
            if notify:
                self._oldest_s = time.monotonic()
            for row in rows:
                if isinstance(row, LockRow):
                    self._decide(row)
                else:
                    self._work.rows[_key(row)] = row
            if on_written is not None:
                self._work.waiting.append(on_written)
            if notify:
                self._wake.notify()

    def claim(self, claims: Sequence[Claim], on_claimed: Claimed) -> None:
        """Put aside all that is claimed, or nothing; return at once. See `fleet.Fleet`."""
        with self._wake:
            self._work.claims.append((claims, on_claimed))
            self._wake.notify()

    def failing_s(self) -> float | None:
        """For how many seconds nothing could be written; None when it could."""
        failing = self._failing()
        return None if failing is None else time.monotonic() - failing.since_s

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written now, for people; None when it can."""
        failing = self._failing()
        return None if failing is None else f"{self._settings.shown}: {failing.message}"

    def flush_and_close(self, timeout_s: float) -> bool:
        """Write what waits, and end; return False when that was not possible in time."""
        if self._complete:
            return True
        with self._wake:
            self._close_by_s = time.monotonic() + timeout_s
            self._retry_at_s = 0.0
            self._wake.notify()
        if self._thread.ident is None:
            self._run()
        else:
            self._thread.join(timeout_s)
        return self._complete

    def _decide(self, row: LockRow) -> None:
        held = self._locks.get(row.target)
        if held is None or held.row != row:
            # Later than what it decides about, whatever the clocks say: who sees a lock can take it away.
            at_ms = max(time.time_ns() // 1_000_000, held.at_ms + 1 if held is not None else 0)
            held = self._locks[row.target] = StampedLock(row, at_ms)
            self._kept = False
        self._work.locks[row.target] = held

    def _failing(self) -> _Trouble | None:
        # In this order: a turn that ends in between sets the one before it clears the other.
        began_s, trouble = self._began_s, self._trouble
        if trouble is None and began_s is not None and time.monotonic() - began_s > _STUCK_S:
            return _Trouble(began_s, "an answer that does not come")
        return trouble

    # At the start.

    def _connect_at_start(self) -> None:
        began_s = time.monotonic()
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
                    self.errors += 1
                    self._trouble = _Trouble(began_s, self._because(error))
                    self._retry_at_s = time.monotonic() + _RETRY_S
                    self._say_unavailable(self._because(error))
                    return
                time.sleep(_TRY_AT_START_EVERY_S)
            else:
                self._loaded = Contents(tuple(loaded.own), tuple(loaded.own_connects), ())
                # contents() has the rest.
                elsewhere = [each for each in news.connects if each.gateway != self._folder.gateway]
                self._unheard.append(replace(news, connects=elsewhere, locks=(), own=()))
                return

    # In the thread.

    def _run(self) -> None:
        try:
            self._turn_until_closed()
        finally:
            if not self._complete and self._trouble is None:
                # Fails closed: whatever ended the thread, nobody may take it for one that writes.
                self._trouble = _Trouble(time.monotonic(), "a writer that has ended")
            self._leave()
            self._folder.close()

    def _turn_until_closed(self) -> None:
        while True:
            with self._wake:
                while (pause_s := self._pause_s(time.monotonic())) > 0:
                    self._wake.wait(pause_s)
                work, self._work = self._work, _Work()
                hopeless = self._trouble is not None and time.monotonic() < self._retry_at_s
                if not hopeless:
                    began_s = self._began_s = time.monotonic()
                close_by_s = self._close_by_s
            self._keep_locks()
            if hopeless:
                self._put_back(work)
                self._answer(work, _Heard(), written=False)
                continue
            heard = _Heard()
            cause = self._turn(work, heard)
            self._keep_locks()
            if cause is not None:
                self._put_back(work)
            self._settle(began_s, cause)
            self._answer(work, heard, written=cause is None)
            if close_by_s is not None and self._is_done(close_by_s, cause):
                return

    def _pause_s(self, now_s: float) -> float:
        """For how long there is nothing to do."""
        urgent = self._work.waiting or self._work.claims
        if self._trouble is not None:
            return 0.0 if urgent else self._retry_at_s - now_s
        if urgent or self._close_by_s is not None:
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
            heard.news.append(News(locks=self._merge(rows_there.put_locks(work.locks.values()))))
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
        connects = [row for row in known if isinstance(row, RateRow)]
        rows_there.put_connects(connects)
        self._own |= {_key(row): row for row in connects}

    def _read_changes(self, heard: _Heard) -> None:
        rows_there = self._rows_there
        assert rows_there is not None
        rows_there.hold(self._holder)
        changes = rows_there.changes(self._last)
        while True:
            if changes.missed:
                _, news = self._join()
                heard.news.append(news)
                break
            self._last = changes.last
            if changes.others or changes.connects or changes.locks:
                heard.news.append(self._news(changes))
            if not changes.more:
                break
            changes = rows_there.changes(self._last)
        self._poll_at_s = time.monotonic() + POLL_S
        if time.monotonic() >= self._tidy_at_s:
            self._tidy(rows_there)

    def _news(self, changes: Changes) -> News:
        return News(changes.others, changes.connects, self._merge(changes.locks))

    def _join(self) -> tuple[Loaded, News]:
        """Connect if need be, put there what Redis is to have of this gateway, and read everything."""
        now_s = time.time()
        if self._client is None:
            self._client = connect(self._settings)
        rows_there = FleetRows(self._client, self._settings.fleet, self._folder.gateway)
        self._last = rows_there.begin(self._holder)
        if not self._knows_own and (eviction := rows_there.eviction()) not in {None, "noeviction"}:
            log.event("warning", "ledger.eviction", server=self._settings.shown, policy=eviction)
        own = [row for row in self._own.values() if row.end_s > now_s]
        rows_there.put_use(sorted((row for row in own if isinstance(row, UsageRow)), key=lambda row: row[:2]))
        rows_there.put_connects(row for row in own if isinstance(row, RateRow))
        with self._wake:
            locks = list(self._locks.values())
        rows_there.put_locks(lock for lock in locks if not is_long_over(lock, now_s))
        loaded = rows_there.load(now_s)
        late = [] if self._knows_own else loaded.own
        gateway = self._folder.gateway
        # Its own from before the start, when they are learnt late, are as those elsewhere: they count for their time.
        connects = [each for each in loaded.connects if each.gateway != gateway or not self._knows_own]
        news = News(loaded.others, connects, self._merge(loaded.locks), late, all_there_is=True)
        if not self._knows_own:
            self._own |= {_key(row): row for row in loaded.own}
            self._own |= {_key(row): row for row in loaded.own_connects}
        self._knows_own = True
        self._rows_there = rows_there
        self._poll_at_s = time.monotonic() + POLL_S
        return loaded, news

    def _because(self, error: Exception) -> str:
        return because(error, self._settings.secrets)

    def _leave(self) -> None:
        client, self._client, self._rows_there = self._client, None, None
        if client is not None:
            client.close()
            client.connection_pool.disconnect()

    def _merge(self, heard: Iterable[StampedLock]) -> list[LockRow]:
        heard = tuple(heard)
        with self._wake:
            locks = dict(self._locks)
            newer = merge_locks(locks, heard)
            if newer:
                now_s = time.time()
                ends_s = [lock.row.until_s for lock in locks.values()]
                if sum(end_s is None or end_s > now_s for end_s in ends_s) > MOST_LOCKS:
                    raise NotAFleet(f"at most {MOST_LOCKS} locks", "more")
            self._locks = locks
            self._kept = self._kept and not newer
        return [lock.row for lock in newer]

    def _keep_locks(self) -> None:
        with self._wake:
            if self._kept:
                return
            locks = list(self._locks.values())
            self._kept = True
        try:
            self._folder.keep(locks)
        except OSError as error:
            self._kept = False
            if not self._keep_failed:
                log.event("error", "ledger.locks_not_kept", file=self._folder.path, message=because(error))
            self._keep_failed = True
        else:
            self._keep_failed = False

    def _tidy(self, rows_there: FleetRows) -> None:
        now_s = time.time()
        self._tidy_at_s = time.monotonic() + _TIDY_EVERY_S
        rows_there.tidy(now_s)
        self._own = {key: row for key, row in self._own.items() if row.end_s > now_s}
        with self._wake:
            for lock in [lock for lock in self._locks.values() if is_long_over(lock, now_s)]:
                del self._locks[lock.row.target]

    def _put_back(self, work: _Work) -> None:
        """Keep what could not be written, unless something newer has come meanwhile."""
        with self._wake:
            self._work.rows = {**work.rows, **self._work.rows}
            self._work.locks = {**work.locks, **self._work.locks}

    def _settle(self, began_s: float, cause: str | None) -> None:
        now_s = time.monotonic()
        with self._wake:
            before = self._trouble
            if cause is None:
                self._trouble = None
            else:
                self.errors += 1
                self._retry_at_s = now_s + _RETRY_S
                self._trouble = _Trouble(began_s, cause) if before is None else replace(before, message=cause)
            self._began_s = None
        if before is None and cause is not None:
            self._say_unavailable(cause)
        elif before is not None and cause is None:
            log.event("info", "ledger.resume", seconds=now_s - before.since_s)

    def _say_unavailable(self, cause: str) -> None:
        log.event("error", "ledger.unavailable", server=self._settings.shown, message=cause)

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

    def _is_done(self, close_by_s: float, cause: str | None) -> bool:
        """Whether the thread shall end, since all is written or there is no time to try again."""
        if cause is not None:
            return time.monotonic() + _RETRY_S >= close_by_s
        self._complete = True
        return True


def _key(row: UsageRow | RateRow) -> _Key:
    return row.owner, row.period if isinstance(row, UsageRow) else None


def _call(what: Callable[[], object]) -> tuple[Callable[[bool], None], bool]:
    def call(_written: bool) -> None:
        what()

    return call, True


def _discard(_answers: Answers) -> None:
    pass
