"""Real bytes through a tunnel: say something that the service answers, and see what comes back."""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass

from portguard.client.forwarding import Broken, Forwarding
from portguard.client.gateway import Tunnel

POSTGRESQL_PORT = 5432

HTTP = b"GET / HTTP/1.0\r\nHost: portguard.invalid\r\n\r\n"
# SSLRequest of the PostgreSQL protocol (section 55.7), answered with one letter before anybody logs in.
POSTGRESQL = struct.pack("!II", 8, 80877103)

_GREETING_S = 0.5  # for services that speak first: SSH, SMTP, MySQL
_ANSWER_S = 5.0
_END_S = 1.0  # for the service to finish as well
_LONGEST_ANSWER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Exchange:
    """What went through: bytes that were sent, and what was received."""

    sent_bytes: int
    received: bytes

    @property
    def is_http(self) -> bool:
        """Whether the service answered as a web server."""
        return self.received.startswith(b"HTTP/")


async def converse(forwarding: Forwarding, tunnel: Tunnel, question: bytes | None) -> Exchange:
    """Ask `question` and take in the beginning of the answer, or what came within some seconds.

    Without a question, a service that speaks first is listened to, and any other asked as a web server. Raises Broken
    when the gateway ends the session.
    """
    ours, theirs = socket.socketpair()
    carrying = asyncio.create_task(forwarding.carry(tunnel, theirs), name=f"probe {tunnel.service}")
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        received = b"" if question is not None else await _read(reader, _GREETING_S)
        sent = b"" if received else question or HTTP
        writer.write(sent)
        if not received:
            received = await _read(reader, _ANSWER_S)
    finally:
        writer.close()
        # The reset that an unread rest of the answer makes is ours, and no news.
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):  # after which it is cut
                await carrying
    except Broken as error:
        if error.by_gateway:
            raise
    return Exchange(len(sent), received)


async def _read(reader: asyncio.StreamReader, seconds: float) -> bytes:
    """What comes until the end, or until nothing has come for `seconds`."""
    received = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while len(received) < _LONGEST_ANSWER_BYTES:
            async with asyncio.timeout(seconds):
                data = await reader.read(_LONGEST_ANSWER_BYTES)
            if not data:
                break
            received += data
            seconds = min(seconds, _GREETING_S)
    return received
