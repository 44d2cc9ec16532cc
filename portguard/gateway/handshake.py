"""The TLS handshake over a non-blocking socket, and what its failures mean."""

import asyncio
import socket
import ssl
from collections.abc import Callable

from portguard.errors import Refused
from portguard.reasons import Reason
from portguard.tls.tls_socket import TlsSocket, is_broken_off

_READ = 16 * 1024

# X509_V_ERR_… of OpenSSL's x509_vfy.h, where a word of ours is more exact than "untrusted".
_BY_VERIFY_CODE = {
    9: Reason.CERTIFICATE_NOT_YET_VALID,
    10: Reason.CERTIFICATE_EXPIRED,
    26: Reason.CERTIFICATE_USAGE,
}
# Where OpenSSL's own words leave the most common cause to be guessed.
_HINT_BY_VERIFY_CODE = {20: "; it is of no trust, or the client sent it without its intermediate"}
# Reasons of OpenSSL's sslerr.h, likewise.
_BY_REASON = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": Reason.CERTIFICATE_MISSING,
}


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():  # the socket may turn readable again before the task runs
        future.set_result(None)


async def readable(sock: socket.socket) -> None:
    """Wait until the socket has something to read, be it the end."""
    loop = asyncio.get_running_loop()
    await _event(sock, loop.add_reader, loop.remove_reader)


async def writable(sock: socket.socket) -> None:
    """Wait until the socket takes something, or is broken."""
    loop = asyncio.get_running_loop()
    await _event(sock, loop.add_writer, loop.remove_writer)


async def _event(sock: socket.socket, watch: Callable[..., None], unwatch: Callable[[socket.socket], bool]) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    watch(sock, _wake, future)
    try:
        await future
    finally:
        unwatch(sock)


async def receive(sock: socket.socket, limit: int = _READ) -> bytes:
    """Return what came, at most `limit` bytes; b"" at the end of the stream. Raises OSError."""
    while True:
        try:
            return sock.recv(limit)
        except (BlockingIOError, InterruptedError):
            await readable(sock)


async def send(sock: socket.socket, data: bytes) -> None:
    """Send all of `data`. Raises OSError."""
    try:
        sent = sock.send(data)
    except (BlockingIOError, InterruptedError):
        sent = 0
    if sent < len(data):
        await asyncio.get_running_loop().sock_sendall(sock, data[sent:])


async def handshake(sock: TlsSocket) -> None:
    """Complete the handshake of either side.

    Raises ssl.SSLError, after its alert was sent, or OSError; ConnectionAbortedError when the peer went away in the
    middle.
    """
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            await readable(sock)
        except ssl.SSLWantWriteError:
            await writable(sock)
        except ssl.SSLError as error:
            if not is_broken_off(error):
                raise
            raise ConnectionAbortedError(
                "expected the rest of a TLS handshake, got the end of the connection"
            ) from None
        else:
            return


def refusal(error: ssl.SSLError) -> Refused:
    """Return why a client's handshake was refused, with OpenSSL's own words as the message."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = _BY_VERIFY_CODE.get(error.verify_code, Reason.CERTIFICATE_UNTRUSTED)
        hint = _HINT_BY_VERIFY_CODE.get(error.verify_code, "")
        return Refused(reason, f"{error.verify_message}{hint}")
    word = error.reason or "unknown"
    return Refused(_BY_REASON.get(word, Reason.HANDSHAKE_FAILED), word.lower().replace("_", " "))
