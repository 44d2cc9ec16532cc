import asyncio
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from portguard.errors import Refused
from portguard.gateway import proxy_protocol
from portguard.gateway.balancer import read_proxy_header
from portguard.gateway.proxy_protocol import Endpoint
from portguard.reasons import Reason
from tests.patience import PATIENCE_S
from tests.peers import connected_sockets
from tests.relayed import arrived

CLIENT, GATEWAY = Endpoint(ip_address("192.0.2.7"), 40_000), Endpoint(ip_address("192.0.2.1"), 8443)
V1, V2 = proxy_protocol.v1(CLIENT, GATEWAY), proxy_protocol.v2(CLIENT, GATEWAY)


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = connected_sockets()
    with near, far:
        yield near, far


@pytest.mark.parametrize("header", [V1, V2])
async def test_what_follows_the_header_stays_in_the_socket(
    sockets: tuple[socket.socket, socket.socket], header: bytes
) -> None:
    near, far = sockets
    far.sendall(header + b"\x16\x03\x01")
    await arrived(near, len(header) + 3)
    proxied = await read_proxy_header(near)
    assert (proxied.source, proxied.destination) == (CLIENT, GATEWAY)
    assert near.recv(100) == b"\x16\x03\x01"


@pytest.mark.parametrize("header", [V1, V2])
async def test_a_header_may_come_in_two_pieces_cut_anywhere(
    sockets: tuple[socket.socket, socket.socket], header: bytes
) -> None:
    near, far = sockets
    for cut in range(1, len(header)):
        far.sendall(header[:cut])
        await arrived(near, cut)
        reading = asyncio.create_task(read_proxy_header(near), name="read")
        async with asyncio.timeout(PATIENCE_S):
            while _unread(near):  # noqa: ASYNC110  # it takes what it has seen, and waits
                await asyncio.sleep(0)
            far.sendall(header[cut:] + b"next")
            assert (await reading).source == CLIENT
        assert near.recv(4) == b"next"


def _unread(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


async def test_something_else_is_refused(sockets: tuple[socket.socket, socket.socket]) -> None:
    near, far = sockets
    far.sendall(b"\x16\x03\x01")
    with pytest.raises(Refused) as refused:
        await read_proxy_header(near)
    assert refused.value.reason is Reason.BAD_REQUEST


async def test_an_end_in_the_middle_is_no_header(sockets: tuple[socket.socket, socket.socket]) -> None:
    near, far = sockets
    far.sendall(V2[:20])
    far.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionAbortedError, match="expected a PROXY protocol header, got the end"):
        await read_proxy_header(near)
