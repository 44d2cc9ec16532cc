"""Faults of our own, exceptions that nobody expected, as log events: one line each, with the traceback inside it.

Python and asyncio would print them raw, over many lines that no log reader takes apart, and as often as they happen: a
stranger who finds a way to cause one could fill the disk with them.
"""

import asyncio
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any

from portguard.observe import log

_LONGEST = 8000  # characters of a traceback; its end says the most


class Faults:
    """Where the faults of a process end up."""

    def __init__(self, floods: log.Floods):
        self._floods = floods

    def watch_process(self) -> None:
        """Take over what Python prints by itself: exceptions that end the process or a thread, or cannot be raised."""
        sys.excepthook = self._on_uncaught
        threading.excepthook = self._on_thread_ended
        sys.unraisablehook = self._on_unraisable

    def watch_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take over what the loop would print: exceptions of callbacks, and of tasks that nobody asked."""
        loop.set_exception_handler(self._on_context)

    def report(self, message: str, error: BaseException | None) -> None:
        """Log one fault. `message` says what was going on; `error` is None where there is nothing but the message."""
        self._floods.event(
            time.monotonic(),
            "error",
            "gateway.fault",
            message=message,
            error=type(error).__name__ if error is not None else None,
            traceback="".join(traceback.format_exception(error))[-_LONGEST:] if error is not None else None,
        )

    def _on_context(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.report(context.get("message") or "unexpected exception", context.get("exception"))

    def _on_uncaught(self, kind: type[BaseException], error: BaseException, _traceback: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, _traceback)  # it also makes the exit status that of the signal
            return
        self.report("the process ends", error)

    def _on_thread_ended(self, arguments: threading.ExceptHookArgs) -> None:
        if not issubclass(arguments.exc_type, SystemExit):
            self.report("a thread ended", arguments.exc_value)

    def _on_unraisable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        message = unraisable.err_msg or "exception ignored"
        # Not the object's repr: it may hold what it likes, and asking for it can fail again.
        self.report(f"{message} in {type(unraisable.object).__qualname__}", unraisable.exc_value)
