"""Clients that do not keep to any protocol: raw connections to a gateway, and what to send on them."""

import contextlib
import functools
import socket
import ssl
import struct
from typing import Any

from tests.patience import PATIENCE_S

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def raw(gateway: Any, source: str = "127.0.0.1") -> socket.socket:
    """A TCP connection on which nothing has been sent, from an address of loopback."""
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S, source_address=(source, 0))


def reset(sock: socket.socket) -> None:
    """Close so that the peer sees a reset, whatever is under way."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


@functools.cache
def client_hello(name: str = "echo.gw.localhost") -> bytes:
    """The first message of a real client."""
    outgoing = ssl.MemoryBIO()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()
