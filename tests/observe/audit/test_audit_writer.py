import errno
import json
import os
import queue

import pytest

from portguard.observe.audit import log_file, writer
from portguard.observe.audit.recorder import Recorder, Settings
from portguard.observe.audit.writer import Writer
from tests.audit_log import NOON
from tests.patience import PATIENCE_S


class Disk:
    """What os.write does: full while `full`, and slow while `gate` is held."""

    def __init__(self):
        self.full = False
        self.failed = queue.Queue()
        self.real = os.write

    def write(self, descriptor, data):
        if self.full:
            self.failed.put(True)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.real(descriptor, data)


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(log_file.os, "write", disk.write)
    monkeypatch.setattr(writer, "_RETRY_S", 0.01)
    return disk


class Audit:
    """A writer, and its answers as they come."""

    def __init__(self, folder):
        self.path = folder / "audit" / "audit.jsonl"
        self.answers = queue.Queue()
        self.writer = Writer(Recorder(Settings(str(self.path), str(folder)), NOON), self.deliver)
        self.writer.start()

    def deliver(self, answers):
        for on_written, ok in answers:
            on_written(ok)

    def append(self, name, event="session.open", *, answered=True):
        on_written = (lambda ok: self.answers.put((name, ok))) if answered else None
        return self.writer.append(event, {"identity": name}, on_written)

    def answer(self):
        return self.answers.get(timeout=PATIENCE_S)

    def recorded(self):
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def audit(tmp_path, disk):
    audit = Audit(tmp_path)
    yield audit
    disk.full = False
    audit.writer.close(PATIENCE_S)


def test_an_entry_is_acknowledged_once_it_can_be_read(audit):
    audit.append("alice")
    assert audit.answer() == ("alice", True)
    assert audit.recorded()[0]["identity"] == "alice"


def test_entries_keep_their_order(audit):
    for number in range(2000):
        audit.append(str(number))
    assert [audit.answer() for _ in range(2000)] == [(str(number), True) for number in range(2000)]
    names = [line.get("identity") for line in audit.recorded() if line["event"] == "session.open"]
    assert names == [str(number) for number in range(2000)]


def test_closing_writes_what_waits_and_seals_the_log(audit):
    for number in range(100):
        audit.append(str(number), answered=False)
    assert audit.writer.close(PATIENCE_S)
    last = audit.recorded()[-1]
    assert (last["seq"], last["event"], last["cause"]) == (101, "audit.checkpoint", "stop")


def test_with_a_full_disk_nothing_is_acknowledged_and_all_is_when_there_is_room(audit, disk):
    assert (audit.writer.failing_s(), audit.writer.failures) == (None, 0)
    disk.full = True
    audit.append("alice")
    disk.failed.get(timeout=PATIENCE_S)
    disk.failed.get(timeout=PATIENCE_S)
    assert audit.writer.failing_s() >= 0
    assert audit.writer.failures > 0
    audit.append("bob")
    assert audit.answers.empty()
    disk.full = False
    assert [audit.answer(), audit.answer()] == [("alice", True), ("bob", True)]
    resume, *others = audit.recorded()
    assert (resume["event"], resume["message"]) == ("audit.resume", "No space left on device")
    assert [line["identity"] for line in others] == ["alice", "bob"]


def test_an_entry_can_be_withdrawn_until_it_is_written(audit, disk):
    disk.full = True
    kept, gone = audit.append("kept"), audit.append("gone")
    disk.failed.get(timeout=PATIENCE_S)
    disk.failed.get(timeout=PATIENCE_S)
    while not audit.writer.withdraw(gone):
        disk.failed.get(timeout=PATIENCE_S)  # it is being tried just now
    disk.full = False
    assert audit.answer() == ("kept", True)
    assert not audit.writer.withdraw(kept)
    audit.append("next")
    assert audit.answer() == ("next", True)
    assert [line.get("identity") for line in audit.recorded()] == [None, "kept", "next"]


def test_what_waits_is_bounded_and_what_was_dropped_is_counted(audit, disk, monkeypatch):
    monkeypatch.setattr(writer, "_MOST_WAITING", 3)
    disk.full = True
    audit.append("first")
    disk.failed.get(timeout=PATIENCE_S)
    disk.failed.get(timeout=PATIENCE_S)
    for number in range(10):
        audit.append(str(number), "handshake.fail", answered=False)
    waiting = len(audit.writer._queue)
    disk.full = False
    audit.answer()
    assert audit.writer.close(PATIENCE_S)
    events = [line["event"] for line in audit.recorded()]
    dropped = audit.recorded()[0]["dropped"]["handshake.fail"]
    assert dropped + events.count("handshake.fail") == 10
    assert dropped >= 7
    assert waiting <= 4


def test_closing_with_a_full_disk_ends(audit, disk):
    disk.full = True
    audit.append("alice")
    disk.failed.get(timeout=PATIENCE_S)
    assert audit.writer.close(PATIENCE_S)
