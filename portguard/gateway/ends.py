"""The two kinds of end that a relay joins: a plain socket, and a socket with TLS on it.

Both read into one buffer that all ends of a process share, so what read() answers is to be used, or copied, before
the next read, and all ends of a process belong to one thread. Both write what the socket takes at once and keep the
rest, the backlog, until flush().
"""

import contextlib
import errno
import os
import socket
import ssl
import struct
from collections import deque
from itertools import islice
from socket import SO_ERROR, SOL_SOCKET

from portguard.gateway.read_watch import read_watch
from portguard.tls.tls_socket import RECORD, TlsSocket, is_broken_off

READ_MAX = 256 * 1024
_buffer = memoryview(bytearray(READ_MAX + RECORD))

# A record shorter than that is most often the last one here, and to ask OpenSSL for another costs more than an event.
_SHORT = 1024
_MOST_PIECES = 64  # per sendmsg(); the kernel takes 1024
_HAS_SENDMSG = hasattr(socket.socket, "sendmsg")  # not on Windows, where the client runs too
_NO_NOTICE = "expected close_notify, got the end of the connection"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class TruncatedError(ConnectionError):
    """The connection ended without the close_notify that TLS ends with: what was meant to follow is unknown."""


class WriteFirstError(BlockingIOError):
    """Nothing can be read before the backlog is out."""


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

        The answer may be empty without `eof`, when what came completes nothing. Raises BlockingIOError when it is sure
        that nothing came, WriteFirstError when nothing can come yet; and, when not even one byte came before it,
        TruncatedError or another OSError.
        """
        raise NotImplementedError

    def read_ahead(self) -> memoryview:
        """Read what came with something read earlier and needs no socket. Sets `eof` and raises as read() does."""
        return _buffer[:0]

    def discard(self) -> int:
        """Take what came off the socket, and throw it away; return how many bytes. 0 is the end. Raises OSError."""
        return socket.socket.recv_into(self.sock, _buffer)

    def broken(self) -> bool:
        """Whether the connection is known to have broken; asks the kernel, which tells it once, and sets `failure`."""
        error = self.sock.getsockopt(SOL_SOCKET, SO_ERROR)
        if error:
            self.failure = OSError(error, os.strerror(error))
        return self.failure is not None

    def write(self, data: memoryview) -> None:
        """Send `data`; what the socket does not take now becomes backlog. Raises OSError."""
        if self.backlog is not None:
            self.backlog.append(bytes(data))
            return
        sent = self._send(data)
        if sent < len(data):
            # A copy, because `data` lies in the buffer that the next read() of any end uses again.
            self.backlog = deque((bytes(data[sent:]),))

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
            self._end_writing()

    def reset(self) -> None:
        """Close so that the peer sees a broken connection and not an end."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.sock.close()

    def _end_writing(self) -> None:
        """Say that nothing more follows. Raises OSError."""
        with contextlib.suppress(OSError):  # ENOTCONN: the peer's reset came first, which the reader reports
            self.sock.shutdown(socket.SHUT_WR)

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
        count = self.sock.recv_into(_buffer, limit)
        if not count:
            if self.failure is not None:  # once told, the kernel shows a reset as an end like any other
                raise OSError(*self.failure.args)
            self.eof = True
        return _buffer[:count]


class TlsEnd(End):
    """An end whose bytes travel as TLS records. Its handshake is complete."""

    __slots__ = ("_notifies", "_read", "_tls", "_watch", "_write")

    def __init__(self, sock: TlsSocket):
        super().__init__(sock)
        self._tls = sock
        self._read = sock.read_record
        self._write = sock.write_records
        self._watch = read_watch()
        self._notifies = True  # close_notify is still to be said at the end

    def read(self, limit: int) -> memoryview:
        """See End.read; of plaintext, up to a record more. A protocol error by the peer is reported as ECONNABORTED."""
        read, buffer, total = self._read, _buffer, 0
        owes = self.backlog is not None
        watch = self._watch
        watch.reads += 1
        watch.reading = self
        try:
            while total < limit:
                if owes:
                    self._check_open()
                count = read(RECORD, buffer[total:])
                total += count
                if count < _SHORT:
                    if not count:
                        self._ended()
                    break
        except (ssl.SSLWantReadError, BlockingIOError):
            pass
        except ssl.SSLZeroReturnError:  # close_notify, when our own was sent before
            self._ended()
        except ssl.SSLError as error:
            if isinstance(error, ssl.SSLWantWriteError) and self.backlog is not None:
                # The peer asked for new keys, the word that they change has not gone out, and OpenSSL wants that first.
                if not total:
                    raise WriteFirstError from None
            elif not total:
                raise self._failed(error) from None
            else:
                self._break(self._failed(error))
        except OSError as error:
            if not total:
                raise
            self._break(error.with_traceback(None))
        finally:
            watch.reading = None
            if watch.cutting:
                watch.wait()
        return _buffer[:total]

    def _check_open(self) -> None:
        """Raise an OSError at the end of the connection: an OpenSSL that met it would not send what still waits."""
        if not socket.socket.recv(self.sock, 1, socket.MSG_PEEK):
            raise self._ended_early()

    def _ended(self) -> None:
        self.eof = True
        self.failure = None  # nothing that breaks after close_notify takes from what came before it

    def _break(self, failure: OSError) -> None:
        """Nothing can be read or written any more; what is being read came before."""
        self.eof = True
        self.failure = failure

    def _failed(self, error: ssl.SSLError) -> OSError:
        """What has failed, to be raised or kept."""
        if self.failure is not None:
            # Told before. The watch of reads takes bytes away in the middle of a record, and OpenSSL finds nonsense.
            return OSError(*self.failure.args)
        if not is_broken_off(error):
            return ConnectionAbortedError(errno.ECONNABORTED, str(error))
        if not getattr(error, "reason", None):  # what some versions of Python make of ECONNRESET
            return ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return self._ended_early()

    def _ended_early(self) -> OSError:
        # Once told of a reset, the kernel shows it as an end like any other.
        return TruncatedError(_NO_NOTICE) if self.failure is None else OSError(*self.failure.args)

    def finish(self, *, clean: bool = True) -> None:
        """See End.finish. Not clean: the connection ends without close_notify, which the peer can tell."""
        if not self._finishing:
            self._notifies = clean
        super().finish()

    def _end_writing(self) -> None:
        if self._notifies:
            self._notifies = False
            self._write = self._tls.send_raw
            self.write(memoryview(self._tls.close_notify()))
            if self.backlog is not None:
                return
        super()._end_writing()

    def _send(self, piece: bytes | memoryview) -> int:
        try:
            return self._write(piece)
        except (ssl.SSLWantWriteError, BlockingIOError, InterruptedError):
            return 0
        except ssl.SSLEOFError:  # what some versions of Python make of EPIPE
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None

    def _send_batch(self, pieces: tuple[bytes | memoryview, ...]) -> int:
        total = 0
        for piece in pieces:
            sent = self._send(piece)
            total += sent
            if sent < len(piece):
                break
        return total
