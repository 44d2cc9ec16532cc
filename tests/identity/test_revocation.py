from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ObjectIdentifier

from portguard.errors import Refused
from portguard.identity.authorities import read_authority
from portguard.identity.names import Malformed
from portguard.identity.revocation import RevocationList, Revocations, parse_revocation_lists
from portguard.identity.validity import written
from portguard.reasons import Reason
from tests import certificates as pki

ROOT = pki.Authority.root("Root")
ISSUING = ROOT.intermediate("Issuing")
ALICE = ISSUING.issue("alice")
BOB = ISSUING.issue("bob")
NOW = pki.now()


def lists(*crls: x509.CertificateRevocationList) -> tuple[RevocationList, ...]:
    return parse_revocation_lists(b"".join(crl.public_bytes(Encoding.PEM) for crl in crls))


def check(
    crls: Sequence[x509.CertificateRevocationList],
    leaf: pki.Holder = ALICE,
    chain: Sequence[pki.Authority] = (ISSUING, ROOT),
    *,
    at: datetime = NOW,
    accept_stale: bool = False,
) -> None:
    issuers = [read_authority(authority.der) for authority in chain]
    revocations = Revocations(lists(*crls) if crls else (), issuers[-1:], accept_stale=accept_stale)
    certificates = [leaf.certificate, *(authority.certificate for authority in chain[:-1])]
    revocations.standing(certificates, issuers).check(at)


def refusal(
    crls: Sequence[x509.CertificateRevocationList],
    leaf: pki.Holder = ALICE,
    chain: Sequence[pki.Authority] = (ISSUING, ROOT),
    *,
    at: datetime = NOW,
    accept_stale: bool = False,
) -> Refused:
    with pytest.raises(Refused) as caught:
        check(crls, leaf, chain, at=at, accept_stale=accept_stale)
    return caught.value


def point(**scope: Any) -> tuple[x509.IssuingDistributionPoint, bool]:
    """The critical extension that limits a list; without arguments it limits nothing."""
    whole: dict[str, Any] = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return x509.IssuingDistributionPoint(**(whole | scope)), True


USERS = point(only_contains_user_certs=True)
AUTHORITIES = point(only_contains_ca_certs=True)


def test_without_lists_nothing_is_checked() -> None:
    check([])


def test_a_certificate_on_its_issuers_list_is_refused_and_its_neighbour_is_not() -> None:
    crls = [ROOT.crl(), ISSUING.crl([ALICE.certificate.serial_number])]
    check(crls, BOB)
    refused = refusal(crls, ALICE)
    assert refused.reason is Reason.CERTIFICATE_REVOKED
    assert refused.message == (f"CN=alice: serial number {ALICE.certificate.serial_number:x} is revoked by CN=Issuing")


def test_an_intermediate_on_its_issuers_list_takes_its_clients_with_it() -> None:
    crls = [ROOT.crl([ISSUING.certificate.serial_number]), ISSUING.crl()]
    refused = refusal(crls)
    assert refused.reason is Reason.CERTIFICATE_REVOKED
    assert "CN=Issuing: serial number" in refused.message


def test_a_serial_number_on_another_issuers_list_means_nothing() -> None:
    check([ROOT.crl([ALICE.certificate.serial_number]), ISSUING.crl([ISSUING.certificate.serial_number])])


def test_the_anchor_itself_is_on_nobodys_list() -> None:
    check([ROOT.crl([ROOT.certificate.serial_number]), ISSUING.crl()])


def test_a_list_that_is_out_of_date_refuses_everybody_below_its_issuer() -> None:
    crls = [ROOT.crl(), ISSUING.crl(next_update=NOW)]
    check(crls)
    refused = refusal(crls, at=NOW + timedelta(seconds=1, microseconds=5))
    assert refused.reason is Reason.CRL_EXPIRED
    # In whole seconds, as the list's own times are.
    then = written(NOW + timedelta(seconds=1))
    assert refused.message.startswith(
        f"CN=Issuing: expected a revocation list that is current at {then}, got one from "
    )


def test_a_list_of_the_anchor_that_is_out_of_date_refuses_too() -> None:
    refused = refusal([ROOT.crl(next_update=NOW - timedelta(seconds=1)), ISSUING.crl()])
    assert refused.reason is Reason.CRL_EXPIRED
    assert refused.message.startswith("CN=Root: ")


def test_a_list_that_is_not_valid_yet_does_not_count() -> None:
    crls = [ROOT.crl(), ISSUING.crl(this_update=NOW + timedelta(seconds=1))]
    assert refusal(crls).reason is Reason.CRL_EXPIRED
    check(crls, at=NOW + timedelta(seconds=1))


def test_one_current_list_of_several_is_enough() -> None:
    old, new = ISSUING.crl(next_update=NOW - timedelta(seconds=1)), ISSUING.crl()
    check([ROOT.crl(), old, new])
    check([ROOT.crl(), new, old])


def test_what_an_old_list_revoked_stays_revoked_beside_a_new_one() -> None:
    old = ISSUING.crl([ALICE.certificate.serial_number], next_update=NOW - timedelta(seconds=1))
    assert refusal([ROOT.crl(), old, ISSUING.crl()]).reason is Reason.CERTIFICATE_REVOKED


def test_revocation_outweighs_a_list_that_is_out_of_date() -> None:
    stale = NOW - timedelta(seconds=1)
    crls = [ROOT.crl([ISSUING.certificate.serial_number], next_update=stale), ISSUING.crl(next_update=stale)]
    assert refusal(crls).reason is Reason.CERTIFICATE_REVOKED


def test_a_missing_list_refuses() -> None:
    refused = refusal([ROOT.crl()])
    assert refused.reason is Reason.CRL_EXPIRED
    assert refused.message == "CN=Issuing: expected a revocation list for what it issued, got none"
    assert refusal([ISSUING.crl()]).message.startswith("CN=Root: expected a revocation list")


def test_accepting_stale_lists_excuses_old_early_and_missing_ones() -> None:
    stale, early = NOW - timedelta(seconds=1), NOW + timedelta(seconds=1)
    check([ROOT.crl(next_update=stale), ISSUING.crl(this_update=early)], accept_stale=True)
    check([ROOT.crl()], accept_stale=True)


def test_accepting_stale_lists_still_believes_them() -> None:
    stale = ISSUING.crl([ALICE.certificate.serial_number], next_update=NOW - timedelta(seconds=1))
    assert refusal([stale], accept_stale=True).reason is Reason.CERTIFICATE_REVOKED


def test_a_list_that_somebody_else_signed_is_not_believed() -> None:
    forged = ISSUING.crl([ALICE.certificate.serial_number], key=pki.new_key())
    assert refusal([ROOT.crl(), forged]).reason is Reason.CRL_EXPIRED


@pytest.mark.parametrize("accept_stale", [False, True])
def test_a_forged_empty_list_does_not_make_an_issuer_current(accept_stale: bool) -> None:
    forged = ISSUING.crl(key=pki.new_key())
    refused = refusal([ROOT.crl(), forged], accept_stale=accept_stale)
    assert refused.reason is Reason.CRL_EXPIRED
    assert refused.message == (
        "CN=Issuing: expected a revocation list signed by its key, got one with another signature"
    )


def test_a_forged_list_beside_the_true_one_changes_nothing() -> None:
    crls = [ROOT.crl(), ISSUING.crl([BOB.certificate.serial_number]), ISSUING.crl(key=pki.new_key())]
    check(crls, ALICE)
    assert refusal(crls, BOB).reason is Reason.CERTIFICATE_REVOKED


def test_a_list_signed_with_another_kind_of_key_is_not_believed() -> None:
    forged = ISSUING.crl(key=rsa.generate_private_key(65537, 2048))
    assert refusal([ROOT.crl(), forged]).reason is Reason.CRL_EXPIRED


def test_a_list_belongs_to_the_key_whatever_issuer_it_names() -> None:
    """An issuer's name in another case must not turn its list into nobody's."""
    crls = [ROOT.crl(), ISSUING.crl([ALICE.certificate.serial_number], issuer=pki.common_name("ISSUING"))]
    assert refusal(crls).reason is Reason.CERTIFICATE_REVOKED


def test_two_keys_of_one_name_each_need_their_own_list() -> None:
    renewed = ROOT.intermediate("Issuing")
    carol = renewed.issue("carol")
    crls = [ROOT.crl(), ISSUING.crl([carol.certificate.serial_number]), renewed.crl()]
    check(crls, carol, (renewed, ROOT))
    check(crls, ALICE)
    assert refusal(crls[:2], carol, (renewed, ROOT)).reason is Reason.CRL_EXPIRED


def test_an_authority_whose_key_cannot_sign_has_signed_no_list() -> None:
    odd = read_authority(ROOT.der)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(pki.common_name("X"))
        .issuer_name(ROOT.subject)
        .public_key(x25519.X25519PrivateKey.generate().public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW)
        .sign(pki.new_key(), hashes.SHA256())
    )
    assert not lists(ROOT.crl())[0].is_signed_by(replace(odd, certificate=certificate))


def test_a_list_that_names_an_anchor_which_has_not_signed_it_is_known_at_once() -> None:
    forged = lists(ROOT.crl(key=pki.new_key()), ROOT.crl(), ISSUING.crl(key=pki.new_key()))
    revocations = Revocations(forged, [read_authority(ROOT.der)], accept_stale=False)
    assert revocations.misattributed == forged[:1]


def test_many_intermediates_do_not_make_memory_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portguard.identity.revocation._MOST_BINDINGS", 4)
    revocations = Revocations(lists(ROOT.crl()), [read_authority(ROOT.der)], accept_stale=True)
    for _ in range(10):
        other = ROOT.intermediate()
        revocations.standing(
            [other.issue().certificate, other.certificate], [read_authority(other.der), read_authority(ROOT.der)]
        ).check(NOW)
        assert len(revocations._by_key) <= 5


@pytest.mark.parametrize(
    "reason",
    [x509.ReasonFlags.certificate_hold, x509.ReasonFlags.remove_from_crl, x509.ReasonFlags.key_compromise],
)
def test_every_entry_revokes_whatever_its_reason(reason: x509.ReasonFlags) -> None:
    entry = pki.revoked_entry(ALICE.certificate.serial_number, (x509.CRLReason(reason), False))
    assert refusal([ROOT.crl(), ISSUING.crl([entry])]).reason is Reason.CERTIFICATE_REVOKED


def test_a_list_for_users_only_says_nothing_of_authorities() -> None:
    users = [ROOT.crl(extensions=[USERS]), ISSUING.crl(extensions=[USERS])]
    assert refusal(users).message.startswith("CN=Root: expected a revocation list for what it issued")
    authorities = ROOT.crl(extensions=[AUTHORITIES])
    check([authorities, users[1]])
    assert refusal([authorities, ISSUING.crl(extensions=[AUTHORITIES])]).reason is Reason.CRL_EXPIRED


def test_a_list_of_a_distribution_point_is_for_certificates_that_name_it_or_none() -> None:
    def with_point(*names: str) -> pki.Holder:
        points = [x509.DistributionPoint([pki.uri(name)], None, None, None) for name in names]
        return ISSUING.issue(extensions=[x509.CRLDistributionPoints(points)])

    one, two = "http://crl.test/1", "http://crl.test/2"
    crls = [ROOT.crl(), ISSUING.crl(extensions=[point(full_name=[pki.uri(one)])])]
    check(crls, ALICE)
    check(crls, with_point(one))
    check(crls, with_point(two, one))
    assert refusal(crls, with_point(two)).reason is Reason.CRL_EXPIRED
    check([*crls, ISSUING.crl(extensions=[point(full_name=[pki.uri(two)])])], with_point(two))


def complaint(content: bytes) -> str:
    with pytest.raises(Malformed) as caught:
        parse_revocation_lists(content)
    return str(caught.value)


def test_lists_are_read_from_der_and_from_several_pem_blocks() -> None:
    one, two = ROOT.crl([7, 9]), ISSUING.crl()
    assert [each.serials for each in parse_revocation_lists(one.public_bytes(Encoding.DER))] == [{7, 9}]
    assert [each.issuer_name for each in lists(one, two)] == ["CN=Root", "CN=Issuing"]
    first = lists(one)[0]
    assert (first.this_update, first.next_update) == (one.last_update_utc, one.next_update_utc)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x30\x00", ROOT.der, ROOT.pem])
def test_what_is_no_list_is_an_error(content: bytes) -> None:
    complaint(content)


@pytest.mark.parametrize(
    ("extension", "message"),
    [
        ((x509.DeltaCRLIndicator(1), True), "expected a complete list, got a delta list"),
        ((x509.DeltaCRLIndicator(1), False), "expected a complete list, got a delta list"),
        (point(indirect_crl=True), "expected a list of one issuer's certificates, got an indirect list"),
        (
            point(only_some_reasons=frozenset([x509.ReasonFlags.key_compromise])),
            "expected a list for all reasons, got a list for some reasons only",
        ),
        (
            point(only_contains_attribute_certs=True),
            "expected a list of public key certificates, got a list of attribute certificates",
        ),
        (
            point(relative_name=x509.RelativeDistinguishedName(pki.common_name("x").rdns[0])),
            "expected a distribution point with a full name, got one with a relative name",
        ),
        (
            (x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),
            "expected no unknown critical extension, got 1.2.3.4",
        ),
    ],
)
def test_a_list_that_needs_more_than_looking_for_a_serial_number_is_an_error(
    extension: tuple[x509.ExtensionType, bool], message: str
) -> None:
    assert complaint(ROOT.crl(extensions=[extension]).public_bytes(Encoding.DER)) == message


def test_a_distribution_point_that_is_not_named_by_uri_is_an_error() -> None:
    scope = point(full_name=[pki.dns("crl.test")])
    assert complaint(ROOT.crl(extensions=[scope]).public_bytes(Encoding.DER)) == (
        "expected a distribution point named by URI, got one with other names only"
    )


def test_an_unknown_extension_that_is_not_critical_is_no_error() -> None:
    unknown = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    lists(ROOT.crl([pki.revoked_entry(1, (unknown, False))], extensions=[(unknown, False), (x509.CRLNumber(3), False)]))


def test_an_entry_with_an_unknown_critical_extension_is_an_error() -> None:
    entry = pki.revoked_entry(1, (x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True))
    assert "expected no unknown critical extension" in complaint(ROOT.crl([entry]).public_bytes(Encoding.DER))


def test_an_entry_of_another_issuer_makes_a_list_indirect() -> None:
    other = x509.CertificateIssuer([x509.DirectoryName(pki.common_name("Other"))])
    entry = pki.revoked_entry(1, (other, True))
    assert "got an indirect list" in complaint(ROOT.crl([entry]).public_bytes(Encoding.DER))
