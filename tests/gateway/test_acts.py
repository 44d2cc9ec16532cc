"""How the audit tells what operators do."""

import json

import pytest

from portguard.gateway.acts import act_arguments, act_event


@pytest.mark.parametrize(
    ("method", "path", "event"),
    [
        ("POST", "/v1/reload", "admin.reload"),
        ("POST", "/v1/quotas/grant", "admin.quota.grant"),
        ("POST", "/v1/sessions/kill", "admin.sessions.kill"),
        ("DELETE", "/v1/locks", "admin.locks.delete"),
    ],
)
def test_an_act_is_named_after_the_command_that_does_it(method, path, event):
    assert act_event(method, path) == event


def test_arguments_are_told_as_they_were_given_and_missing_ones_are_left_out():
    given = {"identity": "alice", "bytes": 5_000_000_000, "all": False, "role": None, "share": 0.5}
    assert act_arguments(given) == {"identity": "alice", "bytes": 5_000_000_000, "all": False, "share": 0.5}


def test_arguments_of_any_size_and_kind_make_a_short_line():
    given = {f"{number}" + "x" * 100: "y" * 60_000 for number in range(100)}
    given |= {"0" + "x" * 100: ["z" * 60_000] * 1000, "1" + "x" * 100: {"deep": [{}]}, "2" + "x" * 100: 10**4000}
    given |= {"3" + "x" * 100: float("nan"), "4" + "x" * 100: [1, None, []]}
    arguments = act_arguments(given)
    written = json.dumps(arguments, allow_nan=False)
    assert len(written) < 25_000
    assert len(arguments) == 21
    assert arguments["…"] == "and 80 more"
    values = list(arguments.values())
    assert values[0][-1] == "… and 980 more"
    assert len(values[0]) == 21
    assert values[1:5] == ["an object", "a huge number", "a huge number", ["int", "NoneType", "list"]]
    assert values[5] == "y" * 500 + "…"
