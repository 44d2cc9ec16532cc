"""What stands behind every proxy: a sink, a source and an echo.

Run as `python -m bench.upstream`. It prints its ports as one JSON object, and ends when its standard input does, so
that it cannot outlive the bench.

Sink and source begin with a `HEADER` from the client. The sink swallows that many bytes and answers with a `RECEIPT`;
the source sends that many bytes of the pattern. Amounts are announced, because not every proxy passes a half-close on.
"""

import asyncio
import hashlib
import json
import struct
import sys
from typing import cast

import uvloop

HEADER = struct.Struct("!Q?")
"""Bytes to move, and whether the sink hashes what it gets."""

RECEIPT = struct.Struct("!Q32s")
"""Bytes that arrived, and their SHA-256; zeros where it was not asked for."""

SERVICES = ("sink", "source", "echo")

# A prime length: a block that a proxy lost, doubled or moved shifts the pattern, whatever its own block size.
PATTERN = b"".join(hashlib.sha256(struct.pack("!I", n)).digest() for n in range(32_768))[:1_000_003]


class _Sink(asyncio.BufferedProtocol):
    # All connections of a loop read into one buffer: a callback has used it up before the next one runs.
    _shared = bytearray(512 * 1024)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.head = b""
        self.amount = self.arrived = 0
        self.digest: hashlib._Hash | None = None

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._shared

    def buffer_updated(self, nbytes: int) -> None:
        data = memoryview(self._shared)[:nbytes]
        if len(self.head) < HEADER.size:
            missing = HEADER.size - len(self.head)
            self.head += bytes(data[:missing])
            data = data[missing:]
            if len(self.head) < HEADER.size:
                return
            self.amount, hashed = HEADER.unpack(self.head)
            self.digest = hashlib.sha256() if hashed else None
        self.arrived += len(data)
        if self.digest is not None:
            self.digest.update(data)
        if self.arrived >= self.amount:
            self.transport.write(RECEIPT.pack(self.arrived, self.digest.digest() if self.digest else bytes(32)))
            # The next transfer of this session begins with a header again.
            self.head, self.arrived = b"", 0


class _Source(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=256 * 1024)
        self.head = b""
        self.amount = self.sent = 0
        self.paused = False

    def data_received(self, data: bytes) -> None:
        self.head += data
        if len(self.head) >= HEADER.size:
            self.amount, _ = HEADER.unpack(self.head[: HEADER.size])
            self.head, self.sent = b"", 0
            self._send()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._send()

    def _send(self) -> None:
        pattern = memoryview(PATTERN)
        while self.sent < self.amount and not self.paused and not self.transport.is_closing():
            start = self.sent % len(PATTERN)
            piece = pattern[start : start + min(256 * 1024, self.amount - self.sent)]
            self.sent += len(piece)
            self.transport.write(piece)


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    ports = {}
    for service, protocol in zip(SERVICES, (_Sink, _Source, _Echo), strict=True):
        server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=1024)
        ports[service] = server.sockets[0].getsockname()[1]
    print(json.dumps(ports), flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    uvloop.run(_serve())
