import asyncio
import errno
import io
import socket

import pytest

from portguard.gateway import accepting
from portguard.gateway.accepting import Acceptor
from portguard.observe import log
from tests.patience import PATIENCE_S
from tests.tcp_options import WANTED_TCP_OPTIONS, tcp_options


class Listening:
    """A socket that listens, whose next accepts fail with what stands in `failures`."""

    def __init__(self):
        self._sock = socket.create_server(("127.0.0.1", 0))
        self._sock.setblocking(False)
        self.address = self._sock.getsockname()
        self.failures = []

    def fileno(self):
        return self._sock.fileno()

    def accept(self):
        if self.failures:
            number = self.failures.pop(0)
            raise OSError(number, errno.errorcode[number])
        return self._sock.accept()

    def setsockopt(self, *option):
        self._sock.setsockopt(*option)

    def close(self):
        self._sock.close()


class Taken:
    """What an acceptor called back with."""

    def __init__(self):
        self._queue = asyncio.Queue()

    def __call__(self, number, sock, address):
        sock.close()
        self._queue.put_nowait((number, address))

    async def next(self):
        async with asyncio.timeout(PATIENCE_S):
            return await self._queue.get()

    @property
    def nothing(self):
        return self._queue.empty()


@pytest.fixture
async def listening():
    both = [Listening(), Listening()]
    yield both
    for one in both:
        one.close()


@pytest.fixture
async def taken():
    return Taken()


@pytest.fixture
async def acceptor(listening, taken):
    acceptor = Acceptor(listening, taken)
    yield acceptor
    acceptor.close()


@pytest.fixture
def lines(monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    log.configure(json_lines=False, level="info")
    return lambda: stderr.getvalue().splitlines()


@pytest.fixture
async def faults():
    """What the loop was told of."""
    told = asyncio.Queue()
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: told.put_nowait(context["exception"]))
    yield told
    loop.set_exception_handler(before)


@pytest.fixture
async def connect():
    clients = []

    def connect(one):
        clients.append(socket.create_connection(one.address, timeout=PATIENCE_S))
        return clients[-1].getsockname()

    yield connect
    for client in clients:
        client.close()


async def turns():
    """Let the loop do what it has, which a listener with a client waiting is part of."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_connections_come_with_their_listener_and_address(acceptor, listening, taken, connect):
    acceptor.start()
    for number in (1, 0, 1):
        client = connect(listening[number])
        assert await taken.next() == (number, client)


@pytest.mark.parametrize("handed_over", [False, True])
async def test_connections_have_the_options_wherever_their_listener_comes_from(
    acceptor, listening, connect, handed_over
):
    accepted = asyncio.Queue()
    acceptor._on_accepted = lambda _number, sock, _address: accepted.put_nowait(sock)
    if handed_over:
        listening.append(Listening())
        acceptor.replace([listening[-1]])
    acceptor.start()
    connect(listening[-1])
    async with asyncio.timeout(PATIENCE_S):
        with await accepted.get() as sock:
            assert tcp_options(sock) == WANTED_TCP_OPTIONS


async def test_who_connects_before_the_start_is_taken_after_it(acceptor, listening, taken, connect):
    client = connect(listening[0])
    await turns()
    assert taken.nothing
    assert not acceptor.active
    acceptor.start()
    assert acceptor.active
    assert await taken.next() == (0, client)


async def test_who_connects_after_a_stop_waits_for_the_next_start(acceptor, listening, taken, connect):
    acceptor.start()
    acceptor.stop()
    client = connect(listening[0])
    await turns()
    assert taken.nothing
    assert not acceptor.active
    acceptor.start()
    assert await taken.next() == (0, client)


async def test_who_connects_after_the_close_is_refused(acceptor, listening, connect):
    acceptor.start()
    acceptor.close()
    for one in listening:
        with pytest.raises(ConnectionRefusedError):
            connect(one)
    acceptor.close()


async def test_of_many_connections_one_is_taken_at_a_time_and_none_is_left(acceptor, listening, taken, connect):
    clients = [connect(listening[0]) for _ in range(5)]
    acceptor._on_acceptable(0, listening[0])
    assert await taken.next() == (0, clients[0])
    assert taken.nothing
    acceptor.start()
    assert [await taken.next() for _ in range(4)] == [(0, client) for client in clients[1:]]
    acceptor._on_acceptable(0, listening[0])
    assert taken.nothing


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN])
async def test_a_connection_that_broke_already_is_passed_over(
    acceptor, listening, taken, connect, lines, faults, number
):
    listening[0].failures = [number]
    client = connect(listening[0])
    acceptor.start()
    assert await taken.next() == (0, client)
    assert lines() == []
    assert faults.empty()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_without_a_descriptor_there_is_a_pause_on_all_listeners(
    acceptor, listening, taken, connect, lines, monkeypatch, number
):
    monkeypatch.setattr(accepting, "_PAUSE_S", 0.01)
    listening[0].failures = [number]
    acceptor.start()
    acceptor._on_acceptable(0, listening[0])
    assert not acceptor.active
    clients = {(one, connect(listening[one])) for one in (0, 1)}
    assert {await taken.next(), await taken.next()} == clients
    assert acceptor.active
    (line,) = lines()
    assert " gateway.accept_paused " in line


async def test_a_start_ends_a_pause(acceptor, listening, taken, connect):
    listening[0].failures = [errno.EMFILE]
    acceptor.start()
    acceptor._on_acceptable(0, listening[0])
    pause = acceptor._resuming
    acceptor.start()
    assert pause.cancelled()
    client = connect(listening[0])
    assert await taken.next() == (0, client)


@pytest.mark.parametrize("end", [Acceptor.stop, Acceptor.close])
async def test_a_pause_does_not_outlast_the_end(acceptor, listening, end):
    listening[0].failures = [errno.EMFILE]
    acceptor.start()
    acceptor._on_acceptable(0, listening[0])
    pause = acceptor._resuming
    end(acceptor)
    assert pause.cancelled()
    assert not acceptor.active


async def test_an_error_that_nobody_expects_is_a_fault_and_the_next_connection_is_taken(
    acceptor, listening, taken, connect, faults
):
    listening[0].failures = [errno.EBADMSG]
    client = connect(listening[0])
    acceptor.start()
    assert await taken.next() == (0, client)
    assert faults.get_nowait().errno == errno.EBADMSG


async def test_a_fault_with_one_connection_leaves_the_next_to_be_taken(acceptor, listening, taken, connect, faults):
    def fail(_number, sock, _address):
        sock.close()
        acceptor._on_accepted = taken
        raise LookupError("nobody expects this")

    acceptor._on_accepted = fail
    connect(listening[0])
    acceptor.start()
    async with asyncio.timeout(PATIENCE_S):
        assert isinstance(await faults.get(), LookupError)
    client = connect(listening[0])
    assert await taken.next() == (0, client)


# Other sockets.


async def test_other_sockets_are_listened_on_and_those_that_are_left_out_are_closed(
    acceptor, listening, taken, connect
):
    acceptor.start()
    third = Listening()
    acceptor.replace([third, listening[0]])
    assert (third.fileno() >= 0, listening[0].fileno() >= 0, listening[1].fileno()) == (True, True, -1)
    first = connect(third)
    assert await taken.next() == (0, first)
    second = connect(listening[0])
    assert await taken.next() == (1, second)


async def test_other_sockets_are_not_listened_on_before_the_start(acceptor, listening, taken, connect):
    third = Listening()
    acceptor.replace([third])
    client = connect(third)
    await turns()
    assert taken.nothing
    acceptor.start()
    assert await taken.next() == (0, client)


async def test_a_pause_goes_on_with_other_sockets_at_once(acceptor, listening, taken, connect):
    listening[0].failures = [errno.EMFILE]
    acceptor.start()
    acceptor._on_acceptable(0, listening[0])
    assert not acceptor.active
    third = Listening()
    acceptor.replace([third])
    client = connect(third)
    assert await taken.next() == (0, client)


async def test_other_sockets_that_come_after_the_end_are_closed(acceptor, listening):
    acceptor.start()
    acceptor.close()
    third = Listening()
    acceptor.replace([third])
    assert third.fileno() == -1
    assert not acceptor.active
