import os
from contextlib import closing
from datetime import timedelta

import pytest

from portguard.observe.audit.selecting import Follower, Selection, last
from tests.audit_log import NOON, Log


@pytest.fixture
def log(tmp_path):
    log = Log(tmp_path / "audit.jsonl")
    log.add("gateway.start")
    log.add("session.open", trust="local", identity="alice", service="db")
    log.add("session.open", trust="corp", identity="alice", service="web")
    log.rotate(".1")
    log.add("session.close", trust="local", identity="alice", service="db")
    log.add("session.refuse", trust="local", identity="bob", service="db")
    return log


def shown(log, count=None, **conditions):
    return [record.seq for record in last(log.path, Selection(**conditions), count)]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7]),
        ({"identities": ["alice"]}, [2, 3, 6]),
        ({"identities": ["corp:alice"]}, [3]),
        ({"identities": ["bob", "corp:alice"]}, [3, 7]),
        ({"services": ["db"]}, [2, 6, 7]),
        ({"events": ["session.open"]}, [2, 3]),
        ({"events": ["session"]}, [2, 3, 6, 7]),
        ({"events": ["session.o"]}, []),
        ({"since": NOON + timedelta(seconds=5)}, [6, 7]),
        ({"identities": ["alice"], "services": ["db"], "events": ["session.open"]}, [2]),
    ],
)
def test_a_line_is_shown_when_it_fits_every_condition(log, conditions, expected):
    assert shown(log, **conditions) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(["alice"], [1, 2, 4]), (["corp:alice"], [1, 2]), (["local:alice"], [1, 4]), (["bob"], [3]), (["corp"], [])],
)
def test_acts_on_an_identity_are_its_own_too(tmp_path, wanted, expected):
    log = Log(tmp_path / "audit.jsonl")
    log.add("admin.lock", user="root", arguments={"identity": "alice", "reason": "bob"})
    log.add("admin.unlock", user="root", arguments={"identity": "corp:alice"})
    log.add("admin.quota.reset", user="alice", arguments={"identity": "corp:bob"})
    log.add("admin.lock", user="root", arguments={"identity": "local:alice"})
    log.add("admin.lock", user="alice", arguments={"certificate": "alice"})
    log.add("admin.reload", user="alice", arguments=None)
    assert shown(log, identities=wanted) == expected


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [7]), (3, [5, 6, 7]), (100, [1, 2, 3, 4, 5, 6, 7])])
def test_the_last_lines_are_taken_across_files(log, count, expected):
    assert shown(log, count) == expected


def test_lines_that_are_no_records_are_left_to_verifying(log):
    with log.path.open("ab") as file:
        file.write(b"\xff\n{}\n")
    assert shown(log) == [1, 2, 3, 4, 5, 6, 7]


def append(path, content):
    with path.open("ab") as file:
        file.write(content)


class Enough(Exception):
    pass


def test_following_shows_what_is_added_whole_lines_only_and_across_a_rotation(log):
    follower = Follower(log.path, Selection(events=["session"]))
    steps = []

    def wait(_seconds):
        if not steps:
            raise Enough
        steps.pop(0)()

    def half():
        line = log.add("session.open")
        rest = line[-20:] + b"\n"
        content = log.path.read_bytes()
        os.truncate(log.path, len(content) - len(rest))
        steps.insert(0, lambda: append(log.path, rest))

    steps += [lambda: log.add("session.open"), lambda: log.add("gateway.stop"), half, lambda: log.rotate(".2")]
    steps += [lambda: log.add("session.close")]
    seen = []
    with closing(follower), pytest.raises(Enough):
        seen.extend(record.seq for record in follower.follow(wait))
    assert seen == [8, 10, 13]
