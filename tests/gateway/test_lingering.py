import asyncio
from collections.abc import Callable

import pytest

from portguard.gateway.ends import End
from portguard.gateway.lingering import Lingering
from tests.patience import PATIENCE_S
from tests.peers import Kind, until
from tests.relayed import SMALL, Connect, arrived, each_kind, noise, written

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends does so for a reason, not because its time is up."""
    monkeypatch.setattr(Lingering, "SILENT_S", 3600.0)


@each_kind
async def test_what_was_written_arrives_although_input_is_unread(unhurried: None, connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    data = noise(3_000_000)
    end.write(memoryview(data))
    sending = asyncio.create_task(peer.send(noise(3_000_000)), name="send")
    await arrived(end.sock, 1)
    closed: list[Lingering] = []
    lingering = Lingering(asyncio.get_running_loop(), end, closed.append, clean=True)
    assert not lingering.closed
    assert await peer.receive_all() == (data, "end")
    await sending
    peer.close()
    await until(lambda: closed)
    assert closed == [lingering]
    assert lingering.closed


async def test_an_unclean_ending_has_no_close_notify(unhurried: None, connect: Connect) -> None:
    end, peer = connect("tls", "client")
    lingering = Lingering(asyncio.get_running_loop(), end, clean=False)
    assert await peer.receive_all() == (b"", "truncated")
    peer.close()
    await until(lambda: lingering.closed)


@each_kind
async def test_a_peer_that_has_finished_still_gets_the_rest(unhurried: None, connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client", sndbuf=SMALL, rcvbuf=SMALL)
    data = noise(300_000)
    assert written(end, data) > 0
    await peer.finish()
    lingering = Lingering(asyncio.get_running_loop(), end, clean=True)
    await until(lambda: lingering._peer_done)
    assert await peer.receive_all() == (data, "end")
    await until(lambda: lingering.closed)


@each_kind
async def test_a_peer_that_resets_ends_it(unhurried: None, connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client", sndbuf=SMALL, rcvbuf=SMALL)
    assert written(end, noise(300_000)) > 0
    closed: list[Lingering] = []
    Lingering(asyncio.get_running_loop(), end, closed.append, clean=True)
    peer.reset()
    await until(lambda: closed)
    assert len(closed) == 1


@each_kind
async def test_what_a_peer_sent_before_it_reset_does_not_keep_it(
    connect: Connect, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lingering, "SILENT_S", 10 * PATIENCE_S)
    end, peer = connect(kind, "client")
    await peer.send(b"bye")
    await arrived(end.sock, 3)
    closed: list[Lingering] = []
    lingering = Lingering(asyncio.get_running_loop(), end, closed.append, clean=True)
    peer.reset()
    await until(lambda: closed)
    assert closed == [lingering]


async def test_a_connection_that_is_broken_already_is_closed_at_once(unhurried: None, connect: Connect) -> None:
    end, peer = connect("tls", "client")
    peer.reset()
    await until(end.broken)
    closed: list[Lingering] = []
    lingering = Lingering(asyncio.get_running_loop(), end, closed.append, clean=True)
    assert lingering.closed
    assert closed == [lingering]


async def test_close_closes_and_tells_once(unhurried: None, connect: Connect) -> None:
    end, peer = connect("plain", "client")
    closed: list[Lingering] = []
    lingering = Lingering(asyncio.get_running_loop(), end, closed.append, clean=True)
    descriptor = end.sock.fileno()
    lingering.close()
    lingering.close()
    assert closed == [lingering]
    assert not asyncio.get_running_loop().remove_reader(descriptor)
    assert await peer.receive_all() == (b"", "end")


class Clock:
    """The part of an event loop that Lingering tells the time by. Sockets are watched by nobody."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> "Clock":
        self.due = [(self.now_s + delay_s, callback)]
        return self

    def cancel(self) -> None:
        self.due.clear()

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
        if self.due and self.due[0][0] <= self.now_s:
            self.due.pop()[1]()

    def add_reader(self, *_: object) -> None: ...

    add_writer = remove_reader = remove_writer = add_reader


def lingering_by(clock: Clock, end: End) -> Lingering:
    return Lingering(clock, end, clean=True)  # type: ignore[arg-type]  # it has what is used of a loop


async def test_a_peer_that_stays_silent_is_waited_for_a_bounded_time(connect: Connect) -> None:
    end, _ = connect("plain", "client")
    clock = Clock()
    lingering = lingering_by(clock, end)
    clock.advance(Lingering.SILENT_S - 0.1)
    assert not lingering.closed
    clock.advance(0.1)
    assert lingering.closed


async def test_a_slow_peer_is_waited_for_as_long_as_it_takes_something(connect: Connect) -> None:
    end, peer = connect("plain", "client", sndbuf=SMALL, rcvbuf=SMALL)
    data = noise(400_000)
    assert written(end, data) > 0
    clock = Clock()
    lingering = lingering_by(clock, end)
    for _ in range(5):
        await peer.receive()
        lingering._flush()
        clock.advance(Lingering.SILENT_S)
        assert not lingering.closed
    clock.advance(Lingering.SILENT_S)
    assert lingering.closed


async def test_a_peer_that_takes_a_byte_now_and_then_does_not_hold_it_for_ever(connect: Connect) -> None:
    end, _ = connect("plain", "client", sndbuf=SMALL, rcvbuf=SMALL)
    assert written(end, noise(400_000)) > 0
    clock = Clock()
    lingering = lingering_by(clock, end)
    began_s = clock.now_s
    while not lingering.closed:
        lingering._moved = True
        clock.advance(Lingering.SILENT_S)
    assert clock.now_s - began_s <= Lingering.MOST_S + Lingering.SILENT_S


async def test_there_is_no_timer_left_once_it_is_closed(connect: Connect) -> None:
    end, _ = connect("plain", "client")
    clock = Clock()
    lingering_by(clock, end).close()
    assert not clock.due
