import errno
import json
import os
from datetime import timedelta

import pytest

from portguard.errors import ConfigurationError
from portguard.observe.audit import log_file
from portguard.observe.audit.reading import log_files
from portguard.observe.audit.recorder import CHECKPOINT_LINES, Entry, Recorder, Settings
from portguard.observe.audit.records import parse_head
from portguard.observe.audit.verifying import verify
from tests.audit_log import NOON


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "audit" / "audit.jsonl"


@pytest.fixture
def begin(path, tmp_path):
    """`begin(**settings)` makes a recorder; the one made before it is as if killed."""
    made = []

    def kill():
        while made:
            old = made.pop()
            old._file.close()
            os.close(old._head)

    def make(now=NOON, **settings):
        kill()
        recorder = Recorder(Settings(str(path), str(tmp_path / "state"), **settings), now)
        made.append(recorder)
        return recorder

    yield make
    kill()


def record(recorder, *names, now=NOON):
    return recorder.write([Entry(now, "session.open", {"identity": name}) for name in names], now)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(path):
    return [line["event"] for line in read(path)]


def report(path, recorder, *, head=True):
    keys = {recorder.fingerprint: recorder._key.public_key()}
    known = parse_head((path.parent / "head").read_bytes(), keys) if head else None
    return verify(log_files(path), keys, known)


def mode(path):
    return path.stat().st_mode & 0o777


def test_everything_is_made_for_the_gateway_alone(begin, path, tmp_path):
    record(begin(), "alice")
    assert [mode(tmp_path / "state"), mode(path.parent), mode(path), mode(path.parent / "head")] == [
        0o700,
        0o700,
        0o600,
        0o600,
    ]


def test_a_log_that_was_closed_is_sealed_and_goes_on(path, tmp_path):
    settings = Settings(str(path), str(tmp_path / "state"))
    first = Recorder(settings, NOON)
    assert first.clean
    record(first, "alice")
    first.close(NOON)
    assert read(path)[-1]["cause"] == "stop"
    second = Recorder(settings, NOON)
    assert second.clean
    record(second, "bob")
    second.close(NOON)
    assert [line["seq"] for line in read(path)] == [1, 2, 3, 4]
    assert report(path, second).ok
    assert report(path, second, head=False).ok


def test_a_log_that_was_not_closed_is_known_by_it(begin):
    record(begin(), "alice")
    assert not begin().clean


def test_two_gateways_cannot_write_one_log(begin, path, tmp_path):
    begin()
    with pytest.raises(
        ConfigurationError, match=r"head: expected .* no other gateway that uses it .*, got one that does"
    ):
        Recorder(Settings(str(path), str(tmp_path / "state")), NOON)


def test_what_a_crash_left_is_kept_and_recorded(begin, path):
    record(begin(), "alice")
    with path.open("ab") as file:
        file.write(b'{"seq":2,"identity":"bo')
    recorder = begin()
    record(recorder, "carol")
    lines = path.read_text().splitlines()
    assert lines[1] == '{"seq":2,"identity":"bo'
    recovered = json.loads(lines[2])
    assert (recovered["event"], recovered["seq"], recovered["torn_bytes"]) == ("audit.recover", 2, 23)
    recorder.keep_head(NOON + timedelta(seconds=1))
    assert report(path, recorder).ok


def test_lines_that_a_head_knew_and_the_log_lacks_are_recorded_as_lost(begin, path):
    recorder = begin()
    record(recorder, *"abcd")
    recorder.keep_head(NOON + timedelta(seconds=1))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    recorder = begin()
    record(recorder, "e")
    assert [(line["seq"], line.get("lost")) for line in read(path)] == [(1, None), (5, 3), (6, None)]
    recorder.keep_head(NOON + timedelta(seconds=2))
    (finding,) = report(path, recorder).findings
    assert (finding.line, finding.message) == (2, "3 lines are lost before it, as the gateway saw when it started")


def test_a_log_that_was_deleted_is_missed(begin, path):
    recorder = begin()
    record(recorder, "a", "b")
    recorder.keep_head(NOON + timedelta(seconds=1))
    path.unlink()
    recorder = begin()
    record(recorder, "c")
    assert [(line["seq"], line.get("lost")) for line in read(path)] == [(3, 2), (4, None)]
    recorder.keep_head(NOON + timedelta(seconds=2))
    assert not report(path, recorder).ok


def test_a_head_that_is_not_ours_is_recorded(begin, path):
    record(begin(), "a")
    (path.parent / "head").write_bytes(b"nonsense")
    record(begin(), "b")
    assert read(path)[1]["head"] == "unreadable"


def test_a_file_that_is_no_log_is_refused(begin, path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x\n" * (3 << 20))
    with pytest.raises(ConfigurationError, match="expected an audit log"):
        begin()


def test_a_folder_that_cannot_be_is_an_error_of_one_line(begin, tmp_path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ConfigurationError, match=r"expected a folder that can be written \(gateway.state\), got "):
        begin()


def test_a_file_that_has_its_size_is_sealed_renamed_and_followed_by_another(begin, path):
    recorder = begin(rotate_bytes=600)
    for name in "abcdef":
        record(recorder, name)
    *others, live = log_files(path)
    assert live == path
    assert others
    assert all(file.name.startswith("audit.jsonl.20261123T120000Z") for file in others)
    assert events(others[0])[-1] == "audit.checkpoint"
    assert (events(path)[0], read(path)[0]["file"]) == ("audit.rotate", others[-1].name)
    recorder.keep_head(NOON + timedelta(seconds=1))
    assert report(path, recorder).ok


def test_a_file_that_has_its_age_is_renamed_also_after_a_restart(begin, path):
    record(begin(rotate_after=timedelta(hours=1)), "a")
    late = NOON + timedelta(minutes=61)
    recorder = begin(late, rotate_after=timedelta(hours=1))
    record(recorder, "b", now=late)
    assert len(log_files(path)) == 2


def test_a_file_that_cannot_be_renamed_is_written_to_all_the_same(begin, path, monkeypatch):
    recorder = begin(rotate_bytes=1)
    monkeypatch.setattr(log_file.LogFile, "rename", lambda self, at: os.rename("/nowhere/a", "/nowhere/b"))
    assert [record(recorder, name).error for name in "ab"] == [None, None]
    assert [event for event in events(path) if event == "session.open"] == ["session.open"] * 2


@pytest.mark.parametrize("emptied", [False, True])
def test_logrotate_is_noticed_whether_it_renames_or_copies_and_empties(begin, path, emptied):
    recorder = begin()
    record(recorder, "a", "b", "c")
    if emptied:
        path.with_name("audit.jsonl.1").write_bytes(path.read_bytes())
        os.truncate(path, 0)
    else:
        path.rename(path.with_name("audit.jsonl.1"))
    record(recorder, "d")
    assert events(path) == ["audit.rotate", "session.open"]
    recorder.keep_head(NOON + timedelta(seconds=1))
    assert report(path, recorder).ok


def test_a_crash_right_after_a_rename_leaves_the_chain_whole(begin, path):
    record(begin(), "a")
    path.rename(path.with_name("audit.jsonl.1"))
    recorder = begin()
    record(recorder, "b")
    assert [(line["seq"], line["event"]) for line in read(path)] == [(2, "audit.rotate"), (3, "session.open")]


def test_checkpoints_come_by_count_and_by_time(begin, path):
    recorder = begin()
    record(recorder, *map(str, range(CHECKPOINT_LINES)))
    assert events(path)[-1] == "audit.checkpoint"
    recorder.seal(NOON + timedelta(hours=1))
    assert len(events(path)) == CHECKPOINT_LINES + 1, "nothing new to seal"
    later = NOON + timedelta(hours=1)
    record(recorder, "a", now=later)
    wait = recorder.keep_head(later + timedelta(seconds=1))
    assert wait == 59.0
    recorder.seal(later + timedelta(seconds=59))
    assert events(path)[-1] == "session.open"
    recorder.seal(later + timedelta(seconds=60))
    assert events(path)[-1] == "audit.checkpoint"


def test_a_full_disk_leaves_what_was_not_written_and_finishes_what_was_begun(begin, path, monkeypatch):
    recorder = begin()
    record(recorder, "first")
    length = path.stat().st_size
    room = [length + 20]
    real = os.write

    def write(descriptor, data):
        data = data[: room[0]]
        room[0] -= len(data)
        if not data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(log_file.os, "write", write)
    entries = [Entry(NOON, "session.open", {"identity": name}) for name in ("secnd", "third", "forth")]
    outcome = recorder.write(entries, NOON)
    assert (outcome.error.errno, outcome.written, outcome.left) == (errno.ENOSPC, entries[:1], entries[2:])
    head = (path.parent / "head").read_bytes()
    recorder.keep_head(NOON + timedelta(seconds=1))
    assert (path.parent / "head").read_bytes() == head, "a line that is half written is vouched for"
    again = recorder.write(outcome.left, NOON)
    assert (again.error.errno, again.written, again.left) == (errno.ENOSPC, [], entries[2:])
    monkeypatch.undo()
    last = recorder.write(again.left, NOON)
    assert (last.error, last.written) == (None, entries[1:])
    assert [line["identity"] for line in read(path)] == ["first", "secnd", "third", "forth"]


def test_with_sync_disk_nothing_is_acknowledged_that_the_disk_did_not_take(begin, path, monkeypatch):
    recorder = begin(sync="disk")
    synced = []
    monkeypatch.setattr(log_file.os, "fdatasync", synced.append)
    assert len(record(recorder, "a", "b").written) == 2
    assert len(synced) == 1, "one for the whole batch"

    def fail(_descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(log_file.os, "fdatasync", fail)
    outcome = record(recorder, "c")
    assert (outcome.written, len(outcome.unsure), outcome.error.errno) == ([], 1, errno.EIO)
    monkeypatch.undo()
    assert record(recorder, "d").written[-1].fields == {"identity": "d"}
    assert len(log_files(path)) == 2, "nothing follows in the file that the disk did not take"
    assert events(path) == ["audit.rotate", "session.open"]


def test_with_sync_written_the_disk_is_not_waited_for(begin, monkeypatch):
    monkeypatch.setattr(log_file.os, "fdatasync", lambda _: pytest.fail("waited"))
    record(begin(), "a")


def test_standard_output_gets_the_lines_and_is_never_renamed(tmp_path, capfd):
    recorder = Recorder(Settings("-", str(tmp_path), rotate_bytes=1), NOON)
    record(recorder, "a")
    record(recorder, "b")
    recorder.close(NOON)
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["session.open", "session.open", "audit.checkpoint"]
    assert sorted(path.name for path in (tmp_path / "audit").iterdir()) == ["audit.key", "audit.pub", "head"]
