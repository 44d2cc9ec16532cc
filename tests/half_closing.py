"""A client that can end what it sends and go on receiving, which Python's own TLS sockets cannot.

    client = await HalfClosing.connect(gateway, "echo")
    await client.send(b"hello")
    await client.finish()                 # close_notify
    async for data in client: ...         # until the gateway's close_notify

And the pattern that long transfers are made of.
"""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator
from typing import Any

from bench.upstream import PATTERN
from portguard.tls.endpoint import Endpoint

_READ = 256 * 1024


class HalfClosing:
    """A TLS client over a non-blocking socket. Sending and receiving may be two tasks of one loop."""

    def __init__(self, sock: socket.socket, endpoint: Endpoint):
        self.sock = sock
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._plaintext = memoryview(bytearray(_READ + Endpoint.HEADROOM))

    @classmethod
    async def connect(cls, gateway: Any, service: str | None, name: str = "alice") -> "HalfClosing":
        """Connect by server name; to the gateway itself when `service` is None."""
        sock = socket.socket()
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", gateway.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host = gateway.name if service is None else f"{service}.{gateway.name}"
        endpoint = Endpoint(gateway.context(name), server_side=False, server_hostname=host)
        while not endpoint.handshake():
            await loop.sock_sendall(sock, endpoint.take())
            endpoint.receive(await loop.sock_recv(sock, _READ))
        await loop.sock_sendall(sock, endpoint.take())
        return cls(sock, endpoint)

    @classmethod
    async def tunnel(cls, gateway: Any, service: str) -> "HalfClosing":
        """Connect with CONNECT."""
        client = await cls.connect(gateway, None)
        await client.send(f"CONNECT {service} HTTP/1.1\r\nHost: {service}\r\n\r\n".encode())
        head = await client.receive()
        assert head.startswith(b"HTTP/1.1 200 "), head
        assert head.endswith(b"\r\n\r\n"), head
        return client

    async def send(self, data: bytes | memoryview) -> None:
        for piece in self._endpoint.encrypt(memoryview(data)):
            await self._loop.sock_sendall(self.sock, piece)

    async def finish(self) -> None:
        """Say that nothing more will be sent."""
        await self._loop.sock_sendall(self.sock, self._endpoint.close_notify())

    async def receive(self) -> bytes:
        """What came; b"" once the gateway has said that nothing follows. Raises ConnectionError without that."""
        while not self._endpoint.peer_closed:
            ciphertext = await self._loop.sock_recv(self.sock, _READ)
            if not ciphertext:
                raise ConnectionAbortedError("expected close_notify, got the end of the connection")
            if count := self._endpoint.decrypt(memoryview(ciphertext), self._plaintext):
                return bytes(self._plaintext[:count])
        return b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.receive():
            yield data

    def close(self) -> None:
        self.sock.close()


class Plain:
    """The service's side of a connection, with the same methods."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes | memoryview) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def finish(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    async def receive(self) -> bytes:
        return await self._loop.sock_recv(self.sock, _READ)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.receive():
            yield data

    def close(self) -> None:
        self.sock.close()


Side = HalfClosing | Plain


async def send_pattern(side: Side, amount: int, *, finish: bool = True) -> None:
    """Send `amount` bytes that repeat with no period that a buffer has."""
    pattern = memoryview(PATTERN)
    sent = 0
    while sent < amount:
        start = sent % len(PATTERN)
        piece = pattern[start : start + min(_READ, amount - sent)]
        await side.send(piece)
        sent += len(piece)
    if finish:
        await side.finish()


async def digest_of(side: Side) -> tuple[int, str]:
    """How much comes until the end, and its hash."""
    digest, count = hashlib.sha256(), 0
    async for data in side:
        digest.update(data)
        count += len(data)
    return count, digest.hexdigest()


def digest_of_pattern(amount: int) -> tuple[int, str]:
    """What digest_of() answers for send_pattern()."""
    digest = hashlib.sha256()
    for _ in range(amount // len(PATTERN)):
        digest.update(PATTERN)
    digest.update(PATTERN[: amount % len(PATTERN)])
    return amount, digest.hexdigest()
