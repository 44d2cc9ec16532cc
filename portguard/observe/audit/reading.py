"""The files of an audit log, in the order of the chain, and their lines.

Beside the live file stand those it was rotated to: `audit.jsonl.20261123T215012Z` by the gateway, `audit.jsonl.1`,
`audit.jsonl-20261123` or `audit.jsonl.2.gz` by logrotate.
"""

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from portguard.errors import PortguardError
from portguard.observe.audit.records import LONGEST_LINE_BYTES, NotARecord, Record, parse

_ROTATED = re.compile(r"[.-][0-9][0-9TZ.-]*(\.gz)?")
_LOOKED_AT = 1000  # lines of a file, for the first that is a record


class NoAuditLog(PortguardError):
    """What somebody asks about is no audit log, or none that can be read."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it stands in a file. `whole` tells whether its newline is there."""

    file: Path
    number: int  # from 1
    content: bytes  # without the newline
    whole: bool

    def record(self) -> Record:
        """Read it. Raises NotARecord, also for one that is not whole."""
        if not self.whole:
            raise NotARecord("the beginning of a line")
        return parse(self.content)


def log_files(path: Path) -> list[Path]:
    """The live file at `path` and those it was rotated to, oldest lines first; none where no log was begun yet.

    Raises NoAuditLog.
    """
    try:
        names = [file for file in path.parent.iterdir() if file.name.startswith(path.name)]
    except OSError as error:
        raise _unreadable(path.parent, error) from error
    return in_order(file for file in names if file == path or _ROTATED.fullmatch(file.name[len(path.name) :]))


def files_of(path: Path) -> list[Path]:
    """As `log_files`, for somebody who has named the log. Raises NoAuditLog, also where there is none."""
    files = log_files(path)
    if not files:
        # A slip in its name must not be told as a log in which nothing happened.
        raise NoAuditLog(f"{path}: expected an audit log, got no such file, nor one that it was rotated to")
    return files


def in_order(files: Iterable[Path]) -> list[Path]:
    """Sort files by the number of their first record; those without one come last. Raises NoAuditLog."""
    firsts = {file: first_record(file) for file in files}
    return sorted(firsts, key=lambda file: (record.seq if (record := firsts[file]) else 1 << 64, file))


def first_record(file: Path) -> Record | None:
    """The first line of a file that is a record; None when there is none near its beginning."""
    for line in lines(file):
        try:
            return line.record()
        except NotARecord:
            if line.number >= _LOOKED_AT:
                break
    return None


def lines(file: Path) -> Iterator[Line]:
    """All lines of a file, plain or compressed with gzip. Raises NoAuditLog when it cannot be read."""
    try:
        with _opened(file) as stream:
            number = 0
            # A bound on what is held: a "line" longer than any record comes in several.
            while content := stream.readline(LONGEST_LINE_BYTES + 2):
                number += 1
                whole = content.endswith(b"\n")
                yield Line(file, number, content[:-1] if whole else content, whole)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(file, error) from error


def _opened(file: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")


def _unreadable(path: Path, error: Exception) -> NoAuditLog:
    found = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return NoAuditLog(f"{path}: expected an audit log that can be read, got {found.lower()}")
