"""A gateway in a process of its own, for a program that starts one, uses it and ends it."""

import asyncio
import contextlib
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from pathlib import Path

from portguard.errors import PortguardError

_READY_S = 30.0
_STOP_S = 3.0  # for sessions to end, before they are cut
_KILL_S = 10.0
_LONGEST_LINE_BYTES = 1024 * 1024


class GatewayEnded(PortguardError):
    """The gateway's process ended by itself. `exit_code` is its own."""

    def __init__(self, message: str, exit_code: int):
        self.exit_code = exit_code
        super().__init__(message)


class BackgroundGateway:
    """`portguard serve` in a child process. Its log goes line by line to whoever listens, and is kept until then."""

    def __init__(self, process: Process):
        self._process = process
        self._kept: list[str] = []
        self._listener: Callable[[str], None] = self._kept.append
        self._ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read_log(), name="log of the gateway")

    @classmethod
    async def start(cls, configuration: Path) -> "BackgroundGateway":
        """Start a gateway; wait for `ready()` before using it. End it with `stop()`, whatever happens."""
        command = [sys.executable, "-P", "-m", "portguard", "serve", "-c", str(configuration)]
        # A session of its own: Ctrl-C is for the program that started it, which then ends it in its own time.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, limit=_LONGEST_LINE_BYTES, start_new_session=True
        )
        return cls(process)

    async def ready(self) -> None:
        """Return once clients can connect. Raises GatewayEnded, and PortguardError when it takes too long."""
        waiting = asyncio.create_task(self._ready.wait(), name="gateway ready")
        try:
            await asyncio.wait((waiting, self._reading), timeout=_READY_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._ready.is_set():
            return
        if self._reading.done():
            await self.ended()
        raise PortguardError(f"gateway: expected it to serve within {_READY_S:.0f} s, got{self._said()}")

    async def ended(self) -> None:
        """Wait until it ends by itself. Raises GatewayEnded, always."""
        # Not the task itself: whoever cancels this wait must not end the reading.
        await asyncio.wait((self._reading,))
        code = await self._process.wait()
        raise GatewayEnded(f"gateway: expected it to serve, got exit code {code}{self._said()}", max(code, 1))

    def listen(self, listener: Callable[[str], None]) -> None:
        """Give the lines of the log to `listener` from now on; those that came before are forgotten."""
        self._kept.clear()
        self._listener = listener

    async def stop(self) -> int:
        """End it: sessions get a moment to finish. Return its exit code, negative when a signal ended it."""
        for seconds in (_STOP_S, _KILL_S):
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._process.wait()
                    break
        else:
            self._process.kill()
        code = await self._process.wait()
        await self._reading
        return code

    def _said(self) -> str:
        # Who reports it begins its own lines so.
        return "".join(f"\n{line.removeprefix('portguard: ')}" for line in self._kept)

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            text = line.decode(errors="backslashreplace").rstrip("\n")
            if "gateway.ready" in text:
                self._ready.set()
            self._listener(text)
