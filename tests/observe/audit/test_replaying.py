"""What of an audit a policy can be asked about again."""

from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from portguard.identity.names import Group, Identity
from portguard.observe.audit.records import Record
from portguard.observe.audit.replaying import Replayable
from portguard.policy.replay import Past
from portguard.reasons import Reason

FIELDS = {
    "trust": "local", "identity": "alice", "groups": ["ops"], "service": "db", "source": "192.0.2.1", "role": "dba",
    "reason": "no_role",
}  # fmt: skip
AT = datetime(2026, 11, 23, 12, tzinfo=UTC)


def replay(event="session.open", time="2026-11-23T12:00:00Z", **fields):
    seen = Replayable()
    record = Record(b"", 1, time, event, "", {**FIELDS, **fields})
    return seen, list(seen.requests([record]))


def test_a_session_is_a_request_that_was_let_in():
    seen, found = replay()
    assert found == [
        Past(Identity("local", "alice"), frozenset({Group("local", "ops")}), "db", ip_address("192.0.2.1"), AT, "dba")
    ]
    assert seen == Replayable(sessions=1)


def test_a_refusal_of_the_policy_is_one_too():
    seen, (past,) = replay("session.refuse")
    assert (past.role, past.reason, seen) == (None, Reason.NO_ROLE, Replayable(refusals=1))


@pytest.mark.parametrize("event", ["session.close", "handshake.fail", "policy.load", "session.refuse.flood"])
def test_other_events_are_none(event):
    assert replay(event) == (Replayable(), [])


def test_a_refusal_for_another_reason_is_none():
    assert replay("session.refuse", reason="locked") == (Replayable(), [])


def test_refusals_without_a_record_of_their_own_are_counted():
    assert replay("session.refuse", held_back=5)[0].held_back == 5
    assert replay("session.refuse", held_back="5")[0].held_back == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"groups": ["a", "… and 3 more"]},
        {"groups": [1]},
        {"groups": "ops"},
        {"service": None},
        {"identity": 5},
        {"source": "somewhere"},
        {"source": 7},
        {"role": None},
        {"time": "2026-11-23T12:00:00"},
        {"time": "noon"},
        {"event": "session.refuse", "reason": "unknown_service", "service": None},
        {"event": "session.refuse", "reason": "unknown_service", "service": "db"},  # the port was another
    ],
)
def test_a_record_that_does_not_tell_all_is_passed_over_and_counted(fields):
    assert replay(**fields) == (Replayable(unclear=1), [])


def test_a_source_may_be_unknown():
    assert replay(source=None)[1][0].source is None
