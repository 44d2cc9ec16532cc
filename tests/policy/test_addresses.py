"""Addresses: what is taken, in which canonical form, and what is refused."""

from ipaddress import ip_address, ip_network

import pytest

from portguard.policy.addresses import (
    HostPort,
    ListenAddress,
    parse_address,
    parse_host_name,
    parse_host_port,
    parse_listen_address,
    parse_network,
)
from portguard.policy.quantities import Unexpected


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("0.0.0.0:8443", "0.0.0.0", 8443),
        ("[::]:8443", "::", 8443),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("[2001:DB8:0::7]:65535", "2001:db8::7", 65535),
    ],
)
def test_a_listen_address_is_an_ip_address_and_a_port(text, host, port):
    assert parse_listen_address(text) == ListenAddress(host, port)


def test_addresses_are_written_as_they_are_read():
    for text in ("0.0.0.0:8443", "[::]:0", "[2001:db8::7]:1"):
        assert str(parse_listen_address(text)) == text
    for text in ("10.0.3.7:5432", "[::1]:80", "db.internal:5432"):
        assert str(parse_host_port(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:8443", "not a name"),
        (":8443", 'such as "0.0.0.0:8443"'),
        ("8443", 'such as "0.0.0.0:8443"'),
        ("0.0.0.0", 'such as "0.0.0.0:8443"'),
        ("0.0.0.0:", 'such as "0.0.0.0:8443"'),
        (":::8443", 'such as "0.0.0.0:8443"'),
        ("::1:8443", 'such as "0.0.0.0:8443"'),
        ("[0.0.0.0]:8443", 'such as "0.0.0.0:8443"'),
        ("[::]:+1", 'such as "0.0.0.0:8443"'),
        ("[fe80::1%eth0]:8443", "not a name"),
        ("0.0.0.0:65536", "a port from 0 to 65535"),
        ("[::ffff:10.0.0.1]:80", 'an IPv4 address, "10.0.0.1:80"'),
    ],
)
def test_what_cannot_be_bound_is_refused(text, expected):
    with pytest.raises(Unexpected) as caught:
        parse_listen_address(text)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "host"),
    [("10.0.3.7:5432", "10.0.3.7"), ("[2001:DB8::7]:5432", "2001:db8::7"), ("DB.internal.:5432", "db.internal")],
)
def test_a_host_and_port_has_a_canonical_form(text, host):
    assert parse_host_port(text) == HostPort(host, 5432)


@pytest.mark.parametrize(
    "text",
    [
        "db.internal",
        "db.internal:0",
        "db.internal:65536",
        ":80",
        "::1:80",
        "[db.internal]:80",
        "10.0.3.700:80",
        "a b:80",
        "[fe80::1%eth0]:80",
        "-db:80",
        "db..internal:80",
        "db:http",
        f"{'a' * 64}:80",
        "db/x:80",
        "user@db:80",
        "[]:80",
    ],
)
def test_what_cannot_be_dialled_is_refused(text):
    with pytest.raises(Unexpected):
        parse_host_port(text)


def test_a_host_name_is_lower_case_without_its_last_dot():
    assert parse_host_name("Bastion.Example.COM.") == "bastion.example.com"
    for text in ("", ".", "..", "a..b", "a.b..", "*.example.com", "ä.example.com", "10.0.0.1", "x" * 254, "a\n"):
        with pytest.raises(Unexpected):
            parse_host_name(text)


def test_an_address_has_no_zone():
    assert parse_address("fe80::1") == ip_address("fe80::1")
    with pytest.raises(Unexpected, match="without a zone id"):
        parse_address("fe80::1%eth0")


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.0.0.1", "2001:db8::/32", "::1", "0.0.0.0/0", "::/0"])
def test_a_network_is_cidr_or_one_address(text):
    assert parse_network(text) == ip_network(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1/8", 'a network without host bits, "10.0.0.0/8"'),
        ("10.0.0.0/33", "such as"),
        ("10.0.0.0/255.0.0.0", "such as"),
        ("10.0.0.0/0.0.0.255", "such as"),
        ("10.0.0.0/", "such as"),
        ("office", "such as"),
        ("", "such as"),
        ("fe80::%eth0/64", "without a zone id"),
        ("::ffff:10.0.0.0/104", "an IPv4 network, not its IPv4-mapped form"),
    ],
)
def test_a_network_that_would_surprise_is_refused(text, expected):
    with pytest.raises(Unexpected) as caught:
        parse_network(text)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("one", "two", "overlap"),
    [
        ("127.0.0.1:80", "127.0.0.1:80", True),
        ("0.0.0.0:80", "127.0.0.1:80", True),
        ("[::]:80", "[::1]:80", True),
        ("0.0.0.0:80", "[::]:80", False),
        ("127.0.0.1:80", "127.0.0.2:80", False),
        ("127.0.0.1:80", "127.0.0.1:81", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
    ],
)
def test_listen_addresses_overlap_when_they_cannot_both_be_bound(one, two, overlap):
    assert parse_listen_address(one).overlaps(parse_listen_address(two)) is overlap
    assert parse_listen_address(two).overlaps(parse_listen_address(one)) is overlap
