"""What another policy says to sessions: which end, which change, which would have been refused."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from portguard.identity.names import Group, Identity, Namespace
from portguard.policy.decide import Refusal
from portguard.policy.read import read_policy
from portguard.policy.replay import Becomes, Live, Past, prospects, replayed
from portguard.reasons import Reason

NAMESPACE = Namespace({"local": "cn"}, "local", {})
POLICY = """
[services.orders-db]
upstream = ["10.0.3.7:5432"]
[[roles]]
name = "dba"
members = ["alice", "@local:ops"]
services = ["orders-db"]
max_sessions = 2
"""
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
ALICE = Identity("local", "alice")
LIVE = Live("01", ALICE, frozenset(), "orders-db", ip_address("10.1.2.3"), NOON - timedelta(hours=2), "dba")
PAST = Past(ALICE, frozenset(), "orders-db", ip_address("10.1.2.3"), NOON, "dba")
REFUSED = replace(PAST, identity=Identity("local", "bob"), role=None, reason=Reason.NO_ROLE)


def read(text):
    return read_policy([("/etc/p.toml", text.encode())], NAMESPACE)


def prospect(text, live=LIVE):
    (found,) = prospects([live], read(POLICY), read(text), NOON)
    assert found.live is live
    return found.becomes, found.reason, found.grant and found.grant.role


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("alice", "alice"), (Becomes.STAYS, None, "dba")),
        (('"alice"', '"alice", "bob"'), (Becomes.STAYS, None, "dba")),
        (("max_sessions = 2", 'hours = ["Mon"]\nmax_sessions = 2'), (Becomes.STAYS, None, "dba")),
        (("max_sessions = 2", "max_sessions = 3"), (Becomes.CHANGES, None, "dba")),
        (("max_sessions = 2", 'max_sessions = 2\nsession = "3h"'), (Becomes.CHANGES, None, "dba")),
        (("max_sessions = 2", 'max_sessions = 2\nsession = "off"'), (Becomes.CHANGES, None, "dba")),
        (('"dba"', '"dbas"'), (Becomes.CHANGES, None, "dbas")),
        (("max_sessions = 2", 'max_sessions = 2\nsession = "2h"'), (Becomes.ENDS, Reason.SESSION_TIMEOUT, None)),
        (('"alice"', '"bob"'), (Becomes.ENDS, Reason.NO_ROLE, None)),
        (("max_sessions", 'from = ["192.0.2.0/24"]\nmax_sessions'), (Becomes.ENDS, Reason.SOURCE_NOT_ALLOWED, None)),
        (("max_sessions", 'hours = ["Tue"]\nmax_sessions'), (Becomes.ENDS, Reason.OUTSIDE_HOURS, None)),
        (("orders-db", "other"), (Becomes.ENDS, Reason.UNKNOWN_SERVICE, None)),
    ],
)
def test_a_live_session_ends_changes_or_stays(change, expected):
    assert prospect(POLICY.replace(*change)) == expected


def test_groups_of_a_live_session_count():
    live = replace(LIVE, identity=Identity("local", "bob"), groups=frozenset({Group("local", "ops")}))
    assert prospect(POLICY, live)[0] is Becomes.STAYS
    assert prospect(POLICY, replace(live, groups=frozenset()))[0] is Becomes.ENDS


def outcomes(text, *past):
    return [(each.past, each.verdict) for each in replayed(past, read(text))]


def test_past_sessions_that_would_be_refused_are_told_with_the_reason():
    assert outcomes(POLICY, PAST) == []
    assert outcomes(POLICY.replace("alice", "bob"), PAST) == [(PAST, Refusal(Reason.NO_ROLE, None))]


def test_past_refusals_that_would_be_sessions_are_told():
    assert outcomes(POLICY, REFUSED) == []
    ((past, verdict),) = outcomes(POLICY.replace("alice", "bob"), REFUSED)
    assert (past, verdict.role) == (REFUSED, "dba")


@pytest.mark.parametrize("reason", [Reason.LOCKED, Reason.MAX_SESSIONS, Reason.UPSTREAM_TIMEOUT, None])
def test_refusals_that_were_not_the_policys_stay_refusals(reason):
    assert outcomes(POLICY.replace("alice", "bob"), replace(REFUSED, reason=reason)) == []


def test_each_is_decided_at_its_own_time():
    text = POLICY + "expires = 2026-03-02T12:00:00Z\n"
    earlier = replace(PAST, at=NOON - timedelta(seconds=1))
    assert [past for past, _ in outcomes(text, earlier, PAST)] == [PAST]
