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

from portguard.errors import Refused
from portguard.identity.validity import written
from portguard.pki import files
from portguard.pki.errors import PkiError
from portguard.pki.profiles import Kind, Revocation, RevocationReason
from portguard.reasons import Reason

# "PGCA": tells this file from any other SQLite file before a row is read.
_APPLICATION_ID = 0x50474341
_LOCK_TIMEOUT_S = 30.0

_STEPS = (
    (
        """
        CREATE TABLE certificates (
            serial     TEXT PRIMARY KEY,  -- lower-case hex, without leading zeros
            kind       TEXT NOT NULL,     -- client, gateway, invitation
            name       TEXT NOT NULL,     -- of a gateway, the first of its names; of an invitation, whom it is for
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
    (
        """
        CREATE TABLE enrolments (
            invitation  TEXT PRIMARY KEY REFERENCES certificates (serial),
            certificate TEXT NOT NULL UNIQUE REFERENCES certificates (serial)  -- what was issued for it
        )
        """,
    ),
)
"""Each step makes the version that is its place, counted from 1, out of the one before."""

_COLUMNS = "serial, kind, name, not_before, not_after, issued_at, der"
_JOINED = "certificates LEFT JOIN revocations USING (serial) LEFT JOIN enrolments ON invitation = serial"
_RECORDS = f"SELECT {_COLUMNS}, revoked_at, reason, certificate FROM {_JOINED}"  # noqa: S608 constant
_GOOD_OF_CLIENT = f"""
    SELECT serial FROM {_JOINED}
    WHERE kind IN (?, ?) AND name = ? AND not_after >= ? AND revoked_at IS NULL AND certificate IS NULL
    ORDER BY certificates.rowid
"""  # noqa: S608 constant

_Row = tuple[str, str, str, int, int, int, bytes, int | None, str | None, str | None]


class Status(StrEnum):
    """What a certificate is worth at a given time."""

    VALID = "valid"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    REVOKED = "revoked"
    OPEN = "open"  # an invitation that may still be used
    USED = "used"  # an invitation by which a certificate was issued

    @property
    def is_good(self) -> bool:
        """Whether it is worth something now, or will be."""
        return self in {Status.VALID, Status.OPEN, Status.NOT_YET_VALID}


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
    used_for: int | None = None
    """Of an invitation, the serial of what was issued by it; None as long as nothing was."""

    def status(self, at: datetime) -> Status:
        """Say what the certificate is worth at `at`. One that is revoked, or used, stays so, also past its end."""
        if self.revocation is not None:
            return Status.REVOKED
        if self.used_for is not None:
            return Status.USED
        by_dates = status(self.not_before, self.not_after, at)
        return Status.OPEN if self.kind is Kind.INVITATION and by_dates is Status.VALID else by_dates

    def is_good(self, at: datetime) -> bool:
        """Say whether it is worth something at `at`, or will be."""
        return self.status(at).is_good


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

        `renews` is the certificate whose successor it is. *Fails closed*: raises Refused for one that is revoked, or
        that is not in the record under the same name. That is one step: nothing can be revoked in between.
        """
        with self._transaction("IMMEDIATE") as connection:
            if renews is not None:
                self._expect_renewable(connection, renews, record)
            _insert(connection, record)

    def enroll(self, invitation: x509.Certificate, record: Record) -> Record:
        """Write `record`, issued now by an invitation to its name, and that this is used; on return it is on the disk.

        One that was used before, for the same key, is used no second time: return the record of then.

        *Fails closed*: raises Refused where it is none of this record's to this name, is revoked or expired, or was
        used for another key, or for a certificate that is good no more. That is one step: of two that use it at once,
        one is refused.
        """
        with self._transaction("IMMEDIATE") as connection:
            invited = self._one(connection, invitation.serial_number)
            if (
                invited is None
                or invited.der != invitation.public_bytes(Encoding.DER)
                or (invited.kind, invited.name) != (Kind.INVITATION, record.name)
            ):
                raise Refused(Reason.CERTIFICATE_UNTRUSTED, "the authority has no record of the invitation")
            _expect_good(invited, "the invitation", record.issued_at)
            if invited.used_for is not None:
                earlier = self._one(connection, invited.used_for)
                if earlier is None or not _are_for_one_key(earlier, record):
                    raise Refused(Reason.INVITATION_USED)
                _expect_good(earlier, "the certificate that the invitation was used for", record.issued_at)
                return earlier
            _insert(connection, record)
            row = _hex(invited.serial), _hex(record.serial)
            connection.execute("INSERT INTO enrolments (invitation, certificate) VALUES (?, ?)", row)
        return record

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
        moment ago, and for their invitations that were not used. Raises PkiError when one of `serials` is revoked
        already, or was not issued here.
        """
        chosen = [_hex(serial) for serial in serials]
        at_s = _seconds(revocation.at)
        with self._transaction("IMMEDIATE") as connection:
            for name in clients:
                rows = connection.execute(_GOOD_OF_CLIENT, (Kind.CLIENT, Kind.INVITATION, name, at_s))
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

    def _one(self, connection: sqlite3.Connection, serial: int) -> Record | None:
        rows = connection.execute(f"{_RECORDS} WHERE serial = ?", (_hex(serial),))
        return next(map(self._record, rows), None)

    def _expect_renewable(self, connection: sqlite3.Connection, renews: x509.Certificate, successor: Record) -> None:
        before = self._one(connection, renews.serial_number)
        # Whoever has got the key of an issuing CA chooses serials.
        if (
            before is None
            or before.der != renews.public_bytes(Encoding.DER)
            or (before.kind, before.name) != (successor.kind, successor.name)
        ):
            message = "the authority has no record of the client certificate, and does not renew it"
            raise Refused(Reason.CERTIFICATE_UNTRUSTED, message)
        if before.revocation is not None:
            raise Refused(Reason.CERTIFICATE_REVOKED)

    def _record(self, row: _Row) -> Record:
        serial, kind, name, not_before, not_after, issued_at, der, revoked_at, reason, used_for = row
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
                None if used_for is None else int(used_for, 16),
            )
        except (TypeError, ValueError, OverflowError, OSError) as error:
            raise PkiError(self.path, "a readable record", f"a damaged one, serial {serial!r}") from error


def _insert(connection: sqlite3.Connection, record: Record) -> None:
    row = (
        _hex(record.serial),
        record.kind,
        record.name,
        *map(_seconds, (record.not_before, record.not_after, record.issued_at)),
        record.der,
    )
    connection.execute(f"INSERT INTO certificates ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)  # noqa: S608 constant


def _expect_good(record: Record, what: str, at: datetime) -> None:
    """Raise Refused unless it may be used at `at`. *Fails closed*."""
    if record.revocation is not None:
        raise Refused(Reason.CERTIFICATE_REVOKED, f"{what} is revoked")
    if status(record.not_before, record.not_after, at) is not Status.VALID:
        raise Refused(Reason.CERTIFICATE_EXPIRED, f"{what} is valid until {written(record.not_after)}")


def _are_for_one_key(one: Record, other: Record) -> bool:
    keys = (x509.load_der_x509_certificate(each.der).public_key() for each in (one, other))
    return next(keys) == next(keys)


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
