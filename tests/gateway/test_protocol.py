import asyncio
import os
import socket

import pytest

from portguard.gateway.protocol import Accepted, Admit, Channel, Ended, Refusal, Tried, TurnedAway, decode, encode
from portguard.reasons import Reason

MESSAGES = [
    Accepted(7, 1, "2001:db8::1", 50000),
    Admit(7, "ab" * 16, "corp", "älice\n\x00", "orders-db", "dba", ["ops"], "1f", "cd" * 32, "192.0.2.1", 0.25),
    Tried([["10.0.3.7:5432", True]]),
    TurnedAway("ab" * 16, None, None, None, None, None, None, None, Reason.CERTIFICATE_MISSING, "none"),
    Refusal(7, Reason.CONNECT_RATE, "too often", 1.5),
    Ended(3, Reason.CLIENT_CLOSED, "10.0.3.7:5432"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message):
    assert decode(encode(message)) == message


@pytest.mark.parametrize("packet", [b'["Unheard"]', b'["Ended", 3]', b'["Ended", 3, "killed", null, 1]'])
def test_a_message_of_another_version_is_not_guessed_at(packet):
    with pytest.raises(ValueError, match="expected a message of version 1"):
        decode(packet)


class Side:
    """One side of a channel, and what it got."""

    def __init__(self, sock):
        self.got = asyncio.Queue()
        self.closed = asyncio.Event()
        self.channel = Channel(sock, on_message=lambda *got: self.got.put_nowait(got), on_closed=self.closed.set)


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


async def test_messages_that_do_not_fit_wait_in_order(sides):
    one, other = sides
    count = 5000
    for number in range(count):
        one.channel.send(Ended(number, Reason.KILLED, None))
    assert [(await other.got.get())[0].slot for _ in range(count)] == list(range(count))


async def test_the_other_side_learns_of_the_end_after_the_last_message(sides):
    one, other = sides
    one.channel.send(MESSAGES[3])
    one.channel.close()
    await other.closed.wait()
    assert other.got.get_nowait() == (MESSAGES[3], None)
    assert not one.closed.is_set()


async def test_a_message_to_a_side_that_has_gone_is_no_error_and_leaks_nothing(sides):
    one, other = sides
    other.channel.close()
    descriptor = os.dup(0)
    one.channel.send(MESSAGES[0], descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    await one.closed.wait()
