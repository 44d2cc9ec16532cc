"""Connecting to one address, with what makes that harder than it looks."""

import asyncio
import errno
import os
import socket

import pytest

from portguard.errors import Refused
from portguard.gateway import connecting
from portguard.gateway.connecting import check_not_itself, connect, open_socket
from portguard.reasons import Reason
from tests.descriptors import open_descriptors

LONG_S = 30.0  # more than any test takes: what succeeds with it did not wait for a timeout
SHORT_S = 0.2  # what has to run into a timeout


async def connected(address, timeout_s=LONG_S):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    return await connect(asyncio.get_running_loop(), family, address, timeout_s)


async def moved(there, here):
    loop = asyncio.get_running_loop()
    there.setblocking(False)
    with there, here:
        await loop.sock_sendall(here, b"bytes")
        return await loop.sock_recv(there, 100)


@pytest.fixture(autouse=True)
async def nothing_stays_open():
    await asyncio.sleep(0)  # the loop has its own sockets by now
    before = open_descriptors()
    yield
    # Not which: the loop has other sockets of its own each time it runs.
    assert len(open_descriptors()) == len(before)


@pytest.fixture
def undecided(monkeypatch):
    """Make every connection one that the second look does not find decided: on loopback it always is."""
    begun = set()
    real = socket.socket.connect_ex

    def connect_ex(self, address):
        if self in begun:
            return errno.EALREADY
        begun.add(self)
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect_ex", connect_ex)
    return begun


async def test_a_connection_that_is_decided_later_is_waited_for(undecided):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = await connected(listener.getsockname())
        assert await moved(listener.accept()[0], sock) == b"bytes"
    with pytest.raises(ConnectionRefusedError):
        await connected(listener_that_is_gone())
    assert len(undecided) == 2
    undecided.clear()


def listener_that_is_gone():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()


async def test_one_that_is_never_decided_is_given_up(undecided):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, socket.socket() as first:
        first.connect(listener.getsockname())  # with a full backlog, Linux drops what else comes
        with pytest.raises(TimeoutError):
            await connected(listener.getsockname(), SHORT_S)
    undecided.clear()


async def test_a_unix_socket_with_a_full_backlog_is_waited_for(tmp_path):
    path = str(tmp_path / "busy.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        with pytest.raises(TimeoutError):
            await connected(path, SHORT_S)
        waiting = asyncio.ensure_future(connected(path))
        await asyncio.sleep(0)
        listener.accept()[0].close()
        sock = await waiting
        assert await moved(listener.accept()[0], sock) == b"bytes"


async def test_a_unix_socket_that_goes_while_it_is_waited_for_is_an_error(tmp_path):
    path = str(tmp_path / "busy.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        waiting = asyncio.ensure_future(connected(path))
        await asyncio.sleep(0)
    with pytest.raises(ConnectionRefusedError):
        await waiting


async def test_one_that_is_given_up_leaves_nothing_open(undecided):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, socket.socket() as first:
        first.connect(listener.getsockname())
        waiting = asyncio.ensure_future(connected(listener.getsockname()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    undecided.clear()


async def test_a_socket_is_not_to_have_connected_to_itself():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        check_not_itself(sock, listener.getsockname())
        with pytest.raises(ConnectionRefusedError):
            check_not_itself(sock, sock.getsockname())


async def test_a_socket_has_the_options_that_the_gateway_wants_of_it():
    with open_socket(socket.AF_INET) as sock:
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    with open_socket(socket.AF_UNIX) as sock:
        assert not sock.getblocking()


@pytest.mark.parametrize(("number", "reason"), [(errno.EMFILE, Reason.GATEWAY_FULL), (errno.EAFNOSUPPORT, None)])
def test_only_what_the_gateway_lacks_is_its_own_fault(monkeypatch, number, reason):
    def fail(family, kind):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(connecting.socket, "socket", fail)
    with pytest.raises(Refused if reason is not None else OSError) as caught:
        open_socket(socket.AF_INET)
    assert getattr(caught.value, "reason", None) is reason
