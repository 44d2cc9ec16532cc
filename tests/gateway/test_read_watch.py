import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from portguard.gateway import ends
from portguard.gateway.ends import End
from portguard.gateway.handshake import readable
from portguard.gateway.read_watch import ReadWatch
from tests.key_updates import KeyUpdates
from tests.patience import PATIENCE_S
from tests.peers import TlsPeer
from tests.relayed import Connect

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])

_ENDLESS = 60_000  # OpenSSL needs half a second for so many, if nobody keeps it from them


@pytest.fixture
def flooded(connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], End]:
    """`flooded(count)` is an end whose peer sends `count` KeyUpdates, and then "hello"."""
    watch = ReadWatch(0.02)  # a strict one, so that less has to be sent
    monkeypatch.setattr(ends, "read_watch", lambda: watch)

    def flood(count: int) -> End:
        end, peer = connect("tls", "client", keys=tmp_path / "keys")
        assert isinstance(peer, TlsPeer)
        updates = KeyUpdates(peer.tls, tmp_path / "keys")
        records = b"".join(updates.records(count)) + updates.data(b"hello")
        peer.sock.setblocking(True)
        asyncio.get_running_loop().run_in_executor(None, _send, peer.sock, records)
        return end

    return flood


def _send(sock: socket.socket, records: bytes) -> None:
    with contextlib.suppress(OSError):  # it is reset
        sock.sendall(records)


async def read(end: End) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        while not (data := bytes(end.read(65536))):
            await readable(end.sock)
    return data


async def test_who_has_a_read_go_on_for_ever_is_cut_off(flooded: Callable[[int], End]) -> None:
    end = flooded(_ENDLESS)
    with pytest.raises(ConnectionAbortedError, match="records without any") as failure:
        await read(end)
    assert failure.value.errno == errno.ECONNABORTED


async def test_who_is_cut_off_in_the_middle_of_a_record_is_so_for_that_reason(connect: Connect) -> None:
    end, peer = connect("tls", "client")
    end.failure = ConnectionAbortedError(errno.ECONNABORTED, "what the watch says")
    peer.sock.send(b"what is left of a record when its beginning is gone")
    with pytest.raises(ConnectionAbortedError, match="what the watch says"):
        await read(end)


async def test_who_changes_keys_in_reason_is_not(flooded: Callable[[int], End]) -> None:
    end = flooded(100)
    assert await read(end) == b"hello"
    assert end.failure is None


class Stuck:
    """A reader in the middle of a read."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self.failure: OSError | None = None


@pytest_asyncio.fixture
async def stuck(connect: Connect) -> tuple[ReadWatch, Stuck]:
    """A watch that looks by itself only in an hour, and a reader that it has seen at it once."""
    watch, reader = ReadWatch(3600.0), Stuck(connect("plain", "client")[0].sock)
    watch.reads, watch.reading = 1, reader
    watch._look(0.0)
    watch._look(1.0)
    assert reader.failure is None
    return watch, reader


async def test_a_read_that_has_ended_meanwhile_is_not_cut(stuck: tuple[ReadWatch, Stuck]) -> None:
    watch, reader = stuck

    @contextlib.contextmanager
    def ended() -> Iterator[None]:
        watch.reading = None
        yield

    watch._cut = ended()  # type: ignore[assignment]  # what is used of a lock
    watch._look(3600.0)
    assert reader.failure is None
    assert not watch.cutting


async def test_a_read_that_ends_while_it_is_cut_waits_for_that(
    stuck: tuple[ReadWatch, Stuck], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, _ = stuck
    waiting = threading.Thread(target=watch.wait, name="the loop's")
    seen: list[bool] = []

    def end(_reader: Stuck) -> None:
        waiting.start()
        waiting.join(0.05)
        seen.extend((watch.cutting, waiting.is_alive()))

    monkeypatch.setattr(watch, "_end", end)
    watch._look(3600.0)
    waiting.join(PATIENCE_S)
    assert seen == [True, True]
    assert not waiting.is_alive()
    assert not watch.cutting
