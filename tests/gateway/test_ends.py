import asyncio
import contextlib
import socket
import ssl
from collections import deque
from pathlib import Path

import pytest

from portguard.gateway import ends
from portguard.gateway.ends import READ_MAX, End, PlainEnd, TlsEnd, TruncatedError, WriteFirstError
from portguard.gateway.handshake import handshake, readable
from portguard.gateway.lingering import Lingering
from portguard.gateway.relay import Relay
from portguard.reasons import Reason
from portguard.tls.tls_socket import wrap
from tests.conftest import RealProgram
from tests.key_updates import KeyUpdates
from tests.patience import PATIENCE_S
from tests.peers import Kind, Peer, TlsPeer, connected_sockets, pki, server_contexts, until
from tests.relayed import LARGE, SMALL, Connect, arrived, each_kind, each_kind_of_tls, flushed, noise, written

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])

READ = 64 * 1024


# Reading.


@each_kind
async def test_what_came_is_read(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    await peer.send(b"hello")
    await arrived(end.sock, 5)
    assert bytes(end.read(READ)) == b"hello"
    assert not end.eof
    assert end.failure is None


@pytest.mark.parametrize("kind", ["plain", "buffered"])
async def test_reading_nothing_blocks(connect: Connect, kind: Kind) -> None:
    end, _ = connect(kind, "client")
    with pytest.raises(BlockingIOError):
        end.read(READ)


async def test_reading_nothing_by_tls_itself_is_no_bytes_and_no_end(connect: Connect) -> None:
    end, peer = connect("tls", "client")
    assert bytes(end.read(READ)) == b""
    assert not end.eof
    await peer.send(b"hello")
    await arrived(end.sock, 5)
    assert bytes(end.read(READ)) == b"hello"


@each_kind
async def test_no_more_than_the_limit_is_taken_off_the_socket(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client", rcvbuf=LARGE)
    await peer.send(noise(100_000))
    await arrived(end.sock, 100_000)
    assert 0 < len(end.read(READ)) <= READ
    await arrived(end.sock, 100_000 - READ)


@each_kind_of_tls
async def test_part_of_a_record_is_no_bytes_and_no_end(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    peer.tls.write(b"hello")
    record = peer._outgoing.read()
    await Peer.send(peer, record[:7])
    await arrived(end.sock, 7)
    assert bytes(end.read(READ)) == b""
    assert not end.eof
    await Peer.send(peer, record[7:])
    await arrived(end.sock, len(record) - 7)
    assert bytes(end.read(READ)) == b"hello"


@each_kind
async def test_an_end_comes_with_what_was_sent_before_it(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    await peer.send(b"bye")
    await peer.finish()
    data = b""

    def over() -> bool:
        nonlocal data
        with contextlib.suppress(BlockingIOError):
            data += end.read(READ)
        return end.eof

    await until(over)
    assert (data, end.failure) == (b"bye", None)


@each_kind_of_tls
async def test_tcp_without_close_notify_is_no_end(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    await peer.truncate()
    await until_readable(end)
    with pytest.raises(TruncatedError, match=r"^expected close_notify, got the end of the connection$"):
        end.read(READ)
    assert not end.eof


@each_kind
async def test_a_reset_is_raised(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    peer.reset()
    await until_readable(end)
    with pytest.raises(ConnectionResetError):
        end.read(READ)


@each_kind
async def test_a_reset_that_the_kernel_was_asked_about_is_still_told_after_what_came_before_it(
    connect: Connect, kind: Kind
) -> None:
    end, peer = connect(kind, "client")
    await peer.send(b"half")
    await arrived(end.sock, 4)
    assert not end.broken()
    peer.reset()
    await until(end.broken)
    assert isinstance(end.failure, ConnectionResetError)
    assert end.broken()
    assert bytes(end.read(READ)) == b"half"
    with pytest.raises(ConnectionResetError):
        end.read(READ)


@each_kind_of_tls
async def test_a_reset_after_close_notify_takes_nothing_away(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    await peer.send(b"all of it")
    await peer.finish()
    peer.reset()
    await until(end.broken)
    data = bytes(end.read(READ))
    if not end.eof:  # it is read record by record where records are short
        data += end.read(READ)
    assert data == b"all of it"
    assert end.eof
    assert end.failure is None


@each_kind_of_tls
async def test_what_came_before_a_broken_record_is_read_and_then_it_is_over(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    half = noise(2000)  # a short record is read by itself
    peer.tls.write(half)
    await Peer.send(peer, peer._outgoing.read() + b"GET / HTTP/1.1\r\n\r\n")
    await arrived(end.sock, 2040)
    assert bytes(end.read(READ)) == half
    assert end.eof
    assert isinstance(end.failure, ConnectionAbortedError)
    with pytest.raises(ssl.SSLError, match="ALERT"):
        await peer.receive()


@each_kind_of_tls
async def test_a_broken_record_is_raised_and_the_peer_is_told(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    await Peer.send(peer, b"GET / HTTP/1.1\r\n\r\n")
    await arrived(end.sock, 18)
    with pytest.raises(ConnectionAbortedError):
        end.read(READ)
    with pytest.raises(ssl.SSLError, match="ALERT"):
        await peer.receive()


@each_kind
async def test_only_buffers_can_have_read_something_ahead(connect: Connect, kind: Kind) -> None:
    end, _ = connect(kind, "client", ahead=b"" if kind == "plain" else b"hello")
    assert bytes(end.read_ahead()) == (b"hello" if kind == "buffered" else b"")
    assert bytes(end.read_ahead()) == b""
    assert not end.eof


async def test_an_end_may_have_been_read_ahead_too(connect: Connect) -> None:
    end, _ = connect("buffered", "client", ahead=b"hello", ahead_end=True)
    assert bytes(end.read_ahead()) == b"hello"
    assert end.eof


async def until_readable(end: End) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await readable(end.sock)


# Writing.


@each_kind
async def test_what_is_written_is_sent(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    assert written(end, b"hello") == 0
    assert end.backlog is None
    assert await peer.receive_exactly(5) == b"hello"


@each_kind
async def test_what_the_socket_does_not_take_is_kept_and_flushed_in_order(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client", sndbuf=SMALL, rcvbuf=SMALL)
    first, second = noise(300_000), b"and then this"
    assert written(end, first) > 0
    assert written(end, second) > 0
    _, received = await asyncio.gather(flushed(end), peer.receive_exactly(len(first) + len(second)))
    assert received == first + second
    end.flush()
    assert written(end, b"and it goes on") == 0


@each_kind
async def test_the_backlog_does_not_change_when_the_buffer_that_was_read_into_is_used_again(
    connect: Connect, kind: Kind
) -> None:
    source, sender = connect("plain", "client", rcvbuf=LARGE)
    end, peer = connect(kind, "client", sndbuf=SMALL, rcvbuf=SMALL)
    pieces = [noise(100_000), noise(100_000)[::-1]]
    for piece in pieces:
        await sender.send(piece)
        await arrived(source.sock, len(piece))
        end.write(source.read(READ_MAX))
    await sender.send(bytes(200_000))
    await arrived(source.sock, 200_000)
    source.read(READ_MAX)
    _, received = await asyncio.gather(flushed(end), peer.receive_exactly(200_000))
    assert received == b"".join(pieces)


@pytest.mark.parametrize("has_sendmsg", [True, False])
async def test_a_backlog_of_many_pieces_is_flushed_in_order(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, has_sendmsg: bool
) -> None:
    monkeypatch.setattr(ends, "_HAS_SENDMSG", has_sendmsg)
    end, peer = connect("plain", "client", sndbuf=SMALL, rcvbuf=SMALL)
    pieces = [noise(400_000), *(b"%d," % number for number in range(1000))]
    for piece in pieces:
        end.write(memoryview(piece))
    expected = b"".join(pieces)
    _, received = await asyncio.gather(flushed(end), peer.receive_exactly(len(expected)))
    assert received == expected


@each_kind
async def test_writing_to_a_broken_connection_raises(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    peer.reset()
    await until(end.broken)
    with pytest.raises(BrokenPipeError):
        end.write(memoryview(b"x"))
    assert end.backlog is None


@each_kind
async def test_a_connection_that_breaks_takes_its_backlog_with_it(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client", sndbuf=SMALL, rcvbuf=SMALL)
    assert written(end, noise(300_000)) > 0
    peer.reset()
    await until(end.broken)
    with pytest.raises(BrokenPipeError):
        end.flush()
    assert end.backlog is None
    end.flush()


@each_kind
async def test_finish_is_an_end_and_reading_goes_on(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    end.write(memoryview(b"bye"))
    end.finish()
    assert await peer.receive_all() == (b"bye", "end")
    await peer.send(b"not yet")
    await arrived(end.sock, 7)
    assert bytes(end.read(READ)) == b"not yet"


@each_kind
async def test_finish_waits_for_the_backlog(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client", sndbuf=SMALL, rcvbuf=SMALL)
    data = noise(300_000)
    assert written(end, data) > 0
    end.finish()
    _, received = await asyncio.gather(flushed(end), peer.receive_all())
    assert received == (data, "end")


@each_kind
async def test_only_the_first_finish_counts(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    end.finish()
    end.finish(clean=False)
    end.finish()
    assert await peer.receive_all() == (b"", "end")
    assert await Peer.receive(peer) == b""  # not one record after close_notify


@each_kind_of_tls
async def test_an_unclean_finish_can_be_told_by_tls(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    end.write(memoryview(b"half"))
    end.finish(clean=False)
    end.finish()
    assert await peer.receive_all() == (b"half", "truncated")


@each_kind
async def test_finish_after_a_reset_is_not_an_error_of_its_own(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    peer.reset()
    await until(end.broken)
    end.finish(clean=False)


@each_kind
async def test_a_reset_is_told_to_the_peer(connect: Connect, kind: Kind) -> None:
    end, peer = connect(kind, "client")
    end.reset()
    assert await peer.receive_all() == (b"", "reset")
    end.reset()  # not an error


# What TLS itself has to say.


async def test_a_key_update_is_answered_and_bytes_go_on(real_program: RealProgram, tmp_path: Path) -> None:
    """Python's ssl cannot ask for one; OpenSSL's own client does on a line that begins with K."""
    loop = asyncio.get_running_loop()
    for name, content in (("alice.crt", pki().client.pem), ("alice.key", pki().client.key_pem)):
        (tmp_path / name).write_bytes(content)
    upstream_sock, far = connected_sockets()
    upstream, ended, lingering = Peer(far), list[Reason](), set[Lingering]()
    with far, socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        options = f"-connect 127.0.0.1:{listening.getsockname()[1]} -cert alice.crt -key alice.key -quiet -msg"
        client = await asyncio.create_subprocess_exec(
            real_program("openssl"),
            "s_client",
            *options.split(),
            "-no_ign_eof",
            cwd=tmp_path,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert client.stdin is not None
        assert client.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            sock, _ = await loop.sock_accept(listening)
            sock.setblocking(False)
            tls = wrap(sock, server_contexts().by_name, server_side=True)
            await handshake(tls)
            relay = Relay(
                loop,
                TlsEnd(tls),
                PlainEnd(upstream_sock),
                cells=[0] * 8,
                base=0,
                on_end=lambda _, reason: ended.append(reason),
                lingering=lingering,
            )
            relay.start()
            client.stdin.write(b"before\n")
            assert await upstream.receive_exactly(7) == b"before\n"
            client.stdin.write(b"K\n")
            await client.stdout.readuntil(b">>> TLS 1.3, Handshake [length 0005], KeyUpdate")
            client.stdin.write(b"after\n")
            assert await upstream.receive_exactly(6) == b"after\n"
            await upstream.send(b"with new keys\n")
            # OpenSSL answers with the next data, as RFC 8446 4.6.3 asks for.
            await client.stdout.readuntil(b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate")
            await client.stdout.readuntil(b"\nwith new keys\n")
            client.stdin.close()
            await upstream.receive_all()
            await upstream.finish()
            await until(lambda: ended)
            await client.wait()
            await until(lambda: not lingering)


async def test_new_keys_that_are_asked_for_while_nothing_can_be_sent_break_nothing(
    connect: Connect, tmp_path: Path
) -> None:
    """Until the answer is out OpenSSL reads nothing. TCP may take a part; a unix socket takes a record or does not."""
    end, peer = connect("tls", "client", keys=tmp_path / "keys", family=socket.AF_UNIX)
    assert isinstance(peer, TlsPeer)
    updates = KeyUpdates(peer.tls, tmp_path / "keys")
    record, sent, received = noise(1000), 0, b""

    async def receive_some() -> None:
        """Of the first, one record, which makes room for one more and no others."""
        nonlocal received
        peer._incoming.write(await Peer.receive(peer, len(record) + 22))
        with contextlib.suppress(ssl.SSLWantReadError):
            while True:
                received += peer.tls.read(READ)

    while written(end, record) == 0:
        sent += 1
    sent += 1
    await receive_some()
    end.flush()
    assert not end.backlog
    await Peer.send(peer, b"".join(updates.records(1, ask=True)))
    await arrived(end.sock, 27)
    assert bytes(end.read(READ)) == b""
    assert written(end, record) > 0
    sent += 1
    await Peer.send(peer, updates.data(b"hello"))
    with pytest.raises(WriteFirstError):
        end.read(READ)
    while end.backlog:
        await receive_some()
        end.flush()
    assert bytes(end.read(READ)) == b"hello"
    while len(received) < len(record) * sent:
        await receive_some()
    assert received == record * sent


# Secrets.


async def test_no_end_shows_what_it_carries(connect: Connect) -> None:
    end, _ = connect("tls", "client")
    end.backlog = deque([b"secret"])
    assert "secret" not in repr(end)
