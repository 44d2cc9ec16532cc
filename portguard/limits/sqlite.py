"""The ledger in an SQLite file, written by a thread of its own: no event loop waits for the disk.

Rows are kept by what they are about, so that the newest takes the place of those before it; a batch is all that waits,
in one transaction. While the file cannot be written, rows stay, who waits is told so at once, and it is tried again
until it works.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence

from portguard.limits import sqlite_schema
from portguard.limits.attempts import Attempts
from portguard.limits.ledger import LATEST_S, Answers, Contents, LockRow, LockTarget, Owner, RateRow, Row, UsageRow
from portguard.limits.sqlite_file import LedgerFile, Misplaced, because, unusable
from portguard.limits.sqlite_schema import NotALedger
from portguard.limits.writer_thread import WriterThread
from portguard.observe import log
from portguard.policy.quantities import Period

_STUCK_S = 2.0
"""A write that takes longer counts as failing: a disk that hangs raises nothing."""

_DELETE_EVERY_S = 600.0

_Key = tuple[Owner | LockTarget, Period | None]


class SqliteStore:
    """A `ledger.Store`. Make it with `open`, before the event loop runs: that waits for the disk."""

    def __init__(self, file: LedgerFile):
        self._file = file
        self._deliver: Callable[[Answers], None] = _discard
        self._rows: dict[_Key, Row] = {}
        self._oldest_s = 0.0  # since when the first of them waits
        self._waiting: list[Callable[[bool], None]] = []
        self._refused: list[Callable[[bool], None]] = []  # their rows can never be written
        self._impossible = 0  # calls of write with such rows
        self._attempts = Attempts({"file": file.path}, _STUCK_S, "a write that does not end")
        self._delete_at_s = time.monotonic() + _DELETE_EVERY_S
        self._writer = WriterThread(self._write_until_closed, self._file.close, self._attempts)
        self._wake = self._writer.wake

    @classmethod
    def open(cls, path: str, now_s: float) -> "SqliteStore":
        """Open the file, or make it, for this process alone; other processes may read it.

        `now_s` is since the epoch: what was over by then is deleted. Raises ConfigurationError for a place that cannot
        be used, a file that is no ledger, is damaged, cannot be written, or is locked for two seconds; and when
        another gateway uses it.
        """
        return cls(LedgerFile(path, now_s))

    def contents(self, now_s: float) -> Contents:
        """Return what is there and not over at `now_s`, since the epoch. To be called before `start`.

        Raises ConfigurationError for rows that portguard has not written.
        """
        try:
            connection = self._file.connection()
            return Contents(
                sqlite_schema.usage_rows(connection, now_s),
                sqlite_schema.rate_rows(connection, now_s),
                sqlite_schema.lock_rows(connection, now_s),
            )
        except (sqlite3.Error, OSError, NotALedger, Misplaced) as error:
            raise unusable(self._file.path, error) from error

    def start(self, deliver: Callable[[Answers], None]) -> None:
        """Begin to write. `deliver` gets the answers, in the writer's thread, a batch at a time."""
        self._deliver = deliver
        self._writer.start()

    def write(self, rows: Sequence[Row], on_written: Callable[[bool], None] | None = None) -> None:
        """Put the rows in place of those that they follow; return at once. See `ledger.Store`.

        A text that is no valid Unicode cannot be written, ever: then none of these rows are, on_written(False) comes,
        and they are not tried again. After `flush_and_close` nothing more is written.
        """
        possible = all(map(_is_possible, rows))
        with self._wake:
            # The first row sets off the wait for others; those after it need not wake anybody.
            notify = on_written is not None or not self._rows
            if possible:
                if not self._rows:
                    self._oldest_s = time.monotonic()
                for row in rows:
                    self._rows[_key(row)] = row
            else:
                self._impossible += 1
            if on_written is not None:
                (self._waiting if possible else self._refused).append(on_written)
            if notify:
                self._wake.notify()

    def failing_s(self) -> float | None:
        """For how many seconds nothing could be written; None when it could."""
        return self._attempts.failing_s()

    @property
    def errors(self) -> int:
        """How many attempts to write have failed since the start; rows that can never be written count as one."""
        return self._attempts.errors + self._impossible

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written now, for people; None when it can."""
        failing = self._attempts.failing()
        return None if failing is None else failing.message

    def flush_and_close(self, timeout_s: float) -> bool:
        """Write what waits, and end; return False when that was not possible in time."""
        return self._writer.flush_and_close(timeout_s)

    # In the thread.

    def _write_until_closed(self) -> None:
        while True:
            with self._wake:
                while (pause_s := self._pause_s(time.monotonic())) is None or pause_s > 0:
                    self._wake.wait(pause_s)
                hopeless = self._take_hopeless()
                if not hopeless:
                    rows, self._rows = self._rows, {}
                    waiting, self._waiting = self._waiting, []
                    self._attempts.begin()
                    close_by_s = self._writer.close_by_s
            if hopeless:
                self._deliver([(on_written, False) for on_written in hopeless])
                continue
            cause = self._attempt(list(rows.values()))
            if cause is not None:
                with self._wake:
                    self._rows = {**rows, **self._rows}  # newer ones may have come meanwhile
            self._attempts.settle(cause)
            if waiting:
                self._deliver([(on_written, cause is None) for on_written in waiting])
            if close_by_s is not None and cause is None:
                self._checkpoint()
            if self._writer.may_end(close_by_s, cause):
                return

    def _pause_s(self, now_s: float) -> float | None:
        """For how long there is nothing to do; None: until somebody calls."""
        if self._refused or (self._attempts.failed and self._waiting):
            return 0.0
        if self._attempts.failed:
            return self._attempts.retry_at_s - now_s
        if self._waiting or self._writer.close_by_s is not None:
            return 0.0
        return self._oldest_s + LATEST_S - now_s if self._rows else None

    def _take_hopeless(self) -> list[Callable[[bool], None]]:
        """Take those whose answer needs no attempt: it is known to be no."""
        hopeless, self._refused = self._refused, []
        if self._attempts.hopeless:
            hopeless += self._waiting
            self._waiting = []
        return hopeless

    def _attempt(self, rows: Sequence[Row]) -> str | None:
        """Write the rows, all or none; return what kept them from being written."""
        if not rows:
            return None
        try:
            connection = self._file.connection()
            with sqlite_schema.transaction(connection):
                sqlite_schema.put(connection, rows)
                if time.monotonic() >= self._delete_at_s:
                    sqlite_schema.delete_over(connection, time.time())
                    self._delete_at_s = time.monotonic() + _DELETE_EVERY_S
        except (sqlite3.Error, OSError, NotALedger, Misplaced) as error:
            self._file.note(error)
            return because(error)
        return None

    def _checkpoint(self) -> None:
        try:
            self._file.checkpoint()
        except sqlite3.Error as error:
            # All is safe in the write-ahead log; the next start takes it from there.
            log.event("warning", "ledger.checkpoint_failed", file=self._file.path, message=because(error))


def _key(row: Row) -> _Key:
    match row:
        case UsageRow():
            return row.owner, row.period
        case RateRow():
            return row.owner, None
        case LockRow():
            return row.target, None


def _is_possible(row: Row) -> bool:
    match row:
        case UsageRow():
            texts: tuple[str, ...] = row.owner
        case RateRow():
            texts = (*row.owner, row.connects)
        case LockRow():
            texts = (*row.target, row.reason, row.by)
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _discard(_answers: Answers) -> None:
    pass
