from datetime import UTC, datetime
from ipaddress import ip_address
from textwrap import dedent

import pytest

from portguard.identity.names import Group, Identity, Namespace
from portguard.policy.decide import Policy, Request
from portguard.policy.explain import Condition, Examined, explain
from portguard.policy.model import Deny, Role
from portguard.policy.read import read_policy

NAMESPACE = Namespace({"local": "spiffe", "corp": "email"}, "local", {"example.com": "local"})
POLICY = """
    timezone = "Europe/Zurich"

    [groups]
    oncall = ["alice", "corp:*@example.com", "@corp:night"]

    [services.orders-db]
    upstream = ["10.0.3.7:5432"]
    zones = ["data"]

    [services.other]
    upstream = ["10.0.3.8:80"]

    [[deny]]
    members = ["mallory"]
    services = ["*"]
    description = "no Mallory"

    [[deny]]
    members = ["alice"]
    services = ["other"]

    [[roles]]
    name = "others"
    members = ["bob"]
    services = ["*"]

    [[roles]]
    name = "narrow"
    members = ["alice"]
    services = ["other"]

    [[roles]]
    name = "timed"
    members = ["@oncall", "al*", "@corp:dba"]
    services = ["orders-db", "zone:data", "other"]
    hours = ["Tue 07:00-20:00"]
    from = ["10.0.0.0/8", "10.9.0.0/16"]
    expires = 2026-03-01T00:00:00Z

    [[roles]]
    name = "open"
    members = ["alice"]
    services = ["*-db"]

    [[roles]]
    name = "later"
    members = ["alice"]
    services = ["*"]
"""


def made() -> Policy:
    return read_policy([("/etc/portguard/policy.toml", dedent(POLICY).encode())], NAMESPACE)


def explained(
    name: str = "alice", service: str = "orders-db", *, trust: str = "local", groups: tuple[str, ...] = (),
    source: str | None = "192.0.2.7",
) -> list[Examined]:  # fmt: skip
    held = frozenset(Group(trust, group) for group in groups)
    at = datetime(2026, 3, 2, 8, 30, tzinfo=UTC)
    return list(
        explain(made(), Request(Identity(trust, name), held, service, ip_address(source) if source else None, at))
    )


def of(role: str, examined: list[Examined]) -> Examined:
    return next(each for each in examined if isinstance(each.entry, Role) and each.entry.name == role)


def detail(condition: Condition, examined: Examined) -> tuple[bool, str]:
    finding = next(finding for finding in examined.findings if finding.condition is condition)
    return finding.held, finding.detail


def test_entries_come_in_the_order_of_decision_and_end_with_the_one_that_decides():
    examined = explained()
    assert [(type(each.entry), each.number) for each in examined] == [
        (Deny, 1), (Deny, 2), (Role, 1), (Role, 2), (Role, 3), (Role, 4),
    ]  # fmt: skip
    assert [each.fits for each in examined] == [False] * 5 + [True]
    assert examined[-1].entry.name == "open"


def test_a_deny_that_fits_is_the_last_that_is_looked_at():
    examined = explained("mallory")
    assert len(examined) == 1
    assert examined[0].fits
    assert examined[0].entry.description == "no Mallory"


def test_all_entries_are_looked_at_when_none_fits():
    assert len(explained("eve")) == 7


def test_how_far_each_entry_got_is_told():
    failed = [each.failed.condition if each.failed else None for each in explained()]
    assert failed == [
        Condition.MEMBER, Condition.SERVICE, Condition.MEMBER, Condition.SERVICE, Condition.SOURCE, None,
    ]  # fmt: skip


def test_a_deny_has_two_conditions_and_a_role_five():
    examined = explained()
    assert [finding.condition for finding in examined[0].findings] == [Condition.MEMBER, Condition.SERVICE]
    assert [finding.condition for finding in examined[-1].findings] == list(Condition)


def test_an_unknown_service_has_no_entries_to_look_at():
    assert explained(service="nothing") == []


@pytest.mark.parametrize(
    ("arguments", "through"),
    [
        ({}, "as @oncall (local:alice), local:al*"),
        ({"name": "anna@example.com", "trust": "corp"}, "as @oncall (corp:*@example.com)"),
        ({"name": "x@other.org", "trust": "corp", "groups": ("dba", "night")}, "as @oncall (@corp:night), @corp:dba"),
    ],
)
def test_a_membership_is_told_by_all_that_make_it(arguments, through):
    assert detail(Condition.MEMBER, of("timed", explained(**arguments))) == (True, through)


def test_who_is_no_member_is_told_so():
    assert detail(Condition.MEMBER, of("others", explained())) == (False, "not a member")


def test_the_conditions_of_a_role_are_told_with_what_they_met():
    timed = of("timed", explained())
    assert detail(Condition.SERVICE, timed) == (True, "by orders-db, zone:data")
    assert detail(Condition.SOURCE, timed) == (False, "from 10.0.0.0/8, 10.9.0.0/16; it is 192.0.2.7")
    assert detail(Condition.HOURS, timed) == (
        False, "Tue 07:00-20:00; it is Mon 2026-03-02 09:30 Europe/Zurich",
    )  # fmt: skip
    assert detail(Condition.EXPIRY, timed) == (False, "expires 2026-03-01T00:00:00Z")


def test_a_source_that_fits_and_one_that_is_not_known_are_told():
    assert detail(Condition.SOURCE, of("timed", explained(source="10.9.1.1")))[0]
    assert detail(Condition.SOURCE, of("timed", explained(source=None))) == (
        False, "from 10.0.0.0/8, 10.9.0.0/16; it is an unknown address",
    )  # fmt: skip


def test_conditions_that_a_role_does_not_set_are_told_to_hold():
    free = of("open", explained())
    assert detail(Condition.SERVICE, free) == (True, "by *-db")
    assert detail(Condition.SOURCE, free) == (True, "from anywhere")
    assert detail(Condition.HOURS, free) == (True, "at any hour")
    assert detail(Condition.EXPIRY, free) == (True, "never expires")


def test_of_many_selectors_a_few_are_told():
    services = "".join(f'[services.s{n}]\nupstream = ["10.0.0.1:80"]\n' for n in range(9))
    names = ", ".join(f'"s{n}"' for n in range(8))
    text = f'{services}[[roles]]\nname = "r"\nmembers = ["alice"]\nservices = [{names}]\n'
    policy = read_policy([("p.toml", text.encode())], NAMESPACE)
    asked = Request(Identity("local", "alice"), frozenset(), "s8", None, datetime(2026, 3, 2, tzinfo=UTC))
    assert detail(Condition.SERVICE, next(explain(policy, asked))) == (False, "only s0, s1, s2, s3, s4 and 3 more")
