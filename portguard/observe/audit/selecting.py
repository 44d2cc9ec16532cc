"""The lines of an audit log that somebody asks for, and those that come after."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from portguard.observe.audit.reading import Line, NoAuditLog, files_of, first_record, lines
from portguard.observe.audit.records import LONGEST_LINE_BYTES, NotARecord, Record, parse

_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records to show: all that fit every condition that is given.

    `identities` are names, or names with their trust, `corp:alice@example.com`; a bare name is looked for in all
    trusts. Acts on an identity, such as a lock, count as its own, also where one of the two leaves the trust open.
    `events` are whole, `session.open`, or the part before the dot. `since` is aware.
    """

    identities: Sequence[str] = ()
    services: Sequence[str] = ()
    events: Sequence[str] = ()
    since: datetime | None = None

    def fits(self, record: Record) -> bool:
        """Whether to show it."""
        fields = record.fields
        name = fields.get("identity")
        if self.identities and not (
            {name, f"{fields.get('trust')}:{name}"} & set(self.identities) or self._acts(fields)
        ):
            return False
        if self.services and fields.get("service") not in self.services:
            return False
        if self.events and not {record.event, record.event.partition(".")[0]} & set(self.events):
            return False
        return self.since is None or _is_since(record.time, self.since)

    def _acts(self, fields: Mapping[str, object]) -> bool:
        """Whether somebody acted on one of the identities, which stands in the record as that person wrote it."""
        arguments = fields.get("arguments")
        name = arguments.get("identity") if isinstance(arguments, dict) else None
        if not isinstance(name, str):
            return False
        return any(name == wanted or _bare(name) == wanted or name == _bare(wanted) for wanted in self.identities)


def last(path: Path, selection: Selection, count: int | None) -> list[Record]:
    """The last `count` records of the log at `path` that fit, oldest first; None: all. Raises NoAuditLog."""
    found: list[Record] = []
    for file in reversed(files_of(path)):
        if selection.since is not None and file.stat().st_mtime < selection.since.timestamp():
            break  # and those before it are older
        wanted = None if count is None else count - len(found)
        if wanted == 0:
            break
        found[:0] = deque(_fitting(lines(file), selection), wanted)
    return found


def every(path: Path, selection: Selection) -> Iterator[Record]:
    """All records of the log at `path` that fit, oldest first, however many there are.

    Raises NoAuditLog, also for files that hold something else.
    """
    files = files_of(path)
    if any(file.stat().st_size for file in files) and not any(map(first_record, files)):
        raise NoAuditLog(f"{path}: expected an audit log, got a file that does not begin with records of one")
    for file in files:
        if selection.since is None or file.stat().st_mtime >= selection.since.timestamp():
            yield from _fitting(lines(file), selection)


class Follower:
    """Reads what is added to the log at `path` from now on, also after the file was rotated. Raises OSError."""

    def __init__(self, path: Path, selection: Selection):
        self._path = path
        self._selection = selection
        self._rest = b""
        self._file = path.open("rb")
        self._file.seek(0, os.SEEK_END)

    def follow(self, wait: Callable[[float], None] = time.sleep) -> Iterator[Record]:
        """Yield records that fit, as they come, without end; `wait` is called with seconds in between."""
        while True:
            moved = self._has_moved()
            yield from self._added()
            if moved:
                # Only what was looked at after the move is sure to be the old file's end.
                self._file.close()
                self._file, self._rest = self._path.open("rb"), b""
            else:
                wait(_POLL_S)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _has_moved(self) -> bool:
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False  # the new one is about to come
        opened = os.fstat(self._file.fileno())
        return (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino) or now.st_size < self._file.tell()

    def _added(self) -> Iterator[Record]:
        while chunk := self._file.read(LONGEST_LINE_BYTES):
            *complete, self._rest = (self._rest + chunk).split(b"\n")
            for content in complete:
                try:
                    record = parse(content)
                except NotARecord:
                    continue  # verifying tells of it
                if self._selection.fits(record):
                    yield record


def _fitting(of_file: Iterator[Line], selection: Selection) -> Iterator[Record]:
    for line in of_file:
        try:
            record = line.record()
        except NotARecord:
            continue
        if selection.fits(record):
            yield record


def _bare(name: str) -> str:
    """An identity without its trust."""
    return name.partition(":")[2] or name


def _is_since(time: str, since: datetime) -> bool:
    try:
        return datetime.fromisoformat(time) >= since
    except (ValueError, TypeError):
        return True  # nobody's line is hidden for a time that cannot be read
