"""Relays whose flows have to pass gates: what passes, in which order, and what becomes of those that wait."""

import asyncio
import errno
from itertools import islice

import pytest

from portguard.gateway.ends import PlainEnd
from portguard.gateway.gates import Allowance, Gate
from portguard.reasons import Reason
from tests.peers import Kind, until
from tests.relayed import SMALL, Session, arrived, each_combination, each_kind, noise, session

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


class Account:
    """An allowance, what it asked for, and gates on it."""

    def __init__(self, left: int = 0):
        self.asked: list[bool] = []
        self.allowance = Allowance(self.asked.append, ahead=False)
        self.allowance.left = left

    def gates(self) -> tuple[Gate, Gate]:
        return Gate(self.allowance), Gate(self.allowance)


async def waiting(s: Session, account: Account, times: int = 1) -> None:
    await until(lambda: len(account.asked) >= times)
    assert account.allowance.left == 0


@each_combination
async def test_exactly_what_is_allowed_passes_up(client_kind: Kind, upstream_kind: Kind) -> None:
    account = Account(1_000_003)
    async with session(client_kind, upstream_kind, gates=account.gates()) as s:
        s.start()
        s.send(s.client, noise(3_000_000))
        assert await s.upstream.receive_exactly(1_000_003) == noise(1_000_003)
        await waiting(s, account)
        assert (s.received, s.sent) == (1_000_003, 0)
        s.relay.close(Reason.QUOTA_EXHAUSTED)
        assert (await s.upstream.receive_all())[0] == b""


@each_combination
async def test_exactly_what_is_allowed_passes_down(client_kind: Kind, upstream_kind: Kind) -> None:
    account = Account(1_000_003)
    async with session(client_kind, upstream_kind, gates=account.gates()) as s:
        s.start()
        s.send(s.upstream, noise(3_000_000))
        assert await s.client.receive_exactly(1_000_003) == noise(1_000_003)
        await waiting(s, account)
        assert (s.received, s.sent) == (0, 1_000_003)
        s.relay.close(Reason.QUOTA_EXHAUSTED)
        assert (await s.client.receive_all())[0] == b""


@each_combination
async def test_both_ways_together_pass_exactly_what_they_share(client_kind: Kind, upstream_kind: Kind) -> None:
    account = Account(777_777)
    async with session(client_kind, upstream_kind, gates=account.gates()) as s:
        s.start()
        s.send(s.client, noise(2_000_000))
        s.send(s.upstream, noise(2_000_000))
        receiving = asyncio.gather(s.upstream.receive_all(), s.client.receive_all())
        await waiting(s, account)
        assert s.received + s.sent == 777_777
        s.relay.close(Reason.QUOTA_EXHAUSTED)
        (up, _), (down, _) = await receiving
        assert (len(up), len(down)) == (s.received, s.sent)
        assert noise(2_000_000).startswith(up)
        assert noise(2_000_000).startswith(down)


@each_combination
async def test_held_bytes_go_first_and_in_order(client_kind: Kind, upstream_kind: Kind) -> None:
    data = noise(200_000)
    account = Account(1)
    async with session(client_kind, upstream_kind, gates=account.gates()) as s:
        s.start()
        sending = s.send(s.client, data)
        received = b""
        for number, count in enumerate([1, 7, 16_384, 3, 50_000, 1], start=1):
            received += await s.upstream.receive_exactly(count)
            await waiting(s, account, number)
            account.allowance.add([7, 16_384, 3, 50_000, 1, 10**9][number - 1])
        received += await s.upstream.receive_exactly(len(data) - len(received))
        await sending
        assert received == data
        assert s.received == len(data)
        s.relay.close(Reason.KILLED)


@each_kind
async def test_early_bytes_wait_when_nothing_is_allowed_yet(kind: Kind) -> None:
    account = Account()
    async with session(kind, "plain", gates=account.gates()) as s:
        s.start(b"early, ")
        assert account.asked == [True]
        assert s.received == 0
        await s.client.send(b"and late")
        account.allowance.add(3)
        assert await s.upstream.receive_exactly(3) == b"ear"
        account.allowance.add(100)
        assert await s.upstream.receive_exactly(12) == b"ly, and late"
        s.relay.close(Reason.KILLED)


async def test_what_came_with_the_handshake_is_held_after_early_bytes() -> None:
    account = Account()
    async with session(client_ahead=b"second", upstream_ahead=b"", gates=account.gates()) as s:
        s.start(b"first, ")
        account.allowance.add(13)
        assert await s.upstream.receive_exactly(13) == b"first, second"
        s.relay.close(Reason.KILLED)


@each_combination
async def test_an_end_that_came_while_waiting_follows_what_was_held(client_kind: Kind, upstream_kind: Kind) -> None:
    account = Account()
    async with session(client_kind, upstream_kind, gates=account.gates()) as s:
        s.start(b"0")
        await s.client.send(b"123456")
        await s.client.finish()
        account.allowance.add(3)
        assert await s.upstream.receive_exactly(3) == b"012"
        await waiting(s, account, 2)
        assert not s.half_closed()
        account.allowance.add(5)
        assert await s.upstream.receive_all() == (b"3456", "end")
        assert account.asked == [True, True]
        await s.upstream.finish()
        assert await s.reason() is Reason.CLIENT_CLOSED


async def test_an_end_that_was_read_with_what_is_held_comes_after_it() -> None:
    account = Account()
    async with session("buffered", client_ahead=b"123456", client_ahead_end=True, gates=account.gates()) as s:
        s.start()
        assert account.asked == [True]
        assert not s.half_closed()
        account.allowance.add(6)
        assert await s.upstream.receive_all() == (b"123456", "end")
        await s.upstream.finish()
        assert await s.reason() is Reason.CLIENT_CLOSED


async def test_while_one_way_waits_the_other_goes_on() -> None:
    waits, free = Account(), Account(10**6)
    async with session(gates=(Gate(waits.allowance), Gate(free.allowance))) as s:
        s.start(b"x")
        await s.upstream.send(b"answer")
        assert await s.client.receive_exactly(6) == b"answer"
        assert (s.received, s.sent) == (0, 6)
        s.relay.close(Reason.KILLED)


async def test_a_source_that_waits_is_not_read() -> None:
    account = Account()
    async with session("plain", "plain", gates=account.gates()) as s:
        s.start(b"x")
        await s.client.send(noise(1000))
        await arrived(s.client_end.sock, 1000)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not asyncio.get_running_loop().remove_reader(s.client_end.sock)
        s.relay.close(Reason.KILLED)


async def test_a_backlog_and_held_bytes_both_arrive_in_order() -> None:
    data = noise(8_000_000)
    account = Account(7_500_000)
    async with session(upstream_buffers=SMALL, gates=account.gates()) as s:
        s.start(data)
        assert s.upstream_end.backlog
        assert account.asked == []  # the sink is to take more first
        assert s.received == 7_500_000
        assert await s.upstream.receive_exactly(7_500_000) == data[:7_500_000]
        await waiting(s, account)
        account.allowance.add(500_000)
        assert await s.upstream.receive_exactly(500_000) == data[7_500_000:]
        s.relay.close(Reason.KILLED)


async def test_more_that_comes_while_the_sink_is_full_waits_for_the_sink() -> None:
    data = noise(8_000_000)
    account = Account(7_500_000)
    async with session(upstream_buffers=SMALL, gates=account.gates()) as s:
        s.start(data)
        account.allowance.add(500_000)
        assert s.received == 7_500_000
        assert await s.upstream.receive_exactly(len(data)) == data
        s.relay.close(Reason.KILLED)


async def test_what_a_broken_sink_did_not_take_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    account = Account(1000)
    async with session(gates=account.gates()) as s:
        s.start()
        monkeypatch.setattr(PlainEnd, "write", broken)
        await s.client.send(b"x" * 300)
        await until(s.half_closed)
        assert (account.allowance.left, s.received) == (1000, 0)
        s.relay.close(Reason.KILLED)


def broken(_end: object, _data: memoryview) -> None:
    raise OSError(errno.EPIPE, "broken")


async def test_what_came_back_goes_to_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    account = Account(10)
    async with session("plain", "tls", gates=account.gates()) as one, session("tls", "plain") as other:
        one.start()
        gate = Gate(account.allowance)
        went_on: list[str] = []

        def take_all_and_break(_end: object, _data: memoryview) -> None:
            gate.wait(went_on.append, "another flow")
            broken(_end, _data)

        monkeypatch.setattr(PlainEnd, "write", take_all_and_break)
        await one.upstream.send(b"x" * 10)
        await until(one.half_closed)
        assert went_on == ["another flow"]
        for s in (one, other):
            s.relay.close(Reason.KILLED)


async def test_who_waits_and_has_ended_uses_nothing() -> None:
    account = Account()
    async with session(gates=account.gates()) as s:
        s.start(b"early")
        s.relay.close(Reason.KILLED)
        account.allowance.add(100)
        assert account.allowance.left == 100
        assert s.received == 0


async def test_who_waits_and_is_broken_uses_nothing() -> None:
    account = Account()
    async with session("tls", "plain", upstream_buffers=SMALL, gates=account.gates()) as s:
        s.upstream_end.write(memoryview(noise(4_000_000)))  # a greeting that is still on its way
        s.start(b"early")
        s.upstream.reset()
        await s.reason()
        account.allowance.add(100)
        assert account.allowance.left == 100


async def test_two_sessions_take_turns() -> None:
    account = Account()
    async with session(gates=account.gates()) as one, session(gates=account.gates()) as other:
        one.start(noise(30))
        other.start(noise(30))
        for _ in range(4):
            account.allowance.add(5)
        assert (one.received, other.received) == (10, 10)
        account.allowance.add(25)
        assert (one.received, other.received) == (30, 15)
        for s in (one, other):
            s.relay.close(Reason.KILLED)


@each_combination
async def test_any_allowances_pass_a_prefix_of_exactly_their_length(client_kind: Kind, upstream_kind: Kind) -> None:
    data = noise(400_000)
    account = Account()
    async with session(client_kind, upstream_kind, gates=account.gates()) as s:
        s.start(data[:5])
        s.send(s.client, data[5:])
        allowed = 0
        sizes = iter([1, 3, 16_383, 16_384, 16_385, 1, 65_536, 100_000])
        for size in islice(sizes, 8):
            await until(lambda before=allowed: s.received == before and account.asked)
            account.asked.clear()
            account.allowance.add(size)
            allowed += size
            assert await s.upstream.receive_exactly(size) == data[allowed - size : allowed]
        await until(lambda: account.asked)
        assert s.received == allowed
        s.relay.close(Reason.KILLED)
