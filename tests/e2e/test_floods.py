"""Strangers in numbers, and strangers who wait: what they can take is bounded, and others are served meanwhile."""

import contextlib
import os
import socket
import ssl
import time

import pytest

from tests.strangers import client_hello, raw
from tests.unharmed import echoes, unharmed, warm_up

_PER_ADDRESS = 32  # the default


def echoes_from(gateway, source):
    """Check that alice has bytes echoed when she comes from that address."""
    with (
        raw(gateway, source) as sock,
        gateway.context("alice").wrap_socket(sock, server_hostname="echo.gw.localhost") as client,
    ):
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        client.unwrap()


def is_turned_away(sock):
    """Whether the gateway has ended the connection without a word."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


def test_five_hundred_bad_connections_leave_a_short_log_and_let_others_in(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    warm_up(gateway)
    name = b"echo.gw.localhost"
    kinds = [
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(1000),
        client_hello().replace(name, b"\xff" * len(name)),
        client_hello()[:100],
        b"",
    ]
    with unharmed(gateway):
        for number in range(500):
            with raw(gateway) as sock:
                sock.sendall(kinds[number % len(kinds)])
                sock.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    while sock.recv(1000):
                        pass
            if number % 50 == 0:
                echoes(gateway)
    gateway.wait_for_log("handshake.fail.flood held_back=")
    gateway.wait_for_log("handshake.server_name ")


def test_handshakes_that_stall_are_bounded_for_each_address(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, configuration='[timeouts]\nhandshake = "5m"')
    warm_up(gateway)
    with unharmed(gateway), contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(raw(gateway)) for _ in range(200)]
        gateway.wait_for_log("connection.refuse .*source=127.0.0.1 reason=address_limit")
        for sock in stalled:
            sock.setblocking(False)
        # 20 were let into the log, and the rest was counted.
        gateway.wait_for_log("connection.refuse.flood held_back=")
        gateway.program.wait_until(
            lambda: sum(map(is_turned_away, stalled)) == len(stalled) - _PER_ADDRESS, "it turned the others away"
        )
        with pytest.raises(OSError, match=r"EOF|reset"):
            gateway.connect("echo")
        echoes_from(gateway, "127.0.0.2")
        for sock in stalled[:_PER_ADDRESS]:
            sock.close()
        gateway.program.wait_until(lambda: _is_served(gateway), "it served that address again")


def _is_served(gateway):
    try:
        echoes(gateway)
    except OSError:
        return False
    return True


def test_an_exempt_address_may_stall_as_often_as_the_gateway_can_bear(start_gateway, echo):
    capacity = """
[timeouts]
handshake = "5m"
[capacity]
max_sessions = 100
pending_handshakes = 50
pending_handshakes_per_address = 10
pending_handshakes_exempt = ["127.0.0.3/32"]"""
    gateway = start_gateway({"echo": echo}, configuration=capacity)
    warm_up(gateway)
    with unharmed(gateway), contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(raw(gateway, "127.0.0.3")) for _ in range(49)]
        echoes_from(gateway, "127.0.0.3")
        stack.enter_context(raw(gateway, "127.0.0.3"))
        refused = stack.enter_context(raw(gateway, "127.0.0.2"))
        assert is_turned_away(refused)
        gateway.wait_for_log("connection.refuse source=127.0.0.2 reason=gateway_full .*50 handshakes are under way")
        for sock in stalled:
            sock.close()
        gateway.program.wait_until(lambda: _is_served(gateway), "it served another address again")


def nothing(gateway):
    return raw(gateway)


def half_a_hello(gateway):
    sock = raw(gateway)
    sock.sendall(client_hello()[:100])
    return sock


def a_hello_and_no_more(gateway):
    sock = raw(gateway)
    sock.sendall(client_hello())
    return sock


@pytest.fixture(scope="module")
def hasty(start_gateway_for_module, echo):
    """A gateway that waits one second for whatever is to come."""
    gateway = start_gateway_for_module(
        {"echo": echo}, configuration='[timeouts]\nhandshake = "1s"\nrequest = "1s"\n[log]\nlevel = "debug"'
    )
    warm_up(gateway)
    return gateway


@pytest.fixture
def gateway(hasty):
    with unharmed(hasty):
        yield hasty.from_now()


@pytest.mark.parametrize("step", [nothing, half_a_hello, a_hello_and_no_more], ids=lambda step: step.__name__)
def test_a_handshake_that_stalls_is_ended(gateway, step):
    with step(gateway) as sock:
        gateway.wait_for_log("handshake.fail .*source=127.0.0.1 reason=handshake_timeout")
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(65536):
                pass


def test_a_handshake_that_drips_gets_no_more_time(gateway):
    hello = client_hello()
    with raw(gateway) as sock:
        for byte in hello:
            echoes(gateway)
            try:
                sock.send(bytes([byte]))
            except OSError:
                break
            if "handshake_timeout" in gateway.log:
                break
        else:
            pytest.fail("expected the end of a handshake that took long, got none")
    gateway.wait_for_log("handshake.fail .*reason=handshake_timeout")


@pytest.mark.parametrize("sent", [b"", b"CONNECT echo HTTP/1.1\r\nHos"], ids=["nothing", "half"])
def test_a_request_that_stalls_is_refused_with_words(gateway, sent):
    with gateway.connect_with(gateway.context("alice"), None) as client:
        if sent:
            client.sendall(sent)
        answer = b""
        while data := client.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"reason":"request_timeout"' in answer
    gateway.wait_for_log("session.refuse .*identity=alice .*reason=request_timeout")


def test_a_session_may_be_silent_for_longer_than_a_handshake_may(gateway):
    with gateway.connect("echo") as client:
        client.sendall(b"one")
        assert client.recv(10) == b"one"
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            echoes(gateway)
        client.sendall(b"two")
        assert client.recv(10) == b"two"
        client.unwrap()


def test_refusals_that_nobody_reads_do_not_pile_up(gateway):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(gateway.connect("echo", "bob")) for _ in range(_PER_ADDRESS - 2)]
        gateway.wait_for_log("session.refuse .*identity=bob .*reason=no_role")
        echoes_from(gateway, "127.0.0.2")
        for client in clients[:3]:
            with pytest.raises(ssl.SSLError):
                client.recv(1)
