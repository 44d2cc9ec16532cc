"""A relay under test, between two peers: `async with session("tls", "plain") as s`.

    s.start()
    await s.client.send(b"question")
    assert await s.upstream.receive_exactly(8) == b"question"
    s.relay.close(Reason.KILLED)

When the block is left the session must have ended, and nothing of it may be there: no watcher on the loop, no
descriptor, no second end, no fault in a callback, no count in another session's cells.
"""

import asyncio
import contextlib
import fcntl
import os
import random
import socket
import struct
import termios
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from portguard.gateway.ends import End
from portguard.gateway.gates import Gate
from portguard.gateway.lingering import Lingering
from portguard.gateway.relay import Relay
from portguard.gateway.slots import ACTIVITY, RECEIVED, SENT
from portguard.reasons import Reason
from tests.patience import PATIENCE_S
from tests.peers import Kind, Peer, connected, server_contexts, until

BASE = 8  # not 0, so that a cell counted in without its base shows
SMALL = 4096  # of socket buffers: the kernel makes the smallest it can
LARGE = 500_000  # holds more than one read of a relay
NS = 1_000_000_000

each_combination = pytest.mark.parametrize(
    ("client_kind", "upstream_kind"),
    [("tls", "plain"), ("tls", "tls"), ("plain", "plain"), ("plain", "tls"), ("plain", "buffered")],
)
each_kind = pytest.mark.parametrize("kind", ["plain", "tls", "buffered"])
each_kind_of_tls = pytest.mark.parametrize("kind", ["tls", "buffered"])

Connect = Callable[..., tuple[End, Any]]
"""The fixture `connect`: see tests/conftest.py."""

_NOISE = random.Random(2).randbytes(1_000_003)


def noise(count: int) -> bytes:
    """Bytes in which a piece lost, doubled or swapped shows."""
    return (_NOISE * (count // len(_NOISE) + 1))[:count]


def written(end: End, data: bytes) -> int:
    """Write `data`; return how much of what that makes is in the backlog."""
    end.write(memoryview(data))
    return sum(map(len, end.backlog or ()))


async def flushed(end: End) -> None:
    def empty() -> bool:
        end.flush()
        return not end.backlog

    await until(empty)


@dataclass
class Session:
    """A relay, both its ends, and both its peers."""

    relay: Relay
    client: Peer
    upstream: Peer
    client_end: End
    upstream_end: End
    cells: list[int]
    lingering: set[Lingering]
    reasons: list[Reason] = field(default_factory=list)
    sending: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self, early: bytes = b"") -> None:
        self.relay.start(early)

    async def reason(self) -> Reason:
        """Why it ended, once it has."""
        await until(lambda: self.reasons)
        return self.reasons[0]

    @property
    def received(self) -> int:
        """Bytes counted from the client."""
        return self.cells[BASE + RECEIVED]

    @property
    def sent(self) -> int:
        """Bytes counted to the client."""
        return self.cells[BASE + SENT]

    @property
    def silent_since_ns(self) -> int:
        """When something moved last, as far as the relay has said."""
        return self.cells[BASE + ACTIVITY]

    @silent_since_ns.setter
    def silent_since_ns(self, at_ns: int) -> None:
        self.cells[BASE + ACTIVITY] = at_ns

    def half_closed(self) -> bool:
        return self.relay._up.over or self.relay._down.over

    def send(self, peer: Peer, data: bytes) -> asyncio.Task[None]:
        """Send in the background, for as long as the test lasts."""
        task = asyncio.create_task(peer.send(data), name="send")
        self.sending.append(task)
        return task

    async def stop_sending(self) -> None:
        for task in self.sending:
            task.cancel()
        for result in await asyncio.gather(*self.sending, return_exceptions=True):
            # A peer whose connection was reset under it has done nothing wrong.
            assert result is None or isinstance(result, asyncio.CancelledError | OSError), result
        self.sending.clear()

    async def fill(self, peer: Peer) -> None:
        """Send to a side that does not read, until nobody takes any more; the sender still has bytes then."""
        sink = self.upstream_end if peer is self.client else self.client_end
        self.send(peer, noise(64_000_000))
        unchanged, before = 0, -1
        while unchanged < 20 or not sink.backlog:
            now = self.received + self.sent + sum(map(len, sink.backlog or ()))
            unchanged = unchanged + 1 if now == before else 0
            before = now
            await asyncio.sleep(0.002)
        assert not self.sending[-1].done()


@contextlib.asynccontextmanager
async def session(
    client_kind: Kind = "tls",
    upstream_kind: Kind = "plain",
    *,
    client_ahead: bytes = b"",
    client_ahead_end: bool = False,
    upstream_ahead: bytes = b"",
    client_buffers: int | None = None,
    upstream_buffers: int | None = None,
    family: int = socket.AF_INET,
    idle_s: float | None = None,
    half_close_s: float | None = None,
    session_s: float | None = None,
    gates: tuple[Gate | None, Gate | None] = (None, None),
) -> AsyncIterator[Session]:
    """A relay that is not started yet. `…_ahead` came with the last message of that side's handshake."""
    server_contexts()  # which keep some descriptors
    descriptors = set(os.listdir("/proc/self/fd"))
    loop = asyncio.get_running_loop()
    faults: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: faults.append(context))
    client_end, client = connected(
        client_kind,
        "client",
        ahead=client_ahead,
        ahead_end=client_ahead_end,
        sndbuf=client_buffers,
        rcvbuf=client_buffers,
    )
    upstream_end, upstream = connected(
        upstream_kind,
        "upstream",
        ahead=upstream_ahead,
        sndbuf=upstream_buffers,
        rcvbuf=upstream_buffers,
        family=family,
    )
    watched = [client_end.sock.fileno(), upstream_end.sock.fileno()]
    cells = [0] * 16
    lingering: set[Lingering] = set()
    reasons: list[Reason] = []
    relay = Relay(
        loop,
        client_end,
        upstream_end,
        cells=cells,
        base=BASE,
        on_end=lambda _, reason: reasons.append(reason),
        lingering=lingering,
        idle_s=idle_s,
        half_close_s=half_close_s,
        session_s=session_s,
        gates=gates,
    )
    one = Session(relay, client, upstream, client_end, upstream_end, cells, lingering, reasons)
    with pytest.MonkeyPatch.context() as unhurried:
        # What lingers ends for a reason, not because its time is up.
        unhurried.setattr(Lingering, "SILENT_S", 3600.0)
        async with asyncio.timeout(PATIENCE_S):
            yield one
            await until(lambda: reasons)
            await one.stop_sending()
            client.close()
            upstream.close()
            await until(lambda: not lingering)
    assert faults == []
    relay.close(Reason.KILLED)
    relay.sweep(time.monotonic_ns() + 10**18)
    assert len(reasons) == 1
    assert client_end.sock.fileno() == upstream_end.sock.fileno() == -1
    assert not any(loop.remove_reader(descriptor) or loop.remove_writer(descriptor) for descriptor in watched)
    await until(lambda: set(os.listdir("/proc/self/fd")) <= descriptors)
    cells[BASE + RECEIVED] = cells[BASE + SENT] = cells[BASE + ACTIVITY] = 0
    assert not any(cells)


def unread(sock: socket.socket) -> int:
    """How many bytes the kernel holds for `sock` to read."""
    count: int = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0" * 4))[0]
    return count


async def arrived(sock: socket.socket, count: int) -> None:
    """Wait until the kernel holds `count` bytes for `sock` to read."""
    await until(lambda: unread(sock) >= count)
