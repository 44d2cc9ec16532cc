import pytest
from cryptography import x509

from portguard.identity.claim import LONGEST_NAME, LONGEST_SERIAL, Claim, read_claim
from tests.certificates import SHA256, Authority, common_name, dns, spiffe, uri


def fingerprint(holder):
    return holder.certificate.fingerprint(SHA256).hex()


def test_a_certificate_says_whose_it_is_and_who_signed_it():
    alice = Authority.root("Corp Root").issue("alice")
    serial = f"{alice.certificate.serial_number:x}"
    assert read_claim(alice.der) == Claim("spiffe://gateway.test/alice", "CN=Corp Root", serial, fingerprint(alice))


@pytest.mark.parametrize("sans", [[dns("alice")], [uri("urn:acme:group:dba")], []])
def test_without_a_spiffe_id_it_is_the_subject(sans):
    assert read_claim(Authority.root().issue("alice", sans=sans).der).subject == "CN=alice"


def test_of_several_spiffe_ids_it_is_the_first():
    both = Authority.root().issue(sans=[uri("urn:x"), spiffe("alice"), spiffe("bob")])
    assert read_claim(both.der).subject == "spiffe://gateway.test/alice"


def test_a_certificate_that_names_nobody_has_no_subject():
    nobody = Authority.root().issue(subject=x509.Name([]), sans=[])
    assert read_claim(nobody.der).subject is None
    assert read_claim(nobody.der).issuer is not None


def test_long_names_and_numbers_are_cut():
    long = Authority.root("R" * 64)
    subject = common_name(*(letter * 64 for letter in "abcd"))
    claim = read_claim(long.issue(subject=subject, sans=[]).der)
    assert len(claim.subject) == LONGEST_NAME
    assert claim.subject.endswith("…")
    assert claim.issuer == "CN=" + "R" * 64
    assert len(claim.serial) <= LONGEST_SERIAL


@pytest.mark.parametrize("der", [b"", b"nonsense", b"\x30\x03\x02\x01\x01"])
def test_what_is_no_certificate_has_a_fingerprint_and_nothing_else(der):
    claim = read_claim(der)
    assert (claim.subject, claim.issuer, claim.serial) == (None, None, None)
    assert len(claim.fingerprint) == 64


@pytest.mark.parametrize(
    "flaw",
    [{"sans": [spiffe(f"name-{number}") for number in range(500)]}, {"subject": common_name(*["a"] * 101)}],
    ids=["large", "many names"],
)
def test_a_certificate_made_to_be_slow_to_read_is_not_read(flaw):
    large = Authority.root().issue(**flaw)
    assert read_claim(large.der) == Claim(None, None, None, fingerprint(large))
