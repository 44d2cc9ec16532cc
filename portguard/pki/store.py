"""The record of what the authority issued, revoked, and listed as revoked: one SQLite file beside its key.

Rollback journal, not WAL: between commands the store is a single file, which can be copied as a backup. A connection
lives for one operation, so several commands work on one store at once.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.pki import files
from portguard.pki.errors import NotRenewed, PkiError
from portguard.pki.profiles import Kind, Revocation, RevocationReason

# "PGCA": tells this file from any other SQLite file before a row is read.
_APPLICATION_ID = 0x50474341
_LOCK_TIMEOUT_S = 30.0

_STEPS = (
    (
        """
        CREATE TABLE certificates (
            serial     TEXT PRIMARY KEY,  -- lower-case hex, without leading zeros
            kind       TEXT NOT NULL,     -- client, gateway
            name       TEXT NOT NULL,     -- of a gateway, the first of its names
            not_before INTEGER NOT NULL,  -- seconds since 1970, as all other times
            not_after  INTEGER NOT NULL,
            issued_at  INTEGER NOT NULL,
            der        BLOB NOT NULL
        )
        """,
    ),
    (
        """
        CREATE TABLE revocations (
            serial     TEXT PRIMARY KEY REFERENCES certificates (serial),
            revoked_at INTEGER NOT NULL,
            reason     TEXT NOT NULL,     -- as RFC 5280 spells it
            settled_in INTEGER            -- number of a list that had it after the certificate's end: the last needed
        )
        """,
        """
        CREATE TABLE lists (
            number    INTEGER PRIMARY KEY,
            made_at   INTEGER NOT NULL,
            valid_for INTEGER NOT NULL  -- seconds, as was asked for
        )
        """,
    ),
)
"""Each step makes the version that is its place, counted from 1, out of the one before."""

_COLUMNS = "serial, kind, name, not_before, not_after, issued_at, der"
_RECORDS = f"SELECT {_COLUMNS}, revoked_at, reason FROM certificates LEFT JOIN revocations USING (serial)"  # noqa: S608 constant
_GOOD_OF_CLIENT = """
    SELECT serial FROM certificates LEFT JOIN revocations USING (serial)
    WHERE kind = ? AND name = ? AND not_after >= ? AND revoked_at IS NULL ORDER BY certificates.rowid
"""

_Row = tuple[str, str, str, int, int, int, bytes, int | None, str | None]


class Status(StrEnum):
    """What a certificate is worth at a given time."""

    VALID = "valid"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    REVOKED = "revoked"


def status(not_before: datetime, not_after: datetime, at: datetime) -> Status:
    """What its dates make of a certificate. Both ends are inclusive (RFC 5280 section 4.1.2.5)."""
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
    revocation: Revocation | None = None

    def status(self, at: datetime) -> Status:
        """Say what the certificate is worth at `at`. One that is revoked stays so, also past its end."""
        if self.revocation is not None:
            return Status.REVOKED
        return status(self.not_before, self.not_after, at)


class Store:
    """The records in the file at `path`. Every method raises PkiError when it is missing, damaged, or not ours.

    A file of an earlier version becomes one of this version when it is first used.
    """

    def __init__(self, path: Path):
        self.path = path

    def create(self) -> None:
        """Make the file, readable by its owner alone. Raises PkiError when there is one."""
        files.publish([files.NewFile(self.path, b"", files.SECRET)])
        with self._transaction("IMMEDIATE", new=True) as connection:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            _upgrade(connection, 0)
        files.sync_directory(self.path.parent)

    def add(self, record: Record, *, renews: x509.Certificate | None = None) -> None:
        """Write `record`, as not revoked; on return it is on the disk. Raises PkiError when the serial is taken.

        `renews` is the certificate whose successor it is. *Fails closed*: raises NotRenewed for one that is revoked, or
        that is not in the record under the same name. That is one step: nothing can be revoked in between.
        """
        row = (
            _hex(record.serial),
            record.kind,
            record.name,
            *map(_seconds, (record.not_before, record.not_after, record.issued_at)),
            record.der,
        )
        with self._transaction("IMMEDIATE") as connection:
            if renews is not None:
                self._expect_renewable(connection, renews, record)
            connection.execute(f"INSERT INTO certificates ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)  # noqa: S608 constant

    def records(self) -> list[Record]:
        """Return all records, in the order of issue."""
        return self._read(f"{_RECORDS} ORDER BY certificates.rowid")

    def get(self, serial: int) -> Record | None:
        """Return the record with `serial`, None when this authority issued no such certificate."""
        return next(iter(self._read(f"{_RECORDS} WHERE serial = ?", _hex(serial))), None)

    def record_of(self, certificate: x509.Certificate) -> Record | None:
        """Return the record of this very certificate, None when it is another authority's.

        Whoever has a certificate of another authority made may choose its serial.
        """
        record = self.get(certificate.serial_number)
        return record if record is not None and record.der == certificate.public_bytes(Encoding.DER) else None

    def revoke(self, serials: Iterable[int], revocation: Revocation, clients: Iterable[str] = ()) -> list[int]:
        """Record that the certificates are revoked, all or none; on return it is on the disk. Return which those are.

        `clients` stand for all their certificates that are neither revoked nor expired then, also one that was issued a
        moment ago. Raises PkiError when one of `serials` is revoked already, or was not issued here.
        """
        chosen = [_hex(serial) for serial in serials]
        at_s = _seconds(revocation.at)
        with self._transaction("IMMEDIATE") as connection:
            for name in clients:
                rows = connection.execute(_GOOD_OF_CLIENT, (Kind.CLIENT, name, at_s))
                chosen += [serial for (serial,) in rows]
            chosen = list(dict.fromkeys(chosen))
            connection.executemany(
                "INSERT INTO revocations (serial, revoked_at, reason) VALUES (?, ?, ?)",
                [(serial, at_s, revocation.reason) for serial in chosen],
            )
        return [int(serial, 16) for serial in chosen]

    def unsettled(self) -> list[Record]:
        """Return the certificates that the next list must have: revoked, and not `settle`d. In the order of issue."""
        return self._read(f"{_RECORDS} WHERE revoked_at IS NOT NULL AND settled_in IS NULL ORDER BY certificates.rowid")

    def revoked_serials(self) -> set[int]:
        """Return the serials of all that is revoked, whether or not a list still needs them."""
        with self._transaction("DEFERRED") as connection:
            return {int(serial, 16) for (serial,) in connection.execute("SELECT serial FROM revocations")}

    def settle(self, serials: Iterable[int], number: int) -> None:
        """Note that list `number` is the last that had to have these certificates."""
        rows = [(number, _hex(serial)) for serial in serials]
        with self._transaction("IMMEDIATE") as connection:
            connection.executemany("UPDATE revocations SET settled_in = ? WHERE serial = ?", rows)

    def begin_list(self, made_at: datetime, valid_for: timedelta, *, above: int = 0) -> int:
        """Return the number for a new list. No other list gets it, not even when this one is never finished.

        It is higher than all before, and than `above`: of a list that the record does not know.
        """
        row = above, _seconds(made_at), int(valid_for.total_seconds())
        with self._transaction("IMMEDIATE") as connection:
            number = connection.execute(
                "INSERT INTO lists SELECT max(coalesce(max(number), 0), ?) + 1, ?, ? FROM lists", row
            ).lastrowid
        assert number is not None
        return number

    def last_valid_for(self) -> timedelta | None:
        """For how long the last list was asked to be valid, None before the first one."""
        with self._transaction("DEFERRED") as connection:
            row = connection.execute("SELECT valid_for FROM lists ORDER BY number DESC LIMIT 1").fetchone()
        return None if row is None else timedelta(seconds=row[0])

    def _read(self, query: str, *values: str) -> list[Record]:
        with self._transaction("DEFERRED") as connection:
            return [self._record(row) for row in connection.execute(query, values)]

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
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute(f"BEGIN {kind}")
                if not new:
                    self._check(connection)
                    self._be_of_this_version(connection)
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

    def _be_of_this_version(self, connection: sqlite3.Connection) -> None:
        version = _version(connection)
        if version < len(_STEPS):
            # In a transaction that may write, in which another may have done it by now.
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            _upgrade(connection, _version(connection))
        elif version > len(_STEPS):
            raise PkiError(
                self.path, f"a store of version {len(_STEPS)} or earlier", f"version {version}, of a later portguard"
            )

    def _expect_renewable(self, connection: sqlite3.Connection, renews: x509.Certificate, successor: Record) -> None:
        rows = connection.execute(f"{_RECORDS} WHERE serial = ?", (_hex(renews.serial_number),))
        before = next(map(self._record, rows), None)
        # Whoever has got the key of an issuing CA chooses serials.
        if (
            before is None
            or before.der != renews.public_bytes(Encoding.DER)
            or (before.kind, before.name) != (successor.kind, successor.name)
        ):
            raise NotRenewed(renews.serial_number, "one that is not in it", revoked=False)
        if before.revocation is not None:
            raise NotRenewed(renews.serial_number, "one that is revoked", revoked=True)

    def _record(self, row: _Row) -> Record:
        serial, kind, name, not_before, not_after, issued_at, der, revoked_at, reason = row
        try:
            revocation = None
            if revoked_at is not None and reason is not None:
                revocation = Revocation(_time(revoked_at), RevocationReason(reason))
            return Record(
                int(serial, 16),
                Kind(kind),
                name,
                _time(not_before),
                _time(not_after),
                _time(issued_at),
                der,
                revocation,
            )
        except (TypeError, ValueError, OverflowError, OSError) as error:
            raise PkiError(self.path, "a readable record", f"a damaged one, serial {serial!r}") from error


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _upgrade(connection: sqlite3.Connection, version: int) -> None:
    for step in _STEPS[version:]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(_STEPS)}")


def _hex(serial: int) -> str:
    return f"{serial:x}"


def _seconds(time: datetime) -> int:
    return int(time.timestamp())


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
