"""The far sides of connections in tests of the relay: peers that talk plain TCP or TLS, and end in every way.

    near, peer = await connected("tls", role="client")    # `near` is the End that is tested
    await peer.send(b"hello")
    await peer.finish()                                    # close_notify, then FIN
    assert await peer.receive_all() == (b"hi", "end")

A peer's TLS is Python's own, not portguard's, so that the two cannot be wrong together.
"""

import asyncio
import contextlib
import functools
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from portguard.client.tls_end import BufferedTlsEnd
from portguard.gateway.ends import End, PlainEnd, TlsEnd
from portguard.tls.chain import load_chain
from portguard.tls.context import new_context
from portguard.tls.contexts import ServerContexts
from portguard.tls.endpoint import Endpoint
from portguard.tls.tls_socket import TlsSocket, prepare, wrap
from tests.certificates import SERVER_AUTH, Authority, Holder, dns
from tests.patience import PATIENCE_S
from tests.trusting import trusting

Kind = Literal["plain", "tls", "buffered"]
"""`tls` is the gateway's, on the socket itself; `buffered` the client's."""
Ending = Literal["end", "truncated", "reset"]

NAME = "gateway.test"

_READ = 64 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Pki:
    """An authority, a server's certificate for NAME and its services, and alice's."""

    authority: Authority
    server: Holder
    client: Holder

    def contexts(self, *alpn: str) -> ServerContexts:
        """The gateway's contexts. Each of `alpn` is what the service of that name takes."""
        contexts = ServerContexts(
            certificate_pem=self.server.pem,
            key_pem=self.server.key_pem,
            anchors_pem=self.authority.pem.decode(),
            alpn_of=lambda name: tuple(word for word in alpn if name == f"{word}.{NAME}"),
        )
        for word in alpn:
            contexts.prepare((word,))
        return contexts

    def client_context(self, holder: Holder | None = None) -> ssl.SSLContext:
        """A client's context, with alice's certificate unless told otherwise."""
        holder = holder or self.client
        context = trusting(cadata=self.authority.pem.decode())
        load_chain(context, holder.pem, holder.key_pem)
        return context


@functools.cache
def pki() -> Pki:
    authority = Authority.root()
    server = authority.issue("server", sans=[dns(NAME), dns(f"*.{NAME}")], usages=[SERVER_AUTH])
    return Pki(authority, server, authority.issue("alice"))


@functools.cache
def server_contexts() -> ServerContexts:
    return pki().contexts()


@functools.cache
def _client_context() -> ssl.SSLContext:
    context = pki().client_context()
    prepare(context)
    return context


class Truncated(Exception):
    """The connection ended without close_notify."""


class Peer:
    """The far side of a plain connection."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._loop.sock_sendall(self.sock, data)

    async def receive(self, limit: int = _READ) -> bytes:
        """What came, at most `limit` bytes; b"" at a good end. Raises Truncated, ConnectionResetError."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._loop.sock_recv(self.sock, limit)

    async def receive_exactly(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            data = await self.receive(count - len(received))
            assert data, f"expected {count} bytes, got an end after {len(received)}"
            received += data
        return bytes(received)

    async def receive_all(self) -> tuple[bytes, Ending]:
        """Everything that comes, and how it ended."""
        received = bytearray()
        try:
            while data := await self.receive():
                received += data
        except Truncated:
            return bytes(received), "truncated"
        except ConnectionResetError:
            return bytes(received), "reset"
        return bytes(received), "end"

    async def finish(self, *, heedless: bool = False) -> None:
        """Say that nothing more will be sent; receiving goes on, unless `heedless` of what has come already."""
        self.sock.shutdown(socket.SHUT_WR)

    async def truncate(self) -> None:
        """End the stream as if the process had died, where there is a difference."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.sock.close()

    def close(self) -> None:
        """Close at once: a reset where input is unread."""
        self.sock.close()


class TlsPeer(Peer):
    """The far side of a TLS connection. Its handshake is complete."""

    def __init__(self, sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO):
        super().__init__(sock)
        self.tls = tls
        self._incoming = incoming
        self._outgoing = outgoing

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), _READ):
            self.tls.write(data[start : start + _READ])
            await super().send(self._outgoing.read())

    async def receive(self, limit: int = _READ) -> bytes:
        while True:
            try:
                return self.tls.read(limit)
            except ssl.SSLWantReadError:
                ciphertext = await super().receive()
                if not ciphertext:
                    raise Truncated from None
                self._incoming.write(ciphertext)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as error:
                if error.reason != "TLSV1_ALERT_DECODE_ERROR":  # what OpenSSL says to who ends without close_notify
                    raise
                raise Truncated from None

    async def finish(self, *, heedless: bool = False) -> None:
        # With a whole record waiting, unwrap() fails and what waits is lost; but close_notify is out.
        assert heedless or not self._incoming.pending, "expected the test to receive before it finishes"
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        await super().send(self._outgoing.read())
        await super().finish()


def connected_sockets(
    *, sndbuf: int | None = None, rcvbuf: int | None = None, family: int = socket.AF_INET
) -> tuple[socket.socket, socket.socket]:
    """Two connected non-blocking sockets: the near one, with these buffer sizes on both, and the far one."""
    if family == socket.AF_UNIX:
        near, far = socket.socketpair()
    else:
        with socket.socket() as listening:
            _size(listening, sndbuf, rcvbuf)  # a window that was once offered cannot be taken back
            listening.bind(("127.0.0.1", 0))
            listening.listen(1)
            far = socket.socket()
            _size(far, sndbuf, rcvbuf)
            far.connect(listening.getsockname())
            near, _ = listening.accept()
    for sock in (near, far):
        _size(sock, sndbuf, rcvbuf)
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            # Otherwise small pieces wait for acknowledgements that may be late on purpose.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def _size(sock: socket.socket, sndbuf: int | None, rcvbuf: int | None) -> None:
    if sndbuf is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
    if rcvbuf is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)


def connected(
    kind: Kind,
    role: Literal["client", "upstream"],
    *,
    ahead: bytes = b"",
    ahead_end: bool = False,
    sndbuf: int | None = None,
    rcvbuf: int | None = None,
    family: int = socket.AF_INET,
    keys: Path | None = None,
) -> tuple[End, Peer]:
    """An end, and the peer at the other side of it, which is the client or the upstream.

    `ahead` came with the last message of the peer's handshake and is in the end already; `ahead_end` likewise says
    that the peer's close_notify was there too. A client's keys are logged to `keys`.
    """
    near, far = connected_sockets(sndbuf=sndbuf, rcvbuf=rcvbuf, family=family)
    if kind == "plain":
        assert not ahead
        return PlainEnd(near), Peer(far)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    if role == "client":
        context, name = server_contexts().by_name, None
        client_context = _client_context() if keys is None else pki().client_context()
        if keys is not None:
            client_context.keylog_filename = str(keys)
        tls = client_context.wrap_bio(incoming, outgoing, server_hostname=NAME)
    else:
        context, name = _client_context(), NAME
        tls = _upstream_context().wrap_bio(incoming, outgoing, server_side=True)
    peer = TlsPeer(far, tls, incoming, outgoing)
    if kind == "tls":
        sock = wrap(near, context, server_side=name is None, server_hostname=name)
        shake_hands_on(sock, peer.sock, tls, incoming, outgoing)
    else:
        endpoint = Endpoint(context, server_side=name is None, server_hostname=name)
        shake_hands(endpoint, tls, incoming, outgoing)
    if ahead:
        tls.write(ahead)
    if ahead_end:
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
    if kind == "tls":
        far.sendall(outgoing.read())
        return TlsEnd(sock), peer
    endpoint.receive(outgoing.read())
    return BufferedTlsEnd(near, endpoint), peer


@functools.cache
def _upstream_context() -> ssl.SSLContext:
    context = new_context(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    load_chain(context, pki().server.pem, pki().server.key_pem)
    return context


def shake_hands(endpoint: Endpoint, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
    """Complete the handshake between an endpoint and a peer in memory. Raises ssl.SSLError of either."""
    done = [False, False]
    while not all(done):
        done[0] = endpoint.handshake()
        incoming.write(endpoint.take())
        try:
            tls.do_handshake()
            done[1] = True
        except ssl.SSLWantReadError:
            pass
        endpoint.receive(outgoing.read())


def shake_hands_on(
    sock: TlsSocket, far: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> None:
    """Complete the handshake between a socket and a peer beyond it. Raises ssl.SSLError of either."""
    done = [False, False]
    while not all(done):
        for number, one in enumerate((sock, tls)):
            with contextlib.suppress(ssl.SSLWantReadError):
                one.do_handshake()
                done[number] = True
        far.sendall(outgoing.read())
        with contextlib.suppress(BlockingIOError):
            incoming.write(far.recv(_READ))


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until `condition` holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  # the thing observed has no event, and must not get one for a test
            await asyncio.sleep(0.001)
