import asyncio
import socket

import pytest

from portguard.reasons import Reason
from tests.peers import Kind, Peer, TlsPeer, until
from tests.relayed import LARGE, SMALL, arrived, each_combination, each_kind, noise, session

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])

_TCP_CLOSE = 7  # of Linux's tcp_states.h


# Ends that are not meant as such.


@each_kind
async def test_a_client_that_ends_without_close_notify_is_truncated_and_the_upstream_gets_a_reset(kind: Kind) -> None:
    async with session("tls", kind) as s:
        s.start()
        await s.client.send(b"rm -rf /tmp/")
        assert await s.upstream.receive_exactly(12) == b"rm -rf /tmp/"
        await s.client.truncate()
        assert await s.reason() is Reason.CLIENT_TRUNCATED
        assert await s.upstream.receive_all() == (b"", "reset")
        assert await s.client.receive_all() == (b"", "truncated")


@each_combination
async def test_a_client_that_resets_is_passed_on_as_a_reset(client_kind: Kind, upstream_kind: Kind) -> None:
    async with session(client_kind, upstream_kind) as s:
        s.start()
        await s.client.send(b"half a")
        assert await s.upstream.receive_exactly(6) == b"half a"
        s.client.reset()
        assert await s.reason() is Reason.CLIENT_RESET
        assert await s.upstream.receive_all() == (b"", "reset")


@each_combination
async def test_an_upstream_does_not_stay_stuck_with_sending_to_a_client_that_reset(
    client_kind: Kind, upstream_kind: Kind
) -> None:
    """It would never come to read what the client sent before, and never learn of the reset."""
    async with session(client_kind, upstream_kind) as s:
        s.start()
        await s.fill(s.client)
        await s.fill(s.upstream)
        from_client, from_upstream = s.sending
        from_client.cancel()
        s.client.reset()
        await from_upstream
        assert (await s.upstream.receive_all())[1] == "reset"
        assert await s.reason() is Reason.CLIENT_RESET


@each_combination
async def test_a_reset_that_shows_when_writing_is_passed_on_as_one(client_kind: Kind, upstream_kind: Kind) -> None:
    """The kernel tells of it once: afterwards reading finds an end that looks good."""
    async with session(client_kind, upstream_kind) as s:
        s.client.reset()
        await s.upstream.send(b"to nobody")
        await arrived(s.upstream_end.sock, 9)
        s.relay._up.source.sock.setblocking(False)
        s.start()
        s.relay._on_readable(s.relay._down)
        assert await s.reason() is Reason.CLIENT_RESET
        assert s.sent == 0
        assert await s.upstream.receive_all() == (b"", "reset")


@each_kind
async def test_what_the_upstream_sent_before_its_reset_arrives_and_the_end_is_not_a_good_one(kind: Kind) -> None:
    """All of it: it takes more than one read, and a loop may tell of a reset once and be silent afterwards."""
    answer = noise(200_000)
    async with session("tls", kind, upstream_buffers=LARGE) as s:
        await s.upstream.send(answer)
        await arrived(s.upstream_end.sock, len(answer))
        s.upstream.reset()
        s.start()
        assert await s.client.receive_all() == (answer, "truncated")
        assert await s.reason() is Reason.UPSTREAM_RESET
        assert s.sent == len(answer)


@each_kind
async def test_what_the_upstream_sent_arrives_also_when_its_reset_shows_in_a_write_first(kind: Kind) -> None:
    """The write takes the kernel's word of it away, and a loop that has noted the event may be silent afterwards."""
    answer = noise(200_000)
    async with session("tls", kind, upstream_buffers=LARGE) as s:
        await s.client.send(b"to nobody")
        await arrived(s.client_end.sock, 9)
        await s.upstream.send(answer)
        await arrived(s.upstream_end.sock, len(answer))
        s.upstream.reset()
        s.start()
        assert await s.client.receive_all() == (answer, "truncated")
        assert await s.reason() is Reason.UPSTREAM_RESET
        assert (s.received, s.sent) == (0, len(answer))


async def test_what_the_upstream_sent_before_its_reset_arrives_at_a_slow_client() -> None:
    answer = noise(200_000)
    async with session("tls", "plain", upstream_buffers=LARGE, client_buffers=SMALL) as s:
        await s.upstream.send(answer)
        await arrived(s.upstream_end.sock, len(answer))
        s.upstream.reset()
        s.start()
        await until(lambda: s.client_end.backlog)
        await asyncio.sleep(0)
        assert not asyncio.get_running_loop().remove_reader(s.upstream_end.sock)  # it waits for the client
        assert await s.client.receive_all() == (answer, "truncated")
        assert await s.reason() is Reason.UPSTREAM_RESET


async def test_what_a_client_sent_before_its_reset_is_passed_on() -> None:
    upload = noise(200_000)
    async with session("tls", "plain", client_buffers=LARGE) as s:
        await s.client.send(upload)
        await arrived(s.client_end.sock, len(upload))
        s.client.reset()
        s.start()
        assert await s.reason() is Reason.CLIENT_RESET
        assert s.received == len(upload)
        assert (await s.upstream.receive_all())[1] == "reset"


@each_kind
async def test_a_reset_after_both_ends_were_good_takes_nothing_away(kind: Kind) -> None:
    async with session("tls", kind) as s:
        s.start()
        await s.client.send(b"question")
        await s.client.finish()
        assert await s.upstream.receive_all() == (b"question", "end")
        s.client.reset()
        await s.upstream.send(b"to nobody")
        await s.upstream.finish()
        assert await s.reason() is Reason.CLIENT_CLOSED


@pytest.mark.parametrize("length", [100, 2000])  # of a short record and of one with which the end is read at once
@pytest.mark.parametrize("notified", [True, False])
async def test_a_reset_after_close_notify_does_not_unsay_it(length: int, notified: bool) -> None:
    """Who has sent all and closes without reading an answer resets the connection. Without close_notify it was cut."""
    async with session("tls", "plain") as s:
        await s.client.send(noise(length))
        if notified:
            await s.client.finish()
        s.client.reset()
        await until(lambda: s.client_end.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE)
        s.start()
        received, ending = await s.upstream.receive_all()
        assert ending == ("end" if notified else "reset")
        assert noise(length).startswith(received)  # a reset may overtake what was passed on
        assert received == noise(length) or not notified
        if notified:
            await s.upstream.finish()
        assert await s.reason() is (Reason.CLIENT_CLOSED if notified else Reason.CLIENT_RESET)


@each_kind
async def test_an_answer_before_the_question_is_over_arrives_whole(kind: Kind) -> None:
    """An HTTP server that answers 413 and closes while the client is still sending: its close is a reset."""
    answer = noise(100_000)
    async with session("tls", kind, upstream_buffers=LARGE) as s:
        s.start()
        s.send(s.client, noise(20_000_000))
        await s.upstream.receive()
        await s.upstream.send(answer)
        await s.upstream.truncate()
        await arrived(s.upstream.sock, 1)
        s.upstream.close()
        received, ending = await s.client.receive_all()
        assert (received, ending) == (answer, "truncated")
        assert await s.reason() is Reason.UPSTREAM_RESET


async def test_an_answer_that_tls_vouches_for_is_whole_although_a_reset_follows_it() -> None:
    answer = noise(100_000)
    async with session("tls", "tls", upstream_buffers=LARGE) as s:
        s.start()
        s.send(s.client, noise(20_000_000))
        await s.upstream.receive_exactly(16 * 1024)
        await s.upstream.send(answer)
        await s.upstream.finish(heedless=True)
        await arrived(s.upstream.sock, 1)
        s.upstream.close()
        assert await s.client.receive_all() == (answer, "end")
        assert await s.reason() in (Reason.UPSTREAM_CLOSED, Reason.UPSTREAM_RESET)


async def test_an_upstream_that_ends_without_close_notify_ends_the_client_without_one() -> None:
    async with session("tls", "tls") as s:
        s.start()
        await s.upstream.send(b"half an answ")
        await s.upstream.truncate()
        assert await s.client.receive_all() == (b"half an answ", "truncated")
        assert await s.reason() is Reason.UPSTREAM_RESET


async def test_what_the_upstream_sent_before_it_broke_the_protocol_arrives() -> None:
    async with session("tls", "tls") as s:
        assert isinstance(s.upstream, TlsPeer)
        s.upstream.tls.write(b"half an answ")
        await Peer.send(s.upstream, s.upstream._outgoing.read() + b"HTTP/1.1 400 this is no TLS\r\n\r\n")
        await arrived(s.upstream_end.sock, 40)
        s.start()
        assert await s.client.receive_all() == (b"half an answ", "truncated")
        assert await s.reason() is Reason.UPSTREAM_RESET


async def test_what_was_counted_arrives_at_an_upstream_that_ends_without_close_notify() -> None:
    async with session("tls", "tls") as s:
        s.start()
        await s.fill(s.client)
        await s.upstream.truncate()
        assert await s.reason() is Reason.UPSTREAM_RESET
        received, ending = await s.upstream.receive_all()
        assert (len(received), ending) == (s.received, "truncated")


@each_kind
async def test_the_reason_is_the_first_thing_that_happened(kind: Kind) -> None:
    async with session("tls", kind) as s:
        s.start()
        await s.client.finish()
        assert await s.upstream.receive_all() == (b"", "end")
        s.upstream.reset()
        assert await s.client.receive_all() == (b"", "truncated")
        assert await s.reason() is Reason.CLIENT_CLOSED


async def test_a_client_that_breaks_the_protocol_is_told_and_the_upstream_gets_a_reset() -> None:
    async with session("tls", "plain") as s:
        s.start()
        await Peer.send(s.client, b"GET / HTTP/1.1\r\n\r\n")
        assert await s.reason() is Reason.CLIENT_RESET
        alert = await Peer.receive(s.client)
        assert alert.startswith(b"\x17\x03\x03")  # encrypted, as everything is in TLS 1.3
        assert await s.upstream.receive_all() == (b"", "reset")


async def test_a_unix_socket_that_is_closed_with_unread_input_is_a_reset() -> None:
    async with session("tls", "plain", family=socket.AF_UNIX) as s:
        s.start()
        await s.client.send(b"unread")
        await arrived(s.upstream.sock, 6)
        s.upstream.close()
        assert await s.reason() is Reason.UPSTREAM_RESET
        assert await s.client.receive_all() == (b"", "truncated")


async def test_an_upstream_that_stops_reading_may_go_on_sending() -> None:
    async with session("tls", "plain", family=socket.AF_UNIX) as s:
        s.start()
        s.upstream.sock.shutdown(socket.SHUT_RD)
        await s.client.send(b"to nobody")
        await until(lambda: s.relay._up.over)
        # Nobody wants more of it, but a client that was stuck with sending might not come to read.
        await s.client.send(noise(10_000_000))
        assert s.received == 0
        await s.upstream.send(b"enough of that")
        assert await s.client.receive_exactly(14) == b"enough of that"
        await s.upstream.finish()
        assert await s.client.receive_all() == (b"", "truncated")
        assert await s.reason() is Reason.UPSTREAM_RESET


# Endings from outside.


@each_combination
async def test_what_was_counted_arrives_at_both_sides_although_both_are_still_sending(
    client_kind: Kind, upstream_kind: Kind
) -> None:
    async with session(client_kind, upstream_kind) as s:
        s.start()
        await asyncio.gather(s.fill(s.client), s.fill(s.upstream))
        received, sent = s.received, s.sent
        assert min(received, sent) > 1_000_000  # more than one read, and more than a socket's first buffer
        s.relay.close(Reason.POLICY_CHANGED)
        assert s.reasons == [Reason.POLICY_CHANGED]
        to_upstream, to_client = await asyncio.gather(s.upstream.receive_all(), s.client.receive_all())
        assert (len(to_upstream[0]), to_upstream[1]) == (received, "end" if upstream_kind == "plain" else "truncated")
        assert (len(to_client[0]), to_client[1]) == (sent, "end" if client_kind == "plain" else "truncated")


async def test_close_while_nothing_moves_ends_both_sides() -> None:
    async with session("tls", "tls") as s:
        s.start()
        s.relay.close(Reason.KILLED)
        assert s.reasons == [Reason.KILLED]
        assert await s.client.receive_all() == (b"", "truncated")
        assert await s.upstream.receive_all() == (b"", "truncated")


async def test_close_after_one_side_has_finished_leaves_its_good_end() -> None:
    async with session("tls", "tls") as s:
        s.start()
        await s.client.finish()
        assert await s.upstream.receive_all() == (b"", "end")
        s.relay.close(Reason.KILLED)
        assert await s.client.receive_all() == (b"", "truncated")


async def test_a_session_may_end_in_its_start() -> None:
    async with session("buffered", "tls", upstream_ahead=b"220 ready") as s:
        assert isinstance(s.client, TlsPeer)
        s.client_end._endpoint.receive(b"GET / HTTP/1.1\r\n\r\n")  # type: ignore[attr-defined]
        s.start()
        assert s.reasons == [Reason.CLIENT_RESET]
        assert s.sent == 0
