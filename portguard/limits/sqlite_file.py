"""The ledger's file: made for the gateway alone, locked against a second one, and known again when it was moved.

The lock is on a file of its own. SQLite holds POSIX locks on the database, and a process loses all of those that it
holds on a file when it closes any descriptor of that file; so nothing here may ever open the database but SQLite.
"""

import contextlib
import os
import sqlite3
import stat
from pathlib import Path

from portguard import errors
from portguard.errors import ConfigurationError, Problem
from portguard.limits import sqlite_schema, state_folder
from portguard.limits.sqlite_schema import NotALedger

_WAIT_AT_START_S = 2.0
_WAIT_S = 1.0
"""How long to wait for another process that has locked the database, at the start and later."""

_LARGEST_KEPT_LOG_BYTES = 4 << 20  # of the write-ahead log, when a long reader has made it grow

_KEEPS_CONNECTION = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}


class Misplaced(Exception):
    """What is at the file's path is not what was opened at the start. The text says what it is."""


class LedgerFile:
    """The database at `path`, open. Raises ConfigurationError, when made, for a place or a file that cannot be used.

    It may be used by one thread at a time.
    """

    def __init__(self, path: str, now_s: float):
        self.path = path
        # SQLite follows links too, and keeps its other files beside what they lead to.
        self._real = os.path.realpath(path)
        self._connection: sqlite3.Connection | None = None
        self._beside: tuple[_Identity, ...] = ()
        state_folder.make(Path(self._real).parent)
        self._lock = state_folder.locked(f"{self._real}.lock")
        try:
            _create(self._real)
            self._identity = _identity(self._real)
            self._connection = connection = self._connect(_WAIT_AT_START_S)
            sqlite_schema.check_pages(connection)
            sqlite_schema.migrate(connection)
            sqlite_schema.rewrite_version(connection)
            with sqlite_schema.transaction(connection):
                sqlite_schema.delete_over(connection, now_s)
            connection.execute(f"PRAGMA busy_timeout = {int(_WAIT_S * 1000)}")
            self._beside = self._files_beside()
        except (sqlite3.Error, OSError, NotALedger) as error:
            self.close()
            raise unusable(path, error) from error

    def connection(self) -> sqlite3.Connection:
        """Return a connection to the file that was opened at the start, a new one where the last is of no more use.

        Raises Misplaced when the file is not where it was, since what was written to it would be found by nobody;
        sqlite3.Error, OSError and NotALedger when it cannot be opened again.
        """
        self._check_place()
        if self._connection is not None and self._files_beside() != self._beside:
            self._save_log()
        if self._connection is None:
            self._connection = self._connect(_WAIT_S)
            self._beside = self._files_beside()
            self._check_place()
        return self._connection

    def note(self, error: Exception) -> None:
        """Take note that the connection has failed; it is not used again where that might be why."""
        code = getattr(error, "sqlite_errorcode", None)
        # The low byte is the kind, the others say more of it.
        if isinstance(error, sqlite3.Error) and (code is None or code & 0xFF not in _KEEPS_CONNECTION):
            self._disconnect()

    def checkpoint(self) -> bool:
        """Have all in the database proper; return False when a reader is in the way. Raises sqlite3.Error."""
        if self._connection is None:
            return True
        (busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def close(self) -> None:
        """Let go of the file, and then of the lock."""
        self._disconnect()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _connect(self, wait_s: float) -> sqlite3.Connection:
        # mode=rw: a ledger that went missing is an error, not a reason to begin an empty one.
        connection = sqlite3.connect(
            f"{Path(self._real).as_uri()}?mode=rw",
            uri=True,
            timeout=wait_s,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            sqlite_schema.check(connection)  # before anything that changes what may be another program's
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise NotALedger("a file system that SQLite can keep a write-ahead log on", f"journal mode {mode}")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA journal_size_limit = {_LARGEST_KEPT_LOG_BYTES}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _check_place(self) -> None:
        found = _identity(self._real)
        if found is None:
            raise Misplaced("no file any more, put it back or restart the gateway")
        if found != self._identity:
            raise Misplaced("another file in its place, restart the gateway to use it")

    def _files_beside(self) -> tuple["_Identity", ...]:
        return tuple(_identity(self._real + end) for end in ("-wal", "-shm"))

    def _save_log(self) -> None:
        """Take what was committed out of a write-ahead log that has lost its name: a crash would lose it."""
        if not self.checkpoint():
            raise Misplaced("no write-ahead log beside it any more, while another process reads it")
        self._disconnect()


_Identity = tuple[int, int] | None


def because(error: Exception) -> str:
    """What was found, for people, in words that complete "expected …, got …".

    SQLite's own ("unable to open database file") say too little where it matters most.
    """
    if isinstance(error, NotALedger):
        return error.found
    if isinstance(error, OSError):
        return errors.because(error)
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return str(error)
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return "a file that another process has locked"
        case sqlite3.SQLITE_FULL:
            return "a full disk"
        case sqlite3.SQLITE_READONLY:
            return "a file that cannot be written"
        case sqlite3.SQLITE_NOTADB:
            return "a file that is no database"
        case sqlite3.SQLITE_CORRUPT:
            return "a damaged database"
        case sqlite3.SQLITE_CANTOPEN:
            return "a file that cannot be opened"
        case sqlite3.SQLITE_IOERR:
            return f"an input or output error ({getattr(error, 'sqlite_errorname', code)})"
    return str(error)


def unusable(path: str, error: Exception) -> ConfigurationError:
    """What to raise at the start for a file that failed with `error`."""
    usual = "a ledger that can be read and written (gateway.state)"
    expected = error.expected if isinstance(error, NotALedger) else usual
    return ConfigurationError([Problem(path, "", expected, because(error))])


def _identity(path: str) -> _Identity:
    """What tells a file from any other that gets its name; None when there is none. Raises OSError."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def _create(path: str) -> None:
    """Make an empty file, 0600 whatever the umask, where there is none. Raises OSError, NotALedger."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise NotALedger("a file", "a folder" if stat.S_ISDIR(mode) else "no regular file") from None
        return
    try:
        os.fchmod(descriptor, 0o600)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    # Otherwise a power loss may take the file's name with all that was written to it.
    state_folder.sync(os.path.dirname(path))
