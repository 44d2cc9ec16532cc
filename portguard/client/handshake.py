"""The client's TLS handshake, over memory buffers and a non-blocking socket."""

import contextlib
import socket
import ssl

from portguard.gateway.handshake import receive, send
from portguard.tls.endpoint import Endpoint

# The endpoint's buffer keeps for the whole session what it grew to in the handshake: so it gets little at a time.
_SLICE = 512


async def handshake(sock: socket.socket, endpoint: Endpoint) -> None:
    """Complete the handshake.

    Raises ssl.SSLError, after its alert was sent, or OSError; ConnectionAbortedError when the peer went away in the
    middle.
    """
    waiting = memoryview(b"")
    while True:
        endpoint.receive(waiting[:_SLICE])
        waiting = waiting[_SLICE:]
        try:
            done = endpoint.handshake()
        except ssl.SSLError:
            with contextlib.suppress(OSError):  # a peer that has gone by now shall not hide what was wrong with it
                await send(sock, endpoint.take())
            raise
        if output := endpoint.take():
            await send(sock, output)
        if done:
            endpoint.receive(waiting)
            return
        if not waiting:
            waiting = await _receive_some(sock)


async def _receive_some(sock: socket.socket) -> memoryview:
    ciphertext = await receive(sock)
    if not ciphertext:
        raise ConnectionAbortedError("expected the rest of a TLS handshake, got the end of the connection")
    return memoryview(ciphertext)
