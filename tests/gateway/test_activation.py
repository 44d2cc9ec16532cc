"""Sockets that systemd hands over: received whole, and put where the configuration wants them."""

import contextlib
import os
import socket

import pytest

from portguard.errors import ConfigurationError
from portguard.gateway import activation
from portguard.gateway.activation import GATEWAY, METRICS, HandedOver, Wanted, assign, receive
from portguard.policy.addresses import ListenAddress

PID = 4711


@pytest.fixture
def sockets():
    made = []

    def listening(host="127.0.0.1", *, v6only=True, listen=True, kind=socket.SOCK_STREAM):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
        made.append(sock)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        sock.bind((host, 0))
        if listen and kind == socket.SOCK_STREAM:
            sock.listen()
        return sock

    yield listening
    for sock in made:
        sock.close()


@pytest.fixture
def hand_over(monkeypatch):
    """`hand_over(sock, …)` gives copies of sockets descriptors in a row, and returns the environment for them."""
    taken = []

    def run(*given, **changes):
        # Descriptor 3 is somebody else's in this process: the copies get numbers that follow each other elsewhere.
        first = 700
        monkeypatch.setattr(activation, "_FIRST", first)
        for number, one in enumerate(given, first):
            os.dup2(one if isinstance(one, int) else one.fileno(), number, inheritable=True)
            taken.append(number)
        environment = {"LISTEN_PID": str(PID), "LISTEN_FDS": str(len(given)), "HOME": "/root"}
        return environment | {f"LISTEN_{key}": value for key, value in changes.items()}

    yield run
    for number in taken:
        with contextlib.suppress(OSError):  # most tests close it themselves
            os.close(number)


def address(sock):
    host, port = sock.getsockname()[:2]
    return ListenAddress(host, port)


def close(received):
    for one in received:
        one.sock.close()


def problem(environment):
    with pytest.raises(ConfigurationError) as raised:
        receive(environment, PID)
    return str(raised.value)


def test_sockets_are_received_with_their_names_and_no_child_gets_them(sockets, hand_over):
    one, two = sockets(), sockets("::1")
    environment = hand_over(one, two, FDNAMES="gateway:portguard.socket")
    received = receive(environment, PID)
    assert [(entry.name, entry.address) for entry in received] == [
        ("gateway", address(one)),
        ("portguard.socket", address(two)),
    ]
    assert environment == {"HOME": "/root"}
    for entry in received:
        assert not os.get_inheritable(entry.sock.fileno())
        assert not entry.sock.getblocking()
    with socket.create_connection(one.getsockname()):
        accepted, _ = received[0].sock.accept()
        accepted.close()
    close(received)


def test_sockets_without_names_have_none(sockets, hand_over):
    received = receive(hand_over(sockets()), PID)
    assert [entry.name for entry in received] == [""]
    close(received)


@pytest.mark.parametrize("environment", [{}, {"LISTEN_PID": "4711"}, {"LISTEN_PID": "4711", "LISTEN_FDS": "0"}])
def test_without_sockets_there_are_none(environment):
    assert receive(environment, PID) == ()
    assert environment == {}


@pytest.mark.parametrize("meant", ["4712", "", "x"])
def test_what_another_process_was_meant_to_get_is_left_alone(sockets, hand_over, meant):
    environment = hand_over(sockets(), PID=meant)
    assert receive(environment, PID) == ()
    assert environment == {"HOME": "/root"}
    os.fstat(700)  # still open: it is whoever's inherited it


@pytest.mark.parametrize("count", ["-1", "two", "", "4097", "²"])
def test_a_count_that_is_none_is_an_error(count):
    said = problem({"LISTEN_PID": str(PID), "LISTEN_FDS": count})
    assert said == f"socket activation: LISTEN_FDS: expected a number of descriptors up to 4096, got {count}"


def test_too_few_names_are_an_error(sockets, hand_over):
    said = problem(hand_over(sockets(), sockets(), FDNAMES="gateway"))
    assert said == "socket activation: LISTEN_FDNAMES: expected as many names as LISTEN_FDS says, 2, got 1"


def test_everything_that_does_not_listen_is_named_in_one_go(sockets, hand_over, tmp_path):
    good, idle, udp, dual = (
        sockets(),
        sockets(listen=False),
        sockets(kind=socket.SOCK_DGRAM),
        sockets("::", v6only=False),
    )
    with socket.socket(socket.AF_UNIX) as unix, (tmp_path / "file").open("w") as file:
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        environment = hand_over(good, idle, udp, dual, unix, file.fileno(), FDNAMES="a:b:c:d:e:f") | {"LISTEN_FDS": "7"}
        said = problem(environment | {"LISTEN_FDNAMES": "a:b:c:d:e:f:g"})
    assert said.splitlines() == [
        "socket activation: descriptor 701 (b): expected a socket that listens (Accept=no), got one that does not",
        "socket activation: descriptor 702 (c): expected a TCP socket, got one of SOCK_DGRAM",
        "socket activation: descriptor 703 (d): expected an IPv6 socket that takes IPv6 only (BindIPv6Only=ipv6-only), "
        "got one that takes IPv4 too",
        "socket activation: descriptor 704 (e): expected a TCP socket, got one of AF_UNIX",
        "socket activation: descriptor 705 (f): expected a socket, got socket operation on non-socket",
        "socket activation: descriptor 706 (g): expected a socket, got bad file descriptor",
    ]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(700)  # the good one is closed too


OUTSIDE, INSIDE, WATCHED, OWN = (
    ListenAddress(*parts) for parts in (("0.0.0.0", 8443), ("::", 8443), ("127.0.0.1", 9847), ("10.0.0.1", 5432))
)
WANTED = [Wanted(GATEWAY, OUTSIDE), Wanted(GATEWAY, INSIDE), Wanted("orders-db", OWN), Wanted(METRICS, WATCHED)]


class Sock:
    """Stands for a socket: all that `assign` does with one is to close it."""

    closed = False

    def close(self):
        self.closed = True


def handed(*places):
    return [HandedOver(number, name, Sock(), place) for number, (name, place) in enumerate(places, 3)]


def assigned(*places, wanted=WANTED):
    received = handed(*places)
    order = {id(one.sock): index for index, one in enumerate(received)}
    result = [order.get(id(sock)) for sock in assign(received, wanted)]
    assert not any(one.sock.closed for one in received)
    return result


def test_sockets_are_matched_by_their_address():
    assert assigned(("portguard.socket", WATCHED), ("", INSIDE), ("x", OWN)) == [None, 1, 2, 0]


def test_sockets_are_matched_by_name_and_address():
    assert assigned(("orders-db", OWN), ("gateway", INSIDE), ("gateway", OUTSIDE), ("metrics", WATCHED)) == [2, 1, 0, 3]


def test_without_sockets_everything_is_bound():
    assert assigned() == [None] * 4


def test_a_name_finds_the_port_that_the_configuration_leaves_open():
    wanted = [Wanted(GATEWAY, ListenAddress("127.0.0.1", 0)), Wanted(METRICS, ListenAddress("127.0.0.1", 0))]
    assert assigned(("metrics", WATCHED), wanted=wanted) == [None, 0]
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:9847"):
        assign(handed(("portguard.socket", WATCHED)), wanted)
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:9847"):
        assign(handed(("metrics", WATCHED)), [Wanted(METRICS, ListenAddress("127.0.0.2", 0))])


@pytest.mark.parametrize(
    ("name", "place", "said"),
    [
        (
            "x",
            ListenAddress("0.0.0.0", 8444),
            "descriptor 3 (x): expected an address that the configuration listens on",
        ),
        ("", ListenAddress("127.0.0.1", 8443), "descriptor 3: expected an address that the configuration listens on"),
        ("metrics", OUTSIDE, "descriptor 3 (metrics): expected an address that is configured for metrics"),
        ("gateway", WATCHED, "descriptor 3 (gateway): expected an address that is configured for gateway"),
        ("orders-db", INSIDE, "descriptor 3 (orders-db): expected an address that is configured for orders-db"),
    ],
)
def test_a_socket_that_nobody_wants_is_named(name, place, said):
    received = handed((name, place), ("", OWN))
    with pytest.raises(ConfigurationError) as raised:
        assign(received, WANTED)
    assert str(raised.value) == f"socket activation: {said}, got {place}"
    assert all(one.sock.closed for one in received)


def test_a_second_socket_for_one_address_is_named():
    with pytest.raises(ConfigurationError, match=r"descriptor 4: .*got 0\.0\.0\.0:8443"):
        assign(handed(("", OUTSIDE), ("", OUTSIDE)), WANTED)


def test_the_names_of_what_is_not_configured_say_what_they_say_all_the_same():
    """A socket meant for metrics is never taken for clients, whatever the addresses are."""
    with pytest.raises(ConfigurationError, match="configured for metrics"):
        assign(handed(("metrics", OUTSIDE)), [Wanted(GATEWAY, OUTSIDE)])
