"""Requests that two readers could read in two ways, or that ask for what nobody may have: refused, and told why.

The client is alice, who may reach `echo`; what she asks for wrongly reaches nobody.
"""

import json
import os
import socket
import ssl

import pytest

from tests.unharmed import echoes, unharmed, warm_up


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, echo):
    gateway = start_gateway_for_module({"echo": f'upstream = ["{echo}"]\nlocal_port = 7', "untouched": "127.0.0.1:1"})
    warm_up(gateway)
    return gateway


@pytest.fixture
def gateway(shared):
    with unharmed(shared):
        yield shared.from_now()


def client_of(gateway):
    return gateway.connect_with(gateway.context("alice", "http/1.1"), None)


def read_head(client):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        assert byte, f"expected a whole head, got {head!r} and the end"
        head += byte
    return head


def answer_to(gateway, *pieces):
    """The whole answer to a request that comes in these pieces."""
    with client_of(gateway) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        answer = b""
        while data := client.recv(65536):
            answer += data
        return answer


def refusal_of(gateway, *pieces):
    """Status and JSON of the one answer to a request that is refused."""
    answer = answer_to(gateway, *pieces)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer.count(b"\r\n\r\n") == 1
    document = json.loads(body)
    assert document["session"]
    return int(head.split()[1]), document


_HOST = b"Host: echo:7\r\n"


# The first test, because the log of the gateway that they share lets only twenty refusals through at once.
def test_what_was_wrong_is_told_in_the_log_with_nothing_raw_in_it(gateway):
    refusal_of(gateway, b"CONNECT \x1b[31m HTTP/1.1\r\n" + _HOST + b"\r\n")
    gateway.wait_for_log(r"session.refuse .*identity=alice .*reason=bad_request message=\"expected .* got .*x1b")
    refusal_of(gateway, b"CONNECT [::1]:7 HTTP/1.1\r\n" + _HOST + b"\r\n")
    gateway.wait_for_log("session.refuse .*identity=alice .*reason=bad_request .*got an IPv6 address")


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (
            b"CONNECT echo:7 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            b"POST /v1/renew HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"CONNECT echo:7 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"CONNECT echo:7 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"CONNECT echo:7 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"POST /v1/renew HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST /v1/renew HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"CONNECT echo:7 HTTP/1.1\r\nHost: a\r\nX: a\r\n folded\r\n\r\n", 400),
        (b"CONNECT echo:7 HTTP/1.1\nHost: a\n\n", 400),
        (b"CONNECT echo:7 HTTP/1.1\r\nHost: a\r\nX: a\nY: b\r\n\r\n", 400),
        (b"CONNECT echo:7 HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
        (b"CONNECT echo:7 HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400),
        (b"CONNECT echo:7 HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"CONNECT echo:7 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"CONNECT echo:7 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT echo:7 HTTP/1.0\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT echo:7 HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT  echo:7 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b" CONNECT echo:7 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\r\n\r\nCONNECT echo:7 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT echo:7\r\n\r\n", 400),
        (b"CONNECT echo:7 HTTP/1.1\r\nHost: a\r\nOrigin: https://evil.example\r\n\r\n", 403),
        (b"CONNECT echo:7 HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"CONNECT " + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"CONNECT echo:7 HTTP/1.1\r\n" + b"X: a\r\n" * 4000 + b"\r\n", 431),
        (b"POST /v1/renew HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"GET http://echo/ HTTP/1.1\r\nHost: echo\r\n\r\n", 400),
        (b"GET http://127.0.0.1:7/ HTTP/1.1\r\nHost: echo\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: echo\r\n\r\n", 404),
        (b"OPTIONS * HTTP/1.1\r\nHost: echo\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, bytes) else None,
)
def test_a_request_that_is_not_plainly_one_is_refused(gateway, request_bytes, expected):
    status, document = refusal_of(gateway, request_bytes)
    assert (status, document["reason"]) == (expected, "bad_request")


@pytest.mark.parametrize(
    "target",
    [
        b"http://echo:7/",
        b"https://echo:7",
        b"//echo:7",
        b"/echo",
        b"*",
        b"echo:7/path",
        b"user@echo:7",
        b"[::1]:7",
        b"[::ffff:127.0.0.1]:7",
        b"::1",
        b"fe80::1%25lo:7",
        b"127.0.0.1:7",
        b"0x7f000001:7",
        b"2130706433:7",
        b"127.1:7",
        b"echo:",
        b"echo:0",
        b"echo:65536",
        b"echo:+7",
        b"echo:07",
        b"echo:7:7",
        b"echo..:7",
        b".echo:7",
        b"ech%6f:7",
        b"localhost:7",
        b"echo.example.com:7",
    ],
)
def test_a_target_that_is_not_a_service_s_name_leads_nowhere(gateway, target):
    status, document = refusal_of(gateway, b"CONNECT " + target + b" HTTP/1.1\r\nHost: echo\r\n\r\n")
    assert (status, document["reason"]) in {(400, "bad_request"), (404, "unknown_service")}


def tunnel(gateway, *pieces):
    """A client whose request, in these pieces, was answered with 200; it is at the end of the answer's head."""
    client = client_of(gateway)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        client.sendall(piece)
    head = read_head(client)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nPortguard-Session: " in head
    return client


def receive(client, count):
    received = b""
    while len(received) < count:
        data = client.recv(count - len(received))
        assert data, f"expected {count} bytes, got {len(received)}"
        received += data
    return received


_CONNECT = b"CONNECT echo:7 HTTP/1.1\r\n" + _HOST + b"User-Agent: test\r\n\r\n"


def test_a_request_in_single_bytes_opens_a_tunnel(gateway):
    with tunnel(gateway, *(bytes([byte]) for byte in _CONNECT)) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
        client.unwrap()


@pytest.mark.parametrize("cut", [1, 7, 22, 23, len(_CONNECT) - 3, len(_CONNECT) - 1])
def test_a_request_in_two_pieces_opens_a_tunnel(gateway, cut):
    with tunnel(gateway, _CONNECT[:cut], _CONNECT[cut:] + b"early") as client:
        assert receive(client, 5) == b"early"
        client.unwrap()


def test_a_request_of_nearly_the_longest_size_opens_a_tunnel(gateway):
    padding = b"X: " + b"a" * (16 * 1024 - len(_CONNECT) - 5) + b"\r\n"
    with tunnel(gateway, _CONNECT[:-2] + padding + b"\r\n") as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
        client.unwrap()
    status, _ = refusal_of(gateway, _CONNECT[:-2] + b"Y: b\r\n" + padding + b"\r\n")
    assert status == 431


def test_what_follows_the_request_is_the_service_s_even_if_it_is_another_request(gateway):
    second = b"CONNECT untouched HTTP/1.1\r\nHost: untouched\r\n\r\n"
    early = second + os.urandom(100_000)
    with tunnel(gateway, _CONNECT + early) as client:
        assert receive(client, len(early)) == early
        client.unwrap()
    gateway.wait_for_log(f"session.close .*service=echo .*received={len(early)} sent={len(early)} ")
    assert "service=untouched" not in gateway.log


def test_one_question_a_connection_is_answered(gateway):
    question = b"GET /v1/services/echo HTTP/1.1\r\nHost: a\r\n\r\n"
    answer = answer_to(gateway, question * 3)
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert answer.count(b'"service":"echo"') == 1


def test_a_client_that_ends_in_the_middle_of_its_request_is_no_fault(gateway):
    with client_of(gateway) as client:
        client.sendall(_CONNECT[:20])
        with pytest.raises(ssl.SSLError):  # there was no session to end well
            client.unwrap()
    with client_of(gateway) as client:
        client.sendall(_CONNECT[:20])
    echoes(gateway)


def test_by_name_nothing_is_read_as_a_request(gateway):
    with gateway.connect("echo") as client:
        client.sendall(_CONNECT)
        assert receive(client, len(_CONNECT)) == _CONNECT
        client.unwrap()


def test_http_2_is_not_offered(gateway):
    with gateway.connect_with(gateway.context("alice", "h2"), None) as client:
        assert client.selected_alpn_protocol() is None
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    with pytest.raises(ssl.SSLError), gateway.connect_with(gateway.context(None, "h2"), None) as client:
        client.recv(1)
