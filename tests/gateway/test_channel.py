import asyncio
import errno
import os
import socket

import msgspec
import pytest

from portguard.gateway import channel as channel_module
from portguard.gateway.channel import Channel
from portguard.gateway.messages import LARGEST_BYTES, Accepted, Ended, Misconduct, Refusal, StandingWanted, encode
from portguard.reasons import Reason
from tests.patience import PATIENCE_S

UNHEARD = msgspec.msgpack.encode(["Unheard"])
MESSAGES = [
    Accepted(7, 1, "2001:db8::1", 50000),
    StandingWanted(7, "corp", "älice", ["dba", "ops"]),
    Refusal(7, Reason.CONNECT_RATE, "too often", 1.5),
]


class Side:
    """One side of a channel, and what it got."""

    def __init__(self, sock, **options):
        self.got = asyncio.Queue()
        self.closed = asyncio.Event()
        self.channel = Channel(
            sock, on_message=lambda *got: self.got.put_nowait(got), on_closed=self.closed.set, **options
        )


async def fill(channel):
    """Send until one message waits here; return how many are on their way."""
    count = 0
    while True:
        channel.send(MESSAGES[0])
        if channel._queue:
            return count
        count += 1


@pytest.fixture
async def sides():
    sides = [Side(sock) for sock in Channel.pair()]
    yield sides
    for side in sides:
        side.channel.close()


async def test_a_descriptor_arrives_with_its_message_and_is_closed_here(sides):
    one, other = sides
    here, far = socket.socketpair()
    descriptor = here.detach()
    one.channel.send(MESSAGES[0], descriptor)
    message, received = await other.got.get()
    assert message == MESSAGES[0]
    with socket.socket(fileno=received) as arrived, far:
        arrived.sendall(b"x")
        assert far.recv(1) == b"x"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def test_who_takes_no_descriptors_gets_the_message_and_holds_nothing_of_it_open():
    ours, theirs = Channel.pair()
    side, other = Side(ours, takes_descriptors=False), Side(theirs)
    near, far = socket.socketpair()
    other.channel.send(MESSAGES[0], near.detach())
    assert await side.got.get() == (MESSAGES[0], None)
    far.settimeout(PATIENCE_S)
    assert far.recv(1) == b""
    far.close()
    side.channel.close()
    other.channel.close()


async def test_messages_that_do_not_fit_wait_in_order(sides):
    one, other = sides
    count = 5000
    for number in range(count):
        one.channel.send(Ended(number, Reason.KILLED, None, None))
    assert [(await other.got.get())[0].slot for _ in range(count)] == list(range(count))


async def test_what_is_sent_while_others_wait_does_not_overtake_them():
    ours, theirs = Channel.pair()
    side = Side(ours)
    for number in range(2000):
        side.channel.send(Ended(number, Reason.KILLED, None, None))
    for _ in range(100):  # there is room again, which the loop has not heard of yet
        theirs.recv(LARGEST_BYTES)
    side.channel.send(Ended(2000, Reason.KILLED, None, None))
    other = Side(theirs)
    assert [(await other.got.get())[0].slot for _ in range(1901)] == list(range(100, 2001))
    side.channel.close()
    other.channel.close()


async def test_the_other_side_learns_of_the_end_after_the_last_message(sides):
    one, other = sides
    one.channel.send(MESSAGES[2])
    one.channel.close()
    await other.closed.wait()
    assert other.got.get_nowait() == (MESSAGES[2], None)
    assert not one.closed.is_set()


async def test_a_message_to_a_side_that_has_gone_is_no_error_and_leaks_nothing(sides):
    one, other = sides
    other.channel.close()
    descriptor = os.dup(0)
    one.channel.send(MESSAGES[0], descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    await one.closed.wait()


async def test_a_side_that_dies_with_messages_unread_is_heard_to_the_end():
    ours, theirs = Channel.pair()
    side = Side(ours)
    side.channel.send(MESSAGES[0])  # never read: the kernel then tells of a reset before it tells of what came
    for number in range(3):
        theirs.send(encode(Ended(number, Reason.KILLED, None, None)))
    theirs.close()
    await side.closed.wait()
    assert [side.got.get_nowait()[0].slot for _ in range(3)] == [0, 1, 2]
    assert side.got.empty()


async def test_a_side_that_dies_is_noticed_also_by_who_was_sending_to_it():
    ours, theirs = Channel.pair()
    side = Side(ours)
    side.channel.send(MESSAGES[0])
    theirs.send(encode(Ended(7, Reason.KILLED, None, None)))
    theirs.close()
    for _ in range(3):
        side.channel.send(MESSAGES[1])  # which takes the error away that reading would have met
    await side.closed.wait()
    assert side.got.get_nowait()[0].slot == 7
    assert side.got.empty()


async def test_a_side_that_dies_is_noticed_also_when_sending_met_its_death_first():
    wake, waker = socket.socketpair()
    asyncio.get_running_loop().add_reader(wake, lambda: (wake.recv(1), side.channel.send(MESSAGES[1])))
    ours, theirs = Channel.pair()
    side = Side(ours)
    side.channel.send(MESSAGES[0])
    # All in one turn of the loop: the sender is woken, and then the channel with an error that sending took away.
    waker.send(b"x")
    for number in range(3):
        theirs.send(encode(Ended(number, Reason.KILLED, None, None)))
    theirs.close()
    await side.closed.wait()
    assert [side.got.get_nowait()[0].slot for _ in range(3)] == [0, 1, 2]
    asyncio.get_running_loop().remove_reader(wake)
    wake.close()
    waker.close()


async def test_flushing_waits_until_the_other_side_has_taken_everything():
    ours, theirs = Channel.pair()
    side = Side(ours)
    for number in range(5000):
        side.channel.send(Ended(number, Reason.KILLED, None, None))
    flushing = asyncio.create_task(side.channel.flush())
    await asyncio.sleep(0)
    assert not flushing.done()
    other = Side(theirs)
    await flushing
    assert [(await other.got.get())[0].slot for _ in range(5000)] == list(range(5000))
    await side.channel.flush()
    side.channel.close()
    other.channel.close()


async def test_flushing_to_a_side_that_goes_ends():
    ours, theirs = Channel.pair()
    side = Side(ours)
    for number in range(5000):
        side.channel.send(Ended(number, Reason.KILLED, None, None))
    flushing = asyncio.create_task(side.channel.flush())
    await asyncio.sleep(0)
    theirs.close()
    await flushing
    await side.closed.wait()


async def test_flushing_ends_when_the_channel_is_closed_here():
    ours, theirs = Channel.pair()
    side = Side(ours)
    for number in range(5000):
        side.channel.send(Ended(number, Reason.KILLED, None, None))
    flushing = asyncio.create_task(side.channel.flush())
    await asyncio.sleep(0)
    side.channel.close()
    await flushing
    theirs.close()


class Crowded(socket.socket):
    """A socket that the kernel has no room for, a few times."""

    refusals = 3

    def _refuse(self):
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.ETOOMANYREFS, "Too many references")

    def send(self, *arguments):
        self._refuse()
        return super().send(*arguments)

    def sendmsg(self, *arguments):
        self._refuse()
        return super().sendmsg(*arguments)


async def test_what_the_kernel_has_no_room_for_is_sent_later_and_nothing_is_lost():
    ours, theirs = Channel.pair()
    side, other = Side(Crowded(fileno=ours.detach())), Side(theirs)
    descriptor = os.dup(0)
    side.channel.send(MESSAGES[0], descriptor)
    side.channel.send(MESSAGES[1])
    message, received = await other.got.get()
    os.close(received)
    assert message == MESSAGES[0]
    assert (await other.got.get())[0] == MESSAGES[1]
    assert side.channel._sock.refusals == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    side.channel.close()
    other.channel.close()


async def test_a_channel_that_is_closed_while_the_kernel_had_no_room_sends_nothing_later():
    ours, theirs = Channel.pair()
    side, other = Side(Crowded(fileno=ours.detach())), Side(theirs)
    descriptor = os.dup(0)
    side.channel.send(MESSAGES[0], descriptor)
    side.channel.close()
    await other.closed.wait()
    await asyncio.sleep(0.1)  # for the attempt that would have been made
    assert other.got.empty()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def test_a_message_that_cannot_be_sent_leaves_the_channel_as_it_was(sides):
    one, other = sides
    with pytest.raises(ValueError, match="expected a message of at most"):
        one.channel.send(Refusal(7, Reason.DENIED, "é" * 9000, None))
    one.channel.send(MESSAGES[0])
    assert (await other.got.get())[0] == MESSAGES[0]


async def test_a_descriptor_that_comes_with_an_unknown_message_is_closed():
    ours, theirs = Channel.pair()
    side = Side(ours)
    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    near, far = socket.socketpair()
    socket.send_fds(theirs, [UNHEARD], [near.fileno()])
    near.close()
    theirs.send(encode(MESSAGES[-1]))
    await side.got.get()
    far.settimeout(PATIENCE_S)
    assert far.recv(1) == b""
    assert [type(fault) for fault in faults] == [Misconduct]
    far.close()
    theirs.close()
    side.channel.close()


async def test_who_wants_to_is_told_of_a_side_that_does_not_take_what_it_is_sent(monkeypatch):
    ours, theirs = Channel.pair()
    told = []
    side = Side(ours, on_misconduct=told.append)
    await fill(side.channel)
    monkeypatch.setattr(channel_module, "MOST_WAITING_BYTES", len(encode(MESSAGES[0])) * 10)
    for _ in range(9):
        side.channel.send(MESSAGES[0])
    assert told == []
    side.channel.send(MESSAGES[0])
    assert [type(error) for error in told] == [Misconduct]
    theirs.close()
    side.channel.close()


async def test_what_was_taken_late_counts_no_more(sides, monkeypatch):
    one, other = sides
    told = []
    one.channel._on_misconduct = told.append
    count = await fill(one.channel)
    for _ in range(count + 1):
        await other.got.get()
    monkeypatch.setattr(channel_module, "MOST_WAITING_BYTES", len(encode(MESSAGES[0])))
    count = await fill(one.channel)
    assert told == []
    for _ in range(count + 1):
        await other.got.get()


async def test_who_wants_to_is_told_of_what_is_no_message():
    ours, theirs = Channel.pair()
    told = []
    side = Side(ours, on_misconduct=told.append)
    theirs.send(UNHEARD)
    theirs.send(encode(MESSAGES[-1]))
    await side.got.get()
    assert [type(error) for error in told] == [Misconduct]
    theirs.close()
    side.channel.close()
