from ipaddress import ip_address

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from portguard.errors import UsageError
from portguard.identity.names import parse_spiffe_id
from portguard.pki import names

_SEGMENT = st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True).filter(lambda text: text not in {".", ".."})
_CLIENT = st.lists(_SEGMENT, min_size=1, max_size=5).map("/".join)


@pytest.mark.parametrize("text", ["alice", "ci/deploy", "A_b-c.d", "ns/prod/sa/web", "...", "x" * 200])
def test_a_client_name_is_a_spiffe_path(text: str) -> None:
    assert names.client(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "/alice", "alice/", "a//b", ".", "..", "a/../b", "a b", "a\n", "a\0b", "älice", "a:b", "a*", "%41",
        "a@b", "a+b", "x" * 201,
    ],
)  # fmt: skip
def test_anything_else_is_not(text: str) -> None:
    with pytest.raises(UsageError, match="client name: expected"):
        names.client(text)


@given(_CLIENT)
def test_gateways_read_back_what_was_issued(name: str) -> None:
    assert parse_spiffe_id(names.spiffe_id("example.com", names.client(name))) == ("example.com", name)


@given(_CLIENT, _CLIENT)
def test_two_names_never_share_a_file_and_no_file_leaves_its_folder(one: str, other: str) -> None:
    stem = names.client_file_stem(one)
    assert "/" not in stem
    assert (stem == names.client_file_stem(other)) == (one == other)


@pytest.mark.parametrize("text", ["bastion.example.com", "corp", "a_b", "10.0.0.1", "x" * 255])
def test_a_trust_domain(text: str) -> None:
    assert names.trust_domain(text) == text


@pytest.mark.parametrize("text", ["", "Corp", "corp:8443", "corp/x", "spiffe://corp", "cörp", "corp\n", "x" * 256])
def test_not_a_trust_domain(text: str) -> None:
    with pytest.raises(UsageError, match="trust domain: expected"):
        names.trust_domain(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("bastion", x509.DNSName("bastion")),
        ("Bastion.Example.COM.", x509.DNSName("bastion.example.com")),
        ("*.bastion.example.com", x509.DNSName("*.bastion.example.com")),
        ("xn--bcher-kva.example", x509.DNSName("xn--bcher-kva.example")),
        ("10.0.0.300.example", x509.DNSName("10.0.0.300.example")),
        ("127.0.0.1", x509.IPAddress(ip_address("127.0.0.1"))),
        ("2001:DB8::1", x509.IPAddress(ip_address("2001:db8::1"))),
    ],
)
def test_a_gateway_name(text: str, name: x509.GeneralName) -> None:
    assert names.gateway([text]) == [name]


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "*", "*.", "a..b", "-a.example", "a-.example", "a_b.example", "bücher.example", "a b", "a.*.b",
        "**.a.b", "*a.example.com", "10.0.0.300", "10.0.0.0/8", "fe80::1%eth0", "[::1]", "bastion:8443", "https://a.example",
        "a\n", "x" * 64 + ".example", "a." * 130 + "b",
    ],
)  # fmt: skip
def test_not_a_gateway_name(text: str) -> None:
    with pytest.raises(UsageError, match="gateway name: expected"):
        names.gateway([text])


def test_a_wildcard_that_no_tls_client_would_match_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected two labels or more after '\*\.'.*got '\*\.localhost'"):
        names.gateway(["*.localhost"])


def test_gateway_names_keep_their_order_and_lose_doubles() -> None:
    assert [name.value for name in names.gateway(["b.example", "a.example", "B.example"])] == ["b.example", "a.example"]


def test_a_gateway_without_names_is_refused() -> None:
    with pytest.raises(UsageError, match="gateway names: expected at least one, got none"):
        names.gateway([])
