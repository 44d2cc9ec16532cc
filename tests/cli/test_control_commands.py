"""What commands over the control socket have in common."""

import json

import pytest

from portguard.control.access import Level
from portguard.control.routes import Route
from portguard.errors import ConfigurationError, Problem
from tests.control_double import ControlDouble


@pytest.mark.parametrize(
    ("command", "method", "path"),
    [
        (("drain",), "POST", "/v1/drain"),
        (("resume",), "POST", "/v1/resume"),
        (("reload",), "POST", "/v1/reload"),
        (("lock", "alice", "--reason", "INC-1"), "POST", "/v1/lock"),
        (("lock", "--list"), "GET", "/v1/locks"),
        (("unlock", "alice"), "POST", "/v1/unlock"),
        (("quota", "show"), "GET", "/v1/quotas"),
        (("quota", "reset", "alice"), "POST", "/v1/quotas/reset"),
        (("quota", "grant", "alice", "1GB"), "POST", "/v1/quotas/grant"),
        (("sessions", "list"), "GET", "/v1/sessions"),
        (("sessions", "kill", "abcdef01"), "POST", "/v1/sessions/kill"),
        (("status",), "GET", "/v1/status"),
    ],
)
def test_an_answer_that_is_not_understood_is_told_in_a_sentence(configuration, run_portguard, command, method, path):
    async def reply(_peer, _given):
        return {"of": "another version"}

    with ControlDouble(configuration.parent / "c.sock", [Route(method, path, Level.ADMIN, reply)]):
        code, out, err = run_portguard(*command)
    assert (code, out) == (1, "")
    assert err == "portguard: the gateway: expected an answer that this version understands, got another one\n"


@pytest.mark.parametrize(
    ("arguments", "message"), [((), None), (("-m", "CHG-123"), "CHG-123"), (("--message", "CHG-123"), "CHG-123")]
)
def test_a_reload_passes_its_reason_on(configuration, run_portguard, arguments, message):
    async def reply(_peer, _given):
        return {"revision": "ab", "changed": True, "closed": 0, "needs_restart": [], "warnings": []}

    route = Route("POST", "/v1/reload", Level.OPERATOR, reply)
    with ControlDouble(configuration.parent / "c.sock", [route]) as control:
        assert run_portguard("reload", *arguments) == (0, "in force: ab\nsessions closed: 0\n", "")
    assert control.acts == [("/v1/reload", {"message": message}, "done")]


PROBLEM = {"file": "policy.toml", "key": "roles[0].name", "expected": "a name", "found": "nothing"}


@pytest.mark.parametrize("command", ["reload", "reexec"])
def test_a_program_is_told_what_is_wrong_in_files_as_by_a_check(configuration, run_portguard, command):
    async def status(_peer, _given):
        return {"generation": 1}

    async def reply(_peer, _given):
        raise ConfigurationError([Problem(**PROBLEM)])

    routes = [Route("GET", "/v1/status", Level.VIEWER, status), Route("POST", f"/v1/{command}", Level.ADMIN, reply)]
    with ControlDouble(configuration.parent / "c.sock", routes):
        code, out, err = run_portguard(command, "--json")
        assert (code, json.loads(out), err) == (2, {"ok": False, "problems": [PROBLEM], "warnings": []}, "")
        assert run_portguard(command) == (
            2,
            "",
            "portguard: policy.toml: roles[0].name: expected a name, got nothing\n",
        )


def test_a_program_is_told_who_has_taken_over(configuration, run_portguard):
    generations = iter([1, 2])

    async def status(_peer, _given):
        return {"generation": next(generations), "version": "9.9\x1b", "sessions": 3}

    async def reply(_peer, _given):
        return {"trial": "passed"}

    routes = [Route("GET", "/v1/status", Level.VIEWER, status), Route("POST", "/v1/reexec", Level.ADMIN, reply)]
    with ControlDouble(configuration.parent / "c.sock", routes):
        code, out, err = run_portguard("reexec", "--json")
        assert (code, json.loads(out), err) == (0, {"version": "9.9\x1b", "sessions": 3}, "")
        generations = iter([1, 2])
        assert run_portguard("reexec") == (0, "version 9.9\\x1b has taken over; sessions: 3\n", "")


@pytest.mark.parametrize(("command", "path"), [("quota show", "/v1/quotas"), ("sessions list", "/v1/sessions")])
def test_long_answers_are_indented_like_all_others(configuration, run_portguard, command, path):
    answer = {"é": [{"a": 1.5, "b": None, "c": [], "d": {}}], "e": "\u202e"}

    async def reply(_peer, _given):
        return answer

    with ControlDouble(configuration.parent / "c.sock", [Route("GET", path, Level.VIEWER, reply)]):
        assert run_portguard(*command.split(), "--json") == (0, json.dumps(answer, indent=2) + "\n", "")
