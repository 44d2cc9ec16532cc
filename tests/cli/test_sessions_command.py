"""`portguard sessions`: what a person and a program get to see, and what the gateway is asked to do."""

import json
import sys
from functools import partial

import pytest

from portguard.cli import sessions as command
from portguard.cli.ages import written_age
from portguard.control.access import Level
from portguard.control.routes import BadArgument, NotFound, Route
from tests.control_double import ControlDouble

LINE = {
    "session": "ab" * 16,
    "identity": "alice\x1b[31m",
    "service": "db",
    "role": "dba",
    "source": None,
    "age": 3725.9,
    "idle": 2.0,
    "received": 1500,
    "sent": 0,
}
OTHER = {**LINE, "session": "cd" * 16, "identity": "bob", "source": "2001:db8::1", "age": 9.0, "sent": 10**12}


class Sessions:
    """Answers what the test says, and knows what it was asked."""

    def __init__(self):
        self.asked = []
        self.lines = [LINE, OTHER]
        self.live = {"ab" * 16, "cd" * 16}
        self.routes = [
            Route("GET", "/v1/sessions", Level.VIEWER, self._list),
            Route("POST", "/v1/sessions/kill", Level.OPERATOR, self._kill),
        ]

    async def _list(self, _peer, given):
        self.asked.append(given)
        if given.get("identity") == "x:y":
            raise BadArgument("identity: expected a trust")
        return {"total": 7, "sessions": self.lines, "more": False}

    async def _kill(self, _peer, given):
        self.asked.append(given)
        if given.get("session") is not None:
            found = [each for each in self.live if each.startswith(given["session"])]
        else:
            found = sorted(self.live)
        if not found:
            raise NotFound("expected a live session that fits, got none")
        self.live -= set(found)
        return {"killed": len(found), "sessions": found}


@pytest.fixture
def gateway(configuration):
    sessions = Sessions()
    with ControlDouble(configuration.parent / "c.sock", sessions.routes):
        yield sessions


@pytest.fixture
def portguard(run_portguard):
    return partial(run_portguard, "sessions")


def test_a_person_sees_a_table_and_how_much_is_missing(gateway, portguard):
    assert portguard("list", "--limit", "2") == (
        0,
        "SESSION       IDENTITY       SERVICE  ROLE  SOURCE         AGE  IDLE  RECEIVED  SENT\n"
        "abababababab  alice\\x1b[31m  db       dba                1h02m    2s    1.5 kB   0 B\n"
        "cdcdcdcdcdcd  bob            db       dba   2001:db8::1     9s    2s    1.5 kB  1 TB\n",
        "and 5 more\n",
    )


def test_a_program_gets_json(gateway, portguard):
    code, out, _ = portguard("list", "--json")
    assert (code, json.loads(out)["sessions"]) == (0, [LINE, OTHER])


def test_what_was_asked_for_is_passed_on(gateway, portguard):
    portguard(
        "list", "--identity", "alice", "--service", "db", "--role", "dba", "--sort", "bytes", "--limit", "3"
    )  # fmt: skip
    assert gateway.asked == [{"identity": "alice", "service": "db", "role": "dba", "sort": "bytes", "limit": "3"}]


def test_that_none_is_live_is_said_beside_the_data(gateway, portguard):
    gateway.lines = []
    assert portguard("list") == (0, "", "portguard: no session is live\n")
    assert portguard("list", "--role", "dba") == (0, "", "portguard: no session is live that fits\n")


def test_an_answer_of_another_version_is_an_error(gateway, portguard):
    gateway.lines = [{"session": "ab"}]
    code, out, err = portguard("list")
    assert (code, out) == (1, "")
    assert err == "portguard: the gateway: expected an answer that this version understands, got another one\n"


def test_a_wrong_argument_is_a_wrong_usage(gateway, portguard):
    assert portguard("list", "--identity", "x:y") == (2, "", "portguard: identity: expected a trust\n")


def test_sessions_are_ended_by_id_and_missing_ones_are_named(gateway, portguard):
    assert portguard("kill", "ABABABAB", "ef" * 16) == (
        1,
        "sessions ended: 1\n",
        f"portguard: expected live sessions, got none called {'ef' * 16}\n",
    )
    assert gateway.live == {"cd" * 16}


def test_a_program_learns_which_were_ended(gateway, portguard):
    code, out, _ = portguard("kill", "--service", "db", "--yes", "--json")
    assert (code, json.loads(out)) == (0, {"killed": 2, "sessions": ["ab" * 16, "cd" * 16]})
    assert gateway.asked == [{"identity": None, "service": "db", "role": None}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected an ID, --identity, --service or --role, got none"),
        (["ab" * 16, "--service", "db"], "expected either IDs or --identity, --service and --role, got both"),
        (["--service", "db"], "expected --yes, as there is no terminal to ask on"),
    ],
)
def test_what_is_not_said_clearly_ends_none(gateway, portguard, monkeypatch, arguments, message):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert portguard("kill", *arguments) == (2, "", f"portguard: sessions kill: {message}\n")
    assert len(gateway.live) == 2


@pytest.mark.parametrize(("answer", "left", "code"), [(True, 0, 0), (False, 2, 1)])
def test_a_person_is_asked_first_and_told_how_many(gateway, portguard, monkeypatch, answer, left, code):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    asked = []
    monkeypatch.setattr(command.click, "confirm", lambda text, **_: asked.append(text) or answer)
    assert portguard("kill", "--identity", "alice")[0] == code
    assert asked == ["End 7 sessions?"]
    assert len(gateway.live) == left


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (184, "3m04s"),
        (3599, "59m59s"),
        (7500, "2h05m"),
        (86_399, "23h59m"),
        (1_047_600, "12d03h"),
    ],
)
def test_an_age_has_two_units(seconds, text):
    assert written_age(seconds) == text
