"""The recorder on a thread of its own: no event loop waits for the disk.

Entries are taken over in batches, each with one hand-over there and one back. While the log cannot be written, what
waits is kept, and tried again until it can.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from portguard.observe import log
from portguard.observe.audit.recorder import Entry, Outcome, Recorder
from portguard.observe.audit.records import Fields, written

RESUME = "audit.resume"

_BATCH = 500
_RETRY_S = 0.25
_MOST_WAITING = 20_000
"""Entries that are kept while the log cannot be written. Those beyond are counted, and the count is recorded."""

Answers = Sequence[tuple[Callable[[bool], None], bool]]


@dataclass(slots=True)
class _Trouble:
    since: datetime
    since_s: float
    message: str
    dropped: Counter[str] = field(default_factory=Counter)


class Writer:
    """Takes entries from one event loop. `deliver` gets the answers, in the writer's thread, a batch at a time."""

    def __init__(self, recorder: Recorder, deliver: Callable[[Answers], None]):
        self._recorder = recorder
        self._deliver = deliver
        self._wake = threading.Condition()
        self._queue: deque[Entry] = deque()
        self._closing = False
        self._trouble: _Trouble | None = None
        self.failures = 0  # attempts to write that failed
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def append(self, event: str, fields: Fields, on_written: Callable[[bool], None] | None = None) -> Entry:
        """Record an event that happens now; return at once.

        An entry that nobody waits for is taken along with the next one that somebody does, or by wake().
        `on_written(True)` follows when it is recorded; `on_written(False)` when nobody knows whether it is. Neither
        follows while the log cannot be written.
        """
        entry = Entry(datetime.now(UTC), event, fields, on_written)
        with self._wake:
            if len(self._queue) >= _MOST_WAITING and on_written is None and self._trouble is not None:
                self._trouble.dropped[event] += 1
            else:
                self._queue.append(entry)
                if on_written is not None:
                    self._wake.notify()
        return entry

    def wake(self) -> None:
        """Have all that was appended written now."""
        with self._wake:
            self._wake.notify()

    def withdraw(self, entry: Entry) -> bool:
        """Take an entry back; return False when it is being written, or has been."""
        with self._wake:
            if not entry.taken:
                entry.withdrawn = True
            return entry.withdrawn

    def failing_s(self) -> float | None:
        """For how many seconds the log could not be written; None when it can."""
        trouble = self._trouble
        return None if trouble is None else time.monotonic() - trouble.since_s

    @property
    def trouble(self) -> str | None:
        """Why the log cannot be written now, for people; None when it can."""
        trouble = self._trouble
        return None if trouble is None else trouble.message

    def close(self, timeout_s: float) -> bool:
        """Write what waits, seal the log and end; return False when that took too long."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # In the thread.

    def _run(self) -> None:
        due_s: float | None = None
        while True:
            with self._wake:
                if self._trouble is not None and not self._closing:
                    # Whatever comes meanwhile would fail too.
                    self._wake.wait_for(lambda: self._closing, _RETRY_S)
                elif not self._queue and not self._closing:
                    self._wake.wait(due_s)
                batch = self._take()
                last = self._closing and len(batch) < _BATCH
            outcome = self._write(batch) if batch or self._trouble is not None else self._recorder.seal(_now())
            self._settle(outcome)
            if last or (self._closing and outcome.error is not None):
                break
            due_s = self._recorder.keep_head(_now())
        self._recorder.close(_now())

    def _take(self) -> list[Entry]:
        batch: list[Entry] = []
        while self._queue and len(batch) < _BATCH:
            entry = self._queue.popleft()
            if not entry.withdrawn:
                entry.taken = True
                batch.append(entry)
        return batch

    def _write(self, batch: list[Entry]) -> Outcome:
        trouble = self._trouble
        if trouble is None:
            return self._recorder.write(batch, _now())
        with self._wake:
            dropped = dict(trouble.dropped)
        fields: Fields = {"since": written(trouble.since), "message": trouble.message, "dropped": dropped or None}
        resume = Entry(_now(), RESUME, fields)
        outcome = self._recorder.write([resume, *batch], _now())
        if resume in outcome.left:
            outcome.left.remove(resume)
        else:
            with self._wake:
                trouble.dropped -= Counter(dropped)  # more may have been dropped meanwhile
        return outcome

    def _settle(self, outcome: Outcome) -> None:
        with self._wake:
            for entry in reversed(outcome.left):
                entry.taken = False
                self._queue.appendleft(entry)
            self.failures += outcome.error is not None
            if outcome.error is None:
                trouble, self._trouble = self._trouble, None
            elif self._trouble is None:
                message = outcome.error.strerror or str(outcome.error)
                self._trouble = _Trouble(_now(), time.monotonic(), message)
                log.event("error", "audit.unavailable", message=message)
                trouble = None
            else:
                trouble = None
        if trouble is not None:
            log.event("info", RESUME, seconds=time.monotonic() - trouble.since_s)
        answers = [(entry.on_written, True) for entry in outcome.written if entry.on_written is not None]
        answers += [(entry.on_written, False) for entry in outcome.unsure if entry.on_written is not None]
        if answers:
            self._deliver(answers)


def _now() -> datetime:
    return datetime.now(UTC)
