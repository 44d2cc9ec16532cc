import time

import pytest

from portguard.reasons import Reason
from tests.peers import until
from tests.relayed import NS, SMALL, session

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


# Timeouts. Their clock is the caller's.


async def test_a_silent_session_ends_when_the_idle_timeout_has_passed() -> None:
    async with session(idle_s=60.0) as s:
        s.start()
        moved_ns = s.silent_since_ns
        s.relay.sweep(moved_ns + 60 * NS)
        assert not s.relay.ended
        s.relay.sweep(moved_ns + 60 * NS + 1)
        assert await s.reason() is Reason.IDLE_TIMEOUT
        assert await s.client.receive_all() == (b"", "truncated")
        assert await s.upstream.receive_all() == (b"", "end")


async def test_a_byte_in_either_direction_keeps_a_session_from_being_idle() -> None:
    async with session(idle_s=60.0) as s:
        s.start()
        for sender, receiver in ((s.client, s.upstream), (s.upstream, s.client)):
            s.silent_since_ns = 0
            await sender.send(b"x")
            await receiver.receive_exactly(1)
            s.relay.sweep(time.monotonic_ns() + 59 * NS)
        assert not s.relay.ended
        s.relay.close(Reason.KILLED)


async def test_without_timeouts_a_session_lasts() -> None:
    async with session() as s:
        s.start()
        await s.client.finish()
        await until(lambda: s.relay._up.over)
        s.relay.sweep(time.monotonic_ns() + 10**18)
        assert not s.relay.ended
        s.relay.close(Reason.KILLED)


@pytest.mark.parametrize("who", ["client", "upstream"])
async def test_a_side_that_stays_silent_after_the_other_has_finished_has_the_half_close_timeout(who: str) -> None:
    async with session(idle_s=3600.0, half_close_s=60.0) as s:
        s.start()
        s.silent_since_ns = time.monotonic_ns() - 3000 * NS  # silent for long, and rightly so
        s.relay.sweep(time.monotonic_ns())
        await (s.client if who == "client" else s.upstream).finish()
        await until(s.half_closed)
        s.relay.sweep(time.monotonic_ns())
        assert not s.relay.ended  # it counts from the finish
        s.relay.sweep(time.monotonic_ns() + 60 * NS)
        assert await s.reason() is Reason.HALF_CLOSE_TIMEOUT


async def test_the_half_close_timeout_is_rolling() -> None:
    async with session(half_close_s=60.0) as s:
        s.start()
        await s.client.finish()
        await until(lambda: s.relay._up.over)
        s.silent_since_ns = 0
        await s.upstream.send(b"x")
        await s.client.receive_exactly(1)
        s.relay.sweep(time.monotonic_ns() + 59 * NS)
        assert not s.relay.ended
        s.relay.close(Reason.KILLED)


async def test_the_half_close_timeout_leaves_a_whole_session_alone() -> None:
    async with session(half_close_s=60.0) as s:
        s.start()
        s.relay.sweep(time.monotonic_ns() + 10**18)
        assert not s.relay.ended
        s.relay.close(Reason.KILLED)


async def test_a_session_ends_when_its_time_is_up_however_busy_it_is() -> None:
    async with session(session_s=3600.0) as s:
        s.start()
        began_ns = s.silent_since_ns
        s.silent_since_ns = began_ns + 3600 * NS
        s.relay.sweep(began_ns + 3600 * NS)
        assert not s.relay.ended
        s.relay.sweep(began_ns + 3600 * NS + 1)
        assert await s.reason() is Reason.SESSION_TIMEOUT


async def test_a_slow_reader_is_not_a_silent_one() -> None:
    async with session(half_close_s=60.0, client_buffers=SMALL) as s:
        s.start()
        await s.client.finish()
        assert await s.upstream.receive_all() == (b"", "end")
        await s.fill(s.upstream)
        sent = s.sent
        s.silent_since_ns = 0
        while not s.silent_since_ns:
            await s.client.receive()
        assert s.sent == sent  # only the backlog moved
        s.relay.sweep(time.monotonic_ns() + 59 * NS)
        assert not s.relay.ended
        s.relay.close(Reason.KILLED)
