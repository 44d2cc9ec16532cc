import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator

import pytest

from portguard.gateway.handshake import handshake
from portguard.tls.tls_socket import TlsSocket, wrap
from tests.patience import PATIENCE_S
from tests.peers import NAME, connected_sockets, pki, server_contexts

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


class Client:
    """The other side, step by step."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = pki().client_context().wrap_bio(self._incoming, self._outgoing, server_hostname=NAME)
        self._loop = asyncio.get_running_loop()

    async def speak(self) -> None:
        """Send what there is to say next."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        await self._loop.sock_sendall(self.sock, self._outgoing.read())

    async def hear(self) -> None:
        self._incoming.write(await self._loop.sock_recv(self.sock, 65536))


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = connected_sockets()
    with near, far:
        yield near, far


def serve(near: socket.socket) -> tuple[TlsSocket, "asyncio.Task[None]"]:
    sock = wrap(near, server_contexts().by_name, server_side=True)
    return sock, asyncio.create_task(handshake(sock), name="handshake")


async def test_a_handshake_waits_for_what_comes(sockets: tuple[socket.socket, socket.socket]) -> None:
    sock, shaking = serve(sockets[0])
    client = Client(sockets[1])
    with sock:
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(2):
                await client.speak()
                if not shaking.done():
                    await client.hear()
                    await client.speak()
                    await shaking
        assert sock.version() == "TLSv1.3"


async def test_a_handshake_waits_for_room_to_answer() -> None:
    near, far = connected_sockets(sndbuf=4096, family=socket.AF_UNIX)  # on TCP the kernel would go on making room
    filler = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filler += near.send(bytes(1000))
    sock, shaking = serve(near)
    client = Client(far)
    with sock, far:
        await client.speak()
        for _ in range(20):  # turns enough to have read, and met a full socket
            await asyncio.sleep(0)
        assert not shaking.done()
        async with asyncio.timeout(PATIENCE_S):
            while filler:
                filler -= len(await asyncio.get_running_loop().sock_recv(far, filler))
            await client.hear()
            await client.speak()
            await shaking
        assert sock.version() == "TLSv1.3"


async def test_a_client_that_goes_in_the_middle_is_told_from_one_that_breaks_the_protocol(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    sock, shaking = serve(sockets[0])
    with sock:
        sockets[1].send(b"\x16\x03\x01\x02")
        sockets[1].shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionAbortedError, match="expected the rest of a TLS handshake"):
            async with asyncio.timeout(PATIENCE_S):
                await shaking


async def test_a_client_that_breaks_the_protocol_is_an_error_of_tls(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    sock, shaking = serve(sockets[0])
    with sock:
        sockets[1].send(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ssl.SSLError) as failure:
            async with asyncio.timeout(PATIENCE_S):
                await shaking
        assert not isinstance(failure.value, ssl.SSLEOFError)
