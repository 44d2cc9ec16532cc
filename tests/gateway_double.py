"""A stand-in for the gateway in tests of its clients: CONNECT and GET over real TLS, without policy or processes.

async with double(folder) as gateway:
    gateway.services["echo"] = port                  # an upstream on 127.0.0.1
    gateway.answers["closed"] = refusal(403, "no_role")
    gateway.write_profile(folder / "alice.toml")
"""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from portguard.client.handshake import handshake
from portguard.client.tls_end import BufferedTlsEnd
from portguard.gateway.ends import PlainEnd
from portguard.gateway.handshake import receive, send
from portguard.gateway.lingering import Lingering
from portguard.gateway.relay import Relay
from portguard.pki.authority import Authority
from portguard.reasons import Reason
from portguard.tls.contexts import ServerContexts
from portguard.tls.endpoint import Endpoint

NAME = "gateway.test"
SESSION = "00112233445566778899aabbccddeeff"
ESTABLISHED = f"HTTP/1.1 200 Connection established\r\nPortguard-Session: {SESSION}\r\n\r\n".encode()


def answer(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def refusal(status: int, reason: str, message: str = "", headers: Mapping[str, str] | None = None) -> bytes:
    document = {"reason": reason, "message": message, "session": SESSION}
    return answer(status, json.dumps(document).encode(), headers)


class Double:
    """The stand-in. Whoever has a certificate of its authority may do everything that the tables below name."""

    def __init__(self, folder: Path, authority: Authority, contexts: ServerContexts, listening: socket.socket):
        self.folder = folder
        self.authority = authority
        self.contexts = contexts
        self.services: dict[str, int] = {}  # upstream ports on 127.0.0.1
        self.local_ports: dict[str, int] = {}
        self.answers: dict[str, bytes] = {}  # in place of a tunnel or a description
        self.foreseen: dict[str, dict[str, object]] = {}  # the refusals that descriptions tell of
        self.early: dict[str, bytes] = {}  # sent with the answer to CONNECT
        self.requests: list[str] = []
        self.ended: asyncio.Queue[Reason] = asyncio.Queue()
        self.relays: list[Relay] = []
        self.port: int = listening.getsockname()[1]
        self._listening = listening
        self._lingering: set[Lingering] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def write_profile(self, path: Path, more: str = "", *, stem: str = "alice") -> Path:
        """A profile for the client whose certificate `stem`.crt is; issued on first use."""
        if not (self.folder / f"{stem}.crt").exists():
            self.authority.issue_client(stem, at=datetime.now(UTC)).write(self.folder, stem)
        path.write_text(
            f'gateway = "127.0.0.1:{self.port}"\nserver_name = "{NAME}"\nca = "{self.folder}/ca/ca.crt"\n'
            f'certificate = "{self.folder}/{stem}.crt"\nkey = "{self.folder}/{stem}.key"\n{more}'
        )
        return path

    async def accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listening)
            task = loop.create_task(self._serve(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for relay in self.relays:
            relay.close(Reason.GATEWAY_STOPPED)
        for lingering in list(self._lingering):
            lingering.close()

    async def _serve(self, sock: socket.socket) -> None:
        endpoint = Endpoint(self.contexts.by_name, server_side=True)
        try:
            await handshake(sock, endpoint)
        except ssl.SSLError:
            self._lingering.add(Lingering(asyncio.get_running_loop(), PlainEnd(sock), clean=True))
            return
        except OSError:
            sock.close()
            return
        method, target = (await _head(sock, endpoint)).split(" ")[:2]
        self.requests.append(f"{method} {target}")
        service = target.removeprefix("/v1/services/")
        if service in self.answers:
            await self._say(sock, endpoint, self.answers[service])
        elif method == "GET":
            document = {"service": service, "local_port": self.local_ports.get(service), "description": ""}
            document["refusal"] = self.foreseen.get(service)
            await self._say(sock, endpoint, answer(200, json.dumps(document).encode()))
        else:
            await self._tunnel(sock, endpoint, service)

    async def _say(self, sock: socket.socket, endpoint: Endpoint, text: bytes) -> None:
        await send(sock, b"".join(endpoint.encrypt(memoryview(text))))
        self._lingering.add(Lingering(asyncio.get_running_loop(), BufferedTlsEnd(sock, endpoint), clean=True))

    async def _tunnel(self, sock: socket.socket, endpoint: Endpoint, service: str) -> None:
        loop = asyncio.get_running_loop()
        upstream = socket.socket()
        upstream.setblocking(False)
        await loop.sock_connect(upstream, ("127.0.0.1", self.services[service]))
        await send(sock, b"".join(endpoint.encrypt(memoryview(ESTABLISHED + self.early.get(service, b"")))))
        relay = Relay(
            loop,
            BufferedTlsEnd(sock, endpoint),
            PlainEnd(upstream),
            cells=[0] * 8,
            base=0,
            on_end=lambda _, reason: self.ended.put_nowait(reason),
            lingering=self._lingering,
        )
        self.relays.append(relay)
        relay.start()


async def _head(sock: socket.socket, endpoint: Endpoint) -> str:
    received = b""
    ciphertext = b""
    while b"\r\n\r\n" not in received:
        plaintext = memoryview(bytearray(len(ciphertext) + Endpoint.HEADROOM))
        received += bytes(plaintext[: endpoint.decrypt(memoryview(ciphertext), plaintext)])
        if b"\r\n\r\n" not in received:
            ciphertext = await receive(sock)
            if not ciphertext:
                raise ConnectionAbortedError("expected a request, got the end of the connection")
    return received.decode()


@contextlib.asynccontextmanager
async def double(folder: Path, names: tuple[str, ...] = (NAME,)) -> AsyncIterator[Double]:
    """Run a stand-in whose certificate has `names`, with an authority in `folder`/ca."""
    now = datetime.now(UTC)
    authority = Authority.create(folder / "ca", trust_domain=NAME, at=now)
    issued = authority.issue_gateway(names, at=now)
    contexts = ServerContexts(
        certificate_pem=issued.certificate_pem,
        key_pem=issued.key_pem,
        anchors_pem=authority.certificate_pem.decode(),
        alpn_of=lambda _: (),
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        gateway = Double(folder, authority, contexts, listening)
        accepting = asyncio.create_task(gateway.accept())
        try:
            yield gateway
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
            await gateway.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, as it comes; finish when the client has."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read to the end, then say how many bytes came."""
    total = 0
    while data := await reader.read(65536):
        total += len(data)
    writer.write(b"%d" % total)
    writer.close()
