"""A terminal that is drawn on again and again, and is as it was afterwards, whatever ends the program."""

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

_ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_BOLD, _PLAIN = "\x1b[1m", "\x1b[m"
_READ = 64
_CONTROL_CHARACTERS = 6  # where tcgetattr(3) has them in Python's list
_OFF = b"\0"  # _POSIX_VDISABLE on Linux


def on_terminal() -> bool:
    """Whether there is somebody who looks, and has keys."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class LiveTerminal:
    """The terminal of standard input and output, while it is drawn on; from `live_terminal()`."""

    def __init__(self, keys: int):
        self._keys = keys

    def draw(self, lines: Sequence[str], *, bold: frozenset[int] = frozenset()) -> None:
        """Show these lines and nothing else; those in `bold` stand out. They are at most as many as size() has rows.

        They must be printable, and no wider than the terminal.
        """
        drawn = [
            f"{_BOLD}{line}{_PLAIN}{_CLEAR_LINE}" if number in bold else line + _CLEAR_LINE
            for number, line in enumerate(lines)
        ]
        sys.stdout.write(_HOME + "\r\n".join(drawn) + _CLEAR_BELOW)
        sys.stdout.flush()

    @staticmethod
    def size() -> tuple[int, int]:
        """Columns and rows, which may change at any time."""
        found = shutil.get_terminal_size()
        return found.columns, found.lines

    def pressed_within(self, seconds: float, wanted: str) -> bool:
        """Wait for one of these keys; return whether it came in time, or nobody is there any more."""
        deadline_s = time.monotonic() + seconds
        while (left_s := deadline_s - time.monotonic()) > 0:
            ready, _, _ = select.select([self._keys], [], [], left_s)
            if ready:
                pressed = os.read(self._keys, _READ).decode(errors="replace")
                if not pressed or any(key in wanted for key in pressed):
                    return True
        return False


@contextlib.contextmanager
def live_terminal() -> Iterator[LiveTerminal]:
    """Draw on the terminal for a while. Signals that end a program leave it as it was too.

    Ctrl-C raises KeyboardInterrupt. Suspending is off: it would leave a shell on a screen that is half ours.
    """
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    handlers = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setcbreak(keys)
        _disable(keys, termios.VSUSP, termios.VQUIT)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()
        yield LiveTerminal(keys)
    finally:
        with contextlib.suppress(OSError):  # a terminal that is gone needs nothing
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()
        with contextlib.suppress(termios.error):
            termios.tcsetattr(keys, termios.TCSAFLUSH, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _disable(keys: int, *characters: int) -> None:
    attributes: list[Any] = termios.tcgetattr(keys)
    for character in characters:
        attributes[_CONTROL_CHARACTERS][character] = _OFF
    termios.tcsetattr(keys, termios.TCSADRAIN, attributes)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
