"""The two kinds of end that a relay joins: a plain socket, and a socket with TLS on it.

Both read into one buffer that all ends of a process share, so what read() answers is to be used, or copied, before
the next read, and all ends of a process belong to one thread. Both write what the socket takes at once and keep the
rest, the backlog, until flush().
"""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable
from itertools import islice
from socket import SO_ERROR, SOL_SOCKET

from portguard.tls.endpoint import Endpoint

READ_MAX = 512 * 1024
_ciphertext = memoryview(bytearray(READ_MAX))
_plaintext = memoryview(bytearray(READ_MAX + Endpoint.HEADROOM))

_MOST_PIECES = 64  # per sendmsg(); the kernel takes 1024
_MOST_UNREAD_PIECES = 1024  # of a backlog to which TLS's own answers are still added
_HAS_SENDMSG = hasattr(socket.socket, "sendmsg")  # not on Windows, where the client runs too
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class TruncatedError(ConnectionError):
    """The connection ended without the close_notify that TLS ends with: what was meant to follow is unknown."""


class End:
    """A connected, non-blocking socket, and what still has to be sent on it."""

    __slots__ = ("_finishing", "backlog", "eof", "failure", "sock")

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self.eof = False  # nothing follows what read() answered; a good end, unless `failure` says otherwise
        self.failure: OSError | None = None  # how the connection broke; what came before may still be there to read
        self.backlog: deque[bytes | memoryview] | None = None  # what waits for flush(); None while that is nothing
        self._finishing = False  # finish() was called

    def read(self, limit: int) -> memoryview:
        """Read what came, at most `limit` bytes off the socket; sets `eof`, and `failure`, when nothing will follow.

        The answer may be empty without `eof`. Raises BlockingIOError when nothing came; and, when not even one byte
        came before it, TruncatedError or another OSError.
        """
        raise NotImplementedError

    def read_ahead(self) -> memoryview:
        """Read what came with something read earlier and needs no socket. Sets `eof` and raises as read() does."""
        return _plaintext[:0]

    def broken(self) -> bool:
        """Whether the connection is known to have broken; asks the kernel, which tells it once, and sets `failure`."""
        error = self.sock.getsockopt(SOL_SOCKET, SO_ERROR)
        if error:
            self.failure = OSError(error, os.strerror(error))
        return self.failure is not None

    def write(self, data: memoryview) -> None:
        """Send `data`; what the socket does not take now becomes backlog. Raises OSError."""
        raise NotImplementedError

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
        pieces, self.backlog = self.backlog, None  # a connection that breaks now takes the backlog with it
        while pieces:
            batch = tuple(islice(pieces, _MOST_PIECES))
            sent = self._send(batch[0]) if len(batch) == 1 else self._send_batch(batch)
            for piece in batch:
                if sent < len(piece):
                    pieces[0] = memoryview(piece)[sent:]
                    self.backlog = pieces
                    return
                sent -= len(piece)
                pieces.popleft()
        if self._finishing:
            with contextlib.suppress(OSError):  # ENOTCONN: the peer's reset came first, which the reader reports
                self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close so that the peer sees a broken connection and not an end."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.sock.close()

    def _send(self, piece: bytes | memoryview) -> int:
        """Return how much of `piece` the socket took."""
        try:
            return self.sock.send(piece)
        except (BlockingIOError, InterruptedError):
            return 0

    def _send_batch(self, pieces: tuple[bytes | memoryview, ...]) -> int:
        if not _HAS_SENDMSG:
            return self._send(b"".join(pieces))
        try:
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
            if self.failure is not None:  # once told, the kernel shows a reset as an end like any other
                raise self.failure
            self.eof = True
        return _plaintext[:count]

    def write(self, data: memoryview) -> None:
        """See End.write."""
        if self.backlog is not None:
            self.backlog.append(bytes(data))
            return
        sent = self._send(data)
        if sent < len(data):
            # A copy, because `data` lies in the buffer that the next read() of any end uses again.
            self.backlog = deque((bytes(data[sent:]),))


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
            raise self.failure or TruncatedError("expected close_notify, got the end of the connection")
        return self._decrypt(_ciphertext[:count])

    def read_ahead(self) -> memoryview:
        """See End.read_ahead: a client may send at once with the last message of its handshake."""
        return self._decrypt(_ciphertext[:0])

    def _decrypt(self, ciphertext: memoryview) -> memoryview:
        endpoint = self._endpoint
        try:
            count = endpoint.decrypt(ciphertext, _plaintext)
        except ssl.SSLError as error:
            self._answer()
            raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from None
        if endpoint.has_output:
            self._answer()
        if endpoint.peer_closed:
            self.eof = True
            self.failure = None  # nothing that breaks after close_notify takes from what came before it
        elif endpoint.failure is not None:
            self.eof = True
            self.failure = ConnectionAbortedError(errno.ECONNABORTED, str(endpoint.failure))
        return _plaintext[:count]

    def _answer(self) -> None:
        """Send what TLS itself has to say, such as the alert that tells what is wrong."""
        answer = self._endpoint.take()
        if self._finishing:  # after close_notify nothing may follow
            return
        if self.backlog is not None and len(self.backlog) >= _MOST_UNREAD_PIECES:
            # Who makes it answer again and again, and never reads, would have the answers pile up for ever.
            raise ConnectionAbortedError(errno.ECONNABORTED, "expected the peer to read its answers, got more requests")
        try:
            self._queue(answer)
        except OSError as error:
            self.failure = error  # and what was read before it is still good

    def write(self, data: memoryview) -> None:
        """See End.write."""
        for piece in self._endpoint.encrypt(data):
            self._queue(piece)

    def finish(self, *, clean: bool = True) -> None:
        """See End.finish. Not clean: the connection ends without close_notify, which the peer can tell."""
        if clean and not self._finishing:
            self._queue(self._endpoint.close_notify())
        super().finish()

    def _queue(self, piece: bytes) -> None:
        if self.backlog is not None:
            self.backlog.append(piece)
            return
        sent = self._send(piece)
        if sent < len(piece):
            self.backlog = deque((memoryview(piece)[sent:],))


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
            if self._end.sock.recv_into(_ciphertext):
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
