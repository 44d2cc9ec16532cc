"""The other end is Python's own ssl over memory buffers, so that the two cannot be wrong together."""

import contextlib
import os
import resource
import select
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from portguard.tls.peer import sent_chain, server_name, verified_chain
from portguard.tls.tls_socket import RECORD, TlsSocket, is_broken_off, prepare, wrap
from tests.peers import NAME, connected_sockets, pki, server_contexts, shake_hands_on
from tests.relayed import noise


@dataclass
class Joined:
    """A server's socket, and its client."""

    sock: TlsSocket
    far: socket.socket
    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    def send(self, data: bytes) -> None:
        """Have the client send `data`, and wait until it is there."""
        self.tls.write(data)
        self.far.sendall(self.outgoing.read())
        self.await_input()

    def await_input(self) -> None:
        assert select.select([self.sock], [], [], 10)[0]

    def receive(self, count: int) -> bytes:
        """What the client gets: `count` bytes, or all up to the close_notify."""
        received = b""
        while len(received) < count:
            try:
                data = self.tls.read(count - len(received))
            except ssl.SSLZeroReturnError:  # after its own
                break
            except ssl.SSLWantReadError:
                assert select.select([self.far], [], [], 10)[0]
                self.incoming.write(self.far.recv(65536))
                continue
            if not data:
                break
            received += data
        return received


@pytest.fixture
def joined() -> Iterator[Joined]:
    near, far = connected_sockets()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = pki().client_context().wrap_bio(incoming, outgoing, server_hostname=NAME)
    sock = wrap(near, server_contexts().by_name, server_side=True)
    with sock, far:
        shake_hands_on(sock, far, tls, incoming, outgoing)
        yield Joined(sock, far, tls, incoming, outgoing)


def read(sock: TlsSocket) -> bytes:
    """One record."""
    buffer = memoryview(bytearray(RECORD))
    return bytes(buffer[: sock.read_record(RECORD, buffer)])


def test_records_pass_both_ways(joined: Joined) -> None:
    joined.send(b"hello")
    assert read(joined.sock) == b"hello"
    assert joined.sock.write_records(b"back") == 4
    assert joined.receive(4) == b"back"


def test_a_read_takes_a_whole_record_and_leaves_the_next_one_in_the_socket(joined: Joined) -> None:
    joined.send(noise(RECORD))
    joined.send(b"next")
    assert read(joined.sock) == noise(RECORD)
    assert joined.sock.pending() == 0
    joined.await_input()
    assert read(joined.sock) == b"next"


def test_nothing_to_read_is_told(joined: Joined) -> None:
    with pytest.raises(ssl.SSLWantReadError):
        read(joined.sock)


def test_a_write_that_fills_the_socket_goes_on_with_the_same_data(joined: Joined) -> None:
    data, received, blocked = noise(8_000_000), b"", 0
    while True:
        try:
            assert joined.sock.write_records(data) == len(data)
            break
        except ssl.SSLWantWriteError:
            blocked += 1
            received += joined.receive(RECORD)
    assert blocked
    assert received + joined.receive(len(data) - len(received)) == data


def test_with_other_data_it_does_not(joined: Joined) -> None:
    with pytest.raises(ssl.SSLWantWriteError):
        joined.sock.write_records(noise(8_000_000))
    with pytest.raises(ssl.SSLError, match=r"BAD_LENGTH|BAD_WRITE_RETRY"):
        joined.sock.write_records(b"other")


def test_the_peer_is_known(joined: Joined) -> None:
    assert server_name(joined.sock) == NAME
    assert verified_chain(joined.sock) == (pki().client.der, pki().authority.der)
    assert sent_chain(joined.sock)[0] == pki().client.der


def test_close_notify_is_answered_as_bytes_that_end_what_the_peer_reads(joined: Joined) -> None:
    joined.sock.write_records(b"bye")
    notice = joined.sock.close_notify()
    assert joined.sock.send_raw(notice) == len(notice)
    assert joined.receive(1000) == b"bye"


def test_what_the_peer_sends_meanwhile_is_not_lost_to_close_notify(joined: Joined) -> None:
    joined.send(b"on its way")
    joined.sock.send_raw(joined.sock.close_notify())
    joined.send(b"and more")
    assert read(joined.sock) == b"on its way"
    assert read(joined.sock) == b"and more"
    with contextlib.suppress(ssl.SSLWantReadError):
        joined.tls.unwrap()
    joined.far.sendall(joined.outgoing.read())
    joined.await_input()
    with pytest.raises(ssl.SSLZeroReturnError):
        read(joined.sock)


def test_who_the_peer_is_stays_known_when_both_have_ended(joined: Joined) -> None:
    with contextlib.suppress(ssl.SSLWantReadError):
        joined.tls.unwrap()
    joined.far.sendall(joined.outgoing.read())
    joined.await_input()
    assert read(joined.sock) == b""
    assert joined.sock.close_notify()
    assert verified_chain(joined.sock) == (pki().client.der, pki().authority.der)


def test_close_notify_leaves_the_socket_as_it_was(joined: Joined) -> None:
    number, name = joined.sock.fileno(), joined.sock.getpeername()
    watched = select.epoll()
    watched.register(joined.sock, select.EPOLLIN)
    joined.sock.send_raw(joined.sock.close_notify())
    assert (joined.sock.fileno(), joined.sock.getpeername()) == (number, name)
    assert not os.get_inheritable(number)
    joined.send(b"hello")
    assert watched.poll(10) == [(number, select.EPOLLIN)]
    watched.close()


def test_close_notify_holds_no_connection_open(joined: Joined) -> None:
    joined.sock.close_notify()
    joined.sock.close()
    assert select.select([joined.far], [], [], 10)[0]
    assert joined.far.recv(1) == b""


def test_close_notify_needs_no_descriptor(joined: Joined) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (joined.sock.fileno() + 20, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        notice = joined.sock.close_notify()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
    assert notice


def test_after_a_failure_there_is_nothing_to_notify(joined: Joined) -> None:
    joined.far.sendall(b"GET / HTTP/1.1\r\n\r\n")
    joined.await_input()
    with pytest.raises(ssl.SSLError) as failed:
        read(joined.sock)
    assert not is_broken_off(failed.value)
    assert joined.sock.close_notify() == b""


def test_shutting_tcp_down_leaves_tls_readable(joined: Joined) -> None:
    joined.sock.shutdown(socket.SHUT_WR)
    joined.send(b"still here")
    assert read(joined.sock) == b"still here"


def test_an_end_without_close_notify_is_told_from_one_with_it(joined: Joined) -> None:
    joined.far.shutdown(socket.SHUT_WR)
    joined.await_input()
    with pytest.raises(ssl.SSLError) as ended:
        read(joined.sock)
    assert is_broken_off(ended.value)


def test_a_peer_that_is_gone_before_the_handshake_is_an_error_of_the_connection() -> None:
    near, far = connected_sockets()
    far.close()
    context = pki().client_context()
    prepare(context)
    near.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OSError, match=r"not connected|Broken pipe"), wrap(near, context, server_hostname=NAME) as sock:
        sock.do_handshake()
