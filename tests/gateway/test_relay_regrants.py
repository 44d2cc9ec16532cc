"""Relays that go on under other limits while bytes are under way: no byte is lost, doubled or passed unasked."""

import time

import pytest

from portguard.gateway.gates import Allowance, Gate
from portguard.reasons import Reason
from tests.peers import Kind, until
from tests.relayed import NS, SMALL, each_combination, noise, session

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


def allowed(count: int) -> tuple[Gate, Gate]:
    """Gates that let so many bytes pass, both ways together."""
    allowance = Allowance(lambda _empty: None, ahead=False)
    allowance.left = count
    return Gate(allowance), Gate(allowance)


@each_combination
async def test_a_session_that_is_held_passes_nothing_and_loses_nothing(client_kind: Kind, upstream_kind: Kind) -> None:
    async with session(client_kind, upstream_kind) as s:
        s.start()
        s.send(s.client, noise(3_000_000))
        assert await s.upstream.receive_exactly(100_000) == noise(100_000)
        s.relay.pass_through((Gate(), Gate()))
        await until(lambda: s.relay._up.state != 0)
        held_at = s.received
        s.send(s.upstream, noise(50_000))
        await until(lambda: s.relay._down.state != 0)
        assert (s.received, s.sent) == (held_at, 0)
        s.relay.pass_through(allowed(held_at))
        await until(lambda: s.received + s.sent == 2 * held_at)
        s.relay.pass_through((None, None))
        rest = await s.upstream.receive_exactly(2_900_000)
        assert rest == noise(3_000_000)[100_000:]
        assert await s.client.receive_exactly(50_000) == noise(50_000)
        assert (s.received, s.sent) == (3_000_000, 50_000)
        s.relay.close(Reason.KILLED)


async def test_what_is_held_goes_first_under_the_next_gates_as_far_as_they_allow() -> None:
    async with session(gates=allowed(10)) as s:
        s.start()
        s.send(s.client, noise(100))
        assert await s.upstream.receive_exactly(10) == noise(10)
        await until(lambda: s.relay._up.gate.held != b"")  # type: ignore[union-attr]
        s.relay.pass_through(allowed(30))
        assert await s.upstream.receive_exactly(30) == noise(40)[10:]
        assert s.received == 40
        s.relay.pass_through((None, None))
        assert await s.upstream.receive_exactly(60) == noise(100)[40:]
        s.relay.close(Reason.KILLED)


async def test_a_session_that_is_held_before_it_starts_keeps_its_early_bytes() -> None:
    async with session() as s:
        s.relay.pass_through((Gate(), Gate()))
        s.start(b"early")
        await s.client.send(b" and late")
        await until(lambda: s.relay._up.state != 0)
        assert s.received == 0
        s.relay.pass_through((None, None))
        assert await s.upstream.receive_exactly(14) == b"early and late"
        s.relay.close(Reason.KILLED)


async def test_a_flow_whose_sink_is_full_takes_the_next_gates_once_there_is_room() -> None:
    async with session("plain", "plain", upstream_buffers=SMALL) as s:
        s.start()
        await s.fill(s.client)
        counted = s.received
        s.relay.pass_through((Gate(), Gate()))
        s.relay.pass_through(allowed(1000))
        got = await s.upstream.receive_exactly(counted + 1000)
        assert got == noise(counted + 1000)
        assert s.received == counted + 1000
        s.relay.close(Reason.KILLED)


async def test_an_end_that_came_while_it_was_held_follows_what_was_held() -> None:
    async with session("plain", "plain") as s:
        s.start()
        s.relay.pass_through((Gate(), Gate()))
        await s.client.send(b"last words")
        await s.client.finish()
        await until(lambda: s.relay._up.state != 0)
        s.relay.pass_through((None, None))
        assert await s.upstream.receive_all() == (b"last words", "end")
        await s.upstream.finish()
        assert await s.reason() is Reason.CLIENT_CLOSED


async def test_gates_for_what_has_ended_or_finished_are_nothing() -> None:
    async with session("plain", "plain") as s:
        s.start()
        await s.client.finish()
        await until(lambda: s.relay._up.over)
        s.relay.pass_through((Gate(), Gate()))
        s.relay.pass_through((None, None))
        await s.upstream.send(b"answer")
        assert await s.client.receive_exactly(6) == b"answer"
        s.relay.close(Reason.KILLED)
        s.relay.pass_through(allowed(10))


async def test_other_timeouts_hold_at_the_next_look() -> None:
    async with session(idle_s=60.0, half_close_s=60.0) as s:
        s.start()
        s.relay.limit(idle_s=120.0, half_close_s=60.0, session_s=None, began_ns=0)
        s.relay.sweep(s.silent_since_ns + 61 * NS)
        assert not s.relay.ended
        s.relay.limit(idle_s=None, half_close_s=60.0, session_s=None, began_ns=0)
        s.relay.sweep(s.silent_since_ns + 10**18)
        assert not s.relay.ended
        s.relay.limit(idle_s=30.0, half_close_s=60.0, session_s=None, began_ns=0)
        s.relay.sweep(s.silent_since_ns + 31 * NS)
        assert await s.reason() is Reason.IDLE_TIMEOUT


async def test_another_half_close_timeout_holds_for_what_is_half_closed_already() -> None:
    async with session(half_close_s=60.0) as s:
        s.start()
        await s.client.finish()
        await until(lambda: s.relay._up.over)
        s.relay.limit(idle_s=None, half_close_s=10.0, session_s=None, began_ns=0)
        s.relay.sweep(s.silent_since_ns + 11 * NS)
        assert await s.reason() is Reason.HALF_CLOSE_TIMEOUT


async def test_the_length_of_a_session_counts_from_its_beginning() -> None:
    async with session() as s:
        s.start()
        began_ns = time.monotonic_ns()
        s.relay.limit(idle_s=None, half_close_s=None, session_s=100.0, began_ns=began_ns - 90 * NS)
        s.relay.sweep(began_ns + 9 * NS)
        assert not s.relay.ended
        s.relay.sweep(began_ns + 11 * NS)
        assert await s.reason() is Reason.SESSION_TIMEOUT
