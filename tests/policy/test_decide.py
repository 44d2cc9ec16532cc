import math
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, ip_address
from textwrap import dedent
from zoneinfo import ZoneInfo

import pytest

from portguard.identity.names import Group, Identity, Namespace
from portguard.policy.decide import DECIDED_REASONS, Grant, Policy, Refusal, Request, decide, reachable
from portguard.policy.model import Limits
from portguard.policy.quantities import Period, Quota, Rate
from portguard.policy.read import read_policy
from portguard.reasons import Reason

NAMESPACE = Namespace({"local": "spiffe", "corp": "email"}, "local", {"example.com": "local"})
SERVICES = """
    [services.orders-db]
    upstream = ["10.0.3.7:5432"]
    zones = ["data", "prod"]
    aliases = ["orders.example.com"]

    [services.metrics-a]
    upstream = ["10.0.3.8:9090"]
    zones = ["prod"]

    [services.test-db]
    upstream = ["10.0.3.9:5432"]
    zones = ["data"]
"""
MONDAY = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def policy(text: str, **options) -> Policy:
    return read_policy([("policy.toml", dedent(SERVICES + text).encode())], NAMESPACE, **options)


def role(name: str, services: str = '"*"', members: str = '"alice"', **keys: str) -> str:
    more = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return f'\n[[roles]]\nname = "{name}"\nmembers = [{members}]\nservices = [{services}]\n{more}'


def request(
    name: str = "alice",
    service: str = "orders-db",
    *,
    trust: str = "local",
    groups: tuple[str, ...] = (),
    source: str | None = "10.1.2.3",
    at: datetime = MONDAY,
) -> Request:
    held = frozenset(Group(trust, group) for group in groups)
    return Request(Identity(trust, name), held, service, ip_address(source) if source else None, at)


def role_of(text: str, asked: Request) -> str:
    verdict = decide(policy(text), asked)
    assert isinstance(verdict, Grant)
    return verdict.role


def refusal(text: str, asked: Request) -> tuple[Reason, str | None]:
    verdict = decide(policy(text), asked)
    assert isinstance(verdict, Refusal)
    return verdict.reason, verdict.role


# Who


def test_an_empty_policy_allows_nobody():
    assert refusal("", request()) == (Reason.NO_ROLE, None)


def test_a_policy_of_nothing_at_all_knows_no_service():
    assert decide(Policy(), request()) == Refusal(Reason.UNKNOWN_SERVICE, None)


def test_a_service_that_the_policy_does_not_have_is_unknown_even_to_those_who_may_reach_all():
    assert refusal(role("all"), request(service="secret-db")) == (Reason.UNKNOWN_SERVICE, None)


@pytest.mark.parametrize(
    ("member", "asked"),
    [
        ("alice", request("alice")),
        ("local:alice", request("alice")),
        ("spiffe://example.com/alice", request("alice")),
        ("spiffe://example.com/ns/*/web", request("ns/a/web")),
        ("spiffe://example.com/**", request("ns/a/web")),
        ("al*", request("alice")),
        ("ns/*/web", request("ns/prod/web")),
        ("ns/**", request("ns/prod/sa/web")),
        ("corp:anna@example.com", request("anna@example.com", trust="corp")),
        ("corp:*@example.com", request("anna@example.com", trust="corp")),
        ("@oncall", request("bob")),
        ("@oncall", request("carol@example.com", trust="corp")),
        ("@oncall", request("zoe@example.com", trust="corp", groups=("night",))),
        ("@corp:dba", request("anna@example.com", trust="corp", groups=("other", "dba"))),
        ("@local:dba", request("anna", groups=("dba",))),
    ],
)
def test_a_member_is_let_in(member, asked):
    groups = '\n[groups]\noncall = ["bob", "corp:c*@example.com", "@corp:night"]\n'
    assert role_of(groups + role("r", members=f'"{member}"'), asked) == "r"


@pytest.mark.parametrize(
    ("member", "asked"),
    [
        ("alice", request("alice2")),
        ("alice", request("Alice")),
        ("alice", request("alice", trust="corp")),
        ("corp:anna@example.com", request("anna@example.com")),
        ("al*", request("al")),
        ("al*", request("alice", trust="corp")),
        ("*", request("ns/web")),
        ("ns/*/web", request("ns/a/b/web")),
        ("ns/**", request("ns")),
        ("corp:*@example.com", request("anna@example.com.evil.org", trust="corp")),
        ("corp:*@example.com", request("anna@example.com", trust="local")),
        ("@oncall", request("anna")),
        ("@oncall", request("bob", trust="corp")),
        ("@oncall", request("anna", groups=("oncall",))),
        ("@corp:dba", request("anna@example.com", trust="corp", groups=("dba2",))),
        ("@corp:dba", request("anna", trust="local", groups=("dba",))),
        ("@corp:dba", request("dba", trust="corp")),
    ],
)
def test_who_is_not_a_member_is_not_let_in(member, asked):
    groups = '\n[groups]\noncall = ["bob"]\n'
    assert refusal(groups + role("r", members=f'"{member}"'), asked) == (Reason.NO_ROLE, None)


# What


@pytest.mark.parametrize(
    ("selector", "reached"),
    [
        ("orders-db", {"orders-db"}),
        ("*", {"orders-db", "metrics-a", "test-db"}),
        ("*-db", {"orders-db", "test-db"}),
        ("metrics-*", {"metrics-a"}),
        ("zone:data", {"orders-db", "test-db"}),
        ("zone:data+prod", {"orders-db"}),
        ("zone:prod+data", {"orders-db"}),
    ],
)
def test_a_selector_grants_the_services_that_it_means_and_no_other(selector, reached):
    made = policy(role("r", f'"{selector}"'))
    allowed = {name for name in made.services if isinstance(decide(made, request(service=name)), Grant)}
    assert allowed == reached


def test_a_service_that_no_role_of_the_identity_grants_is_refused_with_the_first_of_its_roles():
    text = role("others", members='"bob"') + role("first", '"test-db"') + role("second", '"metrics-a"')
    assert refusal(text, request()) == (Reason.SERVICE_NOT_GRANTED, "first")


# In which order


def test_the_first_role_that_fits_grants():
    text = role("elsewhere", '"test-db"') + role("one") + role("two")
    assert role_of(text, request()) == "one"


@pytest.mark.parametrize("position", ["before", "after"])
def test_a_deny_comes_before_any_role_wherever_it_is_written(position):
    deny = '\n[[deny]]\nmembers = ["alice"]\nservices = ["zone:prod"]\n'
    text = deny + role("all") if position == "before" else role("all") + deny
    assert refusal(text, request()) == (Reason.DENIED, None)
    assert role_of(text, request(service="test-db")) == "all"
    assert refusal(text, request("bob")) == (Reason.NO_ROLE, None)


def test_a_deny_by_a_certificate_group_beats_a_role_by_name():
    text = '\n[[deny]]\nmembers = ["@local:contractors"]\nservices = ["*"]\n' + role("all")
    assert refusal(text, request(groups=("contractors",))) == (Reason.DENIED, None)
    assert role_of(text, request()) == "all"


def test_a_deny_is_told_also_to_whom_no_role_would_let_in():
    assert refusal('\n[[deny]]\nmembers = ["*"]\nservices = ["*"]\n', request()) == (Reason.DENIED, None)


def test_a_deny_of_another_service_leaves_the_reason_to_the_roles():
    text = '\n[[deny]]\nmembers = ["alice"]\nservices = ["test-db"]\n'
    assert refusal(text, request()) == (Reason.NO_ROLE, None)
    assert refusal(text + role("r", '"metrics-a"'), request()) == (Reason.SERVICE_NOT_GRANTED, "r")


# From where


@pytest.mark.parametrize(
    ("networks", "source"),
    [
        ('"10.0.0.0/8"', "10.255.255.255"),
        ('"192.0.2.7"', "192.0.2.7"),
        ('"172.16.0.0/12", "10.1.0.0/16"', "10.1.2.3"),
        ('"10.0.0.0/8", "10.1.0.0/16"', "10.1.2.3"),
        ('"0.0.0.0/0"', "203.0.113.9"),
        ('"2001:db8::/32"', "2001:db8::7"),
        ('"10.0.0.0/8"', "::ffff:10.1.2.3"),
        ('"::/0"', "2001:db8::7"),
    ],
)
def test_a_source_within_from_is_allowed(networks, source):
    assert role_of(role("r", **{"from": f"[{networks}]"}), request(source=source)) == "r"


@pytest.mark.parametrize(
    ("networks", "source"),
    [
        ('"10.0.0.0/8"', "11.0.0.0"),
        ('"10.0.0.0/8"', "9.255.255.255"),
        ('"192.0.2.7"', "192.0.2.8"),
        ('"0.0.0.0/0"', "2001:db8::7"),
        ('"::/0"', "10.1.2.3"),
        ('"::/0"', "::ffff:10.1.2.3"),
        ('"10.0.0.0/8"', "::10.1.2.3"),
        ('"::/96"', "10.1.2.3"),
        ('"fe80::/10"', "fe80::1%eth0"),
        ('"0.0.0.0/0", "::/0"', None),
    ],
)
def test_a_source_outside_from_is_refused(networks, source):
    assert refusal(role("r", **{"from": f"[{networks}]"}), request(source=source)) == (Reason.SOURCE_NOT_ALLOWED, "r")


def test_a_role_without_from_allows_any_source():
    for source in ("10.1.2.3", "2001:db8::7", "fe80::1%eth0", None):
        assert role_of(role("r"), request(source=source)) == "r"


def test_a_source_with_a_zone_id_is_none_of_an_ipv4_network_either():
    asked = Request(Identity("local", "alice"), frozenset(), "orders-db", IPv6Address("::ffff:10.1.2.3%1"), MONDAY)
    assert refusal(role("r", **{"from": '["10.0.0.0/8"]'}), asked) == (Reason.SOURCE_NOT_ALLOWED, "r")


# When


@pytest.mark.parametrize(
    ("at", "allowed"),
    [
        (datetime(2026, 7, 6, 4, 59, 59, tzinfo=UTC), False),  # 06:59 in Zurich's summer
        (datetime(2026, 7, 6, 5, 0, tzinfo=UTC), True),
        (datetime(2026, 1, 5, 5, 59, tzinfo=UTC), False),  # 06:59 in its winter
        (datetime(2026, 1, 5, 6, 0, tzinfo=ZoneInfo("Europe/London")), True),
        (datetime(2026, 1, 5, 19, 0, tzinfo=UTC), False),
        (datetime(2026, 1, 9, 22, 0, tzinfo=UTC), True),  # Friday 23:00
        (datetime(2026, 1, 10, 4, 59, tzinfo=UTC), True),
        (datetime(2026, 1, 10, 5, 0, tzinfo=UTC), False),  # Saturday 06:00
    ],
)
def test_hours_are_those_of_the_policys_time_zone(at, allowed):
    timed = role("r", hours='["Mon-Fri 07:00-20:00", "Fri 22:00-06:00"]')
    made = read_policy(
        [("policy.toml", ('timezone = "Europe/Zurich"\n' + dedent(SERVICES + timed)).encode())], NAMESPACE
    )
    assert isinstance(decide(made, request(at=at)), Grant) is allowed


def test_outside_hours_is_its_own_reason():
    assert refusal(role("r", hours='["Tue"]'), request()) == (Reason.OUTSIDE_HOURS, "r")


def test_a_role_has_expired_at_the_very_instant_of_expires():
    text = role("r", expires="2026-03-02T10:00:00+01:00")
    assert role_of(text, request(at=MONDAY - timedelta(microseconds=1))) == "r"
    assert refusal(text, request(at=MONDAY)) == (Reason.GRANT_EXPIRED, "r")


def test_each_role_expires_at_its_own_time():
    text = role("short", expires="2026-03-02T09:00:00Z") + role("long", expires="2026-03-03T09:00:00Z")
    assert role_of(text, request(at=MONDAY - timedelta(seconds=1))) == "short"
    assert role_of(text, request(at=MONDAY)) == "long"
    assert refusal(text, request(at=MONDAY + timedelta(days=1))) == (Reason.GRANT_EXPIRED, "short")


def test_a_time_without_zone_is_not_guessed_at():
    with pytest.raises(ValueError, match="expected a time with a zone"):
        decide(policy(role("r")), request(at=datetime(2026, 3, 2)))  # noqa: DTZ001


# Which reason

NOT_HERE = {"from": '["192.0.2.0/24"]'}
NOT_NOW = {"hours": '["Tue"]'}
NO_MORE = {"expires": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ([role("a", '"test-db"'), role("b", **NOT_HERE)], (Reason.SOURCE_NOT_ALLOWED, "b")),
        ([role("a", **NOT_HERE), role("b", **NOT_NOW)], (Reason.OUTSIDE_HOURS, "b")),
        ([role("a", **NOT_NOW), role("b", **NO_MORE)], (Reason.GRANT_EXPIRED, "b")),
        ([role("a", **NO_MORE), role("b", **NOT_NOW)], (Reason.GRANT_EXPIRED, "a")),
        ([role("a", **NOT_NOW), role("b", **NOT_NOW)], (Reason.OUTSIDE_HOURS, "a")),
        ([role("a", **NOT_HERE, **NO_MORE), role("b", '"test-db"')], (Reason.SOURCE_NOT_ALLOWED, "a")),
        ([role("a", **NOT_NOW, **NO_MORE)], (Reason.OUTSIDE_HOURS, "a")),
        ([role("a", '"test-db"', **NO_MORE), role("b", members='"bob"')], (Reason.SERVICE_NOT_GRANTED, "a")),
    ],
)
@pytest.mark.parametrize("deny", ["", '\n[[deny]]\nmembers = ["alice"]\nservices = ["metrics-a"]\n'])
def test_the_reason_is_that_of_the_role_that_got_furthest_the_first_on_a_tie(deny, roles, expected):
    assert refusal(deny + "".join(roles), request()) == expected


def test_every_reason_of_a_decision_is_listed():
    texts = ["", '\n[[deny]]\nmembers = ["*"]\nservices = ["*"]\n', role("a", '"test-db"'),
             role("a", **NOT_HERE), role("a", **NOT_NOW), role("a", **NO_MORE)]  # fmt: skip
    assert {refusal(text, request())[0] for text in texts} == set(DECIDED_REASONS)


# The grant


def test_a_grant_carries_the_limits_of_its_role():
    text = role(
        "r", max_sessions="10", connect_rate='"30/m"', bandwidth='"50MB/s"', quota='["20GB/day"]',
        pooled_quota='["5TB/month"]', session='"8h"',
    )  # fmt: skip
    limits = Limits(
        max_sessions=10,
        connect_rate=Rate(30, 60),
        bandwidth=50_000_000,
        quota=(Quota(20 * 10**9, Period.DAY),),
        pooled_quota=(Quota(5 * 10**12, Period.MONTH),),
    )
    assert decide(policy(text), request()) == Grant("r", limits, 8 * 3600.0, None)


@pytest.mark.parametrize(("session", "session_s"), [("", None), ('session = "off"', math.inf)])
def test_a_session_that_is_off_differs_from_one_not_given(session, session_s):
    verdict = decide(policy(role("r") + session), request())
    assert isinstance(verdict, Grant)
    assert verdict.session_s == session_s


@pytest.mark.parametrize(
    ("keys", "until"),
    [
        ({}, None),
        ({"expires": "2026-03-05T00:00:00Z"}, datetime(2026, 3, 5, tzinfo=UTC)),
        ({"hours": '["Mon 08:00-12:00"]'}, datetime(2026, 3, 2, 12, tzinfo=UTC)),
        ({"hours": '["Mon-Sun"]'}, None),
        (
            {"hours": '["Mon 08:00-12:00"]', "expires": "2026-03-02T10:00:00Z"},
            datetime(2026, 3, 2, 10, tzinfo=UTC),
        ),
        (
            {"hours": '["Mon 08:00-12:00"]', "expires": "2026-03-02T13:00:00Z"},
            datetime(2026, 3, 2, 12, tzinfo=UTC),
        ),
        ({"hours": '["Mon-Sun"]', "expires": "2026-03-05T00:00:00Z"}, datetime(2026, 3, 5, tzinfo=UTC)),
    ],
)
def test_a_grant_says_until_when_its_role_fits(keys, until):
    verdict = decide(policy(role("r", **keys)), request())
    assert isinstance(verdict, Grant)
    assert verdict.until == until


# Many services at once, and names


def test_reachable_services_are_those_that_decide_grants():
    text = (
        '\n[[deny]]\nmembers = ["alice"]\nservices = ["test-db"]\n'
        + role("timed", '"orders-db"', hours='["Mon 08:00-12:00"]')
        + role("data", '"zone:data"')
        + role("nobody", members='"bob"')
    )
    made = policy(text)
    for name in ("alice", "bob", "eve"):
        expected = [
            (service, verdict)
            for service in made.services.values()
            if isinstance(verdict := decide(made, request(name, service.name)), Grant)
        ]
        assert list(reachable(made, request(name, service="ignored"))) == expected
    assert [service.name for service, _ in reachable(made, request("alice"))] == ["orders-db"]


def test_nothing_is_reachable_in_a_policy_without_services():
    assert list(reachable(Policy(), request())) == []


@pytest.mark.parametrize(
    "host",
    ["orders-db.bastion.example.com", "ORDERS-DB.Bastion.Example.COM.", "orders.example.com", "Orders.example.com."],
)
def test_a_host_name_means_the_service_below_the_gateways_name_or_its_alias(host):
    service = policy("", gateway_name="bastion.example.com").resolve_name(host)
    assert service is not None
    assert service.name == "orders-db"


@pytest.mark.parametrize(
    "host",
    ["orders-db", "bastion.example.com", "orders-db.example.com", "x.orders-db.bastion.example.com", "", ".",
     "orders-db.bastion.example.com..", "orders-db\u212a", "\u212a.example.com", "metrics-a.bastion.example.com\0"],
)  # fmt: skip
def test_any_other_host_name_means_no_service(host):
    assert policy("", gateway_name="bastion.example.com").resolve_name(host) is None


def test_without_the_gateways_name_only_aliases_are_known():
    made = policy("")
    assert made.resolve_name("orders.example.com") is made.services["orders-db"]
    assert made.resolve_name("orders-db.bastion.example.com") is None


def test_a_service_name_compares_in_lower_case_without_its_trailing_dot():
    made = policy("")
    assert made.resolve_service("ORDERS-DB.") is made.services["orders-db"]
    assert made.resolve_service("orders") is None
    assert made.resolve_service("orders.example.com") is None


def test_no_letter_outside_ascii_is_folded_into_one_inside():
    made = policy("\n[services.kiosk]\nupstream = ['10.0.0.1:80']\n")
    assert made.resolve_service("KIOSK") is made.services["kiosk"]
    assert made.resolve_service("\u212aiosk") is None
