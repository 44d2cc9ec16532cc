from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier

from portguard.errors import Refused
from portguard.identity.authorities import UNREADABLE, quietly
from portguard.identity.certificate import check_leaf, read_groups, read_name
from portguard.identity.names import SOURCES, Source
from portguard.reasons import Reason
from tests import certificates as pki

ROOT = pki.Authority.root()


def leaf(*sans: x509.GeneralName, subject: x509.Name | None = None) -> x509.Certificate:
    return ROOT.issue(sans=sans, subject=subject).certificate


def unreadable_names(*names: bytes) -> x509.Certificate:
    """A certificate whose subject alternative name holds these DER names, which the builder would refuse."""
    content = b"".join(names)
    extension = x509.UnrecognizedExtension(pki.SUBJECT_ALTERNATIVE_NAME, bytes([0x30, len(content)]) + content)
    return ROOT.issue(sans=(), extensions=[extension]).certificate


def general_name(tag: int, content: bytes) -> bytes:
    return bytes([0x80 | tag, len(content)]) + content


EMAIL, DNS, URI = 1, 2, 6


def refusal(certificate: x509.Certificate, source: Source, domain: str | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        read_name(certificate, source, domain)
    return caught.value


GOOD: dict[Source, tuple[x509.GeneralName | None, str]] = {
    "spiffe": (pki.spiffe("ns/prod/web"), "ns/prod/web"),
    "email": (pki.email("Alice@Example.COM"), "Alice@example.com"),
    "dns": (pki.dns("Web.Example.com"), "web.example.com"),
    "upn": (pki.upn("Jos\u00e9@Example.com"), "jos\u00e9@example.com"),
    "cn": (None, "the common name"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_name_is_read_from_its_place_and_no_other(source: Source) -> None:
    everything = leaf(
        *(name for name, _ in GOOD.values() if name is not None), subject=pki.common_name("the common name")
    )
    assert read_name(everything, source, pki.DOMAIN) == GOOD[source][1]


@pytest.mark.parametrize("source", SOURCES)
def test_a_certificate_without_a_name_in_that_place_names_nobody(source: Source) -> None:
    others = [name for other, (name, _) in GOOD.items() if other != source and name is not None]
    subject = pki.common_name() if source == "cn" else pki.common_name("the common name")
    refused = refusal(leaf(*others, subject=subject), source, pki.DOMAIN)
    assert refused.reason is Reason.NO_IDENTITY
    assert "expected one " in refused.message
    assert refused.message.endswith("got none")


def test_a_certificate_without_alternative_names_names_nobody() -> None:
    assert refusal(leaf(), "email").reason is Reason.NO_IDENTITY


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("spiffe", [pki.spiffe("alice"), pki.spiffe("bob")]),
        ("spiffe", [pki.spiffe("alice"), pki.uri("https://example.com/")]),
        ("spiffe", [pki.uri("urn:x"), pki.spiffe("alice")]),
        ("spiffe", [pki.spiffe("alice"), pki.spiffe("alice")]),
        ("email", [pki.email("a@example.com"), pki.email("b@example.com")]),
        ("dns", [pki.dns("a.example.com"), pki.dns("b.example.com")]),
        ("upn", [pki.upn("a@example.com"), pki.upn("b@example.com")]),
    ],
)
def test_two_candidates_are_ambiguous(source: Source, names: Sequence[x509.GeneralName]) -> None:
    refused = refusal(leaf(*names), source, pki.DOMAIN)
    assert refused.reason is Reason.AMBIGUOUS_IDENTITY
    assert ", got 2: " in refused.message


def test_two_common_names_are_ambiguous() -> None:
    assert refusal(leaf(subject=pki.common_name("alice", "bob")), "cn").reason is Reason.AMBIGUOUS_IDENTITY


def test_two_common_names_in_one_part_of_the_subject_are_ambiguous() -> None:
    part = x509.RelativeDistinguishedName(
        [x509.NameAttribute(NameOID.COMMON_NAME, "alice"), x509.NameAttribute(NameOID.COMMON_NAME, "bob")]
    )
    assert refusal(leaf(subject=x509.Name([part])), "cn").reason is Reason.AMBIGUOUS_IDENTITY


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://other.test/alice",
        "spiffe://gateway.test.evil.example/alice",
        "spiffe://sub.gateway.test/alice",
        "spiffe://GATEWAY.test/alice",
        "spiffe://gateway.test:443/alice",
        "spiffe://user@gateway.test/alice",
        "spiffe://gateway.test",
        "spiffe://gateway.test/",
        "spiffe://gateway.test/a/../b",
        "spiffe://gateway.test/a?b",
        "spiffe://gateway.test/a#b",
        "spiffe://gateway.test/%61lice",
        "https://gateway.test/alice",
        "SPIFFE://gateway.test/alice",
        "spiffe://gateway.test/" + "a" * 2048,
    ],
)
def test_a_uri_that_is_no_spiffe_id_of_the_domain_names_nobody(text: str) -> None:
    assert refusal(leaf(pki.uri(text)), "spiffe", pki.DOMAIN).reason is Reason.NO_IDENTITY


def test_the_message_says_which_trust_domain_was_expected() -> None:
    refused = refusal(leaf(pki.uri("spiffe://other.test/alice")), "spiffe", pki.DOMAIN)
    assert refused.message == (
        "client certificate, URI in the subject alternative name: "
        "expected the trust domain gateway.test, got 'spiffe://other.test/alice'"
    )


@pytest.mark.parametrize(
    ("source", "tag", "content"),
    [
        ("spiffe", URI, b"spiffe://gateway.test/alice\x00bob"),
        ("spiffe", URI, b"spiffe://gateway.test/al\nice"),
        ("email", EMAIL, b"alice@example.com\x00.evil.example"),
        ("email", EMAIL, b"alice\r\n@example.com"),
        ("email", EMAIL, b""),
        ("dns", DNS, b"a.example.com\x00.evil.example"),
        ("dns", DNS, b" "),
        ("dns", DNS, b""),
    ],
)
def test_a_name_with_nul_or_control_characters_names_nobody(source: Source, tag: int, content: bytes) -> None:
    certificate = unreadable_names(general_name(tag, content))
    assert refusal(certificate, source, pki.DOMAIN).reason is Reason.NO_IDENTITY


@pytest.mark.parametrize("name", ["", " alice", "al\x00ice", "al\x1bice", "\u202ealice", "alice\u200b", "a" * 300])
def test_a_common_name_that_cannot_be_seen_names_nobody(name: str) -> None:
    # Longer and shorter ones than X.520 allows are what careless authorities issue.
    with quietly():
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False)])
        certificate = leaf(subject=subject)
        assert refusal(certificate, "cn").reason is Reason.NO_IDENTITY


@pytest.mark.parametrize(
    ("source", "name"),
    [("email", pki.email("*@example.com")), ("dns", pki.dns("*.example.com")), ("upn", pki.upn("*@example.com"))],
)
def test_a_name_with_a_star_could_be_a_pattern_and_is_ambiguous(source: Source, name: x509.GeneralName) -> None:
    assert refusal(leaf(name), source).reason is Reason.AMBIGUOUS_IDENTITY


def test_a_common_name_with_a_star_is_ambiguous() -> None:
    assert refusal(leaf(subject=pki.common_name("a*")), "cn").reason is Reason.AMBIGUOUS_IDENTITY


def test_a_user_principal_name_may_be_long() -> None:
    name = "a" * 140 + "@example.com"
    assert read_name(leaf(pki.upn(name)), "upn", None) == name


@pytest.mark.parametrize(
    "der",
    [
        b"\x16\x0da@example.com",  # IA5String
        b"\x0c\x03\xff@a",  # not UTF-8
        b"\x0c\x00",
        b"\x0c\x01\x00",
        b"\x05\x00",  # NULL
    ],
)
def test_a_user_principal_name_is_a_utf8_string(der: bytes) -> None:
    assert refusal(leaf(pki.upn(der)), "upn").reason is Reason.NO_IDENTITY


@pytest.mark.parametrize(
    "der",
    [
        b"\x0c\x0ea@example.com",  # one byte short
        b"\x0c\x0ca@example.com",  # one byte long
        b"\x0c\x81\x0da@example.com",  # a length longer than needed
        b"\x0c\x80a@example.com\x00\x00",  # indefinite length
    ],
)
def test_a_user_principal_name_that_is_not_der_makes_the_extensions_unreadable(der: bytes) -> None:
    name = bytes.fromhex("060a2b060104018237140203") + bytes([0xA0, len(der)]) + der
    with pytest.raises(UNREADABLE):
        read_name(unreadable_names(bytes([0xA0, len(name)]) + name), "upn", None)


def test_another_kind_of_other_name_is_no_user_principal_name() -> None:
    other = x509.OtherName(ObjectIdentifier("1.3.6.1.5.5.7.8.9"), pki.utf8_string(b"a@example.com"))
    assert refusal(leaf(other), "upn").reason is Reason.NO_IDENTITY


def subject_with_units(*units: str) -> x509.Name:
    return x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units),
            x509.NameAttribute(NameOID.COMMON_NAME, "alice"),
        ]
    )


def test_no_rule_means_no_groups() -> None:
    assert read_groups(leaf(subject=subject_with_units("dba")), None) == frozenset()


def test_every_organizational_unit_is_a_group() -> None:
    assert read_groups(leaf(subject=subject_with_units("dba", "on call")), "ou") == {"dba", "on call"}


def test_uris_with_the_prefix_are_groups_and_others_are_not() -> None:
    certificate = leaf(pki.uri("urn:acme:group:dba"), pki.uri("urn:acme:groups"), pki.uri("https://example.com/"))
    assert read_groups(certificate, "uri:urn:acme:group:") == {"dba"}


@pytest.mark.parametrize("unit", ["dba\x00", "\x1b[2J", " dba", "\u202eabd"])
def test_a_group_that_cannot_be_seen_refuses_the_certificate(unit: str) -> None:
    with pytest.raises(Refused) as caught:
        read_groups(leaf(subject=subject_with_units("ops", unit)), "ou")
    assert caught.value.reason is Reason.NO_IDENTITY


def test_a_group_uri_without_a_name_refuses_the_certificate() -> None:
    with pytest.raises(Refused):
        read_groups(leaf(pki.uri("urn:acme:group:")), "uri:urn:acme:group:")


def test_there_are_at_most_64_groups() -> None:
    units = [f"unit {n}" for n in range(65)]
    assert len(read_groups(leaf(subject=subject_with_units(*units[:64])), "ou")) == 64
    with pytest.raises(Refused, match="at most 64 groups, got 65"):
        read_groups(leaf(subject=subject_with_units(*units)), "ou")


def usage_refusal(certificate: x509.Certificate, source: Source) -> str:
    with pytest.raises(Refused) as caught:
        check_leaf(certificate, source)
    assert caught.value.reason is Reason.CERTIFICATE_USAGE
    return caught.value.message


@pytest.mark.parametrize("source", SOURCES)
def test_a_client_certificate_is_usable(source: Source) -> None:
    check_leaf(ROOT.issue().certificate, source)
    check_leaf(ROOT.issue(usages=[pki.SERVER_AUTH, pki.CLIENT_AUTH]).certificate, source)
    check_leaf(ROOT.issue(ca=None, key_uses=None).certificate, source)


@pytest.mark.parametrize("source", SOURCES)
def test_a_certificate_for_servers_only_is_not_usable(source: Source) -> None:
    assert usage_refusal(ROOT.issue(usages=[pki.SERVER_AUTH]).certificate, source) == (
        "client certificate: expected one for clientAuth (extended key usage), got 1.3.6.1.5.5.7.3.1"
    )


@pytest.mark.parametrize("source", SOURCES)
def test_any_extended_key_usage_is_not_client_authentication(source: Source) -> None:
    usage_refusal(ROOT.issue(usages=[pki.ANY_USAGE]).certificate, source)


def test_only_spiffe_does_without_extended_key_usage() -> None:
    certificate = ROOT.issue(usages=None).certificate
    check_leaf(certificate, "spiffe")
    for source in SOURCES[1:]:
        assert usage_refusal(certificate, source).endswith("got no extended key usage")


@pytest.mark.parametrize("source", SOURCES)
def test_an_authority_is_no_client(source: Source) -> None:
    assert usage_refusal(ROOT.issue(ca=True).certificate, source).endswith("got CA true")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("use", ["key_cert_sign", "crl_sign"])
def test_a_certificate_that_may_sign_others_is_no_clients(source: Source, use: str) -> None:
    usage_refusal(ROOT.issue(key_uses=["digital_signature", use]).certificate, source)


def test_a_key_usage_without_digital_signature_cannot_authenticate_in_tls() -> None:
    usage_refusal(ROOT.issue(key_uses=["key_encipherment"]).certificate, "email")
