"""The ledger's tables in SQLite: how they came to be what they are, and how rows go in and out.

What is here works on a connection inside or outside a transaction as it says, and raises sqlite3.Error; `sqlite` has
the file, the thread and the failures.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import chain

from portguard.limits.ledger import LockRow, LockTarget, Owner, RateRow, Row, UsageRow
from portguard.policy.quantities import MAX_SIZE_BYTES, Period

# "PGLG": tells this file from any other SQLite file before a row is read.
APPLICATION_ID = 0x50474C47

Step = Sequence[str]

STEPS: tuple[Step, ...] = (
    (
        """
        CREATE TABLE usage (
            role          TEXT NOT NULL,
            trust         TEXT NOT NULL,     -- with name, empty for what the whole role has used together
            name          TEXT NOT NULL,
            period        TEXT NOT NULL,     -- hour, day, week, month
            start_s       INTEGER NOT NULL,  -- seconds since 1970, as all that end in _s
            end_s         INTEGER NOT NULL,
            used_bytes    INTEGER NOT NULL,  -- at most: what is leased counts
            granted_bytes INTEGER NOT NULL,
            PRIMARY KEY (role, trust, name, period)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE rates (
            role     TEXT NOT NULL,
            trust    TEXT NOT NULL,
            name     TEXT NOT NULL,
            connects TEXT NOT NULL,
            end_s    INTEGER NOT NULL,
            PRIMARY KEY (role, trust, name)
        ) WITHOUT ROWID
        """,
    ),
    (
        """
        CREATE TABLE locks (
            kind    TEXT NOT NULL,     -- identity, fingerprint, serial
            trust   TEXT NOT NULL,     -- empty for a fingerprint
            value   TEXT NOT NULL,     -- the name, or hex digits
            reason  TEXT NOT NULL,
            by      TEXT NOT NULL,
            since_s INTEGER NOT NULL,
            end_s   INTEGER,           -- NULL: for ever
            PRIMARY KEY (kind, trust, value)
        ) WITHOUT ROWID
        """,
    ),
)
"""Each step makes the version that is its place, counted from 1, out of the one before. Released ones never change."""

_USAGE = "usage (role, trust, name, period, start_s, end_s, used_bytes, granted_bytes)"
_RATES = "rates (role, trust, name, connects, end_s)"
_LOCKS = "locks (kind, trust, value, reason, by, since_s, end_s)"

_ROWS_AT_ONCE = 100  # times 8 values: below the 999 that every SQLite takes


class NotALedger(Exception):
    """The database cannot be used. `expected` and `found` complete "expected …, got …"."""

    def __init__(self, expected: str, found: str):
        super().__init__(f"expected {expected}, got {found}")
        self.expected = expected
        self.found = found


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit at the end what is done inside, or nothing of it when anything is raised."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors SQLite has rolled back by itself. One of the roll-back must not hide the first.
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def check(connection: sqlite3.Connection, newest: int = len(STEPS)) -> int:
    """Return the version, 0 for a database with nothing in it. Changes nothing.

    Raises NotALedger for another program's database, and for a version beyond `newest`.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application_id != APPLICATION_ID and (application_id, version, tables) != (0, 0, 0):
        raise NotALedger("the ledger", "another program's database")
    if not 0 <= version <= newest:
        raise NotALedger(f"a ledger of version {newest} at most", f"version {version}, of a newer portguard")
    return int(version)


def migrate(connection: sqlite3.Connection, steps: Sequence[Step] = STEPS) -> None:
    """Bring the database to the version that `steps` end with, each step in a transaction of its own.

    Raises NotALedger as `check` does.
    """
    while (version := check(connection, len(steps))) < len(steps):
        with transaction(connection):
            for statement in steps[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {version + 1}")


def rewrite_version(connection: sqlite3.Connection) -> None:
    """Write what is there already: it tells whether the file can be written, and on to the disk."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    with transaction(connection):
        connection.execute(f"PRAGMA user_version = {version}")


def check_pages(connection: sqlite3.Connection) -> None:
    """Read everything once. Raises NotALedger for what is damaged."""
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise NotALedger("the ledger", f"a damaged database ({' '.join(found.split())})")


def put(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Put rows in place of those with the same key. To be called in a transaction. Numbers are clipped to 63 bits."""
    usage = [
        (*row.owner, row.period.value, *map(_clipped, (row.start_s, row.end_s, row.used_bytes, row.granted_bytes)))
        for row in rows
        if isinstance(row, UsageRow)
    ]
    rates = [(*row.owner, row.connects, _clipped(row.end_s)) for row in rows if isinstance(row, RateRow)]
    locks = [
        (*row.target, row.reason, row.by, _clipped(row.since_s), None if row.until_s is None else _clipped(row.until_s))
        for row in rows
        if isinstance(row, LockRow)
    ]
    _insert(connection, _USAGE, usage)
    _insert(connection, _RATES, rates)
    _insert(connection, _LOCKS, locks)


def delete_over(connection: sqlite3.Connection, now_s: float) -> None:
    """Delete the rows of periods that have ended, and of locks."""
    for table in ("usage", "rates", "locks"):
        connection.execute(f"DELETE FROM {table} WHERE end_s <= ?", (now_s,))  # noqa: S608 constant


def usage_rows(connection: sqlite3.Connection, now_s: float) -> tuple[UsageRow, ...]:
    """Return what is not over. Raises NotALedger for a row that portguard has not written."""
    found = connection.execute(
        "SELECT role, trust, name, period, start_s, end_s, used_bytes, granted_bytes FROM usage WHERE end_s > ?",
        (now_s,),
    )
    return tuple(_usage_row(row) for row in found)


def rate_rows(connection: sqlite3.Connection, now_s: float) -> tuple[RateRow, ...]:
    """Return what is not over. Raises NotALedger for a row that portguard has not written."""
    found = connection.execute("SELECT role, trust, name, connects, end_s FROM rates WHERE end_s > ?", (now_s,))
    return tuple(_rate_row(row) for row in found)


def lock_rows(connection: sqlite3.Connection, now_s: float) -> tuple[LockRow, ...]:
    """Return what is in force. Raises NotALedger for a row that portguard has not written. *Fails closed*."""
    found = connection.execute(
        "SELECT kind, trust, value, reason, by, since_s, end_s FROM locks WHERE end_s IS NULL OR end_s > ?", (now_s,)
    )
    return tuple(_lock_row(row) for row in found)


def _insert(connection: sqlite3.Connection, table: str, rows: Sequence[tuple[object, ...]]) -> None:
    # Not executemany(): it lets go of the interpreter lock for each row, and beside a busy event loop waits up to 5 ms
    # to get it back each time.
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[first : first + _ROWS_AT_ONCE]
        one = f"({', '.join('?' * len(some[0]))})"
        values = ", ".join([one] * len(some))
        connection.execute(f"INSERT OR REPLACE INTO {table} VALUES {values}", list(chain.from_iterable(some)))  # noqa: S608 constant


def _clipped(number: int) -> int:
    return min(max(number, 0), MAX_SIZE_BYTES)


def _usage_row(row: tuple[object, ...]) -> UsageRow:
    match row:
        case (
            str() as role,
            str() as trust,
            str() as name,
            str() as period,
            int() as start_s,
            int() as end_s,
            int() as used_bytes,
            int() as granted_bytes,
        ) if period in set(Period) and min(used_bytes, granted_bytes) >= 0:
            return UsageRow(Owner(role, trust, name), Period(period), start_s, end_s, used_bytes, granted_bytes)
    raise NotALedger("rows of usage as portguard writes them", f"{row!r}")


def _rate_row(row: tuple[object, ...]) -> RateRow:
    match row:
        case (str() as role, str() as trust, str() as name, str() as connects, int() as end_s):
            return RateRow(Owner(role, trust, name), connects, end_s)
    raise NotALedger("rows of rates as portguard writes them", f"{row!r}")


def _lock_row(row: tuple[object, ...]) -> LockRow:
    match row:
        case (
            "identity" | "fingerprint" | "serial" as kind,
            str() as trust,
            str() as value,
            str() as reason,
            str() as by,
            int() as since_s,
            int() | None as until_s,
        ):
            return LockRow(LockTarget(kind, trust, value), reason, by, since_s, until_s)
    raise NotALedger("rows of locks as portguard writes them", f"{row!r}")
