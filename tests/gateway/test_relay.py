import asyncio
import time
from collections import deque

import pytest

from portguard.gateway.ends import READ_MAX, End, PlainEnd, TlsEnd, WriteFirstError
from portguard.gateway.lingering import Lingering
from portguard.gateway.relay import Relay
from portguard.reasons import Reason
from tests.peers import Kind, Peer, connected_sockets, until
from tests.relayed import SMALL, Session, arrived, each_combination, each_kind, noise, session, unread

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


# Bytes.


@each_combination
async def test_bytes_pass_both_ways_at_once_and_are_counted(client_kind: Kind, upstream_kind: Kind) -> None:
    up, down = noise(3_000_000), noise(2_000_000)[::-1]
    async with session(client_kind, upstream_kind) as s:
        s.start()

        async def client() -> tuple[bytes, str]:
            sending = s.send(s.client, up)
            received = await s.client.receive_exactly(len(down))
            await sending
            await s.client.finish()
            return received, (await s.client.receive_all())[1]

        async def upstream() -> tuple[bytes, str]:
            sending = s.send(s.upstream, down)
            received = await s.upstream.receive_all()
            await sending
            await s.upstream.finish()
            return received

        assert await asyncio.gather(client(), upstream()) == [(down, "end"), (up, "end")]
        assert await s.reason() is Reason.CLIENT_CLOSED
        assert (s.received, s.sent) == (len(up), len(down))
        assert not s.lingering


@each_combination
async def test_small_messages_go_to_and_fro(client_kind: Kind, upstream_kind: Kind) -> None:
    async with session(client_kind, upstream_kind) as s:
        s.start()
        for number in range(100):
            await s.client.send(b"%03d" % number)
            assert await s.upstream.receive_exactly(3) == b"%03d" % number
            await s.upstream.send(b"%04d" % number)
            assert await s.client.receive_exactly(4) == b"%04d" % number
        assert (s.received, s.sent) == (300, 400)
        s.relay.close(Reason.KILLED)


async def test_bytes_that_move_are_activity() -> None:
    async with session() as s:
        s.start()
        s.silent_since_ns = 0
        began_ns = time.monotonic_ns()
        await s.client.send(b"x")
        await s.upstream.receive_exactly(1)
        assert began_ns <= s.silent_since_ns <= time.monotonic_ns()
        s.relay.close(Reason.KILLED)


async def test_what_came_early_goes_first_and_is_counted() -> None:
    async with session(client_ahead=b"and this with the handshake, ") as s:
        s.start(b"this came with the request, ")
        await s.client.send(b"the rest now")
        text = b"this came with the request, and this with the handshake, the rest now"
        assert await s.upstream.receive_exactly(len(text)) == text
        assert s.received == len(text)
        s.relay.close(Reason.KILLED)


async def test_what_came_with_the_handshake_passes_without_another_byte() -> None:
    async with session("tls", "tls", client_ahead=b"hello", upstream_ahead=b"220 ready") as s:
        s.start()
        assert await s.upstream.receive_exactly(5) == b"hello"
        assert await s.client.receive_exactly(9) == b"220 ready"
        s.relay.close(Reason.KILLED)


async def test_what_came_with_the_handshake_passes_although_early_bytes_block() -> None:
    early = noise(8_000_000)
    async with session(client_ahead=b"the end", upstream_buffers=SMALL) as s:
        s.start(early)
        assert s.upstream_end.backlog
        assert await s.upstream.receive_exactly(len(early) + 7) == early + b"the end"
        s.relay.close(Reason.KILLED)


async def test_an_end_that_came_with_the_handshake_is_an_end() -> None:
    async with session(client_ahead=b"hello", client_ahead_end=True) as s:
        s.start()
        assert await s.upstream.receive_all() == (b"hello", "end")
        await s.upstream.finish()
        assert await s.reason() is Reason.CLIENT_CLOSED


@each_kind
async def test_a_greeting_that_was_still_on_its_way_is_sent_although_nobody_says_more(kind: Kind) -> None:
    greeting = noise(4_000_000)
    async with session(kind, "plain", client_buffers=SMALL) as s:
        s.client_end.write(memoryview(greeting))
        assert s.client_end.backlog
        s.start()
        assert await s.client.receive_exactly(len(greeting)) == greeting
        assert s.sent == 0
        s.relay.close(Reason.KILLED)


async def test_a_greeting_to_the_upstream_is_sent_likewise() -> None:
    greeting = noise(4_000_000)
    async with session("tls", "plain", upstream_buffers=SMALL) as s:
        s.upstream_end.write(memoryview(greeting))
        assert s.upstream_end.backlog
        s.start()
        assert await s.upstream.receive_exactly(len(greeting)) == greeting
        assert s.received == 0
        s.relay.close(Reason.KILLED)


async def test_a_greeting_that_was_still_on_its_way_comes_before_the_rest() -> None:
    greeting = noise(400_000)
    async with session("tls", "plain", client_buffers=SMALL) as s:
        s.client_end.write(memoryview(greeting))
        await s.upstream.send(b"220 ready")
        await arrived(s.upstream_end.sock, 9)
        s.start()
        assert await s.client.receive_exactly(len(greeting) + 9) == greeting + b"220 ready"
        assert s.sent == 9
        s.relay.close(Reason.KILLED)


# Ends, one way at a time.


@each_combination
async def test_the_client_finishes_and_the_upstream_goes_on(client_kind: Kind, upstream_kind: Kind) -> None:
    answer = noise(3_000_000)
    async with session(client_kind, upstream_kind) as s:
        s.start()
        await s.client.send(b"a question")
        await s.client.finish()
        assert await s.upstream.receive_all() == (b"a question", "end")

        async def upstream() -> None:
            await s.upstream.send(answer)
            await s.upstream.finish()

        received, _ = await asyncio.gather(s.client.receive_all(), upstream())
        assert received == (answer, "end")
        assert await s.reason() is Reason.CLIENT_CLOSED


@each_combination
async def test_the_upstream_finishes_and_the_client_goes_on(client_kind: Kind, upstream_kind: Kind) -> None:
    upload = noise(3_000_000)
    async with session(client_kind, upstream_kind) as s:
        s.start()
        await s.upstream.send(b"go on")
        await s.upstream.finish()
        assert await s.client.receive_all() == (b"go on", "end")

        async def client() -> None:
            await s.client.send(upload)
            await s.client.finish()

        received, _ = await asyncio.gather(s.upstream.receive_all(), client())
        assert received == (upload, "end")
        assert await s.reason() is Reason.UPSTREAM_CLOSED


@each_combination
async def test_an_end_waits_for_what_was_sent_before_it(client_kind: Kind, upstream_kind: Kind) -> None:
    async with session(client_kind, upstream_kind, client_buffers=SMALL) as s:
        s.start()
        answer = noise(400_000)
        sending = s.send(s.upstream, answer)
        await until(lambda: s.client_end.backlog)
        received = asyncio.create_task(s.client.receive_all(), name="receive")
        await sending
        await s.upstream.finish()
        assert await received == (answer, "end")
        await s.client.finish()
        assert await s.reason() is Reason.UPSTREAM_CLOSED
        assert await s.upstream.receive_all() == (b"", "end")


async def test_an_end_that_comes_with_a_backlog_is_passed_on_after_it() -> None:
    upload = noise(60_000)
    async with session(client_ahead=upload, client_ahead_end=True, upstream_buffers=SMALL) as s:
        s.start()
        await until(lambda: s.upstream_end.backlog)
        assert await s.upstream.receive_all() == (upload, "end")
        await s.upstream.finish()
        assert await s.reason() is Reason.CLIENT_CLOSED


@each_combination
async def test_a_session_that_both_sides_have_finished_is_closed_at_its_end(
    client_kind: Kind, upstream_kind: Kind
) -> None:
    async with session(client_kind, upstream_kind) as s:
        closed: list[bool] = []
        s.relay._on_end = lambda _, reason: (s.reasons.append(reason), closed.append(closed_sockets(s)))
        s.start()
        await s.client.finish()
        assert await s.upstream.receive_all() == (b"", "end")
        await s.upstream.finish()
        await s.reason()
        assert closed == [True]


def closed_sockets(s: Session) -> bool:
    return s.client_end.sock.fileno() == s.upstream_end.sock.fileno() == -1


async def test_a_session_is_over_when_its_last_bytes_are_out() -> None:
    upload = noise(60_000)
    async with session(client_ahead=upload, client_ahead_end=True, upstream_buffers=SMALL) as s:
        await s.upstream.finish()
        s.start()
        await until(lambda: s.relay._up.over and s.relay._down.over)
        assert not s.relay.ended
        assert await s.upstream.receive_all() == (upload, "end")
        assert await s.reason() is Reason.CLIENT_CLOSED


@each_kind
async def test_a_session_in_which_nothing_was_said_ends_well(kind: Kind) -> None:
    async with session("tls", kind) as s:
        s.start()
        await s.client.finish()
        assert await s.upstream.receive_all() == (b"", "end")
        await s.upstream.finish()
        assert await s.client.receive_all() == (b"", "end")
        assert await s.reason() is Reason.CLIENT_CLOSED


# Backpressure.


@each_combination
async def test_a_slow_upstream_makes_the_client_wait_and_memory_stays_bounded(
    client_kind: Kind, upstream_kind: Kind
) -> None:
    async with session(client_kind, upstream_kind, upstream_buffers=SMALL, client_buffers=SMALL) as s:
        s.start()
        await s.fill(s.client)
        assert s.upstream_end.backlog
        assert sum(map(len, s.upstream_end.backlog)) < READ_MAX + 64 * 1024
        assert not asyncio.get_running_loop().remove_reader(s.client_end.sock)
        before = s.received
        await s.upstream.receive_exactly(before)  # it goes on where it was
        await until(lambda: s.received > before)
        s.relay.close(Reason.KILLED)


async def test_a_slow_client_makes_the_upstream_wait_and_memory_stays_bounded() -> None:
    async with session("tls", "plain", upstream_buffers=SMALL, client_buffers=SMALL) as s:
        s.start()
        await s.fill(s.upstream)
        assert s.client_end.backlog
        assert sum(map(len, s.client_end.backlog)) < READ_MAX + 64 * 1024
        assert not asyncio.get_running_loop().remove_reader(s.upstream_end.sock)
        await s.client.send(b"the other way is free")
        assert await s.upstream.receive_exactly(21) == b"the other way is free"
        s.relay.close(Reason.KILLED)


@each_kind
async def test_an_upstream_that_resets_while_the_client_waits_for_it_ends_the_session(kind: Kind) -> None:
    async with session("tls", kind, upstream_buffers=SMALL, client_buffers=SMALL) as s:
        s.start()
        await s.fill(s.client)
        s.upstream.reset()
        assert await s.reason() is Reason.UPSTREAM_RESET


@each_kind
async def test_a_client_that_resets_while_it_waits_ends_the_session_once_there_is_room(kind: Kind) -> None:
    async with session("tls", kind, upstream_buffers=SMALL, client_buffers=SMALL) as s:
        s.start()
        await s.fill(s.client)
        await s.stop_sending()
        s.client.reset()
        assert (await s.upstream.receive_all())[1] == "reset"
        assert await s.reason() is Reason.CLIENT_RESET


async def test_a_client_that_resets_while_the_upstream_waits_for_it_resets_the_upstream() -> None:
    async with session("tls", "plain", upstream_buffers=SMALL, client_buffers=SMALL) as s:
        s.start()
        await s.fill(s.upstream)
        await s.stop_sending()
        s.client.reset()
        assert await s.reason() is Reason.CLIENT_RESET
        assert (await s.upstream.receive_all())[1] == "reset"


# How much is read at a time.


class Source(PlainEnd):
    """Has always as much as is asked for."""

    __slots__ = ("limits",)

    def read(self, limit: int) -> memoryview:
        self.limits.append(limit)
        return memoryview(bytes(limit))


class Sink(PlainEnd):
    """Takes everything, until told otherwise."""

    __slots__ = ("stuck",)

    def write(self, data: memoryview) -> None:
        if self.stuck:
            self.backlog = deque([data])


async def test_little_is_read_until_a_flow_proves_to_be_bulk_and_again_after_it_had_to_wait() -> None:
    sockets = [*connected_sockets(), *connected_sockets()]
    source, sink = Source(sockets[0]), Sink(sockets[2])
    source.limits, sink.stuck = [], False
    lingering: set[Lingering] = set()
    relay = Relay(
        asyncio.get_running_loop(),
        source,
        sink,
        cells=[0] * 8,
        base=0,
        on_end=lambda *_: None,
        lingering=lingering,
    )
    for _ in range(5):
        relay._on_readable(relay._up)
    sink.stuck = True
    relay._on_readable(relay._up)
    sink.backlog, sink.stuck = None, False
    relay._on_readable(relay._up)
    kib = 1024
    assert source.limits == [64 * kib, 128 * kib, READ_MAX, READ_MAX, READ_MAX, READ_MAX, 64 * kib]
    assert 256 * kib == READ_MAX
    relay.close(Reason.KILLED)
    for one in [*lingering]:
        one.close()
    for sock in sockets:
        sock.close()


async def test_a_flow_that_trickles_is_read_in_little_pieces() -> None:
    async with session() as s:
        s.start()
        for _ in range(20):
            await s.client.send(noise(40_000))
            await s.upstream.receive_exactly(40_000)
        assert s.relay._up.limit == 64 * 1024
        s.relay.close(Reason.KILLED)


# What TLS itself has to say.


ANSWER = noise(300_000)


class Answering:
    """In place of an Endpoint: answers each read, as to a request to renegotiate in TLS 1.2."""

    peer_closed = False
    failure = None
    has_output = True

    def decrypt(self, ciphertext: memoryview, _plaintext: memoryview) -> int:
        return 0

    def take(self) -> bytes:
        return ANSWER


async def test_an_answer_of_tls_is_sent_once_there_is_room_although_nobody_says_more() -> None:
    async with session("buffered", "plain", client_buffers=SMALL) as s:
        s.start()
        s.client_end._endpoint = Answering()  # type: ignore[attr-defined]
        await Peer.send(s.client, b"x")
        await until(lambda: s.client_end.backlog)
        received = b""
        while len(received) < len(ANSWER):
            received += await Peer.receive(s.client)
        assert received == ANSWER
        s.relay.close(Reason.KILLED)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[End]:
    """Ends that were read while they had a backlog: as if all peers wanted new keys, and had not got the answer."""
    asked: list[End] = []
    read = TlsEnd.read

    def read_after_backlog(end: TlsEnd, limit: int) -> memoryview:
        if end.backlog:
            asked.append(end)
            raise WriteFirstError
        return read(end, limit)

    monkeypatch.setattr(TlsEnd, "read", read_after_backlog)
    return asked


async def test_a_client_that_must_take_something_first_is_not_asked_again_and_again(asked: list[End]) -> None:
    async with session("tls", "plain", client_buffers=SMALL) as s:
        s.start()
        await s.fill(s.upstream)
        await s.client.send(b"question")
        await until(lambda: asked)
        for _ in range(100):
            await asyncio.sleep(0)
        assert asked == [s.client_end]
        receiving = asyncio.create_task(s.client.receive_all(), name="receive")
        assert await s.upstream.receive_exactly(8) == b"question"
        s.relay.close(Reason.KILLED)
        await s.stop_sending()
        await receiving


async def test_nor_is_one_whose_bytes_nobody_wants_any_more(asked: list[End]) -> None:
    async with session("tls", "plain", client_buffers=SMALL) as s:
        s.start()
        s.relay._sink_failed(s.relay._up, BrokenPipeError())
        await s.fill(s.upstream)
        await s.client.send(b"question")
        await until(lambda: asked)
        for _ in range(100):
            await asyncio.sleep(0)
        assert asked == [s.client_end]
        receiving = asyncio.create_task(s.client.receive_all(), name="receive")
        await until(lambda: len(asked) > 1 or not unread(s.client_end.sock))
        s.relay.close(Reason.KILLED)
        await s.stop_sending()
        await receiving


async def test_a_client_that_must_take_something_first_and_resets_ends_the_session(asked: list[End]) -> None:
    async with session("tls", "plain", client_buffers=SMALL) as s:
        s.start()
        await s.fill(s.upstream)
        await s.client.send(b"question")
        await until(lambda: asked)
        s.client.reset()
        assert await s.reason() is Reason.CLIENT_RESET
