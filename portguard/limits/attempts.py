"""How a ledger's attempts to write go: since when they have failed, and why. Every ledger tells it in the same way."""

import time
from collections.abc import Mapping
from typing import NamedTuple

from portguard.observe import log

RETRY_S = 0.5
"""How long after an attempt that failed to make the next one."""


class Failing(NamedTuple):
    """Nothing can be written. `since_s` is of time.monotonic(), `message` for people."""

    since_s: float
    message: str


class Attempts:
    """Those of one writer, which calls `begin`, `settle` and `end` in its thread; every thread may ask.

    `place` says in the log where it writes. An attempt that takes longer than `stuck_s` counts as failing, as `stuck`.
    """

    def __init__(self, place: Mapping[str, str], stuck_s: float, stuck: str):
        self._place = place
        self._stuck_s = stuck_s
        self._stuck = stuck
        self._began_s: float | None = None  # the attempt that is going on
        self._failed: Failing | None = None  # with the first of those that failed in a row, and why the last did
        self.retry_at_s = 0.0
        """Where they fail, when to make the next one. To be written by whoever will not wait for that."""
        self.errors = 0
        """How many have failed since the start."""

    def begin(self) -> float:
        """An attempt begins; return when."""
        self._began_s = began_s = time.monotonic()
        return began_s

    def settle(self, cause: str | None) -> None:
        """The attempt that began has ended, without success for this `cause`; None: all is written."""
        now_s, before = time.monotonic(), self._failed
        if cause is None:
            self._failed = None
        else:
            assert self._began_s is not None
            self.errors += 1
            self.retry_at_s = now_s + RETRY_S
            self._failed = Failing(self._began_s, cause) if before is None else before._replace(message=cause)
        self._began_s = None
        if before is None and cause is not None:
            log.event("error", "ledger.unavailable", **self._place, message=cause)
        elif before is not None and cause is None:
            log.event("info", "ledger.resume", seconds=now_s - before.since_s)

    def end(self) -> None:
        """The writer is no more. *Fails closed*: nobody may take it for one that writes."""
        if self._failed is None:
            self._failed = Failing(time.monotonic(), "a writer that has ended")

    @property
    def failed(self) -> bool:
        """Whether the last one that has ended has failed."""
        return self._failed is not None

    @property
    def hopeless(self) -> bool:
        """Whether it is too early for another one."""
        return self._failed is not None and time.monotonic() < self.retry_at_s

    def failing(self) -> Failing | None:
        """Whether nothing can be written now."""
        # In this order: an attempt that ends in between sets the one before it clears the other.
        began_s, failed = self._began_s, self._failed
        if failed is None and began_s is not None and time.monotonic() - began_s > self._stuck_s:
            return Failing(began_s, self._stuck)
        return failed

    def failing_s(self) -> float | None:
        """For how many seconds nothing could be written; None when it could."""
        failing = self.failing()
        return None if failing is None else time.monotonic() - failing.since_s
