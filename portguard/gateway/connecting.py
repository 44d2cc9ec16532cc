"""One connection to one address: a socket for it, and what connect(2) does not say at once or says wrongly."""

import asyncio
import errno
import os
import socket

from portguard.errors import Refused
from portguard.gateway.resolve import SocketAddress
from portguard.gateway.tcp_options import set_tcp_options
from portguard.reasons import Reason

_BACKLOG_DELAYS_S = (0.01, 0.02, 0.05, 0.1)  # the last one again and again

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EINTR})


class FailedAttempt(Exception):
    """An upstream could not be connected to, or not be spoken to. `found` is for the log."""

    def __init__(self, reason: Reason, found: str):
        self.reason = reason
        self.found = found
        super().__init__(found)


def open_socket(family: int) -> socket.socket:
    """Make a socket for a service: it does not block, and a TCP socket has the options that the gateway wants of it.

    Raises Refused (gateway_full) when no descriptor or memory is left, OSError for a family that the system does not
    know.
    """
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise Refused(Reason.GATEWAY_FULL) from error
        raise
    try:
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            set_tcp_options(sock)
    except OSError:
        sock.close()
        raise
    return sock


async def connect(
    loop: asyncio.AbstractEventLoop, family: socket.AddressFamily, address: SocketAddress | str, timeout_s: float
) -> socket.socket:
    """Return a new socket that is connected to `address`, of a unix socket its path. Cancelling it leaves nothing open.

    Raises TimeoutError after `timeout_s`, another OSError, and Refused when no socket can be had.

    Not loop.sock_connect(): that takes the EAGAIN of a unix socket with a full backlog for a connection under way, and
    answers with a socket that is not connected.
    """
    sock = open_socket(family)
    try:
        error = sock.connect_ex(address)
        if family == socket.AF_UNIX and error == errno.EAGAIN:
            error = await _connect_to_backlog(loop, sock, address, timeout_s)
        if error in _UNDER_WAY:
            # On this machine the handshake is through by now, and a look is cheaper than a turn of the loop.
            error = sock.connect_ex(address)
        if error in _UNDER_WAY:
            await _writable(loop, sock, timeout_s)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error not in {0, errno.EISCONN}:
            raise OSError(error, os.strerror(error))
        if not isinstance(address, str):
            check_not_itself(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect_to_backlog(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, path: SocketAddress | str, timeout_s: float
) -> int:
    """Wait for a place in the backlog of a unix socket, of which nothing tells. Returns the error, 0 when connected."""
    deadline = loop.time() + timeout_s
    delays = iter(_BACKLOG_DELAYS_S)
    delay_s = 0.0
    while True:
        delay_s = next(delays, delay_s)
        if loop.time() + delay_s > deadline:
            raise TimeoutError
        await asyncio.sleep(delay_s)
        if (error := sock.connect_ex(path)) != errno.EAGAIN:
            return error


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket, timeout_s: float) -> None:
    """Wait until a connection under way is decided. Raises TimeoutError."""
    decided: asyncio.Future[None] = loop.create_future()
    timer = loop.call_later(timeout_s, _settle, decided, TimeoutError())
    loop.add_writer(sock, _settle, decided, None)
    try:
        await decided
    finally:
        timer.cancel()
        loop.remove_writer(sock)


def _settle(decided: "asyncio.Future[None]", error: TimeoutError | None) -> None:
    if decided.done():
        return
    if error is None:
        decided.set_result(None)
    else:
        decided.set_exception(error)


def check_not_itself(sock: socket.socket, address: SocketAddress) -> None:
    """Raise OSError when a socket has connected to itself.

    On this machine that happens where nobody listens on a port of the ephemeral range, and the kernel happens to pick
    the same port for our side: both then meet in a simultaneous open, and a client would talk to its own echo.
    """
    if sock.getsockname()[:2] == address[:2]:
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
