"""Signals as something to await, on platforms whose event loop cannot do it (Windows) as well."""

import asyncio
import signal
import socket
from collections.abc import Coroutine, Iterable
from types import FrameType, TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

# Those that tell a program to end. Windows has the first two only.
STOP = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))


class Stopped(Exception):
    """A signal came before what was awaited."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(signal.Signals(number).name)

    @property
    def exit_code(self) -> int:
        """What shells report of a program that a signal ended."""
        return 128 + self.number


class Signals:
    """`with Signals(STOP) as signals:` gives these signals to whoever awaits them. In the main thread only.

    A signal that was ignored before stays ignored: that is how nohup and background jobs are told apart.
    """

    def __init__(self, numbers: Iterable[int]):
        self._numbers = numbers
        self._before: dict[int, Any] = {}
        self._loop = asyncio.get_running_loop()
        self._came: asyncio.Queue[int] = asyncio.Queue()

    def __enter__(self) -> "Signals":
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._loop.add_reader(self._reader, self._on_readable)
        for number in self._numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, _on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._loop.remove_reader(self._reader)
        self._reader.close()
        self._writer.close()

    async def next(self) -> int:
        """Return the number of the next signal."""
        return await self._came.get()

    async def unless(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns. When a signal comes first, cancel it and raise Stopped."""
        task = asyncio.ensure_future(work)
        waiting = asyncio.ensure_future(self.next())
        try:
            await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                if waiting.done():
                    self._came.put_nowait(waiting.result())
                return task.result()
            raise Stopped(waiting.result())
        finally:
            for one in (task, waiting):
                one.cancel()
            await asyncio.gather(task, waiting, return_exceptions=True)

    def _on_readable(self) -> None:
        for number in self._reader.recv(64):
            if number in self._before:
                self._came.put_nowait(number)


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    """Python writes the number to the wakeup descriptor only for signals that have a handler of Python's."""
