import pytest

from portguard.errors import ConfigurationError
from portguard.identity.names import Namespace
from portguard.policy import checks
from portguard.policy.addresses import ListenAddress
from portguard.policy.decide import Policy
from portguard.policy.model import Origin, Service, Upstream
from portguard.policy.read import read_policy

NAMESPACE = Namespace({"local": "spiffe", "corp": "email"}, "local", {"example.com": "local"})
SERVICES = """
    timezone = "Europe/Zurich"
    [groups]
    oncall = ["alice", "bob"]
    wide = ["team/*", "carol"]
    empty = []
    [services.db]
    upstream = ["10.0.3.7:5432"]
    zones = ["data", "prod"]
    [services.db-2]
    upstream = ["10.0.3.8:5432"]
    zones = ["data"]
    [services.web]
    upstream = ["10.0.3.9:80"]
"""


def read(text: str) -> Policy:
    return read_policy([("p.toml", (SERVICES + text).encode())], NAMESPACE)


def role(name: str, members: str, services: str, **keys: str) -> str:
    more = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return f'[[roles]]\nname = "{name}"\nmembers = [{members}]\nservices = [{services}]\n{more}'


def deny(members: str, services: str) -> str:
    return f"[[deny]]\nmembers = [{members}]\nservices = [{services}]\n"


def service(name: str, *, aliases: tuple[str, ...] = (), listen: tuple[ListenAddress, ...] = ()) -> Service:
    origin = Origin("p.toml", f"services.{name}")
    return Service(name, (Upstream("10.0.0.1", 80),), aliases=aliases, listen=listen, origin=origin)


# Names


def collisions(*services: Service, gateway: str | None = "bastion.example.com") -> list[str]:
    return [str(problem) for problem in checks.name_collisions(services, gateway)]


def test_names_that_mean_one_thing_each_do_not_collide():
    services = (
        service("db", aliases=("db.example.com", "new.bastion.example.com")),
        service("web", aliases=("example.com",)),
    )
    assert collisions(*services) == []


@pytest.mark.parametrize(
    ("services", "problem"),
    [
        ([service("db", aliases=("bastion.example.com",))], "got bastion.example.com, the gateway's own name"),
        ([service("db"), service("web", aliases=("db",))], "got db, the service db"),
        ([service("web", aliases=("db",)), service("db")], "got db, the service db"),
        (
            [service("db", aliases=("web.bastion.example.com",)), service("web")],
            "got web.bastion.example.com, a name that the service web has by itself",
        ),
        (
            [service("db", aliases=("db.bastion.example.com",))],
            "got db.bastion.example.com, a name that the service db has by itself",
        ),
        (
            [service("db", aliases=("x.example.com",)), service("web", aliases=("x.example.com",))],
            "got x.example.com, an alias of the service db",
        ),
        ([service("db", aliases=("x.org", "x.org"))], "got x.org, an alias of the service db"),
    ],
)
def test_an_alias_that_means_something_else_already_is_told(services, problem):
    (found,) = collisions(*services)
    assert found.startswith("p.toml: services.")
    assert ".aliases[" in found
    assert found.endswith(f"expected a name that nothing else has, {problem}")


def test_a_service_cannot_be_called_as_the_gateway():
    assert collisions(service("bastion"), gateway="bastion") == [
        "p.toml: services.bastion: expected another name, got the gateway's own name, bastion"
    ]


def test_without_the_gateways_name_only_names_of_the_policy_are_compared():
    assert collisions(service("db", aliases=("db.bastion.example.com",)), gateway=None) == []
    assert len(collisions(service("db", aliases=("db",)), gateway=None)) == 1


# Ports


def test_an_address_is_listened_on_once():
    everywhere, here, v6 = ListenAddress("0.0.0.0", 80), ListenAddress("127.0.0.1", 80), ListenAddress("::", 80)
    services = [service("db", listen=(here, v6)), service("web", listen=(everywhere, ListenAddress("127.0.0.1", 81)))]
    occupied = [(ListenAddress("::1", 80), "metrics.listen")]
    assert [str(problem) for problem in checks.port_collisions(services, occupied)] == [
        "p.toml: services.db.listen[1]: expected an address that nothing else listens on, got [::]:80, metrics.listen",
        "p.toml: services.web.listen[0]: expected an address that nothing else listens on, "
        "got 0.0.0.0:80, that of the service db",
    ]


def test_an_address_twice_in_one_service_is_told():
    twice = ListenAddress("127.0.0.1", 80)
    assert len(list(checks.port_collisions([service("db", listen=(twice, twice))], []))) == 1


def test_other_addresses_and_ports_that_the_system_picks_do_not_collide():
    addresses = [ListenAddress("127.0.0.1", 80), ListenAddress("127.0.0.2", 80), ListenAddress("127.0.0.1", 0)]
    assert list(checks.port_collisions([service("db", listen=(*addresses, addresses[2]))], [])) == []


# The policy's own tests

ALICE = role("r", '"alice"', '"db"')


def failures(text: str, **keys: str) -> list[str]:
    values = {"identity": '"alice"', "service": '"db"', "expect": '"allow"'} | keys
    test = "[[tests]]\n" + "".join(f"{key.removesuffix('_')} = {value}\n" for key, value in values.items())
    try:
        read(text + test)
    except ConfigurationError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (ALICE, {}),
        (ALICE, {"expect": '"deny"', "service": '"web"'}),
        (ALICE, {"expect": '"deny"', "service": '"web"', "reason": '"service_not_granted"'}),
        (ALICE, {"expect": '"deny"', "identity": '"bob"', "reason": '"no_role"'}),
        (role("r", '"@local:dba"', '"*"'), {"groups": '["dba"]'}),
        (role("r", '"alice"', '"*"', **{"from": '["10.0.0.0/8"]'}), {"from_": '"10.1.2.3"'}),
        (
            role("r", '"alice"', '"*"', **{"from": '["10.0.0.0/8"]'}),
            {"expect": '"deny"', "reason": '"source_not_allowed"'},
        ),
        (role("r", '"alice"', '"*"', hours='["Mon 07:00-20:00"]'), {"at": "2026-03-02T07:00:00+01:00"}),
        (
            role("r", '"alice"', '"*"', expires="2026-03-02T00:00:00Z"),
            {"at": "2026-03-02T00:00:00Z", "expect": '"deny"', "reason": '"grant_expired"'},
        ),
    ],
)
def test_a_test_that_holds_lets_the_policy_be(text, keys):
    assert failures(text, **keys) == []


@pytest.mark.parametrize(
    ("text", "keys", "problem"),
    [
        (ALICE, {"expect": '"deny"'}, "expected deny for local:alice at db, got allow (role r)"),
        (ALICE, {"service": '"web"'}, "expected allow for local:alice at web, got deny, service_not_granted (role r)"),
        (ALICE, {"identity": '"bob"'}, "expected allow for local:bob at db, got deny, no_role"),
        (
            ALICE,
            {"identity": '"bob"', "expect": '"deny"', "reason": '"denied"'},
            "expected deny, denied for local:bob at db, got deny, no_role",
        ),
        (
            role("r", '"alice"', '"*"', **{"from": '["10.0.0.0/8"]'}),
            {"from_": '"11.1.2.3"'},
            "expected allow for local:alice at db, got deny, source_not_allowed (role r)",
        ),
        (
            role("r", '"alice"', '"*"', hours='["Mon 07:00-20:00"]'),
            {"at": "2026-03-02T06:59:59+01:00"},
            "expected allow for local:alice at db, got deny, outside_hours (role r)",
        ),
    ],
)
def test_a_test_that_fails_tells_what_was_expected_and_what_was_decided(text, keys, problem):
    assert failures(text, **keys) == [f"p.toml: tests[0]: {problem}"]


@pytest.mark.parametrize("key", [{"hours": '["Mon"]'}, {"expires": "2026-03-02T00:00:00Z"}])
@pytest.mark.parametrize("expect", ['"allow"', '"deny"'])
def test_a_test_needs_a_time_where_time_decides(key, expect):
    text = role("r", '"alice"', '"*"', **key) + role("s", '"alice"', '"*"', hours='["Tue"]')
    assert failures(text, expect=expect) == [
        "p.toml: tests[0].at: expected a date and time with an offset, as the hours or expiry of role r decide, "
        "got nothing"
    ]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (role("r", '"alice"', '"*"', hours='["Mon"]') + ALICE.replace('"r"', '"s"'), {}),
        (ALICE + role("s", '"alice"', '"*"', hours='["Mon"]'), {}),
        (role("r", '"bob"', '"*"', hours='["Mon"]'), {"expect": '"deny"'}),
        (role("r", '"alice"', '"web"', hours='["Mon"]'), {"expect": '"deny"'}),
        (role("r", '"alice"', '"*"', hours='["Mon"]', **{"from": '["10.0.0.0/8"]'}), {"expect": '"deny"'}),
        (role("r", '"alice"', '"*"', hours='["Mon"]') + deny('"alice"', '"*"'), {"expect": '"deny"'}),
    ],
)
def test_a_test_needs_no_time_where_time_makes_no_difference(text, keys):
    assert failures(text, **keys) == []


# Warnings


def warned(text: str) -> list[str]:
    return list(checks.warnings(read(text)))


def test_a_policy_without_roles_is_warned_of():
    assert warned(deny('"alice"', '"*"')) == ["the policy has no roles, so it allows nobody"]


def test_selectors_that_match_nothing_are_warned_of():
    text = deny('"bob"', '"db", "x-*"') + role("r", '"alice"', '"zone:data+prod", "q*"')
    assert warned(text) == [
        "p.toml: deny[0].services[1]: x-* matches no service",
        "p.toml: roles[0].services[1]: q* matches no service",
    ]


def test_entries_whose_groups_are_empty_are_warned_of():
    text = role("r", '"@empty"', '"*"') + role("s", '"@empty", "alice"', '"*"') + deny('"@empty"', '"*"')
    assert warned(text) == [
        "p.toml: deny[0]: has no members, as its groups are empty",
        "p.toml: roles[0]: has no members, as its groups are empty",
    ]


WIDE = {"from": '["10.0.0.0/8", "::/0"]', "hours": '["Mon-Fri 07:00-20:00"]', "expires": "2027-01-01T00:00:00Z"}
NARROW = {"from": '["10.1.0.0/16"]', "hours": '["Mon 08:00-12:00"]', "expires": "2026-12-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (role("a", '"alice", "bob"', '"*"'), role("b", '"alice"', '"db"')),
        (role("a", '"alice"', '"zone:data"'), role("b", '"alice"', '"db", "db-2"')),
        (role("a", '"*"', '"*"'), role("b", '"alice", "al*"', '"*"')),
        (role("a", '"**"', '"*"'), role("b", '"ns/*/web", "ns/**"', '"*"')),
        (role("a", '"@oncall"', '"*"'), role("b", '"alice"', '"*"')),
        (role("a", '"@oncall"', '"*"'), role("b", '"@oncall"', '"*"')),
        (role("a", '"alice", "bob"', '"*"'), role("b", '"@oncall"', '"*"')),
        (role("a", '"@wide"', '"*"'), role("b", '"team/anna", "team/b*", "carol"', '"*"')),
        (role("a", '"@corp:dba"', '"*"'), role("b", '"@corp:dba"', '"*"')),
        (role("a", '"@oncall"', '"*"'), role("b", '"@oncall", "@empty"', '"*"')),
        (role("a", '"alice"', '"*"'), role("b", '"alice"', '"*"', **NARROW)),
        (role("a", '"alice"', '"*"', **WIDE), role("b", '"alice"', '"*"', **NARROW)),
        (role("a", '"alice"', '"*"', **WIDE), role("b", '"alice"', '"*"', **WIDE)),
    ],
)
def test_a_role_that_an_earlier_one_covers_is_warned_of(earlier, later):
    assert warned(earlier + later) == ["p.toml: roles[1]: role b can never decide, role a covers it (p.toml: roles[0])"]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (role("a", '"alice"', '"*"'), role("b", '"alice", "bob"', '"*"')),
        (role("a", '"alice"', '"db"'), role("b", '"alice"', '"zone:data"')),
        (role("a", '"al*"', '"*"'), role("b", '"a*"', '"*"')),
        (role("a", '"ns/*"', '"*"'), role("b", '"ns/**"', '"*"')),
        (role("a", '"*"', '"*"'), role("b", '"corp:*"', '"*"')),
        (role("a", '"alice"', '"*"'), role("b", '"@oncall"', '"*"')),
        (role("a", '"**"', '"*"'), role("b", '"@local:dba"', '"*"')),
        (role("a", '"@corp:dba"', '"*"'), role("b", '"@corp:dbb"', '"*"')),
        (role("a", '"alice"', '"*"', **{"from": '["10.0.0.0/8"]'}), role("b", '"alice"', '"*"')),
        (
            role("a", '"alice"', '"*"', **{"from": '["10.0.0.0/8"]'}),
            role("b", '"alice"', '"*"', **{"from": '["10.0.0.0/8", "::1"]'}),
        ),
        (role("a", '"alice"', '"*"', hours='["Mon"]'), role("b", '"alice"', '"*"')),
        (role("a", '"alice"', '"*"', hours='["Mon"]'), role("b", '"alice"', '"*"', hours='["Mon-Tue"]')),
        (role("a", '"alice"', '"*"', expires="2027-01-01T00:00:00Z"), role("b", '"alice"', '"*"')),
        (
            role("a", '"alice"', '"*"', expires="2027-01-01T00:00:00Z"),
            role("b", '"alice"', '"*"', expires="2027-01-01T00:00:01Z"),
        ),
        (role("a", '"alice"', '"*"', **NARROW), role("b", '"alice"', '"*"', **WIDE)),
    ],
)
def test_a_role_that_may_yet_decide_is_not_warned_of(earlier, later):
    assert warned(earlier + later) == []


def test_a_role_that_a_later_one_covers_is_not_warned_of():
    assert warned(role("a", '"alice"', '"db"') + role("b", '"*"', '"*"')) == []


def test_a_role_that_a_deny_covers_is_warned_of():
    assert warned(role("a", '"alice"', '"db"') + deny('"al*"', '"zone:data"')) == [
        "p.toml: roles[0]: role a can never decide, a deny covers it (p.toml: deny[0])"
    ]


def test_a_role_past_others_that_cover_only_its_hours_is_found_covered_by_the_one_that_covers_all():
    text = role("a", '"alice"', '"*"', hours='["Mon"]') + role("b", '"alice"', '"*"') + role("c", '"alice"', '"db"')
    assert warned(text) == ["p.toml: roles[2]: role c can never decide, role b covers it (p.toml: roles[1])"]
