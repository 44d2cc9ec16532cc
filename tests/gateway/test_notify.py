"""What systemd hears, read from a real datagram socket."""

import contextlib
import os
import socket

import pytest

from portguard.gateway.notify import Notifier


@pytest.fixture
def listener():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        yield sock


@pytest.fixture
def notifier(listener, tmp_path):
    """A notifier that is watched every 20 s, and heard by `listener`."""
    listener.bind(str(tmp_path / "notify"))
    made = Notifier(str(tmp_path / "notify"), watchdog_s=20.0)
    yield made
    made.close()


def heard(listener):
    messages = []
    while True:
        try:
            messages.append(listener.recv(4096).decode())
        except BlockingIOError:
            return messages


def fill(listener):
    """Send to a socket until it takes no more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler, contextlib.suppress(BlockingIOError):
        filler.setblocking(False)
        while True:
            filler.sendto(b"X=1", listener.getsockname())


def tick(notifier, now_s, status="serving", *, healthy=True, stopping=False):
    notifier.tick(now_s, status=status, healthy=healthy, stopping=stopping)


def test_the_states_are_told_in_the_words_of_sd_notify(notifier, listener):
    notifier.ready("serving, 2 workers")
    notifier.reloading(12.3456789)
    notifier.ready("serving, 2 workers")
    notifier.stopping("draining")
    assert heard(listener) == [
        "READY=1\nSTATUS=serving, 2 workers",
        "RELOADING=1\nMONOTONIC_USEC=12345678",
        "READY=1\nSTATUS=serving, 2 workers",
        "STOPPING=1\nSTATUS=draining",
    ]


def test_an_abstract_socket_is_heard_too(listener):
    name = f"portguard-test-{os.getpid()}"
    listener.bind("\0" + name)
    notifier = Notifier("@" + name)
    notifier.ready("serving")
    assert heard(listener) == ["READY=1\nSTATUS=serving"]
    notifier.close()


def test_a_status_cannot_say_anything_else(notifier, listener):
    notifier.ready("serving\nMAINPID=1")
    assert heard(listener) == ["READY=1\nSTATUS=serving MAINPID=1"]


def test_keep_alives_come_at_half_the_interval(notifier, listener):
    sent = []
    for now_s in range(100, 141):
        tick(notifier, float(now_s))
        sent += [now_s] * heard(listener).count("WATCHDOG=1")
    assert sent == [100, 110, 120, 130, 140]


def test_keep_alives_stop_while_nothing_works_and_come_at_once_when_it_does(notifier, listener):
    sent = []
    for now_s in range(100, 141):
        tick(notifier, float(now_s), healthy=not 105 <= now_s < 127)
        sent += [now_s] * heard(listener).count("WATCHDOG=1")
    assert sent == [100, 127, 137]


def test_nobody_who_does_not_watch_gets_keep_alives(listener, tmp_path):
    listener.bind(str(tmp_path / "notify"))
    notifier = Notifier(str(tmp_path / "notify"))
    tick(notifier, 100.0)
    assert heard(listener) == ["STATUS=serving"]
    notifier.close()


def test_a_new_status_is_told_and_not_too_often(notifier, listener):
    sent = []
    for now_s in range(100, 113):
        tick(notifier, float(now_s), f"{now_s} sessions")
        sent += [message for message in heard(listener) if message.startswith("STATUS")]
    assert sent == ["STATUS=100 sessions", "STATUS=105 sessions", "STATUS=110 sessions"]
    for now_s in range(113, 120):
        tick(notifier, float(now_s), "110 sessions")
    assert not [message for message in heard(listener) if message.startswith("STATUS")]


def test_who_drains_asks_for_time_again_and_again(notifier, listener):
    sent = []
    for now_s in range(100, 121):
        tick(notifier, float(now_s), stopping=now_s >= 102)
        sent += [(now_s, message) for message in heard(listener) if message.startswith("EXTEND")]
    assert sent == [(at, "EXTEND_TIMEOUT_USEC=60000000") for at in (102, 112)]


def test_what_a_full_socket_does_not_take_goes_out_later(notifier, listener):
    fill(listener)
    notifier.ready("serving")
    notifier.stopping("draining")
    assert set(heard(listener)) == {"X=1"}
    tick(notifier, 100.0, "draining", healthy=False)
    assert heard(listener) == ["READY=1\nSTATUS=serving", "STOPPING=1\nSTATUS=draining"]


def test_a_listener_that_is_gone_is_told_of_once(tmp_path, caplog):
    notifier = Notifier(str(tmp_path / "nobody"), watchdog_s=2.0)
    notifier.ready("serving")
    for now_s in range(10):
        tick(notifier, float(now_s))
    assert caplog.messages == ["systemd.unreachable"]
    notifier.close()


def test_an_address_of_another_kind_is_told_of(caplog):
    notifier = Notifier("vsock:2:1234", watchdog_s=2.0)
    notifier.ready("serving")
    tick(notifier, 100.0)
    assert caplog.messages == ["systemd.unreachable"]
    notifier.close()


def environment(**variables):
    return {"HOME": "/root", "NOTIFY_SOCKET": "/run/nobody"} | variables


@pytest.mark.parametrize(
    ("variables", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "4711"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "4712"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
    ],
)
def test_the_watchdog_is_read_from_the_environment_and_nothing_is_left_there(variables, watchdog_s):
    given = environment(**variables)
    notifier = Notifier.take(given, 4711)
    assert notifier._watchdog_s == watchdog_s
    assert given == {"HOME": "/root"}
    notifier.close()


@pytest.mark.parametrize("given", [{}, {"NOTIFY_SOCKET": ""}, {"WATCHDOG_USEC": "1000000"}])
def test_without_a_manager_nothing_is_sent_and_nothing_fails(given, caplog):
    notifier = Notifier.take(given, 4711)
    notifier.ready("serving")
    tick(notifier, 100.0, stopping=True)
    notifier.close()
    assert caplog.messages == []
