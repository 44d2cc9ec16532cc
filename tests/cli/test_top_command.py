"""`portguard top` on a terminal: what it draws, and that it leaves the terminal as it was, whatever ends it."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from contextlib import ExitStack

import pytest

from portguard.control.access import Level
from portguard.control.routes import Route
from tests.control_double import ControlDouble
from tests.patience import PATIENCE_S

ENTER, LEAVE = b"\x1b[?1049h\x1b[?25l", b"\x1b[?25h\x1b[?1049l"


class Gateway:
    """Counts up a session's bytes with each look."""

    def __init__(self):
        self.looks = 0
        self.asked = None
        self.answer = lambda: {
            "sessions": [{"session": "a", "identity": "alice", "service": "db", "received": self.looks, "sent": 0}]
        }
        self.routes = [
            Route("GET", "/v1/status", Level.VIEWER, self._status),
            Route("GET", "/v1/sessions", Level.VIEWER, self._sessions),
        ]

    async def _status(self, _peer, _given):
        return {"verdict": "SERVING"}

    async def _sessions(self, _peer, given):
        self.looks += 1
        self.asked = given
        return self.answer()


@pytest.fixture
def gateway(configuration):
    gateway = Gateway()
    with ControlDouble(configuration.parent / "c.sock", gateway.routes):
        yield gateway


class Terminal:
    """A terminal with `portguard top` on it."""

    def __init__(self, configuration, *arguments):
        self.keys, terminal = pty.openpty()
        self.drawn = b""
        self.before = termios.tcgetattr(terminal)
        self._terminal = terminal
        self.process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-m", "portguard", "top", "-c", configuration, *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
        )

    def wait_for(self, text, count=1):
        deadline_s = time.monotonic() + PATIENCE_S
        while self.drawn.count(text) < count:
            assert time.monotonic() < deadline_s, self.drawn
            self._read(0.1)

    def _read(self, wait_s):
        if select.select([self.keys], [], [], wait_s)[0]:
            self.drawn += os.read(self.keys, 65536)

    def ended(self):
        """The exit code; the terminal must be as it was."""
        code = self.process.wait(PATIENCE_S)
        while select.select([self.keys], [], [], 0)[0]:
            self._read(0)
        assert self.drawn.count(ENTER) == self.drawn.count(LEAVE)
        assert self.drawn.rfind(LEAVE) > self.drawn.rfind(b"\x1b[H")
        assert termios.tcgetattr(self._terminal) == self.before
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.keys)
        os.close(self._terminal)


@pytest.fixture
def terminal(gateway, configuration):
    with Terminal(configuration, "--identity", "alice") as terminal:
        yield terminal


def test_it_draws_every_second_on_a_screen_of_its_own_until_q_is_pressed(terminal, gateway):
    terminal.wait_for(b"alice     db              1   ", 3)
    assert terminal.drawn.startswith(ENTER)
    assert b"1 B/s from clients" in terminal.drawn
    assert b"\x1b[1mSERVING\x1b[m" in terminal.drawn
    assert gateway.asked == {"identity": "alice"}
    assert termios.tcgetattr(terminal._terminal) != terminal.before  # or the check at the end would prove nothing
    os.write(terminal.keys, b"xq")
    assert terminal.ended() == 0


def press_ctrl_c(terminal):
    os.write(terminal.keys, b"\x03")


def send(number):
    return lambda terminal: terminal.process.send_signal(number)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (press_ctrl_c, 0),
        (send(signal.SIGINT), 0),
        (send(signal.SIGTERM), 128 + signal.SIGTERM),
        (send(signal.SIGHUP), 128 + signal.SIGHUP),
    ],
)
def test_the_terminal_is_as_it_was_however_it_is_ended(terminal, end, code):
    terminal.wait_for(b"q quits")
    end(terminal)
    assert terminal.ended() == code


def test_the_terminal_is_as_it_was_after_a_fault_and_the_message_is_on_it(terminal, gateway):
    terminal.wait_for(b"q quits")
    gateway.answer = lambda: {"sessions": [{}]}
    assert terminal.ended() == 1
    assert b"got another one" in terminal.drawn[terminal.drawn.rfind(LEAVE) :]


def test_it_cannot_be_suspended_on_its_screen(terminal):
    terminal.wait_for(b"q quits")
    os.write(terminal.keys, b"\x1a\x1c")
    terminal.wait_for(b"q quits", 3)
    os.write(terminal.keys, b"q")
    assert terminal.ended() == 0


def test_it_goes_on_looking_while_the_gateway_is_away(configuration):
    with ExitStack() as terminals:
        with ControlDouble(configuration.parent / "c.sock", Gateway().routes):
            terminal = terminals.enter_context(Terminal(configuration))
            terminal.wait_for(b"q quits")
        terminal.wait_for(b"NO ANSWER")
        with ControlDouble(configuration.parent / "c.sock", Gateway().routes):
            seen = terminal.drawn.count(b"SERVING")
            terminal.wait_for(b"SERVING", seen + 1)
            os.write(terminal.keys, b"q")
            assert terminal.ended() == 0


def test_that_there_is_no_gateway_is_an_error_and_the_screen_is_never_left(configuration):
    with Terminal(configuration) as terminal:
        assert terminal.process.wait(PATIENCE_S) == 4
        terminal.wait_for(b"does the gateway run")
        assert ENTER not in terminal.drawn


def test_without_a_terminal_it_prints_one_second_and_ends(gateway, configuration):
    command = [sys.executable, "-m", "portguard", "top", "-c", configuration]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout == (
        "SERVING\n"
        "1 session of 1 identity; 1 B/s from clients, 0 B/s to them\n"
        "\n"
        "IDENTITY  SERVICE  SESSIONS  FROM/S  TO/S  MOVED\n"
        "alice     db              1     1 B   0 B    2 B\n"
    )
    assert gateway.looks == 2


def test_in_json_it_is_one_second_for_a_program(gateway, configuration):
    command = [sys.executable, "-m", "portguard", "top", "-c", configuration, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    document = json.loads(done.stdout)
    assert document.pop("seconds") > 0
    [group] = document.pop("groups")
    assert group.pop("received_per_second") in (0, 1)  # one byte in a second or longer
    assert group == {"identity": "alice", "service": "db", "sessions": 1, "sent_per_second": 0, "moved": 2}
    assert document == {"verdict": "SERVING"}
