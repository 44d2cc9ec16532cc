"""Records into the log, in order, each linked to the one before.

It does the disk's work and no more: `writer` gives it a thread, and says what happens when it fails.
"""

import contextlib
import fcntl
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from portguard.errors import ConfigurationError, PortguardError, Problem, because
from portguard.observe import log
from portguard.observe.audit import records
from portguard.observe.audit.journal import Journal
from portguard.observe.audit.keys import fingerprint, signing_key
from portguard.observe.audit.log_file import STANDARD_OUTPUT, LogFile, find_end
from portguard.observe.audit.place import HEAD, folder_of
from portguard.observe.audit.records import BEGINNING, CHECKPOINT, RECOVER, ROTATE, Fields, NotARecord, Position

CHECKPOINT_LINES = 1000
CHECKPOINT_AFTER = timedelta(seconds=60)
HEAD_AFTER = timedelta(milliseconds=100)
"""How far the head lags behind: signing it for each line would cost a tenth of what a session costs."""

_TRY_TO_RENAME_AGAIN = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Settings:
    """Where and how to record. Sizes and ages are those at which a file is renamed; None: never."""

    path: str  # absolute, or "-"
    state: str
    sync: Literal["written", "disk"] = "written"
    rotate_bytes: int | None = None
    rotate_after: timedelta | None = None
    journal: bool = False
    key: Path | None = None  # the file of the private key that signs; None: it is kept in `state`


@dataclass(slots=True, eq=False)
class Entry:
    """A record to be. `on_written` is called, with whether it was, when it is acknowledged."""

    time: datetime
    event: str
    fields: Fields
    on_written: Callable[[bool], None] | None = None
    withdrawn: bool = False
    taken: bool = False
    lost: int = 0  # numbers that records had which are no more


@dataclass(slots=True)
class Outcome:
    """What became of entries, all those of earlier calls that were half written included."""

    written: list[Entry] = field(default_factory=list)
    unsure: list[Entry] = field(default_factory=list)  # written, and the disk would not say that it has them
    left: list[Entry] = field(default_factory=list)  # nothing of them was written: to be tried again
    error: OSError | None = None


class Recorder:
    """The one writer of a log. Raises ConfigurationError, when made, for a place that cannot be used."""

    def __init__(self, settings: Settings, now: datetime):
        self._settings = settings
        self._to_file = settings.path != STANDARD_OUTPUT
        folder = folder_of(settings.state)
        _make_folders(folder, "gateway.state")
        self._key: Ed25519PrivateKey = signing_key(folder, settings.key)
        self.fingerprint = fingerprint(self._key.public_key())
        self._head_path = folder / HEAD
        self._head = _locked(self._head_path)
        self._file = LogFile(settings.path)
        self._at = BEGINNING
        self._rest = b""  # of a line that was half written
        self._started: Entry | None = None  # whose line that is; None when it is of the recorder itself
        self._own: list[Entry] = []  # what the recorder itself has to say before anything else
        self._unsound = False  # the disk has failed to take what was written to this file
        self._since_checkpoint = 0
        self._checkpoint_at = now
        self._head_at = now
        self._head_written = BEGINNING
        self._rename_not_before = now
        self.clean = True  # the gateway that wrote before was stopped, not killed
        try:
            self._take_up(now)
        except (OSError, ValueError, PortguardError) as error:
            os.close(self._head)
            raise _unusable(settings.path, error) from error
        self._journal = Journal() if settings.journal else None

    @property
    def path(self) -> str:
        """Where the log is; "-" is standard output."""
        return self._settings.path

    def write(self, entries: Sequence[Entry], now: datetime) -> Outcome:
        """Append entries, in their order, and whatever is due by `now`. Never raises OSError."""
        outcome = Outcome()
        try:
            self._write_rest(outcome)
            if self._to_file and (self._unsound or self._file.has_moved()):
                self._begin_file(ROTATE, now, None)
            self._put(entries, now, outcome)
            if outcome.error is None and self._is_full(now):
                self._rename(now, outcome)
        except OSError as error:
            outcome.error = error
            known = {*outcome.written, *outcome.left, self._started}
            outcome.left += [entry for entry in entries if entry not in known]
        return outcome

    def keep_head(self, now: datetime) -> float | None:
        """Say in the head how far the log goes; return in how many seconds to call again, None when nothing is due."""
        if self._at == self._head_written or self._rest or not self._to_file:
            return self._checkpoint_due(now)  # a line that is half written may never be whole
        if (wait := (self._head_at + HEAD_AFTER - now).total_seconds()) > 0:
            return wait
        try:
            os.pwrite(self._head, records.encode_head(self._at, now, self._key), 0)
        except OSError as error:
            log.event("error", "audit.head_failed", file=str(self._head_path), message=error.strerror)
        self._head_written, self._head_at = self._at, now
        return self._checkpoint_due(now)

    def seal(self, now: datetime) -> Outcome:
        """Write a checkpoint when lines have waited for one long enough."""
        if self._since_checkpoint and now - self._checkpoint_at >= CHECKPOINT_AFTER:
            return self.write([Entry(now, CHECKPOINT, {"cause": "interval"})], now)
        return Outcome()

    def close(self, now: datetime) -> None:
        """Seal what was written, and let go of everything."""
        outcome = Outcome()
        with contextlib.suppress(OSError):
            self._write_rest(outcome)
            if not self._rest:
                self._put([Entry(now, CHECKPOINT, {"cause": "stop"})], now, outcome)
                self._file.sync()
        self._head_at = now - HEAD_AFTER
        self.keep_head(now)
        self._file.close()
        os.close(self._head)
        if self._journal is not None:
            self._journal.close()

    # Beginning.

    def _take_up(self, now: datetime) -> None:
        if not self._to_file:
            self._file.open()
            return
        _make_folders(Path(self._settings.path).parent, "audit.path")
        head = os.pread(self._head, 4096, 0)
        known: Position | None = None
        if head.strip():
            with contextlib.suppress(NotARecord):
                known = records.parse_head(head, {self.fingerprint: self._key.public_key()})
        end = find_end(self._settings.path)
        self._at, self.clean = end.position, end.clean
        self._file.open()
        if end.follows_others:
            self._own.append(Entry(now, ROTATE, {}))
        if end.torn and not end.torn.endswith(b"\n"):
            self._rest = b"\n"
        lost = max(known.seq - end.position.seq, 0) if known is not None else 0
        unreadable = "unreadable" if head.strip() and known is None else None
        if end.torn or lost or unreadable:
            fields: Fields = {
                "torn_bytes": len(end.torn) or None,
                "torn_sha256": end.torn_sha256 if end.torn else None,
                "lost": lost or None,
                "head": unreadable,
            }
            self._own.append(Entry(now, RECOVER, fields, lost=lost))

    def _begin_file(self, event: str, now: datetime, name: str | None) -> None:
        """Go on in another file at the same path. Raises OSError."""
        if self._unsound:
            # What the disk did not take may be gone from memory too: nothing is to follow it in its own file.
            name = self._file.rename(now)
            self._unsound = False
        self._file.open()
        self._own.insert(0, Entry(now, event, {"file": name}))

    # Writing.

    def _write_rest(self, outcome: Outcome) -> None:
        """Write what is missing of a line. Raises OSError."""
        if not self._rest:
            return
        written, error = self._file.write(self._rest)
        self._rest = self._rest[written:]
        if error is not None:
            raise error
        if self._started is not None:
            self._acknowledge([self._started], outcome)
            self._started = None

    def _put(self, entries: Sequence[Entry], now: datetime, outcome: Outcome) -> None:
        """Write the recorder's own entries and these, and a checkpoint when one is due."""
        own, self._own = self._own, []
        batch = [*own, *entries]
        if batch and self._is_checkpoint_due(len(batch), now) and batch[-1].event != CHECKPOINT:
            batch.append(Entry(now, CHECKPOINT, {"cause": "interval"}))
        if not batch:
            return
        lines, positions = self._encode(batch)
        ends = list(accumulate(len(line) + 1 for line in lines))
        data = b"\n".join(lines) + b"\n"
        written, outcome.error = self._file.write(data)
        whole = bisect_right(ends, written)
        started = whole + (written > (ends[whole - 1] if whole else 0))
        if started:
            self._at = positions[started - 1]
        if started > whole:
            self._rest, self._started = data[written : ends[whole]], batch[whole]
        if started < len(batch):
            unwritten = set(batch[started:])
            self._own = [entry for entry in own if entry in unwritten]
            outcome.left += [entry for entry in entries if entry in unwritten]
        self._count(batch[:started], now)
        if self._journal is not None:
            self._journal.send(lines[:whole])
        self._acknowledge(batch[:whole], outcome)

    def _encode(self, batch: Sequence[Entry]) -> tuple[list[bytes], list[Position]]:
        at, lines, positions = self._at, [], []
        for entry in batch:
            before = Position(at.seq + entry.lost, at.hash)
            if entry.event == CHECKPOINT:
                cause = str(entry.fields["cause"])
                line, at = records.encode_checkpoint(before, entry.time, cause, self._key)
            else:
                line, at = records.encode(before, entry.time, entry.event, entry.fields)
            lines.append(line)
            positions.append(at)
        return lines, positions

    def _acknowledge(self, entries: Sequence[Entry], outcome: Outcome) -> None:
        if self._settings.sync == "disk" and entries:
            try:
                self._file.sync()
            except OSError as error:
                # The kernel tells of it once, and the next sync would succeed with the pages dropped.
                self._unsound = self._to_file
                outcome.unsure += entries
                outcome.error = error
                return
        outcome.written += entries

    # Checkpoints and rotation.

    def _is_checkpoint_due(self, more: int, now: datetime) -> bool:
        waiting = self._since_checkpoint
        return waiting + more >= CHECKPOINT_LINES or (waiting > 0 and now - self._checkpoint_at >= CHECKPOINT_AFTER)

    def _checkpoint_due(self, now: datetime) -> float | None:
        if not self._since_checkpoint:
            return None
        return max((self._checkpoint_at + CHECKPOINT_AFTER - now).total_seconds(), 0.001)

    def _count(self, batch: Sequence[Entry], now: datetime) -> None:
        for entry in batch:
            if entry.event == CHECKPOINT:
                self._since_checkpoint, self._checkpoint_at = 0, now
            else:
                if not self._since_checkpoint:
                    self._checkpoint_at = now
                self._since_checkpoint += 1

    def _is_full(self, now: datetime) -> bool:
        settings, file = self._settings, self._file
        if not self._to_file or now < self._rename_not_before:
            return False
        too_large = settings.rotate_bytes is not None and file.size >= settings.rotate_bytes
        return too_large or (settings.rotate_after is not None and now - file.begun >= settings.rotate_after)

    def _rename(self, now: datetime, outcome: Outcome) -> None:
        """Seal the file, give it a name of its own and begin another one."""
        self._put([Entry(now, CHECKPOINT, {"cause": "rotate"})], now, outcome)
        if outcome.error is not None:
            return
        try:
            self._file.sync()
            name = self._file.rename(now)
        except OSError as error:
            # Recording goes on in the same file. That it grows is no reason to refuse sessions.
            log.event("error", "audit.rotate_failed", file=self._settings.path, message=error.strerror)
            self._rename_not_before = now + _TRY_TO_RENAME_AGAIN
            return
        self._begin_file(ROTATE, now, name)
        self._put([], now, outcome)


def _make_folders(folder: Path, key: str) -> None:
    """Make a folder, and those above it that are missing, for the gateway alone. Raises ConfigurationError."""
    try:
        missing = [folder, *folder.parents]
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        raise ConfigurationError(
            [Problem(str(folder), "", f"a folder that can be written ({key})", because(error))]
        ) from error


def _locked(path: Path) -> int:
    """Open the head for this process alone. Raises ConfigurationError."""
    expected = "a file that can be written, and no other gateway that uses it (gateway.state)"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigurationError([Problem(str(path), "", expected, because(error))]) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        found = "one that does" if isinstance(error, BlockingIOError) else because(error)
        raise ConfigurationError([Problem(str(path), "", expected, found)]) from error
    return descriptor


def _unusable(path: str, error: Exception) -> ConfigurationError:
    if isinstance(error, OSError):
        return ConfigurationError([Problem(path, "", "a file that can be appended to (audit.path)", because(error))])
    return ConfigurationError([Problem(path, "", "an audit log (audit.path)", str(error))])
