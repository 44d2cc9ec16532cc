from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from portguard.identity.names import Group, Identity, Namespace
from portguard.identity.patterns import Glob, Pattern
from portguard.policy import kinds
from portguard.policy.model import PolicyGroup, Selector, Upstream
from portguard.policy.quantities import Unexpected
from portguard.policy.toml import PORT

NAMESPACE = Namespace({"local": "spiffe", "corp": "email"}, "local", {"example.com": "local"})


@pytest.mark.parametrize(
    ("text", "member"),
    [
        ("alice", Identity("local", "alice")),
        ("corp:Anna@EXAMPLE.com", Identity("corp", "Anna@example.com")),
        ("spiffe://example.com/ns/web", Identity("local", "ns/web")),
        ("corp:*@example.com", Pattern("corp", "*@example.com")),
        ("ns/**", Pattern("local", "ns/**")),
        ("@oncall", PolicyGroup("oncall")),
        ("@corp:dba", Group("corp", "dba")),
        ("@corp:a:b", Group("corp", "a:b")),
    ],
)
def test_a_member_is_read(text, member):
    assert kinds.member_kind(NAMESPACE).convert(text) == member


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a name"),
        ("nowhere:alice", "a trust before the first"),
        ("spiffe://other.org/alice", "a trust domain of a trust"),
        ("@", '"@" and the name of a group'),
        ("@on call", '"@" and the name of a group'),
        ("@corp:", "a name"),
        ("@nowhere:dba", 'a trust between "@" and ":"'),
        ("@corp:dba-*", "groups have no patterns"),
        ("a**b", '"\\*\\*" only at the end'),
        ("alice\n", "printable"),
        (7, "a member such as"),
    ],
)
def test_a_member_that_could_never_be_anybody_is_refused(text, expected):
    with pytest.raises(Unexpected, match=expected):
        kinds.member_kind(NAMESPACE).convert(text)


def test_groups_do_not_nest():
    kind = kinds.group_member_kind(NAMESPACE)
    assert kind.convert("@corp:dba") == Group("corp", "dba")
    with pytest.raises(Unexpected, match="inside another"):
        kind.convert("@oncall")


def test_an_identity_is_no_pattern():
    kind = kinds.identity_kind(NAMESPACE)
    assert kind.convert("alice") == Identity("local", "alice")
    for text in ("al*", "@corp:dba", ""):
        with pytest.raises(Unexpected):
            kind.convert(text)


@pytest.mark.parametrize("text", ["dba", "@corp:dba"])
def test_a_group_of_an_identity_is_of_its_own_trust(text):
    assert kinds.parse_own_group(text, Identity("corp", "a@b.org"), NAMESPACE) == Group("corp", "dba")


@pytest.mark.parametrize("text", ["@local:dba", "@oncall", ""])
def test_a_group_of_another_trust_is_refused(text):
    with pytest.raises(Unexpected):
        kinds.parse_own_group(text, Identity("corp", "a@b.org"), NAMESPACE)


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("orders-db", Selector(glob=Glob("orders-db"))),
        ("metrics-*", Selector(glob=Glob("metrics-*"))),
        ("*", Selector(glob=Glob("*"))),
        ("zone:data", Selector(zones=frozenset({"data"}))),
        ("zone:prod+data", Selector(zones=frozenset({"data", "prod"}))),
    ],
)
def test_a_selector_is_read_and_written(text, selector):
    assert kinds.parse_selector(text) == selector
    assert kinds.parse_selector(str(selector)) == selector


@pytest.mark.parametrize(
    "text",
    ["", "Orders", "orders_db", "a/b", "a/**", "**", "a**b", "zone:", "zone:a+", "zone:+", "zone:a*", "zone:A", "é"],
)
def test_a_selector_that_no_service_can_match_is_refused(text):
    with pytest.raises(Unexpected):
        kinds.parse_selector(text)


@pytest.mark.parametrize(
    ("text", "upstream"),
    [
        ("10.0.3.7:5432", Upstream("10.0.3.7", 5432)),
        ("[::1]:5432", Upstream("::1", 5432)),
        ("DB.internal:5432", Upstream("db.internal", 5432)),
        ("unix:/run/x.sock", Upstream(path="/run/x.sock")),
    ],
)
def test_an_upstream_is_read_and_written(text, upstream):
    assert kinds.parse_upstream(text) == upstream
    assert kinds.parse_upstream(str(upstream)) == upstream


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.3.7",
        "10.0.3.7:0",
        "::1:5432",
        "[fe80::1%eth0]:80",
        "unix:x.sock",
        "unix:",
        "unix:/a\0b",
        "unix:/" + "x" * 107,
    ],
)
def test_an_upstream_that_cannot_be_dialled_is_refused(text):
    with pytest.raises(Unexpected):
        kinds.parse_upstream(text)


def test_the_longest_socket_path_that_the_system_takes_is_taken():
    assert kinds.parse_upstream("unix:/" + "x" * 106).path == "/" + "x" * 106


@pytest.mark.parametrize(("text", "zone"), [("UTC", UTC), ("Europe/Zurich", ZoneInfo("Europe/Zurich"))])
def test_a_time_zone_is_read(text, zone):
    assert kinds.parse_zone(text) is zone


@pytest.mark.parametrize(
    "text", ["", "Europe", "Europe/Nowhere", "../../etc/passwd", "/etc/localtime", "a\0b", "+01:00"]
)
def test_a_time_zone_that_is_none_is_refused(text):
    with pytest.raises(Unexpected, match="IANA data base"):
        kinds.parse_zone(text)


@pytest.mark.parametrize("error", [PermissionError, IsADirectoryError])
def test_a_time_zone_whose_file_cannot_be_read_is_refused(monkeypatch, error):
    def unreadable(_):
        raise error

    monkeypatch.setattr(kinds, "ZoneInfo", unreadable)
    with pytest.raises(Unexpected, match="IANA data base"):
        kinds.parse_zone("America")


@pytest.mark.parametrize(
    ("text", "alpn"), [("postgresql", "postgresql"), ("http/1.1", "http/1.1"), ("x" * 255, "x" * 255)]
)
def test_an_alpn_protocol_is_read(text, alpn):
    assert kinds.ALPN.convert(text) == alpn


@pytest.mark.parametrize("text", ["", "x" * 256, "a b", "é", "a\0"])
def test_an_alpn_protocol_that_cannot_be_sent_is_refused(text):
    with pytest.raises(Unexpected, match="an ALPN protocol"):
        kinds.ALPN.convert(text)


@pytest.mark.parametrize("text", ["a", "orders-db", "9", "a" * 63])
def test_a_dns_label_can_name_a_service(text):
    assert kinds.is_service_name(text)


@pytest.mark.parametrize("text", ["", "-a", "a-", "A", "a_b", "a.b", "a" * 64, "é", "a\n"])
def test_anything_else_cannot(text):
    assert not kinds.is_service_name(text)


@pytest.mark.parametrize(
    ("text", "fits"),
    [("on_call.2", True), ("DBA", True), ("a:b", False), ("-a", False), ("", False), ("a b", False), ("a\n", False)],
)
def test_the_name_of_a_role_or_group_has_no_colon(text, fits):
    assert kinds.is_entry_name(text) is fits


def test_off_lifts_a_limit_and_is_told_as_a_choice():
    kind = kinds.or_off(PORT)
    assert kind.convert("off") is None
    assert kind.convert(80) == 80
    with pytest.raises(Unexpected, match='1 to 65535, or "off"'):
        kind.convert(0)


@pytest.mark.parametrize("year", [1969, 9001])
def test_an_instant_at_which_zones_overflow_is_refused(year):
    with pytest.raises(Unexpected, match="1970 to 9000"):
        kinds.check_instant(datetime(year, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("year", [1970, 9000])
def test_an_instant_of_any_use_is_taken(year):
    assert kinds.check_instant(datetime(year, 1, 1, tzinfo=UTC)).year == year
