import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import permutations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from portguard.errors import Refused
from portguard.identity.names import Group, Identity
from portguard.identity.pem import parse_certificates
from portguard.identity.revocation import RevocationList, parse_revocation_lists
from portguard.identity.trust import Caller, Trust, Trusts, UnusableTrusts
from portguard.identity.validity import written
from portguard.reasons import Reason
from tests import certificates as pki

NOW = pki.now()
A = pki.Authority.root("Root A")
B = pki.Authority.root("Root B")
ISSUING = A.intermediate("Issuing")
ALICE = ISSUING.issue("alice")

TRUST_A = Trust("a", (A.certificate,), "spiffe", pki.DOMAIN)
TRUST_B = Trust("b", (B.certificate,), "cn")


def both() -> Trusts:
    return Trusts([TRUST_A, TRUST_B])


def identify(
    trusts: Trusts,
    verified: Sequence[pki.Holder],
    sent: Sequence[pki.Holder] | None = None,
    at: datetime = NOW,
) -> Caller:
    """`sent` is by default what an honest client sends: the chain without its anchor."""
    sent = verified[:-1] if sent is None else sent
    return trusts.identify([each.der for each in verified], [each.der for each in sent], at)


def refusal(
    trusts: Trusts,
    verified: Sequence[pki.Holder],
    sent: Sequence[pki.Holder] | None = None,
    at: datetime = NOW,
) -> Refused:
    with pytest.raises(Refused) as caught:
        identify(trusts, verified, sent, at)
    return caught.value


def lists(*crls: x509.CertificateRevocationList) -> tuple[RevocationList, ...]:
    return parse_revocation_lists(b"".join(crl.public_bytes(Encoding.PEM) for crl in crls))


# Who it is.


def test_a_chain_tells_its_trust_and_its_name() -> None:
    caller = identify(both(), [ALICE, ISSUING, A])
    assert caller == Caller(
        identity=Identity("a", "alice"),
        groups=frozenset(),
        serial=ALICE.certificate.serial_number,
        fingerprint=ALICE.certificate.fingerprint(pki.SHA256).hex(),
        not_after=min(each.certificate.not_valid_after_utc for each in (ALICE, ISSUING, A)),
    )


def test_one_name_under_two_trusts_is_two_identities() -> None:
    bob = B.issue("alice")
    assert identify(both(), [bob, B]).identity == Identity("b", "alice")
    assert identify(both(), [ALICE, ISSUING, A]).identity == Identity("a", "alice")


def test_groups_are_of_the_trust_that_gave_them() -> None:
    trusts = Trusts([TRUST_A, replace(TRUST_B, groups="ou")])
    names = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "dba"), x509.NameAttribute(NameOID.COMMON_NAME, "x")]
    assert identify(trusts, [B.issue(subject=x509.Name(names)), B]).groups == {Group("b", "dba")}
    assert identify(trusts, [A.issue(subject=x509.Name(names)), A]).groups == frozenset()


def test_the_caller_holds_until_the_first_of_the_chain_expires() -> None:
    early = NOW + timedelta(days=1)
    assert identify(both(), [A.issue(not_after=early), A]).not_after == early
    anchor = pki.Authority.root("Brief", not_after=early)
    trusts = Trusts([replace(TRUST_A, anchors=(anchor.certificate,))])
    assert identify(trusts, [anchor.issue(), anchor]).not_after == early


# What a chain must be.


def test_no_certificate_at_all_is_missing() -> None:
    assert refusal(both(), [], []).reason is Reason.CERTIFICATE_MISSING


def test_no_verified_chain_is_untrusted() -> None:
    assert refusal(both(), [], [ALICE]).reason is Reason.CERTIFICATE_UNTRUSTED


def test_an_anchor_is_not_its_own_client() -> None:
    refused = refusal(both(), [A], [A])
    assert refused.reason is Reason.CERTIFICATE_UNTRUSTED
    assert refused.message == "client chain: expected a certificate and its authorities, got 1 verified"


def test_a_chain_to_another_anchor_is_untrusted() -> None:
    other = pki.Authority.root("Other")
    refused = refusal(both(), [other.issue(), other])
    assert refused.reason is Reason.CERTIFICATE_UNTRUSTED
    assert refused.message == "client chain: expected an anchor of a, b at its end, got CN=Other"


def test_without_trusts_everybody_is_untrusted() -> None:
    assert refusal(Trusts([]), [ALICE, ISSUING, A]).reason is Reason.CERTIFICATE_UNTRUSTED


def test_an_anchor_is_matched_by_key_and_not_by_name_alone() -> None:
    namesake = pki.Authority.root("Root A")
    assert refusal(both(), [namesake.issue(), namesake]).reason is Reason.CERTIFICATE_UNTRUSTED


def test_an_anchor_is_matched_by_name_and_not_by_key_alone() -> None:
    renamed = pki.Authority.root("Root C", key=A.key)
    assert refusal(both(), [renamed.issue(), renamed]).reason is Reason.CERTIFICATE_UNTRUSTED


def test_an_anchor_that_was_issued_again_for_the_same_key_is_the_same() -> None:
    renewed = pki.Authority.root("Root A", key=A.key)
    assert renewed.der != A.der
    assert identify(both(), [A.issue("alice"), renewed]).identity == Identity("a", "alice")


def test_an_intermediate_may_be_the_anchor() -> None:
    trusts = Trusts([replace(TRUST_A, anchors=(ISSUING.certificate,)), TRUST_B])
    assert identify(trusts, [ALICE, ISSUING]).identity == Identity("a", "alice")
    assert refusal(trusts, [ALICE, ISSUING, A]).reason is Reason.CERTIFICATE_UNTRUSTED


def test_a_trust_may_have_a_root_and_its_intermediate_as_anchors() -> None:
    trusts = Trusts([replace(TRUST_A, anchors=(A.certificate, ISSUING.certificate)), TRUST_B])
    assert identify(trusts, [ALICE, ISSUING, A]).identity == Identity("a", "alice")
    assert identify(trusts, [ALICE, ISSUING]).identity == Identity("a", "alice")


@pytest.mark.parametrize("sent", [[], [ISSUING], [ISSUING.issue("bob"), ISSUING]])
def test_the_verified_certificate_must_be_among_those_sent(sent: list[pki.Holder]) -> None:
    assert refusal(both(), [ALICE, ISSUING, A], sent).reason is Reason.CERTIFICATE_UNTRUSTED


def test_at_most_20_certificates_are_looked_at() -> None:
    assert identify(both(), [ALICE, ISSUING, A], [ALICE] * 20)
    refused = refusal(both(), [ALICE, ISSUING, A], [ALICE] * 21)
    assert refused.reason is Reason.CERTIFICATE_UNTRUSTED
    assert refused.message == "client chain: expected at most 20 certificates, got 21"


@pytest.mark.parametrize("garbage", [b"", b"\x30\x00", ALICE.der[:-1]])
def test_a_certificate_that_cannot_be_read_refuses_wherever_it_stands(garbage: bytes) -> None:
    for verified, sent in [
        ([garbage, ISSUING.der, A.der], [garbage, ISSUING.der]),
        ([ALICE.der, garbage, A.der], [ALICE.der, garbage]),
        ([ALICE.der, ISSUING.der, garbage], [ALICE.der, ISSUING.der]),
        ([ALICE.der, ISSUING.der, A.der], [ALICE.der, ISSUING.der, garbage]),
    ]:
        with pytest.raises(Refused) as caught:
            both().identify(verified, sent, NOW)
        assert caught.value.reason is Reason.CERTIFICATE_UNTRUSTED


def test_dates_of_the_whole_chain_hold_at_every_look() -> None:
    start, end = NOW - timedelta(minutes=1), NOW + timedelta(minutes=1)
    chain = [A.issue(not_before=start, not_after=end), A]
    trusts = both()
    second = timedelta(seconds=1)
    assert identify(trusts, chain, at=start)
    assert identify(trusts, chain, at=end)
    assert refusal(trusts, chain, at=start - second).reason is Reason.CERTIFICATE_NOT_YET_VALID
    assert refusal(trusts, chain, at=end + second).reason is Reason.CERTIFICATE_EXPIRED


def test_times_are_told_in_whole_seconds_as_certificates_have_them() -> None:
    start, end = NOW - timedelta(minutes=1), NOW + timedelta(minutes=1)
    chain = [A.issue(not_before=start, not_after=end), A]
    later, earlier = (
        end + timedelta(seconds=1, microseconds=5),
        start - timedelta(seconds=1) + timedelta(microseconds=5),
    )
    assert refusal(both(), chain, at=later).message == (
        f"chain: expected a time until {written(end)}, got {written(later)}"
    )
    assert refusal(both(), chain, at=earlier).message == (
        f"chain: expected a time from {written(start)}, got {written(earlier)}"
    )


def test_an_authority_that_expired_takes_its_clients_with_it() -> None:
    end = A.certificate.not_valid_after_utc
    long_lived = A.issue(not_after=end + timedelta(days=365))
    assert refusal(both(), [long_lived, A], at=end + timedelta(seconds=1)).reason is Reason.CERTIFICATE_EXPIRED


def test_what_is_wrong_with_the_leaf_has_its_own_reason() -> None:
    trusts = both()
    assert refusal(trusts, [B.issue(usages=None), B]).reason is Reason.CERTIFICATE_USAGE
    assert refusal(trusts, [A.issue(sans=()), A]).reason is Reason.NO_IDENTITY
    assert refusal(trusts, [A.issue(sans=[pki.spiffe("a"), pki.spiffe("b")]), A]).reason is Reason.AMBIGUOUS_IDENTITY


def trust_of_nameless(trusts: Trusts, verified: Sequence[pki.Holder], at: datetime = NOW) -> str:
    return trusts.trust_of_nameless([each.der for each in verified], [each.der for each in verified[:-1]], at)


def test_a_trust_vouches_for_a_certificate_that_names_nobody() -> None:
    nobody = pki.common_name()
    assert trust_of_nameless(both(), [A.issue(subject=nobody, sans=()), A]) == "a"
    assert trust_of_nameless(both(), [B.issue(subject=nobody, sans=()), B]) == "b"


def test_and_for_no_other_and_for_none_that_is_refused_for_anything_else() -> None:
    nameless = A.issue(sans=())
    revoked = Trusts([replace(TRUST_A, crls=lists(A.crl([nameless.certificate.serial_number])))])
    stranger = pki.Authority.root("Root A")
    late = NOW + timedelta(days=400)
    for trusts, holder, authority, at, reason in (
        (both(), A.issue("alice"), A, NOW, Reason.BAD_REQUEST),
        (both(), nameless, A, late, Reason.CERTIFICATE_EXPIRED),
        (both(), A.issue(sans=[pki.spiffe("a"), pki.spiffe("b")]), A, NOW, Reason.AMBIGUOUS_IDENTITY),
        (both(), A.issue(sans=(), ca=True), A, NOW, Reason.CERTIFICATE_USAGE),
        (both(), stranger.issue(sans=()), stranger, NOW, Reason.CERTIFICATE_UNTRUSTED),
        (revoked, nameless, A, NOW, Reason.CERTIFICATE_REVOKED),
    ):
        with pytest.raises(Refused) as caught:
            trust_of_nameless(trusts, [holder, authority], at)
        assert caught.value.reason is reason


def test_extensions_that_cannot_be_read_name_nobody() -> None:
    broken = x509.UnrecognizedExtension(pki.SUBJECT_ALTERNATIVE_NAME, b"\x30\x03\x82\x05a")
    assert refusal(both(), [A.issue(sans=(), extensions=[broken]), A]).reason is Reason.NO_IDENTITY


def test_an_extension_that_occurs_twice_is_ambiguous() -> None:
    """A certificate that the builder refuses to make: the object identifier of one extension becomes another's."""
    first = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x05\x00")
    der = A.issue(extensions=[first]).der.replace(b"\x06\x03\x55\x1d\x63", b"\x06\x03\x55\x1d\x11")
    with pytest.raises(Refused) as caught:
        both().identify([der, A.der], [der], NOW)
    assert caught.value.reason is Reason.AMBIGUOUS_IDENTITY


def test_an_odd_certificate_writes_no_warning() -> None:
    with warnings.catch_warnings(action="ignore"):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x" * 100, _validate=False)])
        chain = [(leaf := B.issue(subject=subject)).der, B.der]
    # Read anew from DER, under pytest's rule that warnings are errors.
    assert both().identify(chain, [leaf.der], NOW).identity == Identity("b", "x" * 100)


# One key, two trusts.


ISSUING_B = B.cross_sign(ISSUING)


@pytest.mark.parametrize("sent", list(permutations([ALICE, ISSUING, ISSUING_B])))
@pytest.mark.parametrize("verified", [[ALICE, ISSUING, A], [ALICE, ISSUING_B, B]])
def test_an_authority_certified_under_two_trusts_is_ambiguous_in_any_order(
    verified: list[pki.Holder], sent: tuple[pki.Holder, ...]
) -> None:
    refused = refusal(both(), verified, sent)
    assert refused.reason is Reason.AMBIGUOUS_IDENTITY
    assert refused.message.startswith("CN=Issuing: expected an authority of one trust, got one that is certified under")


def test_the_same_authority_is_fine_while_only_one_of_its_trusts_is_ours() -> None:
    assert identify(Trusts([TRUST_A]), [ALICE, ISSUING, A], [ALICE, ISSUING, ISSUING_B])
    assert identify(Trusts([TRUST_B]), [ALICE, ISSUING_B, B], [ALICE, ISSUING, ISSUING_B])


def test_a_longer_way_to_the_other_trust_is_found() -> None:
    middle = B.intermediate("Middle")
    cross = middle.cross_sign(ISSUING)
    for sent in permutations([ALICE, ISSUING, cross, middle]):
        assert refusal(both(), [ALICE, ISSUING, A], sent).reason is Reason.AMBIGUOUS_IDENTITY
        assert refusal(both(), [ALICE, cross, middle, B], sent).reason is Reason.AMBIGUOUS_IDENTITY


def test_a_way_that_ends_before_the_other_anchor_is_none() -> None:
    middle = B.intermediate("Middle")
    assert identify(both(), [ALICE, ISSUING, A], [ALICE, ISSUING, middle.cross_sign(ISSUING)])


def test_an_anchor_certified_under_another_trust_is_ambiguous() -> None:
    refused = refusal(both(), [ALICE, ISSUING, A], [ALICE, ISSUING, B.cross_sign(A)])
    assert refused.reason is Reason.AMBIGUOUS_IDENTITY
    assert "certified under a and b" in refused.message


def test_a_chain_through_another_trusts_anchor_is_ambiguous() -> None:
    assert refusal(both(), [ALICE, ISSUING, B.cross_sign(A), B]).reason is Reason.AMBIGUOUS_IDENTITY


def test_a_cross_certificate_whose_name_differs_in_case_is_ambiguous() -> None:
    """OpenSSL takes both for the issuer of the same certificate."""
    shouted = B.cross_sign(ISSUING, subject=pki.common_name("ISSUING"))
    assert refusal(both(), [ALICE, ISSUING, A], [ALICE, ISSUING, shouted]).reason is Reason.AMBIGUOUS_IDENTITY


def test_a_cross_certificate_that_names_its_issuer_in_another_case_is_ambiguous() -> None:
    shouting = pki.Authority.root("ROOT  b", key=B.key)
    cross = shouting.cross_sign(ISSUING)
    assert refusal(both(), [ALICE, ISSUING, A], [ALICE, ISSUING, cross]).reason is Reason.AMBIGUOUS_IDENTITY


def test_a_cross_certificate_that_the_other_trust_did_not_sign_means_nothing() -> None:
    impostor = pki.Authority.root("Root B")
    assert identify(both(), [ALICE, ISSUING, A], [ALICE, ISSUING, impostor.cross_sign(ISSUING)])


def test_a_cross_certificate_for_another_key_means_nothing() -> None:
    namesake = B.intermediate("Issuing")
    assert identify(both(), [ALICE, ISSUING, A], [ALICE, ISSUING, namesake])


def test_a_renewed_intermediate_of_the_same_trust_means_nothing() -> None:
    assert identify(both(), [ALICE, ISSUING, A], [ALICE, ISSUING, A.cross_sign(ISSUING)])


def test_an_expired_cross_certificate_is_ambiguous_all_the_same() -> None:
    expired = B.cross_sign(ISSUING, not_after=NOW - timedelta(minutes=1))
    assert refusal(both(), [ALICE, ISSUING, A], [ALICE, ISSUING, expired]).reason is Reason.AMBIGUOUS_IDENTITY


def test_authorities_that_certify_each_other_are_no_endless_loop() -> None:
    one, two = pki.Authority.root("One"), pki.Authority.root("Two")
    ring = [one.cross_sign(two), two.cross_sign(one), one.cross_sign(ISSUING), two.cross_sign(ISSUING), one, two]
    assert identify(both(), [ALICE, ISSUING, A], [ALICE, ISSUING, *ring])
    closing = [ALICE, ISSUING, *ring, B.cross_sign(two)]
    assert refusal(both(), [ALICE, ISSUING, A], closing).reason is Reason.AMBIGUOUS_IDENTITY


def test_work_on_certificates_beyond_the_chain_is_bounded() -> None:
    """Authorities of one name, each of which could have signed the certificate that claims the key of the chain."""
    claim = pki.Authority.root("Many").cross_sign(ISSUING)
    many = [pki.Authority.root("Many") for _ in range(17)]
    assert identify(both(), [ALICE, ISSUING, A], [ALICE, ISSUING, claim, *many[:16]])
    refused = refusal(both(), [ALICE, ISSUING, A], [ALICE, ISSUING, claim, *many])
    assert refused.reason is Reason.AMBIGUOUS_IDENTITY
    assert "expected at most 16 signatures to check" in refused.message


def test_many_authorities_that_claim_no_key_of_the_chain_cost_no_check() -> None:
    assert identify(both(), [ALICE, ISSUING, A], [ALICE, ISSUING, *(pki.Authority.root("Many") for _ in range(18))])


def test_sending_one_cross_certificate_at_a_time_is_ambiguous_from_the_second_on() -> None:
    trusts = both()
    assert identify(trusts, [ALICE, ISSUING, A]).identity == Identity("a", "alice")
    refused = refusal(trusts, [ALICE, ISSUING_B, B])
    assert refused.reason is Reason.AMBIGUOUS_IDENTITY
    assert refused.message == (
        "CN=Issuing: expected it and the authorities above to be of one trust, got keys that were verified under a, b"
    )
    # Which of them is right is not for the gateway to say: from here on it is neither.
    assert refusal(trusts, [ALICE, ISSUING, A]).reason is Reason.AMBIGUOUS_IDENTITY
    assert refusal(trusts, [ISSUING.issue("bob"), ISSUING, A]).reason is Reason.AMBIGUOUS_IDENTITY


def test_an_authority_higher_up_that_changes_trust_is_ambiguous_too() -> None:
    lower = ISSUING.intermediate("Lower")
    trusts = both()
    assert identify(trusts, [lower.issue("bob"), lower, ISSUING, A])
    assert refusal(trusts, [ALICE, ISSUING_B, B]).reason is Reason.AMBIGUOUS_IDENTITY


def test_other_authorities_of_both_trusts_are_not_affected() -> None:
    trusts = both()
    identify(trusts, [ALICE, ISSUING, A])
    refusal(trusts, [ALICE, ISSUING_B, B])
    assert identify(trusts, [A.issue("carol"), A])
    other = B.intermediate()
    assert identify(trusts, [other.issue("carol"), other, B])


def test_a_chain_that_names_nobody_still_counts_as_verified() -> None:
    trusts = both()
    assert refusal(trusts, [ISSUING.issue(sans=()), ISSUING, A]).reason is Reason.NO_IDENTITY
    assert refusal(trusts, [ALICE, ISSUING_B, B]).reason is Reason.AMBIGUOUS_IDENTITY


def test_a_cross_certificate_that_its_trust_revoked_makes_nothing_ambiguous() -> None:
    crls = lists(B.crl([ISSUING_B.certificate.serial_number]), ISSUING.crl())
    trusts = Trusts([TRUST_A, replace(TRUST_B, crls=crls)])
    assert refusal(trusts, [ALICE, ISSUING_B, B]).reason is Reason.CERTIFICATE_REVOKED
    assert identify(trusts, [ALICE, ISSUING, A])


def test_the_memory_of_authorities_is_bounded_and_keeps_those_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portguard.identity.trust._REMEMBERED_KEYS", 3)
    trusts = both()
    for _ in range(6):
        identify(trusts, [ALICE, ISSUING, A])
        other = A.intermediate()
        identify(trusts, [other.issue(), other, A])
        assert len(trusts._verified_under) <= 3
    assert refusal(trusts, [ALICE, ISSUING_B, B]).reason is Reason.AMBIGUOUS_IDENTITY


def test_one_client_key_with_certificates_of_two_trusts_is_two_identities() -> None:
    """Each authority vouches for its own name, and the client says by its certificate which one it is."""
    key = pki.new_key()
    one, other = A.issue("alice", key=key), B.issue("bob", key=key)
    trusts = both()
    assert identify(trusts, [one, A], [one, other]).identity == Identity("a", "alice")
    assert identify(trusts, [other, B], [other, one]).identity == Identity("b", "bob")


# Revocation.


def test_revocation_is_looked_at_again_each_time() -> None:
    trusts = Trusts([replace(TRUST_A, crls=lists(A.crl(next_update=NOW), ISSUING.crl())), TRUST_B])
    assert identify(trusts, [ALICE, ISSUING, A])
    later = NOW + timedelta(seconds=1)
    assert refusal(trusts, [ALICE, ISSUING, A], at=later).reason is Reason.CRL_EXPIRED
    assert identify(trusts, [ALICE, ISSUING, A])


def test_lists_are_of_their_trust_alone() -> None:
    trusts = Trusts([replace(TRUST_A, crls=lists(A.crl(), ISSUING.crl([ALICE.certificate.serial_number]))), TRUST_B])
    assert refusal(trusts, [ALICE, ISSUING, A]).reason is Reason.CERTIFICATE_REVOKED
    assert identify(trusts, [B.issue(serial=ALICE.certificate.serial_number), B])


def test_trust_comes_before_revocation_and_revocation_before_the_name() -> None:
    nameless = ISSUING.issue(sans=())
    crls = lists(A.crl(), ISSUING.crl([nameless.certificate.serial_number]))
    trusts = Trusts([replace(TRUST_A, crls=crls), TRUST_B])
    assert refusal(trusts, [nameless, ISSUING, A]).reason is Reason.CERTIFICATE_REVOKED
    sent = [nameless, ISSUING, ISSUING_B]
    assert refusal(trusts, [nameless, ISSUING, A], sent).reason is Reason.AMBIGUOUS_IDENTITY


def test_crl_expired_accept_goes_on() -> None:
    stale = lists(A.crl(next_update=NOW - timedelta(seconds=1)), ISSUING.crl())
    assert refusal(Trusts([replace(TRUST_A, crls=stale)]), [ALICE, ISSUING, A]).reason is Reason.CRL_EXPIRED
    assert identify(Trusts([replace(TRUST_A, crls=stale, crl_expired="accept")]), [ALICE, ISSUING, A])


# The cache.


def test_a_chain_is_judged_once() -> None:
    trusts = both()
    caller = identify(trusts, [ALICE, ISSUING, A])
    assert identify(trusts, [ALICE, ISSUING, A]) is caller


def test_a_chain_is_not_taken_for_another_one() -> None:
    trusts = both()
    identify(trusts, [ALICE, ISSUING, A])
    assert refusal(trusts, [ALICE, ISSUING, A], [ALICE, ISSUING, ISSUING_B]).reason is Reason.AMBIGUOUS_IDENTITY
    assert identify(trusts, [ALICE, ISSUING, A])


@pytest.mark.parametrize("chain", [[A.issue(sans=()), A], [A]])
def test_a_refusal_from_the_cache_is_a_new_exception(chain: list[pki.Holder]) -> None:
    trusts = both()
    first, second = refusal(trusts, chain), refusal(trusts, chain)
    assert first is not second
    assert str(first) == str(second)
    assert len(traceback.extract_tb(second.__traceback__)) == len(traceback.extract_tb(first.__traceback__))


def test_large_chains_are_not_kept() -> None:
    trusts = both()
    padding = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x04\x82\x40\x00" + bytes(0x4000))
    large = A.issue(extensions=[padding])
    assert identify(trusts, [large, A]) == identify(trusts, [large, A])
    assert trusts._judge_cached.cache_info().currsize == 0
    identify(trusts, [ALICE, ISSUING, A])
    assert trusts._judge_cached.cache_info().currsize == 1


# Trusts among themselves.


def problems(*trusts: Trust) -> list[str]:
    with pytest.raises(UnusableTrusts) as caught:
        Trusts(trusts)
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return str(caught.value).splitlines()


def test_the_anchors_of_all_trusts_go_into_one_store() -> None:
    trusts = Trusts([replace(TRUST_A, anchors=(A.certificate, ISSUING.certificate)), TRUST_B])
    assert parse_certificates(trusts.anchors_pem.encode()) == (A.certificate, ISSUING.certificate, B.certificate)


def test_two_trusts_with_one_anchor_are_an_error() -> None:
    assert problems(TRUST_A, replace(TRUST_B, anchors=TRUST_A.anchors)) == [
        "trusts.b.ca: expected keys that no other trust has, got the key of CN=Root A in a"
    ]


def test_two_trusts_with_one_key_under_two_names_are_an_error() -> None:
    renamed = pki.Authority.root("Root C", key=A.key)
    assert problems(TRUST_A, replace(TRUST_B, anchors=(renamed.certificate,))) == [
        "trusts.b.ca: expected keys that no other trust has, got the key of CN=Root A in a"
    ]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_trust_whose_anchor_another_trusts_anchor_certified_is_an_error(swapped: bool) -> None:
    trusts = [TRUST_A, replace(TRUST_B, anchors=(ISSUING.certificate,))]
    if swapped:
        trusts.reverse()
    found = problems(*trusts)
    assert len(found) == 1
    assert found[0].endswith("got CN=Issuing, certified by CN=Root A")


def test_one_trust_may_hold_one_key_twice() -> None:
    renewed = pki.Authority.root("Root A", key=A.key)
    assert Trusts([replace(TRUST_A, anchors=(A.certificate, renewed.certificate)), TRUST_B])


def test_two_trusts_of_one_domain_are_an_error() -> None:
    other = Trust("b", (B.certificate,), "spiffe", pki.DOMAIN)
    assert problems(TRUST_A, other) == [
        "trusts.b.trust_domain: expected another trust domain than that of a, got 'gateway.test'"
    ]


def test_everything_wrong_with_the_trusts_is_told_in_one_go() -> None:
    leaf = A.issue().certificate
    assert problems(
        Trust("Bad", (), "spiffe", None, groups="uri:urn:x:", default=True),
        Trust("b", (leaf,), "email", "example.com", groups="uri:", default=True),
        Trust("c", (B.certificate,), "cn", groups="all"),
    ) == [
        "trusts.Bad.ca: expected at least one certificate, got none",
        'trusts.Bad.groups: expected "ou" or none with identity "spiffe", got \'uri:urn:x:\'',
        'trusts.Bad.name: expected lower-case letters, digits, "-" and "_", at most 63, and not "spiffe", got \'Bad\'',
        'trusts.Bad.trust_domain: expected a trust domain of lower-case letters, digits, ".", "-" and "_", got \'\'',
        "trusts.b.ca: expected certificates of authorities (CA true), got CN=alice",
        "trusts.b.default: expected one default trust, got a second one beside Bad",
        'trusts.b.groups: expected "ou" or "uri:PREFIX", got \'uri:\'',
        "trusts.b.trust_domain: expected none without identity \"spiffe\", got 'example.com'",
        'trusts.c.groups: expected "ou" or "uri:PREFIX", got \'all\'',
    ]


def test_two_trusts_of_one_name_are_an_error() -> None:
    assert problems(TRUST_A, replace(TRUST_B, name="a")) == [
        "trusts.a.name: expected another name than that of any other trust, got 'a'"
    ]


def test_a_list_that_an_anchor_did_not_sign_is_an_error() -> None:
    assert problems(replace(TRUST_A, crls=lists(A.crl(key=B.key)))) == [
        "trusts.a.crl: expected a list signed by CN=Root A, got one with another signature"
    ]


def test_a_list_without_an_end_is_an_error_unless_old_ones_are_accepted() -> None:
    (endless,) = (replace(each, next_update=None) for each in lists(A.crl()))
    assert problems(replace(TRUST_A, crls=(endless,))) == [
        'trusts.a.crl: expected a time of the next update, or crl_expired = "accept", '
        "got the list of CN=Root A without one"
    ]
    assert Trusts([replace(TRUST_A, crls=(endless,), crl_expired="accept")])
