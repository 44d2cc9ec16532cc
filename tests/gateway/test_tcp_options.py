import socket

import pytest

from portguard.gateway.tcp_options import ensure_tcp_options, set_tcp_options
from tests.tcp_options import WANTED_TCP_OPTIONS, tcp_options


class Counting(socket.socket):
    """A socket that counts how often an option was set."""

    count = 0

    def setsockopt(self, *option):
        self.count += 1
        super().setsockopt(*option)


def accepted(listening: socket.socket) -> socket.socket:
    with socket.create_connection(listening.getsockname()):
        sock, _ = listening.accept()
    return Counting(fileno=sock.detach())


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_what_is_accepted_has_the_options_of_the_socket_that_listened_and_they_are_not_set_again(listening):
    set_tcp_options(listening)
    with accepted(listening) as sock:
        assert tcp_options(sock) == WANTED_TCP_OPTIONS
        ensure_tcp_options(sock)
        assert sock.count == 0


def test_who_came_before_the_options_were_set_has_them_all_the_same(listening):
    with socket.create_connection(listening.getsockname()):
        set_tcp_options(listening)
        sock, _ = listening.accept()
    with sock:
        assert tcp_options(sock) != WANTED_TCP_OPTIONS
        ensure_tcp_options(sock)
        assert tcp_options(sock) == WANTED_TCP_OPTIONS


def test_a_listener_that_has_some_of_the_options_by_others_is_not_taken_for_ours(listening):
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with accepted(listening) as sock:
        ensure_tcp_options(sock)
        assert tcp_options(sock) == WANTED_TCP_OPTIONS
