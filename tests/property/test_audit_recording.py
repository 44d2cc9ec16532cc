"""Whatever happens to an honest log while it is written, it verifies, and no acknowledged record is missing."""

import errno
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from portguard.observe.audit import log_file
from portguard.observe.audit.keys import fingerprint, read_public_key
from portguard.observe.audit.reading import lines, log_files
from portguard.observe.audit.recorder import Entry, Recorder, Settings
from portguard.observe.audit.records import parse_head
from portguard.observe.audit.verifying import verify

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)

steps = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 5)),
    st.tuples(st.just("full"), st.integers(0, 700)),  # room for so many bytes, then for all again
    st.tuples(st.just("crash"), st.integers(0, 400)),  # killed in the middle of a line of that length
    st.tuples(st.just("stop"), st.just(0)),
    st.tuples(st.just("logrotate"), st.just(0)),
    st.tuples(st.just("later"), st.integers(1, 200)),
)


class Gateway:
    """One that records, is killed, and starts again."""

    def __init__(self, folder: Path):
        self.state = folder
        self.path = folder / "audit" / "audit.jsonl"
        self.now = NOON
        self.number = 0
        self.acknowledged = []
        self.room = None
        self.start()

    def start(self):
        sizes = Settings(str(self.path), str(self.state), rotate_bytes=2500, rotate_after=timedelta(minutes=5))
        self.recorder = Recorder(sizes, self.now)
        self.write(1)

    def write(self, count):
        entries = []
        for _ in range(count):
            self.number += 1
            entries.append(Entry(self.now, "session.open", {"session": str(self.number)}))
        while entries:
            outcome = self.recorder.write(entries, self.now)
            self.acknowledged += [entry.fields["session"] for entry in outcome.written if entry.event == "session.open"]
            entries = outcome.left
            if outcome.error is not None:
                assert outcome.error.errno == errno.ENOSPC
                self.room = None
        self.recorder.write([], self.now)
        self.recorder.keep_head(self.now)

    def full(self, room):
        self.room = room
        self.write(3)

    def crash(self, torn):
        os.close(self.recorder._head)
        self.recorder._file.close()
        with self.path.open("ab") as file:
            file.write(b'{"seq":'.ljust(torn, b"x")[:torn])
        self.start()

    def stop(self, _):
        self.recorder.close(self.now)
        self.start()

    def logrotate(self, _):
        self.path.rename(f"{self.path}.{self.number}")
        self.write(1)

    def later(self, seconds):
        self.now += timedelta(seconds=seconds)
        self.recorder.seal(self.now)
        self.recorder.keep_head(self.now)

    def os_write(self, descriptor, data):
        if self.room is None:
            return os.write(descriptor, data)
        data = data[: self.room]
        self.room -= len(data)
        if not data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data)


class Os:
    def __init__(self, gateway):
        self.write = gateway.os_write

    def __getattr__(self, name):
        return getattr(os, name)


@settings(deadline=None)
@given(st.lists(steps, max_size=25))
def test_honest_logs_verify_across_rotations_restarts_crashes_and_full_disks(sequence):
    with tempfile.TemporaryDirectory() as name:
        gateway = Gateway(Path(name))
        log_file.os = Os(gateway)
        try:
            for step, amount in sequence:
                getattr(gateway, step)(amount)
        finally:
            log_file.os = os
            gateway.recorder.close(gateway.now)
        public = read_public_key(gateway.path.parent / "audit.pub")
        keys = {fingerprint(public): public}
        head = parse_head((gateway.path.parent / "head").read_bytes(), keys)
        report = verify(log_files(gateway.path), keys, head)
        assert report.findings == []
        assert report.first == 1
        assert report.last == report.sealed == head.seq
        content = b"".join(line.content for file in log_files(gateway.path) for line in lines(file))
        recorded = [int(part.split(b'"')[0]) for part in content.split(b'"session":"')[1:]]
        assert recorded == sorted(set(recorded))
        assert set(map(int, gateway.acknowledged)) <= set(recorded)
