"""The record of every certificate that the authority issued: one SQLite file beside its key.

Rollback journal, not WAL: between commands the store is a single file, which can be copied as a backup. A connection
lives for one operation, so several commands work on one store at once.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from portguard.pki import files
from portguard.pki.errors import PkiError
from portguard.pki.profiles import Kind

# "PGCA": tells this file from any other SQLite file before a row is read.
_APPLICATION_ID = 0x50474341
_VERSION = 1
_LOCK_TIMEOUT_S = 30.0

_SCHEMA = """
CREATE TABLE certificates (
    serial     TEXT PRIMARY KEY,  -- lower-case hex, without leading zeros
    kind       TEXT NOT NULL,     -- client, gateway
    name       TEXT NOT NULL,     -- of a gateway, the first of its names
    not_before INTEGER NOT NULL,  -- seconds since 1970, as the two below
    not_after  INTEGER NOT NULL,
    issued_at  INTEGER NOT NULL,
    der        BLOB NOT NULL
)
"""
_COLUMNS = "serial, kind, name, not_before, not_after, issued_at, der"


class Status(StrEnum):
    """What a certificate is worth at a given time."""

    VALID = "valid"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"


def status(not_before: datetime, not_after: datetime, at: datetime) -> Status:
    """Both ends are inclusive (RFC 5280 section 4.1.2.5)."""
    if at < not_before:
        return Status.NOT_YET_VALID
    return Status.VALID if at <= not_after else Status.EXPIRED


@dataclass(frozen=True, slots=True)
class Record:
    """One issued certificate. Times are aware, in whole seconds."""

    serial: int
    kind: Kind
    name: str
    not_before: datetime
    not_after: datetime
    issued_at: datetime
    der: bytes = field(repr=False)

    def status(self, at: datetime) -> Status:
        """Say what the certificate is worth at `at`."""
        return status(self.not_before, self.not_after, at)


class Store:
    """The records in the file at `path`. Every method raises PkiError when it is missing, damaged, or not ours."""

    def __init__(self, path: Path):
        self.path = path

    def create(self) -> None:
        """Make the file, readable by its owner alone. Raises PkiError when there is one."""
        files.publish([files.NewFile(self.path, b"", files.SECRET)])
        with self._transaction("IMMEDIATE", new=True) as connection:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute(_SCHEMA)
        files.sync_directory(self.path.parent)

    def add(self, record: Record) -> None:
        """Write `record`; on return it is on the disk. Raises PkiError when the serial is taken."""
        row = (
            _hex(record.serial),
            record.kind,
            record.name,
            *(int(time.timestamp()) for time in (record.not_before, record.not_after, record.issued_at)),
            record.der,
        )
        with self._transaction("IMMEDIATE") as connection:
            connection.execute(f"INSERT INTO certificates ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)  # noqa: S608 constant

    def records(self) -> list[Record]:
        """Return all records, in the order of issue."""
        with self._transaction("DEFERRED") as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM certificates ORDER BY rowid")  # noqa: S608 constant
            return [self._record(row) for row in rows]

    def get(self, serial: int) -> Record | None:
        """Return the record with `serial`, None when this authority issued no such certificate."""
        with self._transaction("DEFERRED") as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM certificates WHERE serial = ?", (_hex(serial),))  # noqa: S608 constant
            return next((self._record(row) for row in rows), None)

    @contextlib.contextmanager
    def _transaction(
        self, kind: Literal["IMMEDIATE", "DEFERRED"], *, new: bool = False
    ) -> Iterator[sqlite3.Connection]:
        """Yield a connection inside one transaction, which is committed at the end, or rolled back on an error.

        IMMEDIATE to write: it waits for its turn at the beginning, where waiting cannot end in a deadlock.
        """
        expected = "the record of issued certificates"
        if not self.path.is_file():
            # SQLite alone would say "unable to open database file", for want of a better word.
            raise PkiError(self.path, expected, "no such file")
        try:
            # mode=rw: a store that went missing is an error, not a reason to begin an empty one.
            uri = f"{self.path.absolute().as_uri()}?mode=rw"
            with contextlib.closing(
                sqlite3.connect(uri, uri=True, timeout=_LOCK_TIMEOUT_S, isolation_level=None)
            ) as connection:
                # EXTRA syncs the directory too: without it a power loss can undo the last commit.
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute(f"BEGIN {kind}")
                if not new:
                    self._check(connection)
                try:
                    yield connection
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise PkiError(self.path, expected, f"“{error}”") from error

    def _check(self, connection: sqlite3.Connection) -> None:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        if application_id != _APPLICATION_ID:
            raise PkiError(self.path, "the record of issued certificates", "another program's database")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != _VERSION:
            raise PkiError(self.path, f"a store of version {_VERSION}", f"version {version}, of another portguard")

    def _record(self, row: tuple[str, str, str, int, int, int, bytes]) -> Record:
        serial, kind, name, not_before, not_after, issued_at, der = row
        try:
            return Record(int(serial, 16), Kind(kind), name, _time(not_before), _time(not_after), _time(issued_at), der)
        except (TypeError, ValueError, OverflowError, OSError) as error:
            raise PkiError(self.path, "a readable record", f"a damaged one, serial {serial!r}") from error


def _hex(serial: int) -> str:
    return f"{serial:x}"


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
