import math
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from zoneinfo import ZoneInfo

import pytest

from portguard.errors import ConfigurationError
from portguard.identity.names import Group, Identity, Namespace
from portguard.identity.patterns import Glob, Pattern
from portguard.policy.addresses import ListenAddress
from portguard.policy.decide import Policy
from portguard.policy.hours import Hours, parse_window
from portguard.policy.model import (
    Deny,
    Limits,
    PolicyGroup,
    PolicyTest,
    Role,
    Selector,
    Service,
    Upstream,
    UpstreamTls,
)
from portguard.policy.quantities import Period, Quota, Rate
from portguard.policy.read import policy_file_names, read_policy, tls_files
from portguard.reasons import Reason

NAMESPACE = Namespace({"local": "spiffe", "corp": "email"}, "local", {"example.com": "local"})
SERVICE = '[services.db]\nupstream = ["10.0.3.7:5432"]\nzones = ["prod"]\n'
ROLE = '[[roles]]\nname = "r"\nmembers = ["alice"]\nservices = ["db"]\n'
DESIGN = """
timezone = "Europe/Zurich"

[groups]
oncall = ["corp:anna@example.com", "bob"]

[services.orders-db]
upstream = ["10.0.3.7:5432", "unix:/run/x.sock"]
balance = "round-robin"
description = "orders, primary"
zones = ["data", "prod"]
local_port = 5432
alpn = ["postgresql"]
aliases = ["Orders.example.com."]
proxy_protocol = "v2-tls"
idle = "8h"
tls = { ca = "internal-ca.crt", server_name = "db.internal", certificate = "gw.crt", key = "/keys/gw.key" }
max_sessions = 200
listen = ["127.0.0.1:15432", "[::1]:15432"]

[[deny]]
members = ["@corp:contractors"]
services = ["zone:prod"]
description = "contractors stay out of production"

[[roles]]
name = "dba"
description = "those who may"
members = ["alice", "@oncall", "corp:*@dba.example.com"]
services = ["orders-db", "zone:data+prod", "orders-*"]
max_sessions = 10
connect_rate = "30/m"
bandwidth = "50MB/s"
quota = ["20GB/day", "200GB/month"]
pooled_quota = ["5TB/month"]
session = "8h"
hours = ["Mon-Fri 07:00-20:00"]
from = ["10.0.0.0/8", "2001:db8::/32"]
expires = 2027-01-31T01:00:00+01:00

[[tests]]
identity = "corp:x@example.com"
service = "orders-db"
expect = "deny"
reason = "denied"
at = 2026-03-02T07:00:00+01:00
from = "10.1.2.3"
groups = ["contractors"]
"""


def read(*texts: str, **options) -> Policy:
    files = [(f"/etc/portguard/{number}.toml", text.encode()) for number, text in enumerate(texts, 1)]
    return read_policy(files, NAMESPACE, **options)


def problems(*texts: str, **options) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(*texts, **options)
    return [str(problem).removeprefix("/etc/portguard/") for problem in caught.value.problems]


# What is right


def test_every_key_of_a_service_is_read():
    assert dict(read(DESIGN).services) == {
        "orders-db": Service(
            name="orders-db",
            upstreams=(Upstream("10.0.3.7", 5432), Upstream(path="/run/x.sock")),
            balance="round-robin",
            description="orders, primary",
            zones=frozenset({"data", "prod"}),
            local_port=5432,
            alpn=("postgresql",),
            aliases=("orders.example.com",),
            proxy_protocol="v2-tls",
            tls=UpstreamTls("/etc/portguard/internal-ca.crt", "db.internal", "/etc/portguard/gw.crt", "/keys/gw.key"),
            listen=(ListenAddress("127.0.0.1", 15432), ListenAddress("::1", 15432)),
            idle_s=8 * 3600.0,
            max_sessions=200,
        )
    }


def test_a_service_needs_no_more_than_an_upstream():
    service = read('[services.db]\nupstream = ["10.0.3.7:5432"]').services["db"]
    assert service == Service("db", (Upstream("10.0.3.7", 5432),))
    assert (service.balance, service.proxy_protocol, service.tls, service.idle_s) == ("failover", "off", None, None)


def test_every_key_of_a_role_is_read():
    assert read(DESIGN).roles == (
        Role(
            name="dba",
            members=(Identity("local", "alice"), PolicyGroup("oncall"), Pattern("corp", "*@dba.example.com")),
            services=(
                Selector(glob=Glob("orders-db")),
                Selector(zones=frozenset({"data", "prod"})),
                Selector(glob=Glob("orders-*")),
            ),
            limits=Limits(
                max_sessions=10,
                connect_rate=Rate(30, 60),
                bandwidth=50_000_000,
                quota=(Quota(20 * 10**9, Period.DAY), Quota(200 * 10**9, Period.MONTH)),
                pooled_quota=(Quota(5 * 10**12, Period.MONTH),),
            ),
            session_s=8 * 3600.0,
            hours=Hours((parse_window("Mon-Fri 07:00-20:00"),)),
            sources=(ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")),
            expires=datetime(2027, 1, 31, tzinfo=UTC),
            description="those who may",
        ),
    )


def test_a_role_needs_no_more_than_a_name_members_and_services():
    assert read(SERVICE + ROLE).roles == (Role("r", (Identity("local", "alice"),), (Selector(glob=Glob("db")),)),)


def test_denies_groups_tests_and_the_zone_are_read():
    policy = read(DESIGN)
    assert policy.zone is ZoneInfo("Europe/Zurich")
    assert policy.groups == {"oncall": (Identity("corp", "anna@example.com"), Identity("local", "bob"))}
    assert policy.denies == (
        Deny(
            (Group("corp", "contractors"),),
            (Selector(zones=frozenset({"prod"})),),
            "contractors stay out of production",
        ),
    )
    assert policy.tests == (
        PolicyTest(
            Identity("corp", "x@example.com"), "orders-db", False, Reason.DENIED, datetime(2026, 3, 2, 6, tzinfo=UTC),
            ip_address("10.1.2.3"), frozenset({Group("corp", "contractors")}),
        ),
    )  # fmt: skip


def test_the_time_zone_is_utc_unless_given():
    assert read("").zone is UTC


def test_entries_know_where_they_are_written():
    policy = read(SERVICE, ROLE + '[[deny]]\nmembers = ["bob"]\nservices = ["*"]')
    assert str(policy.services["db"].origin) == "/etc/portguard/1.toml: services.db"
    assert str(policy.roles[0].origin) == "/etc/portguard/2.toml: roles[0]"
    assert str(policy.denies[0].origin) == "/etc/portguard/2.toml: deny[0]"


def test_an_empty_policy_is_one():
    policy = read("")
    assert not policy.services
    assert not policy.entries


# Defaults


def test_defaults_stand_in_for_what_a_role_does_not_set():
    defaults = """
        [defaults.role]
        max_sessions = 50
        connect_rate = "5/s"
        bandwidth = "1MB/s"
        quota = ["1GB/day"]
        pooled_quota = ["2GB/day"]
        session = "1h"
        hours = ["Mon"]
        from = ["10.0.0.0/8"]
        expires = 2027-01-01T00:00:00Z
    """
    own = """
        max_sessions = 1
        connect_rate = "1/d"
        bandwidth = "2MB/s"
        quota = ["3GB/week"]
        pooled_quota = ["4GB/hour"]
        session = "2h"
        hours = ["Tue"]
        from = ["::/0"]
        expires = 2028-01-01T00:00:00Z
    """
    off = """
        max_sessions = "off"
        connect_rate = "off"
        bandwidth = "off"
        quota = []
        pooled_quota = []
        session = "off"
    """
    inherited, overriding, lifted = read(
        defaults + SERVICE + ROLE + ROLE.replace('"r"', '"s"') + own + ROLE.replace('"r"', '"t"') + off
    ).roles
    quota = Quota(10**9, Period.DAY), Quota(2 * 10**9, Period.DAY)
    assert inherited.limits == Limits(50, Rate(5, 1), 10**6, quota[:1], quota[1:])
    assert inherited.session_s == 3600.0
    assert inherited.hours == Hours((parse_window("Mon"),))
    assert inherited.sources == (ip_network("10.0.0.0/8"),)
    assert inherited.expires == datetime(2027, 1, 1, tzinfo=UTC)
    quota = Quota(3 * 10**9, Period.WEEK), Quota(4 * 10**9, Period.HOUR)
    assert overriding.limits == Limits(1, Rate(1, 86400), 2 * 10**6, quota[:1], quota[1:])
    assert overriding.session_s == 7200.0
    assert overriding.hours == Hours((parse_window("Tue"),))
    assert overriding.sources == (ip_network("::/0"),)
    assert overriding.expires == datetime(2028, 1, 1, tzinfo=UTC)
    assert lifted.limits == Limits()
    assert lifted.session_s == math.inf
    assert lifted.hours == inherited.hours


def test_defaults_stand_in_for_what_a_service_does_not_set():
    defaults = """
        [defaults.service]
        balance = "round-robin"
        alpn = ["h2"]
        proxy_protocol = "v1"
        idle = "2h"
        max_sessions = 5
    """
    own = 'balance = "failover"\nalpn = []\nproxy_protocol = "off"\nidle = "off"\nmax_sessions = "off"\n'
    services = read(defaults + SERVICE + SERVICE.replace("db", "own") + own).services
    inherited, overriding = services["db"], services["own"]
    assert (inherited.balance, inherited.alpn, inherited.proxy_protocol) == ("round-robin", ("h2",), "v1")
    assert (inherited.idle_s, inherited.max_sessions) == (7200.0, 5)
    assert (overriding.balance, overriding.alpn, overriding.proxy_protocol) == ("failover", (), "off")
    assert (overriding.idle_s, overriding.max_sessions) == (math.inf, None)


def test_defaults_of_one_file_hold_in_all():
    assert read(SERVICE + ROLE, "[defaults.role]\nmax_sessions = 7").roles[0].limits.max_sessions == 7


@pytest.mark.parametrize("key", ["members", "services", "name", "description"])
def test_what_makes_a_role_has_no_default(key):
    assert problems(f'[defaults.role]\n{key} = "x"')[0].startswith(
        f"1.toml: defaults.role.{key}: expected one of the keys"
    )


# A folder


def test_files_of_a_folder_are_one_policy_in_their_order():
    group = '[groups]\noncall = ["bob"]\n'
    second = ROLE.replace('"r"', '"s"').replace('"alice"', '"@oncall"')
    policy = read(second, SERVICE + ROLE, group)
    assert [role.name for role in policy.roles] == ["s", "r"]
    assert policy.groups == {"oncall": (Identity("local", "bob"),)}


def test_what_can_be_only_once_is_an_error_in_the_second_file():
    text = 'timezone = "UTC"\n[groups]\nall = ["*"]\n' + SERVICE + ROLE + "[defaults.role]\n[defaults.service]\n"
    assert problems(text, text) == [
        "2.toml: defaults.role: expected [defaults.role] only once in a folder, "
        "got a second one beside /etc/portguard/1.toml",
        "2.toml: defaults.service: expected [defaults.service] only once in a folder, "
        "got a second one beside /etc/portguard/1.toml",
        "2.toml: groups.all: expected a group that no other file has, got one that is in /etc/portguard/1.toml too",
        "2.toml: roles[0].name: expected a name that no other role has, got that of /etc/portguard/1.toml: roles[0]",
        "2.toml: services.db: expected a service that no other file has, got one that is in /etc/portguard/1.toml too",
        "2.toml: timezone: expected a time zone only once in a folder, got a second one beside /etc/portguard/1.toml",
    ]


def test_of_a_folder_toml_files_are_read_in_name_order_and_hidden_ones_not():
    names = ["b.toml", "10.toml", "a.toml", ".a.toml", "a.toml~", "README", "a.toml.bak", ".toml"]
    assert policy_file_names(names) == ["10.toml", "a.toml", "b.toml"]


# What is wrong


def test_all_problems_of_all_files_are_told_in_one_go():
    bad_service = '[services.Bad]\nupstream = ["10.0.0.1"]\nlocal_port = 0\nzone = ["a"]\n'
    bad_role = '[[roles]]\nmembers = []\nservices = ["nothing"]\nexpires = 2027-01-31T00:00:00\nquota = ["20GB"]\n'
    assert problems(bad_service, SERVICE + bad_role) == [
        '1.toml: services.Bad: expected a name of lower-case letters, digits and "-", at most 63, '
        '"-" neither first nor last, got "Bad"',
        "1.toml: services.Bad.local_port: expected 1 to 65535, got 0",
        '1.toml: services.Bad.upstream[0]: expected a host and a port such as "10.0.3.7:5432", "[::1]:5432" or '
        '"db.internal:5432", got "10.0.0.1"',
        '1.toml: services.Bad.zone: expected a known key (did you mean zones?), got "zone"',
        "2.toml: roles[0].expires: expected a date and time with an offset such as 2027-01-31T00:00:00Z, "
        "without quotes, got 2027-01-31T00:00:00 without an offset",
        "2.toml: roles[0].members: expected an array of at least 1, got an empty one",
        '2.toml: roles[0].name: expected a name of letters, digits, "-", "_" and ".", at most 63, '
        "the first one a letter or digit, got nothing",
        '2.toml: roles[0].quota[0]: expected a quota such as "20GB/day", per hour, day, week or month, got "20GB"',
        '2.toml: roles[0].services[0]: expected a service, got "nothing"',
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rolse = 1", 'rolse: expected a known key (did you mean roles?), got "rolse"'),
        ('timezone = "Zurich"', "timezone: expected a time zone of this system's IANA data base"),
        ("[groups]\noncall = [7]", "groups.oncall[0]: expected a member such as"),
        ('[groups]\noncall = ["@other"]', "groups.oncall[0]: expected no group of [groups] inside another"),
        ('[groups]\n"a:b" = ["bob"]', 'groups."a:b": expected a name of letters'),
        ("[services.db]", "services.db.upstream: expected an array, got nothing"),
        (SERVICE + "tls = true", "services.db.tls: expected a table, got true"),
        (SERVICE + 'tls.key = "x"', "services.db.tls.certificate: expected a certificate for the key"),
        (SERVICE + 'tls.certificate = "x"', "services.db.tls.key: expected the key of the certificate"),
        (
            '[services.db]\nupstream = ["unix:/x"]\ntls = {}',
            "services.db.tls.server_name: expected a name to verify",
        ),
        (SERVICE + 'proxy_protocol = "v3"', 'services.db.proxy_protocol: expected "off", "v1", "v2" or "v2-tls"'),
        (SERVICE + "max_sessions = 0", 'services.db.max_sessions: expected 1 to 1000000, or "off", got 0'),
        (SERVICE + 'idle = "0s"', "services.db.idle: expected a duration longer than 0s"),
        (SERVICE + 'aliases = ["a b"]', "services.db.aliases[0]: expected a host name"),
        (SERVICE + 'listen = ["localhost:80"]', "services.db.listen[0]: expected an IP address (not a name)"),
        (SERVICE + 'listen = ["[fe80::1%eth0]:80"]', "services.db.listen[0]: expected an IP address"),
        ("[[roles]]\n", "roles[0].members: expected an array, got nothing"),
        (SERVICE + ROLE + "hours = []", "roles[0].hours: expected an array of at least 1, got an empty one"),
        (SERVICE + ROLE + "from = []", "roles[0].from: expected an array of at least 1, got an empty one"),
        (SERVICE + ROLE + 'from = ["fe80::1%eth0"]', "roles[0].from[0]: expected a network without a zone id"),
        (SERVICE + ROLE + 'from = ["10.0.0.1/8"]', "roles[0].from[0]: expected a network without host bits"),
        (SERVICE + ROLE + 'hours = ["always"]', "roles[0].hours[0]: expected hours such as"),
        (SERVICE + ROLE + 'quota = ["1GB/day", "2GB/day"]', "roles[0].quota[1]: expected one quota a period"),
        (SERVICE + ROLE + 'expires = "2027-01-31T00:00:00Z"', "roles[0].expires: expected a date and time"),
        (
            SERVICE + ROLE.replace("alice", "@oncal"),
            "roles[0].members[0]: expected a group of [groups], or @TRUST:GROUP",
        ),
        (
            "[groups]\noncall = []\n" + SERVICE + ROLE.replace("alice", "@oncal"),
            "roles[0].members[0]: expected a group of [groups] (did you mean oncall?), or @",
        ),
        (SERVICE + ROLE.replace("db", "dbs"), 'roles[0].services[0]: expected a service (did you mean db?), got "dbs"'),
        (
            SERVICE + ROLE.replace('"db"', '"zone:prod+dat"'),
            'roles[0].services[0]: expected a zone of some service, got "dat"',
        ),
        (SERVICE + '[[deny]]\nmembers = ["bob"]', "deny[0].services: expected an array, got nothing"),
        (SERVICE + '[[deny]]\nmembers = ["@x"]\nservices = ["y"]', "deny[0].members[0]: expected a group of [groups]"),
        ('[[deny]]\nmembers = ["bob"]\nservices = ["y"]', "deny[0].services[0]: expected a service"),
        (
            SERVICE + '[[deny]]\nmembers = ["bob"]\nservices = ["*"]\nhours = ["Mon"]',
            "deny[0].hours: expected one of the keys",
        ),
    ],
)
def test_what_is_wrong_is_told_with_file_key_expectation_and_finding(text, problem):
    assert any(found.startswith(f"1.toml: {problem}") for found in problems(text)), problems(text)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ('identity = "al*"', "tests[0].identity: expected a name without"),
        ('service = "dbb"', "tests[0].service: expected a service (did you mean db?)"),
        ('expect = "maybe"', 'tests[0].expect: expected "allow" or "deny"'),
        ('reason = "because"', 'tests[0].reason: expected "denied", "no_role"'),
        ('reason = "max_sessions"', 'tests[0].reason: expected "denied", "no_role"'),
        ('expect = "allow"\nreason = "denied"', 'tests[0].reason: expected no reason, as expect is "allow"'),
        ("at = 2026-03-02T07:00:00", "tests[0].at: expected a date and time with an offset"),
        ("at = 9999-12-31T23:00:00Z", "tests[0].at: expected a date in the years 1970 to 9000"),
        ('from = "10.0.0.0/8"', "tests[0].from: expected an IP address"),
        ('from = "fe80::1%eth0"', "tests[0].from: expected an IP address without a zone id"),
        ('groups = ["@corp:dba"]', "tests[0].groups[0]: expected a group of the identity's own trust, local"),
        ('zone = "x"', "tests[0].zone: expected"),
    ],
)
def test_a_test_that_makes_no_sense_is_told(keys, problem):
    values = {"identity": '"alice"', "service": '"db"', "expect": '"deny"'}
    for line in keys.splitlines():
        key, _, value = line.partition(" = ")
        values[key] = value
    test = "[[tests]]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
    found = problems(SERVICE + test)
    assert len(found) == 1
    assert found[0].startswith(f"1.toml: {problem}")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ('expect = "denied"\nreason = "no_role"', 'tests[0].expect: expected "allow" or "deny", got "denied"'),
        ('reason = "no_role"', 'tests[0].expect: expected "allow" or "deny", got nothing'),
        ('expect = "allow"\nreason = "no-role"', 'tests[0].reason: expected "denied", "no_role", '),
    ],
)
def test_a_word_that_is_none_is_not_judged_as_if_it_were_another(keys, problem):
    (found,) = problems(SERVICE + f'[[tests]]\nidentity = "alice"\nservice = "db"\n{keys}\n')
    assert found.startswith(f"1.toml: {problem}")


@pytest.mark.parametrize(
    ("names", "more"), [(1, ""), (2, " and 1 more name without one"), (9, " and 8 more names without one")]
)
def test_that_no_trust_is_the_default_is_told_once(names, more):
    two = Namespace({"local": "spiffe", "corp": "email"}, None, {})
    members = ", ".join(f'"somebody-{number}"' for number in range(names))
    files = [("1.toml", (SERVICE + ROLE.replace('"alice"', f'{members}, "crop:x"')).encode())]
    with pytest.raises(ConfigurationError) as caught:
        read_policy(files, two)
    first, other = map(str, caught.value.problems)
    assert first == (
        "1.toml: roles[0].members[0]: expected a trust and a colon before the name, "
        f'as no trust has "default = true" (known: corp, local), got "somebody-0"{more}'
    )
    assert other.startswith(f"1.toml: roles[0].members[{names}]: expected a trust before the first")


def test_a_quota_that_is_none_is_not_a_second_one():
    quota = 'quota = ["20 GB/day", "5GB/hour", "6GB/day"]\n'
    (found,) = problems(SERVICE + ROLE + quota)
    assert found.startswith("1.toml: roles[0].quota[0]: expected a quota")
    assert found.endswith('got "20 GB/day"')
    assert problems(SERVICE + ROLE + quota.replace("20 GB", "20GB")) == [
        "1.toml: roles[0].quota[2]: expected one quota a period, got a second one a day"
    ]


def test_what_a_broken_file_may_hold_is_not_missed_in_the_others():
    assert problems("[services.db]\nupstream = [", ROLE) == [
        "1.toml: expected TOML, got an error at the end of the file: Invalid value"
    ]


def test_a_name_that_is_taken_and_a_port_that_is_are_problems_of_reading_too():
    text = SERVICE + 'aliases = ["bastion.example.com"]\nlisten = ["127.0.0.1:8443"]\n'
    occupied = [(ListenAddress("0.0.0.0", 8443), "gateway.listen[0]")]
    assert problems(text, gateway_name="bastion.example.com", occupied=occupied) == [
        "1.toml: services.db.aliases[0]: expected a name that nothing else has, "
        "got bastion.example.com, the gateway's own name",
        "1.toml: services.db.listen[0]: expected an address that nothing else listens on, "
        "got 127.0.0.1:8443, gateway.listen[0]",
    ]
    assert read(text).services["db"].aliases == ("bastion.example.com",)


def test_names_and_ports_that_cannot_be_read_collide_with_nothing():
    found = problems(SERVICE + 'aliases = ["a b", "c d"]\nlisten = ["x", "y"]\n')
    assert [problem.partition(": expected")[0] for problem in found] == [
        "1.toml: services.db.aliases[0]",
        "1.toml: services.db.aliases[1]",
        "1.toml: services.db.listen[0]",
        "1.toml: services.db.listen[1]",
    ]


def test_one_failing_test_refuses_the_whole_policy():
    test = '[[tests]]\nidentity = "{}"\nservice = "db"\nexpect = "allow"\n'
    assert read(SERVICE + ROLE + test.format("alice")).tests
    assert problems(SERVICE + ROLE + test.format("alice") + test.format("bob")) == [
        "1.toml: tests[1]: expected allow for local:bob at db, got deny, no_role"
    ]


# The files that services name


def test_the_files_of_tls_are_listed_once_with_their_full_paths():
    more = '[services.other]\nupstream = ["10.0.0.1:1"]\ntls.ca = "internal-ca.crt"\n'
    files = [("/etc/portguard/policy.toml", DESIGN.encode()), ("/etc/portguard/more.toml", more.encode())]
    assert tls_files(files) == (
        "/etc/portguard/internal-ca.crt", "/etc/portguard/gw.crt", "/keys/gw.key",
    )  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "services = 1", "[services]\na = 1", "[services.a]\ntls = 1", "[services.a]\ntls.ca = 1", "="]
)
def test_where_nothing_can_be_read_no_files_are_listed(text):
    assert tls_files([("/policy.toml", text.encode())]) == ()
