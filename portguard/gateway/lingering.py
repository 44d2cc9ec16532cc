"""What becomes of a connection when its session is over."""

import asyncio
from collections.abc import Callable

from portguard.gateway.ends import End


class Lingering:
    """The end of a connection after its session: what was written is let out, what still comes is thrown away.

    Closing a socket with unread input resets the connection, and the kernel then throws away what was sent but not
    yet delivered. So an end lingers until the peer has closed too, or has taken nothing more for `SILENT_S` seconds,
    and for `MOST_S` seconds altogether.
    """

    SILENT_S = 5.0
    MOST_S = 60.0

    __slots__ = ("_end", "_loop", "_moved", "_on_closed", "_peer_done", "_timer", "_until_s")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        end: End,
        on_closed: Callable[["Lingering"], None] | None = None,
        *,
        clean: bool,
    ):
        """Take over `end`, whose socket nobody else watches any more. `on_closed` is called once it is closed.

        That may be before this returns.
        """
        self._loop = loop
        self._end = end
        self._on_closed = on_closed
        self._moved = self._peer_done = False
        self._until_s = loop.time() + self.MOST_S
        self._timer = loop.call_later(self.SILENT_S, self._on_silence)
        try:
            end.finish(clean=clean)
        except OSError:
            self.close()
            return
        loop.add_reader(end.sock, self._discard)
        if end.backlog:
            loop.add_writer(end.sock, self._flush)

    @property
    def closed(self) -> bool:
        """Whether the connection is closed."""
        return self._end.sock.fileno() < 0

    def close(self) -> None:
        """Close now."""
        self._timer.cancel()
        if self.closed:
            return
        self._loop.remove_reader(self._end.sock)
        self._loop.remove_writer(self._end.sock)
        self._end.sock.close()
        if self._on_closed is not None:
            self._on_closed(self)

    def _on_silence(self) -> None:
        if not self._moved or self._loop.time() > self._until_s:
            self.close()
            return
        self._moved = False
        self._timer = self._loop.call_later(self.SILENT_S, self._on_silence)

    def _flush(self) -> None:
        self._moved = True
        try:
            self._end.flush()
        except OSError:
            self.close()
            return
        if not self._end.backlog:
            self._loop.remove_writer(self._end.sock)
            if self._peer_done:
                self.close()

    def _discard(self) -> None:
        try:
            if self._end.discard():
                # uvloop reports a broken connection once, however much is left to read. Nothing of ours arrives there.
                if self._end.broken():
                    self.close()
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if self._end.backlog:
            self._peer_done = True
            self._loop.remove_reader(self._end.sock)  # it would stay readable for ever
        else:
            self.close()
