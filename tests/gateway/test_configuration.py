"""portguard.toml: every key, its default, and what is said of a wrong one."""

from ipaddress import ip_network

import pytest

from portguard.control.access import Principal
from portguard.errors import UsageError
from portguard.gateway.configuration import (
    AuditSettings,
    Capacity,
    ControlSettings,
    LogSettings,
    MetricsSettings,
    Timeouts,
    TrustSettings,
    read_configuration,
)
from portguard.identity.names import Namespace
from portguard.pki.names import gateway as certificate_names
from portguard.policy.addresses import ListenAddress

PATH = "/etc/portguard/portguard.toml"
LEAST = """
[gateway]
name = "bastion.example.com"
[trusts.local]
ca = "ca.crt"
identity = "spiffe"
trust_domain = "bastion.example.com"
"""
EVERYTHING = """
[gateway]
name = "Bastion.example.com."
listen = ["192.0.2.1:443", "[2001:db8::1]:0"]
certificate = "/tls/a.crt"
key = "a.key"
policy = "policy.d/"
state = "state"
control = "control.sock"
workers = 4
watch = true
confinement = "required"
accept_proxy_protocol_from = ["10.0.0.0/8", "2001:db8::7"]
[trusts.local]
ca = "ca.crt"
identity = "spiffe"
trust_domain = "bastion.example.com"
default = true
crl = ["a.crl", "/b.crl"]
crl_expired = "accept"
groups = "uri:urn:acme:group:"
[trusts.corp]
ca = "corp.crt"
identity = "email"
groups = "ou"
[timeouts]
handshake = "1s"
request = "2s"
connect = "250ms"
idle = "off"
half_close = "off"
session = "8h"
drain = "0s"
[capacity]
max_sessions = 1
pending_handshakes = 2
pending_handshakes_per_address = 3
pending_handshakes_exempt = ["192.0.2.0/24"]
[ledger]
url = "sqlite"
when_unavailable = "allow"
[metrics]
listen = "[::1]:1"
max_identities = 0
[audit]
rotate_size = "1MB"
rotate_age = "off"
path = "-"
required = false
sync = "disk"
copy = "journal"
[control]
group = "ops"
viewers = ["user:anna", "group:audit"]
operators = []
admins = ["user:root", "group:wheel"]
[log]
format = "json"
level = "debug"
"""


def read(content):
    """The configuration, and what is wrong with it as text without the file."""
    problems = []
    configuration = read_configuration(PATH, content.encode(), problems)
    assert {problem.file for problem in problems} <= {PATH}
    return configuration, [str(problem).removeprefix(f"{PATH}: ") for problem in problems]


def good(content):
    configuration, problems = read(content)
    assert problems == []
    return configuration


def problems_of(content):
    return read(content)[1]


def changed(old, new, content=LEAST):
    assert content.count(old) == 1
    return content.replace(old, new)


def test_the_least_configuration_has_the_documented_defaults():
    configuration = good(LEAST)
    gateway = configuration.gateway
    assert gateway.name == "bastion.example.com"
    assert list(map(str, gateway.listen)) == ["0.0.0.0:8443", "[::]:8443"]
    assert (gateway.certificate, gateway.key) == ("/etc/portguard/tls/gateway.crt", "/etc/portguard/tls/gateway.key")
    assert gateway.policy == "/etc/portguard/policy.toml"
    assert (gateway.state, gateway.control) == ("/var/lib/portguard", "/run/portguard/control.sock")
    assert (gateway.workers, gateway.accept_proxy_protocol_from, gateway.watch) == (0, (), False)
    assert gateway.confinement == "auto"
    assert configuration.trusts == (
        TrustSettings(
            name="local",
            ca="/etc/portguard/ca.crt",
            identity="spiffe",
            trust_domain="bastion.example.com",
            default=True,
            crl=(),
            crl_expired="refuse",
            groups=None,
            authority=None,
            renew_for_s=2_592_000,
        ),
    )
    assert configuration.timeouts == Timeouts(
        handshake_s=10, request_s=10, connect_s=10, idle_s=3600, half_close_s=60, session_s=None, drain_s=300
    )
    assert configuration.capacity == Capacity(
        max_sessions=8000,
        pending_handshakes=512,
        pending_handshakes_per_address=32,
        pending_handshakes_exempt=(),
    )
    assert (configuration.ledger.url, configuration.ledger.when_unavailable) == ("sqlite", "refuse")
    assert configuration.metrics == MetricsSettings(listen=ListenAddress("127.0.0.1", 9847), max_identities=1000)
    assert configuration.audit == AuditSettings(
        path="/var/lib/portguard/audit/audit.jsonl",
        required=True,
        rotate_size=100_000_000,
        rotate_age_s=7 * 86_400.0,
        sync="written",
        copy="none",
    )
    assert configuration.control == ControlSettings(
        group="portguard",
        viewers=(),
        operators=(Principal("group", "portguard"),),
        admins=(Principal("user", "root"),),
    )
    assert configuration.log == LogSettings(format="text", level="info")


def test_every_key_is_read():
    configuration = good(EVERYTHING)
    gateway = configuration.gateway
    assert gateway.name == "bastion.example.com"
    assert list(map(str, gateway.listen)) == ["192.0.2.1:443", "[2001:db8::1]:0"]
    assert (gateway.certificate, gateway.key) == ("/tls/a.crt", "/etc/portguard/a.key")
    assert gateway.policy == "/etc/portguard/policy.d"
    assert (gateway.state, gateway.control) == ("/etc/portguard/state", "/etc/portguard/control.sock")
    assert (gateway.workers, gateway.watch, gateway.confinement) == (4, True, "required")
    assert gateway.accept_proxy_protocol_from == (ip_network("10.0.0.0/8"), ip_network("2001:db8::7/128"))
    local, corp = configuration.trusts
    assert (local.default, corp.default) == (True, False)
    assert local.crl == ("/etc/portguard/a.crl", "/b.crl")
    assert (local.crl_expired, local.groups, corp.groups) == ("accept", "uri:urn:acme:group:", "ou")
    assert (corp.identity, corp.trust_domain) == ("email", None)
    assert configuration.timeouts == Timeouts(
        handshake_s=1, request_s=2, connect_s=0.25, idle_s=None, half_close_s=None, session_s=28800, drain_s=0
    )
    assert configuration.capacity == Capacity(
        max_sessions=1,
        pending_handshakes=2,
        pending_handshakes_per_address=3,
        pending_handshakes_exempt=(ip_network("192.0.2.0/24"),),
    )
    assert configuration.ledger.url == "sqlite"
    assert configuration.ledger.when_unavailable == "allow"
    assert configuration.metrics == MetricsSettings(listen=ListenAddress("::1", 1), max_identities=0)
    assert configuration.audit == AuditSettings(
        path="-", required=False, rotate_size=1_000_000, rotate_age_s=None, sync="disk", copy="journal"
    )
    assert configuration.control.viewers == (Principal("user", "anna"), Principal("group", "audit"))
    assert (configuration.control.group, configuration.control.operators) == ("ops", ())
    assert configuration.log == LogSettings(format="json", level="debug")


def test_names_in_policies_are_read_by_the_trusts():
    assert good(EVERYTHING).namespace == Namespace(
        sources={"local": "spiffe", "corp": "email"}, default="local", domains={"bastion.example.com": "local"}
    )


@pytest.mark.parametrize("explicit", ["", "default = false\n"])
def test_of_several_trusts_none_is_the_default_unless_it_says_so(explicit):
    two = f'{LEAST}{explicit}[trusts.corp]\nca = "corp.crt"\nidentity = "cn"\n'
    assert good(two).namespace.default is None
    assert good(LEAST).namespace.default == "local"
    assert good(f"{LEAST}default = false\n").namespace.default is None


def ledger(lines):
    return f"{LEAST}[ledger]\n{lines}\n"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis://:s3cret@127.0.0.1:0/0", '"redis://(hidden)@127.0.0.1:0/0"'),
        ("redis://:s3cret@127.0.0.1:70000/0", '"redis://(hidden)@127.0.0.1:70000/0"'),
        ("redis://:s3/cret@127.0.0.1", '"redis://(hidden)@127.0.0.1"'),
        ("rediss://u:s3cret@[::1]/zero?password=s3cret", '"rediss://(hidden)@[::1]/zero"'),
        ("rediss://u:s3cret@h/0?ssl_cert_reqs=none", '"rediss://(hidden)@h/0"'),
        ("redis://h/0?ssl_ca_certs=/ca.crt", '"redis://h/0"'),
        ("rediss://h/0?ssl_ca_certs=ca.crt", '"rediss://h/0"'),
        ("redis://h/0?db=1&db=2", '"redis://h/0"'),
        ("redis://", '"redis://"'),
        ("redis:///0", '"redis:///0"'),
        ("unix://h/run/redis.sock", '"unix://h/run/redis.sock"'),
        ("unix://", '"unix://"'),
        ("http://h/0", '"http://h/0"'),
        ("redis://h/0#s", '"redis://h/0#s"'),
        ("redis://h /0", '"redis://h /0"'),
        ("redis:s3cret@host", "a value that is not shown"),
        ("Sqlite", '"Sqlite"'),
        ("", '""'),
    ],
)
def test_what_is_no_ledger_is_refused_and_its_password_is_not_shown(url, found):
    expected = '"sqlite", or the URL of a Redis such as "rediss://redis.example.com:6379/0"'
    assert problems_of(ledger(f'url = "{url}"')) == [f"ledger.url: expected {expected}, got {found}"]


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://h",
        "redis://portguard:s3cret@[::1]:6379/15",
        "rediss://:s3cret@h/0?ssl_ca_certs=/etc/ca.crt&ssl_certfile=/c&ssl_keyfile=/k",
        "unix:///run/redis/redis.sock?db=3",
        "unix://u:s3cret@/run/redis/redis.sock",
    ],
)
def test_a_redis_is_taken_and_its_password_is_in_no_repr(url):
    configuration = good(ledger(f'url = "{url}"'))
    assert configuration.ledger.url == url
    assert (configuration.ledger.fleet, configuration.ledger.password_file) == ("bastion.example.com", None)
    assert "s3cret" not in repr(configuration)


def test_a_fleet_has_a_name_and_its_password_may_be_in_a_file():
    content = ledger('url = "redis://h"\nfleet = "bastions.eu"\npassword_file = "secrets/redis"')
    assert good(content).ledger.fleet == "bastions.eu"
    assert good(content).ledger.password_file.endswith("/secrets/redis")


@pytest.mark.parametrize("fleet", ["-a", "a b", "a{b}", "a:b", "ä", "x" * 190])
def test_a_name_of_a_fleet_that_could_mean_another_key_is_refused(fleet):
    [problem] = problems_of(ledger(f'url = "redis://h"\nfleet = "{fleet}"'))
    assert problem.startswith('ledger.fleet: expected up to 189 letters, digits, ".", "-" and "_" such as "bastions"')


def test_what_is_for_a_fleet_is_refused_beside_sqlite():
    assert problems_of(ledger('fleet = "x"\npassword_file = "y"')) == [
        'ledger.fleet: expected it only beside the url of a Redis, got one beside "sqlite"',
        'ledger.password_file: expected it only beside the url of a Redis, got one beside "sqlite"',
    ]


@pytest.mark.parametrize("url", ["redis://:s3cret@h", "unix:///s?password=s3cret"])
def test_two_passwords_are_refused(url):
    assert problems_of(ledger(f'url = "{url}"\npassword_file = "y"')) == [
        "ledger.password_file: expected the password in one place, got one beside that in the url"
    ]


@pytest.mark.parametrize(
    "name",
    ["bastion", "Bastion.example.com.", "b-1.x", "1.x", "b_1.x", "-b.x", "b-.x", "_b", "b..x", "bä.x", "a b", "1"],
)
def test_a_gateway_takes_the_names_that_its_certificate_can_be_issued_for(name):
    problems = problems_of(changed('name = "bastion.example.com"', f'name = "{name}"'))
    try:
        certificate_names([name])
    except UsageError:
        assert [problem.partition(":")[0] for problem in problems] == ["gateway.name"]
    else:
        assert problems == []


def test_an_empty_file_lacks_only_what_has_no_default():
    assert problems_of("") == [
        'gateway.name: expected a host name such as "bastion.example.com", got nothing',
        "trusts: expected at least one table, [trusts.NAME], got nothing",
    ]


def test_a_file_that_is_no_toml_is_one_problem():
    (problem,) = problems_of("[gateway\n")
    assert problem.startswith("expected TOML, got an error at line 1")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('name = "bastion.example.com"\n', 'name = "10.0.0.1"\n', "gateway.name: expected a host name such as"),
        (
            'name = "bastion.example.com"\n',
            'name = "Bastion_test"\n',
            "gateway.name: expected a host name of letters, d",
        ),
        ('name = "bastion.example.com"\n', f'name = "{"a." * 95}b"\n', "gateway.name: expected a host name of at most"),
        (
            'name = "bastion.example.com"\n',
            'nmae = "x"\nname = "x"\n',
            "gateway.nmae: expected a known key (did you me",
        ),
        ("[trusts.local]", "[trusts.Local]", 'trusts.Local: expected a name of lower-case letters, digits, "-" and'),
        ('ca = "ca.crt"', "", "trusts.local.ca: expected the path of a file, got nothing"),
        (
            'ca = "ca.crt"',
            'ca = "ca.crt"\nauthority = "ca"\ngroups = "ou"',
            "trusts.local.groups: expected none beside authority, whose certificates give no groups, got",
        ),
        (
            'ca = "ca.crt"',
            'ca = "ca.crt"\nrenew_for = "30d"',
            "trusts.local.authority: expected one, as renew_for is there, got nothing",
        ),
        (
            'ca = "ca.crt"',
            'ca = "ca.crt"\nauthority = "ca"\nrenew_for = "59s"',
            'trusts.local.renew_for: expected a duration of at least 1m such as "30d", got',
        ),
        (
            'identity = "spiffe"',
            'identity = "mail"',
            'trusts.local.identity: expected "spiffe", "email", "dns", "upn" or',
        ),
        (
            'identity = "spiffe"',
            "",
            'trusts.local.identity: expected "spiffe", "email", "dns", "upn" or "cn", got nothing',
        ),
        (
            'identity = "spiffe"',
            'identity = "cn"',
            "trusts.local.trust_domain: expected no trust domain unless identity",
        ),
        (
            'trust_domain = "bastion.example.com"',
            "",
            'trusts.local.trust_domain: expected a trust domain, as identity is "spiffe", got nothing',
        ),
        (
            'trust_domain = "bastion.example.com"',
            'trust_domain = "spiffe://x"',
            "trusts.local.trust_domain: expected a trust domain of lower-case letters",
        ),
        (
            'identity = "spiffe"\ntrust_domain = "bastion.example.com"',
            'identity = "cn"\ntrust_domain = "spiffe://x"',
            "trusts.local.trust_domain: expected a trust domain of lower-case letters",
        ),
    ],
)
def test_a_wrong_value_is_one_problem(old, new, problem):
    problems = problems_of(changed(old, new))
    assert len(problems) == 1
    assert problems[0].startswith(problem)


@pytest.mark.parametrize(
    ("addition", "problem"),
    [
        ('[timeouts]\nhandshake = "off"', "timeouts.handshake: expected a duration such as"),
        ('[timeouts]\nrequest = "0s"', 'timeouts.request: expected a duration longer than 0s, got "0s"'),
        ("[timeouts]\nconnect = 10", 'timeouts.connect: expected a duration such as "10s", got 10'),
        ('[timeouts]\nidle = "0s"', 'timeouts.idle: expected a duration longer than 0s, or "off", got "0s"'),
        ("[capacity]\nmax_sessions = 0", "capacity.max_sessions: expected 1 to 1000000, got 0"),
        ("[capacity]\npending_handshakes = -1", "capacity.pending_handshakes: expected 1 to 1000000, got -1"),
        (
            '[capacity]\npending_handshakes_exempt = ["office"]',
            "capacity.pending_handshakes_exempt[0]: expected a netw",
        ),
        ('[ledger]\nwhen_unavailable = "retry"', 'ledger.when_unavailable: expected "refuse" or "allow", got "retry"'),
        ('[metrics]\nlisten = "localhost:9847"', "metrics.listen: expected an IP address (not a name) and a port such"),
        ('[metrics]\nlisten = "127.0.0.1:8443"', "metrics.listen: expected an address that gateway.listen does not ov"),
        ("[metrics]\nmax_identities = true", "metrics.max_identities: expected an integer, 0 to 1000000, got true"),
        ('[audit]\nrequired = "yes"', 'audit.required: expected true or false, got "yes"'),
        ('[audit]\nsync = "never"', 'audit.sync: expected "written" or "disk", got "never"'),
        (
            '[audit]\nrotate_size = "1kB"',
            'audit.rotate_size: expected a size of at least 64KiB such as "100MB", or "off", got "1kB"',
        ),
        ('[audit]\ncopy = "syslog"', 'audit.copy: expected "none" or "journal", got "syslog"'),
        ('[control]\ngroup = "group:ops"', "control.group: expected the name of a group of this host, got"),
        ('[control]\nviewers = ["anna"]', 'control.viewers[0]: expected "user:NAME" or "group:NAME", got "anna"'),
        ('[control]\nadmins = ["user:"]', 'control.admins[0]: expected "user:NAME" or "group:NAME", got "user:"'),
        ('[log]\nlevel = "trace"', 'log.level: expected "debug", "info", "warning" or "error", got "trace"'),
        ('[log]\nformat = "logfmt"', 'log.format: expected "text" or "json", got "logfmt"'),
        ("[loog]\n", "loog: expected a known key (did you mean log?)"),
    ],
)
def test_a_wrong_addition_is_one_problem(addition, problem):
    problems = problems_of(f"{LEAST}{addition}\n")
    assert len(problems) == 1
    assert problems[0].startswith(problem)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("listen = []", "gateway.listen: expected an array of at least 1, got an empty one"),
        ('listen = "0.0.0.0:1"', 'gateway.listen: expected an array, got "0.0.0.0:1"'),
        ('listen = ["bastion:1"]', "gateway.listen[0]: expected an IP address (not a name) and a port such as"),
        ('listen = ["127.0.0.1:1", "0.0.0.0:1"]', "gateway.listen[1]: expected an address that no other one overlaps"),
        ('control = "/run/%s"' % ("x" * 103), "gateway.control: expected a path of at most 107 bytes"),
        ("workers = 257", "gateway.workers: expected 0 to 256, got 257"),
        ('confinement = "off"', 'gateway.confinement: expected "auto" or "required", got "off"'),
        ('accept_proxy_protocol_from = ["10.0.0.1/8"]', "gateway.accept_proxy_protocol_from[0]: expected a network wi"),
    ],
)
def test_a_wrong_gateway_key_is_one_problem(line, problem):
    problems = problems_of(changed("[gateway]\n", f"[gateway]\n{line}\n"))
    assert len(problems) == 1
    assert problems[0].startswith(problem)


@pytest.mark.parametrize("groups", ["OU", "uri:", "uri", "urn:x", "uri:a\\nb", ""])
def test_groups_come_from_ou_or_uris_with_a_prefix(groups):
    (problem,) = problems_of(f'{LEAST}groups = "{groups}"\n')
    assert problem.startswith('trusts.local.groups: expected "ou", or "uri:" and a prefix')


def test_two_trusts_share_neither_default_nor_domain():
    second = '[trusts.corp]\nca = "c"\nidentity = "spiffe"\ntrust_domain = "bastion.example.com"\ndefault = true\n'
    assert problems_of(f"{LEAST}default = true\n{second}") == [
        "trusts.corp.default: expected one default trust, got a second one beside local",
        'trusts.corp.trust_domain: expected another trust domain than that of local, got "bastion.example.com"',
    ]


def test_all_problems_are_reported_in_one_go():
    content = (
        changed('name = "bastion.example.com"\n', "workers = -1\n", LEAST)
        + "[log]\nlevel = 1\n[x]\n[timeouts]\nidle = 1\n"
    )
    assert sorted(problem.partition(":")[0] for problem in problems_of(content)) == [
        "gateway.name",
        "gateway.workers",
        "log.level",
        "timeouts.idle",
        "x",
    ]


@pytest.mark.parametrize(("text", "size"), [("64KiB", 65536), ("off", None)])
def test_files_of_the_audit_are_renamed_at_a_size_or_never(text, size):
    assert good(f'{LEAST}[audit]\nrotate_size = "{text}"\n').audit.rotate_size == size


def test_an_authority_that_renews_is_for_spiffe_alone():
    [trust] = good(changed('ca = "ca.crt"', 'ca = "ca.crt"\nauthority = "ca/"\nrenew_for = "12h"')).trusts
    assert (trust.authority, trust.renew_for_s) == ("/etc/portguard/ca", 43_200)
    corp = changed('identity = "spiffe"\ntrust_domain = "bastion.example.com"', 'identity = "cn"\nauthority = "ca"')
    [problem] = problems_of(corp)
    assert problem.endswith(
        'trusts.local.authority: expected none unless identity is "spiffe", got "/etc/portguard/ca"'
    )
