"""Who could reach what: everybody whom a policy names, by which role, when and unless what."""

from datetime import UTC, datetime

from portguard.identity.names import Group, Identity, Namespace
from portguard.identity.patterns import Pattern
from portguard.policy.access import who_could
from portguard.policy.read import read_policy

NAMESPACE = Namespace({"local": "cn", "corp": "cn"}, "local", {})
POLICY = """
timezone = "Europe/Zurich"
[services.orders-db]
upstream = ["10.0.3.7:5432"]
zones = ["prod"]
[services.metrics]
upstream = ["10.0.3.8:9090"]

[[deny]]
members = ["@local:contractors", "mallory", "corp:*"]
services = ["zone:prod"]

[[roles]]
name = "office"
members = ["a*", "@oncall"]
services = ["orders-db"]
from = ["10.0.0.0/8"]
hours = ["Mon-Fri 07:00-20:00"]

[[roles]]
name = "all"
members = ["a*", "corp:bob", "m*"]
services = ["*"]
expires = 2027-01-01T00:00:00Z

[groups]
oncall = ["alice", "@local:night"]
"""
ALICE, MALLORY, A, M = Identity("local", "alice"), Identity("local", "mallory"), Pattern("local", "a*"), Pattern("local", "m*")  # fmt: skip # noqa: E501
NIGHT, CONTRACTORS, BOB = Group("local", "night"), Group("local", "contractors"), Identity("corp", "bob")
MONDAY = datetime(2026, 3, 2, 9, tzinfo=UTC)
SUNDAY = datetime(2026, 3, 1, 9, tzinfo=UTC)


def told(text=POLICY, **keywords):
    policy = read_policy([("/etc/p.toml", text.encode())], NAMESPACE)
    return [(row.subjects, row.services, row.rung.terms.role) for row in who_could(policy, **keywords)]


def test_everybody_whom_the_policy_names_is_told_with_each_role():
    assert told() == [
        ((BOB, ALICE, MALLORY, A, M), ("metrics",), "all"),
        ((ALICE, A), ("orders-db",), "office"),
        ((ALICE, A), ("orders-db",), "all"),
        ((M,), ("orders-db",), "all"),
        ((NIGHT,), ("orders-db",), "office"),
    ]


def test_the_answer_is_narrowed_to_services_and_to_somebody():
    assert {services for _, services, _ in told(services={"metrics"})} == {("metrics",)}
    assert told(services={"unknown"}) == []
    assert told(somebody={Identity("local", "anna")}, services={"orders-db"}) == [
        ((Identity("local", "anna"),), ("orders-db",), "office"),
        ((Identity("local", "anna"),), ("orders-db",), "all"),
    ]
    assert told(somebody={Identity("local", "zoe")}) == []


def test_somebody_has_all_memberships_at_once():
    zoe = Identity("local", "zoe")
    assert told(somebody={zoe, NIGHT}) == [((zoe, NIGHT), ("orders-db",), "office")]
    assert told(somebody={zoe, NIGHT, CONTRACTORS}) == []
    assert [services for _, services, _ in told(somebody={ALICE, CONTRACTORS})] == [("metrics",)]


def test_at_a_time_only_roles_that_hold_then_are_told():
    asked = {"somebody": {ALICE}, "services": {"orders-db"}}
    assert [role for *_, role in told(at=MONDAY, **asked)] == ["office", "all"]
    assert [role for *_, role in told(at=SUNDAY, **asked)] == ["all"]
    assert [role for *_, role in told(at=MONDAY.replace(year=2027, day=1), **asked)] == ["office"]
    assert told(at=SUNDAY.replace(year=2027, day=7), **asked) == []


def test_a_role_that_an_earlier_one_covers_at_that_time_is_not_told():
    text = POLICY.replace('from = ["10.0.0.0/8"]\n', "")
    asked = {"somebody": {ALICE}, "services": {"orders-db"}}
    assert [role for *_, role in told(text, at=MONDAY, **asked)] == ["office"]
    assert [role for *_, role in told(text, **asked)] == ["office", "all"]


def test_until_is_when_hours_or_role_end():
    policy = read_policy([("/etc/p.toml", POLICY.encode())], NAMESPACE)
    asked = {"somebody": {ALICE}, "services": {"orders-db"}}
    expires = datetime(2027, 1, 1, tzinfo=UTC)
    assert [row.until for row in who_could(policy, at=MONDAY, **asked)] == [MONDAY.replace(hour=19), expires]
    assert [row.until for row in who_could(policy, **asked)] == [None, None]


def test_denies_of_those_who_may_be_among_the_subjects_are_told():
    policy = read_policy([("/etc/p.toml", POLICY.encode())], NAMESPACE)

    def unless(service, *somebody):
        return {row.unless for row in who_could(policy, services={service}, somebody=set(somebody))}

    assert unless("orders-db", ALICE) == {(CONTRACTORS,)}
    assert unless("metrics", ALICE) == {()}
    assert unless("orders-db", M) == {(MALLORY, CONTRACTORS)}
    assert unless("orders-db", NIGHT) == {(MALLORY, CONTRACTORS)}
    assert unless("orders-db", A) == {(CONTRACTORS,)}


def test_a_policy_that_grants_nothing_gives_nobody_access():
    assert told("") == []
    assert told(POLICY.partition("[[roles]]")[0]) == []


def test_roles_that_have_expired_are_left_out_for_those_who_say_so():
    asked = {"somebody": {ALICE}, "services": {"orders-db"}}
    assert [role for *_, role in told(since=datetime(2027, 1, 1, tzinfo=UTC), **asked)] == ["office"]
    assert [role for *_, role in told(since=datetime(2026, 1, 1, tzinfo=UTC), **asked)] == ["office", "all"]
