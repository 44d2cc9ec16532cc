"""The thread in which a ledger is written, and how it ends: all that waits is written, or there is no time left to."""

import threading
import time
from collections.abc import Callable

from portguard.limits.attempts import Attempts


class WriterThread:
    """One for each ledger. It runs `write`, which goes on until `may_end`, and then `leave`, whatever happened.

    Whoever has something to write says so by `wake`, which guards what both share.
    """

    def __init__(self, write: Callable[[], None], leave: Callable[[], None], attempts: Attempts):
        self._write = write
        self._leave = leave
        self._attempts = attempts
        self.wake = threading.Condition()
        self.close_by_s: float | None = None
        """Until when to try, of time.monotonic(); None: it is not to end. To be read with what is to be written."""
        self._complete = False  # ended, with everything written
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def start(self) -> None:
        """Begin. To be called once at most."""
        self._thread.start()

    def flush_and_close(self, timeout_s: float) -> bool:
        """Write what waits, and end; return False when that was not possible in time.

        In the caller's thread if it was never started.
        """
        if self._complete:
            return True
        with self.wake:
            self.close_by_s = time.monotonic() + timeout_s
            self._attempts.retry_at_s = 0.0
            self.wake.notify()
        if self._thread.ident is None:
            self._run()
        else:
            self._thread.join(timeout_s)
        return self._complete

    def may_end(self, close_by_s: float | None, cause: str | None) -> bool:
        """Whether `write` shall end, after an attempt that `close_by_s` was read for; `cause` as `Attempts.settle`.

        To be asked after each attempt: that all is written, as `flush_and_close` returns, is known from here.
        """
        if close_by_s is None:
            return False
        if cause is not None:
            return self._attempts.retry_at_s >= close_by_s
        self._complete = True
        return True

    def _run(self) -> None:
        try:
            self._write()
        finally:
            if not self._complete:
                self._attempts.end()
            self._leave()
