"""What strangers send where a TLS handshake is expected: each is refused, and others are served meanwhile.

The tests share a gateway, whose log lets only twenty of a kind through at once: none may cause many. Floods are in
test_floods.py.
"""

import contextlib
import os
import select
import socket
import ssl
import subprocess

import pytest

from tests.patience import PATIENCE_S
from tests.strangers import client_hello, raw, reset
from tests.unharmed import echoes, unharmed, warm_up

_ALERT = b"\x15\x03"  # how a record with an alert begins


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, echo):
    gateway = start_gateway_for_module({"echo": echo}, configuration='[log]\nlevel = "debug"')
    warm_up(gateway)
    return gateway


@pytest.fixture
def gateway(shared):
    with unharmed(shared):
        yield shared.from_now()


def answer_to(gateway, data):
    """What the gateway says to `data` before it ends the connection."""
    with raw(gateway) as sock:
        sock.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(65536):
                answer += piece
        return answer


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GET / HTTP/1.1\r\nHost: gw.localhost\r\n\r\n", "http request"),
        (b"CONNECT echo:80 HTTP/1.1\r\n\r\n", "https proxy request"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "wrong version number"),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 50000 443\r\n" + client_hello(), "wrong version number"),
        (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + client_hello(), ""),
        (bytes(100), ""),
        (b"\xff" * 5000, ""),
        (b"\x16\x03\x01\x40\x01" + bytes(0x4001), ""),
        (client_hello()[:5] + b"\x02" + client_hello()[6:], ""),
    ],
    ids=["http", "connect", "ssh", "proxy-v1", "proxy-v2", "zeros", "ones", "too-long-a-record", "server-hello"],
)
def test_what_is_no_client_hello_is_refused(gateway, data, message):
    answer = answer_to(gateway, data)
    assert answer == b"" or answer.startswith(_ALERT)
    gateway.wait_for_log(f'handshake.fail .*source=127.0.0.1 reason=handshake_failed message="?{message}')


def test_random_bytes_are_refused(gateway):
    for length in (1, 2, 5, 6, 100, 5000):
        with raw(gateway) as sock:
            sock.sendall(b"\x80" + os.urandom(length - 1))
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert len(sock.recv(100)) < 20
    gateway.wait_for_log(r"handshake.fail .*reason=handshake_failed|connection.gone ", count=6)


def test_half_a_client_hello_and_the_end_is_no_fault(gateway):
    hello = client_hello()
    for length in (0, 1, 4, 5, 6, len(hello) // 2, len(hello) - 1):
        with raw(gateway) as sock:
            sock.sendall(hello[:length])
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) in (b"", _ALERT[:1])
    gateway.wait_for_log("connection.gone .*expected the rest of a TLS handshake", count=7)


def test_a_client_hello_in_single_bytes_is_read(gateway):
    with raw(gateway) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in client_hello():
            sock.send(bytes([byte]))
        assert sock.recv(1) == b"\x16"  # a handshake record: its own hello
        reset(sock)
    gateway.wait_for_log("connection.gone ")


# Server names. Python's client sends none that is odd, so a recorded one is replaced by another of its length.

_NAME = b"a" * 16 + b".gw.localhost"


def with_name(name):
    hello = client_hello(_NAME.decode())
    assert hello.count(_NAME) == 1
    assert len(name) == len(_NAME)
    return hello.replace(_NAME, name)


@pytest.mark.parametrize(
    "name",
    [b"\xff" * 29, "é".encode() * 14 + b"x", b"a" * 28 + b"\x80", b"\x1b[31m\xc3\x28" + b"a" * 22],
    ids=["ones", "utf-8", "last", "terminal"],
)
def test_a_server_name_that_is_not_ascii_is_counted_and_prints_nothing(gateway, name):
    assert answer_to(gateway, with_name(name)).startswith(_ALERT)
    gateway.wait_for_log("handshake.server_name .*expected a server name in ASCII")
    gateway.wait_for_log("handshake.fail .*reason=handshake_failed message=.callback failed")


def test_a_server_name_with_a_nul_is_refused(gateway):
    assert answer_to(gateway, with_name(b"echo.gw.localhost" + bytes(12))).startswith(_ALERT)
    gateway.wait_for_log("handshake.fail .*reason=handshake_failed")


def test_a_server_name_is_shown_without_what_a_terminal_would_obey(gateway):
    context = gateway.context("alice")
    context.check_hostname = False
    with gateway.connect_with(context, "a\x1b[31mb\nc") as client, pytest.raises(ssl.SSLError):
        client.recv(1)
    gateway.wait_for_log(r"session.refuse .*there is no service called a\?\[31mb\?c")


@pytest.mark.parametrize(
    "name",
    ["a b", 'x" reason=forged', "a\nb", "\x1b[31mred\x1b[0m", "%s%n", "*", "[::1]", "127.0.0.1", "-", "_", "a" * 63],
)
def test_an_odd_server_name_means_no_service_whoever_asks(gateway, name):
    context = gateway.context("alice")
    context.check_hostname = False
    with gateway.connect_with(context, name) as client, pytest.raises(ssl.SSLError):
        client.recv(1)
    gateway.wait_for_log("session.refuse .*identity=alice .*reason=unknown_service")


# What TLS 1.3 has for clients that were here before.


@pytest.fixture
def s_client(real_program):
    """`s_client(gateway, *options)` says GET as alice, and returns all that openssl printed."""
    program = real_program("openssl")

    def run(gateway, *options, port=None):
        certificate, key = gateway.certificate("alice")
        command = [program, "s_client", "-connect", f"127.0.0.1:{port or gateway.port}", "-CAfile", str(gateway.ca)]
        command += ["-cert", str(certificate), "-key", str(key), "-servername", "echo.gw.localhost", *options]
        done = subprocess.run(command, input=b"GET /\r\n\r\n", capture_output=True, check=False, timeout=PATIENCE_S)
        return (done.stdout + done.stderr).decode(errors="replace")

    return run


@pytest.fixture
def ticket(start, free_port, s_client, gateway, real_program, tmp_path):
    """A session of another server of the gateway's name, which takes early data: openssl saves none of the gateway's.

    To the gateway it is what a forged one is.
    """
    port, path = free_port(), tmp_path / "session.pem"
    command = [real_program("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-www", "-max_early_data", "16384"]
    certificate = ["-cert", str(gateway.folder / "gateway.crt"), "-key", str(gateway.folder / "gateway.key")]
    start([*command, *certificate]).wait_until_it_listens(("127.0.0.1", port))
    s_client(gateway, "-sess_out", str(path), "-ign_eof", port=port)  # the answer comes after the ticket
    assert "Reused, TLSv1.3" in s_client(gateway, "-sess_in", str(path), "-sess_out", str(path), "-ign_eof", port=port)
    return path


def test_no_session_is_handed_out_to_be_resumed(gateway, s_client, tmp_path):
    path = tmp_path / "session.pem"
    assert "New, TLSv1.3" in s_client(gateway, "-sess_out", str(path))
    assert not path.exists()


def test_a_ticket_of_somebody_else_s_is_not_resumed(gateway, s_client, ticket):
    said = s_client(gateway, "-sess_in", str(ticket))
    assert "New, TLSv1.3" in said
    assert "Reused" not in said
    gateway.wait_for_log("session.close .*identity=alice .*received=9 ")


def test_early_data_is_thrown_away(gateway, s_client, ticket, tmp_path):
    early = tmp_path / "early"
    early.write_bytes(b"DELETE everything\n")
    said = s_client(gateway, "-sess_in", str(ticket), "-early_data", str(early))
    assert "Early data was rejected" in said
    gateway.wait_for_log("session.close .*identity=alice .*received=9 sent=9 ")


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-tls1_2"])
def test_no_older_version_is_spoken(gateway, s_client, version):
    said = s_client(gateway, version, "-cipher", "DEFAULT@SECLEVEL=0")
    assert "alert protocol version" in said
    gateway.wait_for_log('handshake.fail .*reason=handshake_failed message="unsupported protocol"')


# Connections that are reset, after each step.


def connected(gateway):
    return raw(gateway)


def hello_sent(gateway):
    sock = raw(gateway)
    sock.sendall(client_hello())
    return sock


def hello_answered(gateway):
    sock = hello_sent(gateway)
    sock.recv(1)
    return sock


def hands_shaken(gateway):
    return gateway.connect("echo")


def refused(gateway):
    return gateway.connect("echo", "bob")


def connect_sent(gateway):
    client = gateway.connect_with(gateway.context("alice"), None)
    client.sendall(b"CONNECT echo HTTP/1.1\r\nHost: echo\r\n\r\n")
    return client


def half_a_request_sent(gateway):
    client = gateway.connect_with(gateway.context("alice"), None)
    client.sendall(b"CONNECT echo HTTP/1.1\r\nHos")
    return client


def bad_request_sent(gateway):
    client = gateway.connect_with(gateway.context("alice"), None)
    client.sendall(b"CONNECT nope HTTP/1.1\r\nHost: nope\r\n\r\n")
    return client


def bytes_echoed(gateway):
    client = gateway.connect("echo")
    client.sendall(b"hello")
    client.recv(5)
    return client


def bytes_under_way(gateway):
    """Both ways are full, and the service is stuck with sending."""
    client = gateway.connect("echo")
    client.setblocking(False)
    while select.select([], [client], [], 0.3)[1]:
        with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
            client.send(bytes(65536))
    return client


def half_closed(gateway):
    client = gateway.connect("echo")
    client.shutdown(socket.SHUT_WR)
    return client


_STEPS = [
    connected,
    hello_sent,
    hello_answered,
    hands_shaken,
    refused,
    connect_sent,
    half_a_request_sent,
    bad_request_sent,
    bytes_echoed,
    bytes_under_way,
    half_closed,
]


@pytest.mark.parametrize("step", _STEPS, ids=lambda step: step.__name__)
def test_a_reset_does_no_harm(gateway, step):
    for _ in range(3):
        reset(step(gateway))
    echoes(gateway)


@pytest.mark.parametrize(
    ("step", "logged"),
    [
        (hello_answered, "connection.gone "),
        (half_a_request_sent, "connection.gone .*identity=alice"),
        (bytes_echoed, "session.close .*received=5 sent=5 .*reason=client_reset"),
        (bytes_under_way, "session.close .*reason=client_reset"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_reset_is_told_in_the_log(gateway, step, logged):
    reset(step(gateway))
    gateway.wait_for_log(logged)
