"""What a new policy changes: who gains, who loses, what of a role is another."""

from datetime import UTC, datetime

import pytest

from portguard.identity.names import Group, Identity, Namespace
from portguard.identity.patterns import Pattern
from portguard.policy.decide import Policy
from portguard.policy.diff import Aspect, Exchanged, Kind, differences
from portguard.policy.read import read_policy

NAMESPACE = Namespace({"local": "cn", "corp": "cn"}, "local", {})
SERVICES = """
[services.orders-db]
upstream = ["10.0.3.7:5432"]
zones = ["prod"]
[services.metrics]
upstream = ["10.0.3.8:9090"]
"""
ALICE, BOB = Identity("local", "alice"), Identity("local", "bob")
OPS, DBA = Group("corp", "ops"), Group("corp", "dba")


def role(name="dba", members='"alice"', services='"orders-db"', more=""):
    return f'[[roles]]\nname = "{name}"\nmembers = [{members}]\nservices = [{services}]\n{more}\n'


def deny(members, services='"*"'):
    return f"[[deny]]\nmembers = [{members}]\nservices = [{services}]\n"


def policy(entries, services=SERVICES, zone="UTC", file="/etc/p.toml") -> Policy:
    return read_policy([(file, f'timezone = "{zone}"\n{services}\n{entries}'.encode())], NAMESPACE)


def rows(old, new, **keywords):
    """What is told of access, without the ladders."""
    found = differences(policy(old), policy(new), **keywords)
    return [(row.kind, row.subjects, row.services) for row in found.access]


def aspects(old, new, **keywords):
    (row,) = differences(policy(old), policy(new, **keywords)).access
    assert row.kind is Kind.CHANGED
    (changed,) = row.roles
    return set(changed.aspects)


def test_a_policy_that_is_written_otherwise_but_means_the_same_does_not_differ():
    old = (
        deny('"eve"')
        + deny('"mallory"')
        + role(
            members='"alice", "@one"', more='quota = ["1GB/day", "2GB/month"]\npooled_quota = ["1TB/day", "2TB/week"]'
        )
    )
    new = (
        deny('"mallory"')
        + deny('"eve"')
        + role(
            members='"bob", "alice"',
            services='"zone:prod"',
            more='quota = ["2GB/month", "1GB/day"]\npooled_quota = ["2TB/week", "1TB/day"]\n'
            'hours = ["Mon-Sun"]\ndescription = "x"',
        )
    )
    assert not differences(policy(old + '[groups]\none = ["bob"]'), policy(new))
    assert differences(policy(old + '[groups]\none = ["bart"]'), policy(new))


def test_what_changes_in_a_group_changes_for_its_members():
    old = role(members='"@one"') + '[groups]\none = ["alice"]'
    assert rows(old, old.replace("alice", "bob")) == rows(role(), role(members='"bob"'))


def test_who_gains_and_who_loses_is_told():
    assert rows(role(), role(members='"bob"')) == [
        (Kind.GAINED, (BOB,), ("orders-db",)),
        (Kind.LOST, (ALICE,), ("orders-db",)),
    ]
    assert rows(role(), role(services='"*"')) == [(Kind.GAINED, (ALICE,), ("metrics",))]


def test_those_for_whom_the_same_changes_are_told_together():
    old, new = role(members='"alice", "bob", "corp:*@a"'), role(members='"@corp:dba"', services='"*"')
    assert rows(old, new) == [
        (Kind.GAINED, (DBA,), ("metrics", "orders-db")),
        (Kind.LOST, (ALICE, BOB, Pattern("corp", "*@a")), ("orders-db",)),
    ]


def test_patterns_and_certificate_groups_are_told_as_such():
    assert rows(role(members='"al*"'), role(members='"alf"')) == [
        (Kind.LOST, (Pattern("local", "al*"),), ("orders-db",))
    ]
    assert rows(role(members='"@corp:ops"'), role(members='"@corp:dba"')) == [
        (Kind.GAINED, (DBA,), ("orders-db",)),
        (Kind.LOST, (OPS,), ("orders-db",)),
    ]


def test_an_identity_that_a_pattern_has_gains_nothing_by_its_name():
    assert rows(role(members='"a*"'), role(members='"a*", "alice"')) == []
    assert rows(role(members='"b*"'), role(members='"b*", "alice"')) != []


def test_whoever_only_a_test_names_is_told_too():
    test = '[[tests]]\nidentity = "alice"\nservice = "orders-db"\nexpect = "allow"\n'
    assert rows(role(members='"a*"') + test, role(members='"b*"'))[1] == (
        Kind.LOST,
        (ALICE, Pattern("local", "a*")),
        ("orders-db",),
    )


@pytest.mark.parametrize(
    ("before", "after", "aspect"),
    [
        ("max_sessions = 1", "max_sessions = 2", Aspect.LIMITS),
        ('quota = ["1GB/day"]', 'quota = ["1GB/week"]', Aspect.LIMITS),
        ('pooled_quota = ["1GB/day"]', "", Aspect.LIMITS),
        ('bandwidth = "1MB/s"', "", Aspect.LIMITS),
        ('connect_rate = "1/m"', "", Aspect.LIMITS),
        ('session = "8h"', 'session = "9h"', Aspect.SESSION),
        ('session = "off"', "", Aspect.SESSION),
        ('hours = ["Mon"]', 'hours = ["Tue"]', Aspect.HOURS),
        ('from = ["10.0.0.0/8"]', "", Aspect.SOURCE),
        ('from = ["0.0.0.0/0", "::/0"]', "", Aspect.SOURCE),
        ("expires = 2030-01-01T00:00:00Z", "expires = 2031-01-01T00:00:00Z", Aspect.EXPIRY),
    ],
)
def test_what_of_a_role_changes_is_told(before, after, aspect):
    assert aspects(role(more=before), role(more=after)) == {aspect}
    assert rows(role(more=before), role(more=before)) == []


@pytest.mark.parametrize(
    ("more", "aspect"), [('hours = ["Mon"]', Aspect.HOURS), ('quota = ["1GB/day"]', Aspect.LIMITS)]
)
def test_another_time_zone_changes_hours_and_calendar_periods_and_nothing_else(more, aspect):
    assert aspects(role(more=more), role(more=more), zone="Europe/Zurich") == {aspect}
    assert not differences(policy(role()), policy(role(), zone="Europe/Zurich"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('from = ["10.0.0.0/9", "10.128.0.0/9"]', 'from = ["10.0.0.0/8"]'),
        ('hours = ["Mon-Tue"]', 'hours = ["Tue", "Mon"]'),
        ("expires = 2030-01-01T00:00:00Z", "expires = 2030-01-01T01:00:00+01:00"),
        ('session = "60m"', 'session = "1h"'),
    ],
)
def test_conditions_that_hold_alike_are_no_difference(before, after):
    assert rows(role(more=before), role(more=after)) == []


def test_a_role_of_another_name_is_another_one():
    (row,) = differences(policy(role()), policy(role("dbas"))).access
    assert (row.kind, [(change.name, change.old is None, change.new is None) for change in row.roles]) == (
        Kind.CHANGED,
        [("dba", False, True), ("dbas", True, False)],
    )


def test_a_role_that_an_earlier_one_covers_may_come_and_go():
    assert rows(role(), role() + role("second", more="max_sessions = 1")) == []
    assert rows(role(more='hours = ["Mon"]'), role(more='hours = ["Mon"]') + role("second")) != []


def test_the_order_of_roles_that_never_hold_together_does_not_matter():
    for more in ('hours = ["Mon"]', 'hours = ["Tue"]'), ('from = ["10.0.0.0/8"]', 'from = ["192.0.2.0/24"]'):
        one, other = (role(name, more=each) for name, each in zip("ab", more, strict=True))
        assert not differences(policy(one + other), policy(other + one))
    one, other = role("a", more='hours = ["Mon-Tue"]'), role("b", more='hours = ["Tue-Wed"]')
    (row,) = differences(policy(one + other), policy(other + one)).access
    assert (row.kind, row.roles) == (Kind.CHANGED, ())


def test_roles_that_change_places_are_told_for_whoever_has_both():
    one, other = role("a", '"@corp:dba"'), role("b", '"@corp:ops"', '"*"')
    found = differences(policy(one + other), policy(other + one))
    assert (found.access, found.exchanged) == ((), (Exchanged("a", "b", ("orders-db",)),))


def test_roles_that_change_places_are_told_also_when_their_terms_change():
    one, other = role("a", '"@corp:dba"'), role("b", '"@corp:ops"')
    found = differences(policy(one + other), policy(role("b", '"@corp:ops"', more="max_sessions = 1") + one))
    assert found.exchanged == (Exchanged("a", "b", ("orders-db",)),)


def test_roles_that_never_held_together_and_do_now_are_told():
    one, other = role("a", '"@corp:dba"', more='hours = ["Mon"]'), role("b", '"@corp:ops"', more='hours = ["Tue"]')
    assert not differences(policy(one + other), policy(other + one)).exchanged
    assert differences(policy(one + other), policy(role("b", '"@corp:ops"') + one)).exchanged
    assert differences(policy(role("b", '"@corp:ops"') + one), policy(one + other)).exchanged


@pytest.mark.parametrize(
    ("one", "other", "joins"),
    [
        ('"@corp:dba"', '"@corp:ops"', True),
        ('"@corp:dba"', '"corp:bob"', True),
        ('"@corp:dba"', '"bob"', False),
        ('"@corp:dba"', '"@corp:dba"', False),
        ('"alice"', '"bob"', False),
        ('"a*"', '"*b"', True),
        ('"a*"', '"ab*"', True),
        ('"a*"', '"b*"', False),
        ('"corp:*@a"', '"corp:*@b"', False),
        ('"a*"', '"corp:a*"', False),
    ],
)
def test_roles_that_nobody_can_have_both_of_may_change_places(one, other, joins):
    a, b = role("a", one), role("b", other)
    found = differences(policy(a + b), policy(b + a))
    # What is told by one membership is not told as an exchange again, but may be: `ab*` has both roles.
    assert bool(found.exchanged) == joins


def test_a_deny_that_comes_takes_access_and_one_that_goes_gives_it():
    assert rows(role(), deny('"alice"') + role()) == [
        (Kind.LOST, (ALICE,), ("orders-db",)),
        (Kind.DENIED, (ALICE,), ("metrics",)),
    ]
    assert rows(deny('"alice"') + role(), role())[0] == (Kind.GAINED, (ALICE,), ("orders-db",))


def test_a_deny_of_those_whom_no_role_has_matters_to_those_who_are_members_otherwise():
    both = ("metrics", "orders-db")
    assert rows(deny('"@local:contractors"') + role(), role()) == [
        (Kind.UNDENIED, (Group("local", "contractors"),), both)
    ]
    assert rows(role(), deny('"@local:contractors"') + role()) == [
        (Kind.DENIED, (Group("local", "contractors"),), both)
    ]


def test_what_has_expired_already_is_no_difference_to_those_who_say_so():
    expired = role("old", '"bob"', more="expires = 2026-01-01T00:00:00Z")
    assert rows(expired + role(), role()) == [(Kind.LOST, (BOB,), ("orders-db",))]
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert rows(expired + role(), role(), since=at) == []
    assert rows(expired + role(), role(), since=at.replace(year=2025)) != []


def test_roles_of_which_one_has_expired_may_change_places():
    one, other = role("a", '"@corp:dba"', more="expires = 2026-01-01T00:00:00Z"), role("b", '"@corp:ops"')
    old, new = policy(one + other), policy(other + one)
    assert differences(old, new)
    assert not differences(old, new, since=datetime(2026, 1, 1, tzinfo=UTC))


def test_services_that_come_go_or_are_others_are_told():
    other = SERVICES.replace("10.0.3.7", "192.0.2.66").replace("metrics", "metrics-2")
    found = differences(policy(role(services='"*"')), policy(role(services='"*"'), services=other))
    assert [(change.name, change.old is None, change.new is None, change.keys) for change in found.services] == [
        ("metrics", False, True, ()),
        ("metrics-2", True, False, ()),
        ("orders-db", False, False, ("upstreams",)),
    ]
    assert [(row.kind, row.services) for row in found.access] == [
        (Kind.GAINED, ("metrics-2",)),
        (Kind.LOST, ("metrics",)),
    ]


def test_tls_files_beside_a_policy_are_the_same_wherever_the_policy_is():
    def services(ca, name="db.internal"):
        return f'[services.orders-db]\nupstream = ["10.0.3.7:5432"]\ntls = {{ ca = "{ca}", server_name = "{name}" }}\n'

    def changed(one, other):
        old = policy(role(), services=services(*one))
        new = policy(role(), services=services(*other), file="/home/me/p.toml")
        return [change.keys for change in differences(old, new).services]

    assert changed(["ca.crt"], ["ca.crt"]) == []
    assert changed(["/etc/ca.crt"], ["/etc/ca.crt"]) == []
    assert changed(["ca.crt"], ["/etc/ca.crt"]) == []
    assert changed(["ca.crt"], ["other.crt"]) == [("tls",)]
    assert changed(["ca.crt"], ["ca.crt", "db2.internal"]) == [("tls",)]
