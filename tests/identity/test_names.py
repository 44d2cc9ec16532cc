import pytest

from portguard.identity.names import (
    Group,
    Identity,
    Malformed,
    Namespace,
    Source,
    check_name,
    check_trust_domain,
    check_trust_name,
    fold,
    parse_group,
    parse_identity,
    parse_spiffe_id,
)

NAMESPACE = Namespace(
    sources={"local": "spiffe", "corp": "email", "ad": "upn", "hosts": "dns", "old": "cn"},
    default="local",
    domains={"bastion.example.com": "local"},
)


def read(text: str, namespace: Namespace = NAMESPACE) -> Identity:
    return parse_identity(text, namespace)


def complaint(text: str, namespace: Namespace = NAMESPACE) -> str:
    with pytest.raises(Malformed) as caught:
        parse_identity(text, namespace)
    return str(caught.value)


def test_a_name_without_prefix_is_of_the_default_trust() -> None:
    assert read("alice") == Identity("local", "alice")


def test_without_a_default_trust_every_name_needs_a_prefix() -> None:
    namespace = Namespace({"a": "cn", "b": "cn"}, None, {})
    assert complaint("alice", namespace) == (
        "expected a trust and a colon before the name, as no trust has \"default = true\" (known: a, b), got 'alice'"
    )
    assert read("a:alice", namespace) == Identity("a", "alice")


def test_a_prefix_selects_its_trust() -> None:
    assert read("corp:alice@example.com") == Identity("corp", "alice@example.com")


def test_a_prefix_that_is_no_trust_is_an_error_that_lists_the_trusts() -> None:
    assert complaint("crop:alice@example.com") == (
        "expected a trust before the first \":\" (known: ad, corp, hosts, local, old), got 'crop:alice@example.com'"
    )


def test_a_name_may_hold_a_colon_after_its_prefix() -> None:
    assert read("old:corp:alice") == Identity("old", "corp:alice")


def test_a_spiffe_uri_is_of_the_trust_with_that_domain() -> None:
    assert read("spiffe://bastion.example.com/ns/prod/web") == Identity("local", "ns/prod/web")


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://other.example.com/alice",
        "spiffe://bastion.example.com",
        "spiffe://bastion.example.com/",
        "spiffe://Bastion.example.com/alice",
        "spiffe://bastion.example.com:443/alice",
        "SPIFFE://bastion.example.com/alice",
        "spiffe:alice",
    ],
)
def test_a_spiffe_uri_that_is_none_of_ours_is_an_error(text: str) -> None:
    complaint(text)


def test_a_group_is_not_an_identity() -> None:
    assert complaint("@oncall") == "expected an identity, not a group, got '@oncall'"


def test_a_pattern_is_not_an_identity() -> None:
    assert complaint("metrics-*") == "expected a name without \"*\", got 'metrics-*'"


@pytest.mark.parametrize("name", ["", " alice", "alice ", "a\tb", "a\x00b", "a\x7f", "a\x85b", "a\u202eb", "a\u200db"])
@pytest.mark.parametrize("trust", ["local", "old"])
def test_what_cannot_be_seen_is_refused_in_a_name(name: str, trust: str) -> None:
    complaint(f"{trust}:{name}")


def test_a_lone_surrogate_is_refused_and_not_a_crash() -> None:
    complaint("old:a\ud800")


def test_a_name_has_one_spelling() -> None:
    assert read("old:Jos\u00e9") == Identity("old", "Jos\u00e9")
    assert complaint("old:Jose\u0301") == "expected characters in composed form (NFC), got 'Jose\\u0301'"


@pytest.mark.parametrize(
    ("source", "longest"),
    [("spiffe", 2048), ("cn", 256), ("upn", 320)],
)
def test_a_name_has_a_longest_length(source: Source, longest: int) -> None:
    start = "a@" if source == "upn" else ""
    check_name(start + "b" * (longest - len(start)), source)
    with pytest.raises(Malformed, match=f"at most {longest} bytes, got {longest + 1} bytes"):
        check_name(start + "b" * (longest - len(start) + 1), source)


def test_length_is_counted_in_bytes() -> None:
    check_name("\u00e9" * 128, "cn")
    with pytest.raises(Malformed, match="got 258 bytes"):
        check_name("\u00e9" * 129, "cn")


@pytest.mark.parametrize("path", ["/alice", "alice/", "a//b", ".", "a/../b", "a b", "a%20b", "a@b", "\u00e9", "a:b"])
def test_a_name_of_a_spiffe_trust_is_a_spiffe_path(path: str) -> None:
    with pytest.raises(Malformed, match="a SPIFFE path"):
        check_name(path, "spiffe")


@pytest.mark.parametrize("path", ["alice", "Alice_1", "ns/prod/sa/web-fe", "...", ".hidden", "a.b"])
def test_a_spiffe_path_has_letters_digits_dots_dashes_and_underscores(path: str) -> None:
    check_name(path, "spiffe")


@pytest.mark.parametrize("name", ["host", "a.example.com", "xn--bcher-kva.example", "_sip.example.com", "10.0.0.1"])
def test_a_name_of_a_dns_trust_is_a_host_name(name: str) -> None:
    check_name(name, "dns")


@pytest.mark.parametrize("name", ["a..b", ".a", "a.", "a b", "a/b", "b\u00fccher.example", "a" * 64, "A.example.com"])
def test_a_host_name_has_no_empty_long_or_upper_case_label(name: str) -> None:
    with pytest.raises(Malformed, match="a host name"):
        check_name(name, "dns")


@pytest.mark.parametrize("name", ["alice@example.com", "o'hara+x@example.com", "a.b@localhost"])
def test_a_name_of_an_email_trust_is_an_address(name: str) -> None:
    check_name(name, "email")


@pytest.mark.parametrize(
    "name",
    [
        "alice",
        "@example.com",
        "alice@",
        "a@b@c",
        "a b@example.com",
        "a/b@example.com",
        "<alice@example.com>",
        '"a"@example.com',
        "alice@exa,mple",
        "alice@.com",
        "\u00e9@example.com",
    ],
)
def test_what_is_no_address_is_refused_in_an_email_trust(name: str) -> None:
    with pytest.raises(Malformed, match="address"):
        check_name(name, "email")


def test_a_user_principal_name_may_go_beyond_ascii() -> None:
    check_name("jos\u00e9@example.com", "upn")


@pytest.mark.parametrize("name", ["jos\u00e9", "@example.com", "a@", "a@b@c", "a/b@example.com", "a b@example.com"])
def test_what_is_no_address_is_refused_in_a_upn_trust(name: str) -> None:
    with pytest.raises(Malformed, match="an address"):
        check_name(name, "upn")


@pytest.mark.parametrize(
    ("source", "text", "folded"),
    [
        ("dns", "WWW.Example.COM", "www.example.com"),
        ("email", "Alice@Example.COM", "Alice@example.com"),
        ("upn", "Alice@Example.COM", "alice@example.com"),
        ("upn", "JOSE\u0301@example.com", "jos\u00e9@example.com"),
        ("cn", "Alice", "Alice"),
        ("spiffe", "Alice", "Alice"),
    ],
)
def test_case_goes_where_the_standard_has_none(source: Source, text: str, folded: str) -> None:
    assert fold(text, source) == folded


def test_a_written_identity_is_folded_as_a_certificate_would_be() -> None:
    assert read("hosts:WWW.Example.com") == Identity("hosts", "www.example.com")


@pytest.mark.parametrize(
    ("identity", "text"),
    [
        (Identity("local", "alice"), "alice"),
        (Identity("corp", "alice@example.com"), "corp:alice@example.com"),
        (Identity("old", "alice"), "old:alice"),
    ],
)
def test_an_identity_is_written_as_it_is_read(identity: Identity, text: str) -> None:
    assert identity.written("local") == text
    assert read(text) == identity


@pytest.mark.parametrize("name", ["corp:alice@example.com", "@oncall", "spiffe://bastion.example.com/root", ":"])
def test_a_name_that_looks_like_something_else_is_written_with_its_trust(name: str) -> None:
    namespace = Namespace({"old": "cn", "corp": "email", "s": "spiffe"}, "old", {"bastion.example.com": "s"})
    identity = Identity("old", name)
    assert identity.written("old") == f"old:{name}"
    assert read(identity.written("old"), namespace) == identity


def test_a_group_is_always_written_with_its_trust() -> None:
    assert Group("corp", "dba").written() == "@corp:dba"
    assert parse_group("@corp:dba", NAMESPACE) == Group("corp", "dba")
    assert parse_group("@corp:a:b c", NAMESPACE) == Group("corp", "a:b c")


@pytest.mark.parametrize("text", ["corp:dba", "@dba", "@crop:dba", "@corp:", "@corp:a\nb", "@:x"])
def test_what_is_no_group_from_certificates_is_an_error(text: str) -> None:
    with pytest.raises(Malformed):
        parse_group(text, NAMESPACE)


def test_identities_sort_by_trust_then_name() -> None:
    assert sorted([Identity("b", "a"), Identity("a", "z"), Identity("a", "b")]) == [
        Identity("a", "b"),
        Identity("a", "z"),
        Identity("b", "a"),
    ]


@pytest.mark.parametrize("name", ["local", "a", "corp-2", "a_b", "0"])
def test_a_trust_name_is_a_plain_word(name: str) -> None:
    check_trust_name(name)


@pytest.mark.parametrize("name", ["", "spiffe", "Local", "a:b", "-a", "a-", "a b", "a" * 64, "\u00e9"])
def test_a_trust_name_cannot_be_taken_for_anything_else(name: str) -> None:
    with pytest.raises(Malformed):
        check_trust_name(name)


@pytest.mark.parametrize("domain", ["", "Example.com", "example.com:1", "a/b", "user@example.com", "a" * 256])
def test_a_trust_domain_is_a_lower_case_host(domain: str) -> None:
    with pytest.raises(Malformed):
        check_trust_domain(domain)


def test_a_spiffe_id_splits_into_domain_and_path() -> None:
    assert parse_spiffe_id("spiffe://example.com/ns/a") == ("example.com", "ns/a")


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.com/a",
        "SPIFFE://example.com/a",
        "spiffe://Example.com/a",
        "spiffe://example.com",
        "spiffe://example.com/",
        "spiffe:///a",
        "spiffe://example.com:8443/a",
        "spiffe://user@example.com/a",
        "spiffe://example.com/a?b",
        "spiffe://example.com/a#b",
        "spiffe://example.com/a%41",
        "spiffe://example.com/a//b",
        "spiffe://example.com/a/./b",
        "spiffe://example.com/a/../b",
        "spiffe://example.com/a/",
        "spiffe://example.com/a*",
        "spiffe://example.com/a\x00",
        "spiffe://example.com/" + "a" * 2028,
    ],
)
def test_what_is_no_spiffe_id_is_refused(uri: str) -> None:
    with pytest.raises(Malformed):
        parse_spiffe_id(uri)


def test_a_spiffe_id_may_have_2048_bytes() -> None:
    assert parse_spiffe_id("spiffe://example.com/" + "a" * 2027) == ("example.com", "a" * 2027)
