"""Whether an audit log is the one that the gateway wrote, and where it is not.

The chain tells of every line that was altered, removed, inserted or moved, as long as the lines after it were left
alone. Checkpoints tell when the lines after it were computed anew. The head tells of lines missing at the end.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from portguard.observe.audit.reading import Line, lines
from portguard.observe.audit.records import (
    CHECKPOINT,
    GENESIS,
    RECOVER,
    ROTATE,
    NotARecord,
    Position,
    Record,
    is_signed,
)

_REMEMBERED = 4096  # lines, to tell where one that stands in a wrong place belongs


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something about a line; `line` is 0 when it is about the file, or what should follow it. Unescaped."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


@dataclass(slots=True)
class Report:
    """What verifying found. `ok` is True when nothing speaks against the log; `notes` are no objections."""

    files: list[str] = field(default_factory=list)
    lines: int = 0
    first: int | None = None  # the numbers (seq) of the first and the last record
    last: int | None = None
    sealed: int | None = None  # the last record that a signature covers
    checkpoints: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the log."""
        return not self.findings


def verify(
    files: Iterable[Path], keys: Mapping[str, Ed25519PublicKey], head: Position | None, live: Path | None = None
) -> Report:
    """Check the files of one log, given in the order of the chain.

    `keys` by fingerprint are those whose signatures count. `head` is how far the log is known to go; None when that
    is not known: then the log must end with a checkpoint. `live` is what to name where there is no file at all.
    *Fails closed.* Raises NoAuditLog for a file that cannot be read.
    """
    verifier = _Verifier(keys, head)
    last = live
    for file in files:
        verifier.report.files.append(str(file))
        last = file
        for line in lines(file):
            verifier.take(line)
    verifier.finish(last)
    verifier.report.findings = sorted(set(verifier.report.findings))
    return verifier.report


class _Verifier:
    def __init__(self, keys: Mapping[str, Ed25519PublicKey], head: Position | None):
        self.report = Report()
        self._keys = keys
        self._head = head
        self._at: Position | None = None  # after the last record
        self._last: Line | None = None  # the last record
        self._odd: list[tuple[Line, str]] = []  # lines since then that are none
        self._recent: OrderedDict[str, Line] = OrderedDict()  # by hash
        # A pair of lines that do not fit together. Which of them was altered, the next line tells.
        self._suspects: tuple[Line, Line] | None = None

    def take(self, line: Line) -> None:
        self.report.lines += 1
        try:
            record = line.record()
        except NotARecord as error:
            self._odd.append((line, str(error)))
            return
        explained = self._explain_odd(record)
        position = record.position
        if self._at is None:
            self._begin(line, record)
        else:
            position = self._link(line, record, self._at, explained)
        if record.event == CHECKPOINT:
            self._check_signature(line, record)
        if self._head is not None and record.seq == self._head.seq and position.hash != self._head.hash:
            self._object(line, "not the line that the head vouches for: it was altered, or the log written anew")
        self._recent[position.hash] = line
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)
        self._at, self._last, self._odd = position, line, []
        self.report.first = record.seq if self.report.first is None else self.report.first
        self.report.last = record.seq

    def finish(self, file: Path | None) -> None:
        self._settle(fits=True)
        for line, found in self._odd:
            if line is self._odd[-1][0] and not line.whole:
                self._note(line, "incomplete: it is being written, or was when the gateway was killed")
            else:
                self._object(line, f"expected a record, got {found}")
        name, last = str(file), self.report.last or 0
        place = f"{self._last.file}:{self._last.number}" if self._last is not None else name
        if self._head is not None:
            if last < self._head.seq:
                missing = _counted(self._head.seq - last)
                text = f"the log ends here, with record {last}, but went on to {self._head.seq}: {missing} cut off"
                self._object(self._last, text, name)
            else:
                self.report.sealed = max(self.report.sealed or 0, self._head.seq)
        unsealed = last - (self.report.sealed or 0)
        if self._last is None:
            self._object(None, "expected records, got none", name)
        elif unsealed > 0 and self._head is None:
            text = f"no checkpoint covers the last {_noun(unsealed)}, and more may have been cut off behind it"
            self._object(self._last, text)
        elif unsealed > 0:
            self.report.notes.append(Finding(place, 0, f"no signature covers the last {_noun(unsealed)} yet"))

    def _begin(self, line: Line, record: Record) -> None:
        if record.seq == 1:
            if record.prev != GENESIS:
                self._object(line, "the first record claims one before it: it was altered")
        elif record.event != ROTATE or line.number != 1:
            self._object(line, f"{_counted(record.seq - 1)} missing before it: a file begins with record 1 or {ROTATE}")
        else:
            self._note(line, f"begins with record {record.seq}; what was before it is in files that are not here")

    def _link(self, line: Line, record: Record, before: Position, explained: bool) -> Position:
        """Check that the record follows `before`; return where the chain stands after it."""
        expected = before.seq + 1
        position = record.position
        if record.prev == before.hash:
            self._settle(fits=True)
            if record.event == RECOVER and record.fields.get("lost") == record.seq - expected > 0:
                text = f"{_counted(record.seq - expected)} lost before it, as the gateway saw when it started"
                self._object(line, text)
            elif record.seq != expected:
                self._object(line, f"expected record {expected}, got {record.seq}: it was altered")
                position = Position(expected, position.hash)
            return position
        self._settle(fits=False)
        assert self._last is not None
        odd = 0 if explained else len(self._odd)
        if (origin := self._recent.get(record.prev)) is not None:
            place = f"{origin.file}:{origin.number}"
            self._object(line, f"follows {place}, not the line before it: lines were inserted between, or re-ordered")
        elif record.seq == expected:
            self._suspects = (self._last, line)
        elif record.seq < expected:
            self._object(line, f"expected record {expected}, got {record.seq}: it was inserted or re-ordered")
        elif record.seq != expected + odd:  # lines that are no records have been objected to
            self._object(line, f"{_counted(record.seq - expected - odd)} missing before it")
        return position

    def _settle(self, *, fits: bool) -> None:
        """Say which of two lines was altered, now that the one after them is known."""
        if self._suspects is not None:
            first, second = self._suspects
            self._object(first if fits else second, "altered: the chain does not fit")
            self._suspects = None

    def _explain_odd(self, record: Record) -> bool:
        """Whether the gateway has recorded itself what stands before this record: what a crash left."""
        if not self._odd:
            return False
        content = b"".join(line.content + b"\n" * line.whole for line, _ in self._odd)
        claimed = record.fields.get("torn_sha256")
        if record.event == RECOVER:
            # The gateway ends such a line before it goes on, and that newline is its own.
            for torn in (content, content.removesuffix(b"\n")):
                if hashlib.sha256(torn).hexdigest() == claimed:
                    self._note(self._odd[0][0], f"{len(torn)} bytes that a crash left, as the next record says")
                    return True
        for line, found in self._odd:
            self._object(line, f"expected a record, got {found}")
        return False

    def _check_signature(self, line: Line, record: Record) -> None:
        if record.fields.get("key") not in self._keys:
            self._object(line, f"signed with another key, {record.fields.get('key')!s:.80}")
        elif not is_signed(record, self._keys):
            self._object(line, "the signature does not fit: this line was altered, or the log before it written anew")
        else:
            self.report.checkpoints += 1
            self.report.sealed = record.seq

    def _object(self, line: Line | None, message: str, file: str = "") -> None:
        place = (str(line.file), line.number) if line is not None else (file, 0)
        self.report.findings.append(Finding(*place, message))

    def _note(self, line: Line, message: str) -> None:
        self.report.notes.append(Finding(str(line.file), line.number, message))


def _noun(count: int) -> str:
    return "line" if count == 1 else f"{count} lines"


def _counted(count: int) -> str:
    return "1 line is" if count == 1 else f"{count} lines are"
