"""A connected socket with TLS on it that can half-close, which Python's own cannot.

OpenSSL reads and writes the socket itself. Beside memory buffers this spares two copies of every byte, and what a busy
connection took it gives back when it is idle. The order of calls is

    do_handshake() until it returns
    read_record() and write_records(), in any order
    close_notify() once, when nothing more will be written and all that was written is out; read_record() goes on
"""

import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from functools import cache
from typing import Any

RECORD = 16 * 1024
"""The most plaintext that one TLS record carries (RFC 8446, section 5.1)."""

_LONGEST_NOTICE = 4096


class TlsSocket(ssl.SSLSocket):
    """Made by wrap(). Non-blocking."""

    _sslobj: Any  # Python's own object under it: its methods are these without a detour

    def do_handshake(self, block: bool = False) -> None:
        """Go on with the handshake. Raises SSLWantReadError or SSLWantWriteError while it is not complete."""
        if self._sslobj is None:  # the peer was gone before there was any TLS
            self.getpeername()
        self._sslobj.do_handshake()

    @property
    def read_record(self) -> Callable[[int, memoryview], int]:
        """`read_record(RECORD, buffer)` reads what is left of one record; 0 is the peer's close_notify.

        Asked for so much each time, nothing is left inside, where no event would tell of it. Raises SSLWantReadError
        when no whole record is here, an SSLError that `is_broken_off` for an end without close_notify, and after
        close_notify() SSLZeroReturnError for one with it.
        """
        read: Callable[[int, memoryview], int] = self._sslobj.read
        return read

    @property
    def write_records(self) -> Callable[[memoryview | bytes], int]:
        """`write_records(data)` sends all of `data`, and answers its length.

        After SSLWantWriteError some of it may be out, and how much is not known: the next call must be with the same
        data, or with that and more.
        """
        write: Callable[[memoryview | bytes], int] = self._sslobj.write
        return write

    def close_notify(self) -> bytes:
        """Return the bytes that tell the peer that nothing more follows, to be sent with send_raw().

        OpenSSL says it and then, uninvited, reads: a record that came meanwhile would be lost and the connection
        broken. So while it speaks its socket is another one, where nothing comes and what is said can be picked up.
        """
        return _diversion().heard(self.fileno(), self._say_close)

    def _say_close(self) -> None:
        # SSLWantReadError: the peer's own close_notify is not here yet, and need not be. Any other: the connection
        # broke before, which the reading side reports.
        with contextlib.suppress(ssl.SSLError):
            self._sslobj.shutdown()

    def send_raw(self, data: bytes | memoryview) -> int:
        """Send bytes that are TLS already; return how many the socket took."""
        return socket.socket.send(self, data)

    def shutdown(self, how: int) -> None:
        """Shut TCP down. What the peer still sends can be read on, unlike with the method of Python's own class."""
        socket.socket.shutdown(self, how)


def prepare(context: ssl.SSLContext) -> None:
    """Make `context` one that wrap() takes. Raises OSError when there are no descriptors left."""
    context.sslsocket_class = TlsSocket
    _diversion()


def wrap(
    sock: socket.socket, context: ssl.SSLContext, *, server_side: bool = False, server_hostname: str | None = None
) -> TlsSocket:
    """Put TLS on a connected, non-blocking socket, which is the answer's from now on. `context` is a prepared one.

    `server_hostname` is what a client expects the server's certificate to name. Raises OSError when the peer is gone.
    """
    tls = context.wrap_socket(
        sock,
        server_side=server_side,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=False,
        server_hostname=server_hostname,
    )
    assert isinstance(tls, TlsSocket)
    return tls


def is_broken_off(error: ssl.SSLError) -> bool:
    """Whether it tells of an end without close_notify, for which some versions of Python have no SSLEOFError."""
    return isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING"


class _Diversion:
    """Descriptors that stand in for a connection's for a moment. All are made ahead: there may be none left later."""

    def __init__(self) -> None:
        inside, outside = socket.socketpair()
        inside.setblocking(False)
        outside.setblocking(False)
        self._inside, self._outside = inside.detach(), outside.detach()
        self._kept = os.dup(self._inside)

    def heard(self, descriptor: int, speak: Callable[[], None]) -> bytes:
        """Return what `speak` writes to `descriptor`, which reaches nobody; there is nothing for it to read."""
        os.dup2(descriptor, self._kept, inheritable=False)
        os.dup2(self._inside, descriptor, inheritable=False)
        try:
            speak()
        finally:
            os.dup2(self._kept, descriptor, inheritable=False)
            os.dup2(self._inside, self._kept, inheritable=False)  # or the connection would stay open after its socket
        try:
            return os.read(self._outside, _LONGEST_NOTICE)
        except BlockingIOError:
            return b""


_diversion = cache(_Diversion)
