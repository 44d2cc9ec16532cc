from collections import deque

import pytest

from portguard.client.tls_end import BufferedTlsEnd
from portguard.gateway.ends import End
from tests.peers import until
from tests.relayed import SMALL, Connect, flushed

# What TLS itself has to say.


class Chatty:
    """In place of an Endpoint: each read makes an answer, as a request to renegotiate does in TLS 1.2."""

    peer_closed = False
    failure = None
    has_output = True

    def decrypt(self, ciphertext: memoryview, plaintext: memoryview) -> int:
        plaintext[:1] = b"x"
        return 1

    def take(self) -> bytes:
        return b"answer"

    def close_notify(self) -> bytes:
        return b"closing"


def chatty(end: End) -> BufferedTlsEnd:
    return BufferedTlsEnd(end.sock, Chatty())  # type: ignore[arg-type]  # it has what is used of one


async def test_an_answer_is_sent_at_once(connect: Connect) -> None:
    plain, peer = connect("plain", "client")
    assert bytes(chatty(plain).read_ahead()) == b"x"
    assert await peer.receive_exactly(6) == b"answer"


async def test_an_answer_comes_after_what_was_written_before_it(connect: Connect) -> None:
    plain, peer = connect("plain", "client", sndbuf=SMALL, rcvbuf=SMALL)
    end = chatty(plain)
    end.backlog = deque([b"before "])
    end.read_ahead()
    await flushed(end)
    assert await peer.receive_exactly(13) == b"before answer"


async def test_after_close_notify_nothing_is_answered(connect: Connect) -> None:
    plain, peer = connect("plain", "client")
    end = chatty(plain)
    end.finish()
    assert bytes(end.read_ahead()) == b"x"
    assert end.failure is None
    assert await peer.receive_all() == (b"closing", "end")


async def test_an_answer_that_cannot_be_sent_takes_nothing_from_what_was_read(connect: Connect) -> None:
    plain, peer = connect("plain", "client")
    end = chatty(plain)
    peer.reset()
    await until(plain.broken)
    assert bytes(end.read_ahead()) == b"x"
    assert isinstance(end.failure, BrokenPipeError)


async def test_answers_that_nobody_reads_do_not_pile_up_for_ever(connect: Connect) -> None:
    plain, _ = connect("plain", "client")
    end = chatty(plain)
    end.backlog = deque([b"unread"])
    while len(end.backlog) < 1024:
        end.read_ahead()
    with pytest.raises(ConnectionAbortedError, match="expected the peer to read its answers"):
        end.read_ahead()
