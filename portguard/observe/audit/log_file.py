"""The file that the audit is written to: appended to, renamed away, and taken up again after a crash.

Nothing that was written is ever rewritten, so that the file can have the append-only attribute of chattr(1).
"""

import hashlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from portguard.observe.audit.reading import first_record, lines, log_files
from portguard.observe.audit.records import BEGINNING, CHECKPOINT, NotARecord, Position, Record, parse

STANDARD_OUTPUT = "-"

_LOOKED_AT_BYTES = 2 << 20  # of a file's end, for the last record


@dataclass(frozen=True, slots=True)
class End:
    """How a log ends. `clean` is True when the gateway that wrote it was stopped, not killed."""

    position: Position
    clean: bool
    empty: bool  # the live file has nothing in it yet
    torn: bytes  # what follows the last record in the live file: lines that a crash left
    torn_sha256: str

    @property
    def follows_others(self) -> bool:
        """Whether the live file is new and the chain comes from files that were renamed."""
        return self.empty and self.position != BEGINNING


class LogFile:
    """The live file at `path`, or standard output. What it does raises OSError."""

    def __init__(self, path: str):
        self.path = path
        self.size = 0
        self.begun = datetime.now(UTC)  # when its first record was written
        self._descriptor = -1
        self._identity = (0, 0)

    def open(self) -> None:
        """Take up the file, or create it with mode 0600."""
        if self.path == STANDARD_OUTPUT:
            self._descriptor = os.dup(1)
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        descriptor = os.open(self.path, flags, 0o600)
        self.close()
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        self.size, self._identity = status.st_size, (status.st_ino, status.st_dev)
        self.begun = _begun(Path(self.path)) if self.size else datetime.now(UTC)

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def write(self, data: bytes) -> tuple[int, OSError | None]:
        """Append; return how many bytes were written, and what kept the rest from being."""
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:] if written else data)
        except OSError as error:
            self.size += written
            return written, error
        self.size += written
        return written, None

    def sync(self) -> None:
        """Return when all that was written is on the disk."""
        if self.path != STANDARD_OUTPUT:
            os.fdatasync(self._descriptor)

    def has_moved(self) -> bool:
        """Whether somebody has renamed, removed or emptied the file: logrotate, in either of its ways."""
        if self.path == STANDARD_OUTPUT:
            return False
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return True
        return (named.st_ino, named.st_dev) != self._identity or named.st_size < self.size

    def rename(self, at: datetime) -> str:
        """Give the file a name of its own, never that of another; return it. open() then begins a new one."""
        base = name = f"{self.path}.{at:%Y%m%dT%H%M%SZ}"
        number = 0
        while os.path.lexists(name):
            number += 1
            name = f"{base}-{number}"
        os.rename(self.path, name)
        return os.path.basename(name)


def find_end(path: str) -> End:
    """Find how the log at `path` ends, in the live file or in the latest of those it was renamed to.

    Raises OSError, PortguardError; ValueError for a file that is no audit log.
    """
    live = Path(path)
    record, torn, empty = None, b"", True
    if live.exists():
        record, torn = _last(live)
        empty = record is None and not torn
    others = [] if record is not None else [file for file in log_files(live) if file != live]
    while record is None and others:
        record, _ = _last(others.pop())
    clean = record is not None and record.event == CHECKPOINT and record.fields.get("cause") == "stop"
    position = record.position if record is not None else BEGINNING
    return End(position, clean or position == BEGINNING, empty, torn, hashlib.sha256(torn).hexdigest())


def _last(file: Path) -> tuple[Record | None, bytes]:
    """Return the last record of a file, None when it has none, and the bytes behind it."""
    if file.suffix == ".gz":
        content = b"".join(line.content + b"\n" * line.whole for line in lines(file))
        whole = True
    else:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            whole = size <= _LOOKED_AT_BYTES
            stream.seek(max(0, size - _LOOKED_AT_BYTES))
            content = stream.read()
    end = len(content)
    # Backwards, line by line. What follows the last newline is no line.
    while (newline := content.rfind(b"\n", 0, end)) >= 0:
        begin = content.rfind(b"\n", 0, newline) + 1
        if not content.endswith(b"}", begin, newline):
            end = newline
            continue
        try:
            return parse(content[begin:newline]), content[newline + 1 :]
        except NotARecord:
            end = newline
    if not whole:
        raise ValueError(f"{file}: expected a record in the last {_LOOKED_AT_BYTES >> 20} MiB, got none")
    return None, content


def _begun(path: Path) -> datetime:
    record = first_record(path)
    try:
        begun = datetime.fromisoformat(record.time) if record is not None else None
    except ValueError:
        begun = None
    return begun if begun is not None and begun.tzinfo is not None else datetime.now(UTC)
