"""The two kinds of end that a relay joins: a plain socket, and a socket with TLS on it.

Both read into one buffer that all ends of a process share, so what read() answers is to be used, or copied, before
the next read. Both write what the socket takes at once and keep the rest, the backlog, until flush().
"""

import asyncio
import contextlib
import errno
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable

from portguard.tls.endpoint import Endpoint

READ_MAX = 512 * 1024
_ciphertext = memoryview(bytearray(READ_MAX))
_plaintext = memoryview(bytearray(READ_MAX + Endpoint.HEADROOM))

_MOST_PIECES = 64  # per sendmsg(); the kernel takes 1024
_HAS_SENDMSG = hasattr(socket.socket, "sendmsg")  # not on Windows, where the client runs too
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class TruncatedError(ConnectionError):
    """The connection ended without the close_notify that TLS ends with: what was meant to follow is unknown."""


class End:
    """A connected, non-blocking socket, and what still has to be sent on it."""

    __slots__ = ("_backlog", "_finished", "_finishing", "eof", "sock")

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self.eof = False  # the peer will send no more; set by read()
        self._backlog: deque[bytes | memoryview] | None = None  # None while empty: most sessions never have one
        self._finishing = self._finished = False  # finish() was called; and the end of the stream was sent

    def read(self, limit: int) -> memoryview:
        """Read what came, at most `limit` bytes off the socket; sets `eof` when nothing will follow.

        The answer may be empty without `eof`. Raises BlockingIOError when nothing came, TruncatedError, OSError.
        """
        raise NotImplementedError

    def read_ahead(self) -> memoryview:
        """Read what came with something read earlier and needs no socket. Sets `eof` as read() does."""
        return _plaintext[:0]

    def write(self, data: memoryview) -> None:
        """Send `data`; what the socket does not take now becomes backlog. Raises OSError."""
        raise NotImplementedError

    @property
    def backlog(self) -> bool:
        """Whether something waits for flush()."""
        return self._backlog is not None

    def finish(self, *, clean: bool = True) -> None:
        """Say that nothing more will be written, as soon as the backlog is out; the other direction stays open.

        Not `clean`: what was written is not the whole, and the peer shall be able to tell where that is possible.
        Only the first call counts. Raises OSError.
        """
        self._finishing = True
        self.flush()

    def flush(self) -> None:
        """Send as much of the backlog as the socket takes, then the end of the stream if finish() was called.

        Raises OSError.
        """
        if self._backlog is not None:
            pieces = self._backlog
            self._backlog = None
            self._send(pieces)
        if self._finishing and not self._finished and self._backlog is None:
            self._finished = True
            with contextlib.suppress(OSError):  # ENOTCONN: the peer's reset came first, which the reader reports
                self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close so that the peer sees a broken connection and not an end."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.sock.close()

    def _send(self, pieces: deque[bytes | memoryview]) -> None:
        """Send `pieces` in order; what the socket does not take becomes the backlog."""
        while pieces:
            batch: tuple[bytes | memoryview, ...]
            if len(pieces) == 1:
                batch = (pieces[0],)
                sent = self._send_now(pieces[0])
            else:
                batch = tuple(pieces)[:_MOST_PIECES]
                sent = self._sendmsg_now(batch)
            for piece in batch:
                if sent < len(piece):
                    pieces[0] = memoryview(piece)[sent:]
                    self._backlog = pieces
                    return
                sent -= len(piece)
                pieces.popleft()

    def _send_now(self, piece: bytes | memoryview) -> int:
        try:
            return self.sock.send(piece)
        except (BlockingIOError, InterruptedError):
            return 0

    def _sendmsg_now(self, pieces: tuple[bytes | memoryview, ...]) -> int:
        try:
            if not _HAS_SENDMSG:
                return self.sock.send(b"".join(pieces))
            return self.sock.sendmsg(pieces)
        except (BlockingIOError, InterruptedError):
            return 0


class PlainEnd(End):
    """An end whose bytes are the service's own."""

    __slots__ = ()

    def read(self, limit: int) -> memoryview:
        """See End.read."""
        count = self.sock.recv_into(_plaintext, limit)
        if not count:
            self.eof = True
        return _plaintext[:count]

    def write(self, data: memoryview) -> None:
        """See End.write."""
        if self._backlog is not None:
            self._backlog.append(bytes(data))
            return
        sent = self._send_now(data)
        if sent < len(data):
            # A copy, because `data` lies in the buffer that the next read() of any end uses again.
            self._backlog = deque((bytes(data[sent:]),))


class TlsEnd(End):
    """An end whose bytes travel as TLS records. Its handshake is complete."""

    __slots__ = ("_endpoint",)

    def __init__(self, sock: socket.socket, endpoint: Endpoint):
        super().__init__(sock)
        self._endpoint = endpoint

    def read(self, limit: int) -> memoryview:
        """See End.read. A protocol error by the peer is reported as ECONNABORTED."""
        count = self.sock.recv_into(_ciphertext, limit)
        if not count:
            raise TruncatedError("expected close_notify, got the end of the connection")
        return self._decrypt(_ciphertext[:count])

    def read_ahead(self) -> memoryview:
        """See End.read_ahead: a client may send at once with the last message of its handshake."""
        return self._decrypt(_ciphertext[:0])

    def _decrypt(self, ciphertext: memoryview) -> memoryview:
        endpoint = self._endpoint
        try:
            count = endpoint.decrypt(ciphertext, _plaintext)
        except ssl.SSLError as error:
            with contextlib.suppress(OSError):
                self._queue([endpoint.take()])  # the alert that says why
            raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from None
        self.eof = endpoint.peer_closed
        if endpoint.has_output:
            self._queue([endpoint.take()])
        return _plaintext[:count]

    def write(self, data: memoryview) -> None:
        """See End.write."""
        self._queue(self._endpoint.encrypt(data))

    def finish(self, *, clean: bool = True) -> None:
        """See End.finish. Not clean: the connection ends without close_notify, which the peer can tell."""
        if clean and not self._finishing:
            self._queue([self._endpoint.close_notify()])
        super().finish()

    def _queue(self, pieces: list[bytes]) -> None:
        if self._backlog is not None:
            self._backlog.extend(pieces)
        else:
            self._send(deque(pieces))


class Lingering:
    """The end of a connection after its session: what was written is let out, what still comes is thrown away.

    Closing a socket with unread input resets the connection, and the kernel then throws away what was sent but not
    yet delivered. So an end lingers until the peer has closed too, or for `LINGER_S` seconds.
    """

    LINGER_S = 5.0

    __slots__ = ("_end", "_loop", "_on_closed", "_peer_done", "_timer", "_writing")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        end: End,
        on_closed: Callable[["Lingering"], None] | None = None,
        *,
        clean: bool,
    ):
        """Take over `end`, whose socket nobody else watches any more. `on_closed` is called once it is closed."""
        self._loop = loop
        self._end = end
        self._on_closed = on_closed
        self._writing = self._peer_done = False
        self._timer = loop.call_later(self.LINGER_S, self.close)
        try:
            end.finish(clean=clean)
        except OSError:
            self.close()
            return
        loop.add_reader(end.sock, self._discard)
        if end.backlog:
            self._writing = True
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

    def _flush(self) -> None:
        try:
            self._end.flush()
        except OSError:
            self.close()
            return
        if not self._end.backlog:
            self._writing = False
            self._loop.remove_writer(self._end.sock)
            if self._peer_done:
                self.close()

    def _discard(self) -> None:
        try:
            if self._end.sock.recv_into(_ciphertext):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if self._writing:
            self._peer_done = True
            self._loop.remove_reader(self._end.sock)  # it would stay readable for ever
        else:
            self.close()
