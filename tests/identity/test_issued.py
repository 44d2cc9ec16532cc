import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from portguard.errors import Refused
from portguard.identity.issued import check_issued
from portguard.reasons import Reason
from tests.certificates import Authority, common_name, key_usage, new_key, now

ROOT = Authority.root("Root")
ISSUING = ROOT.intermediate("Issuing")
OTHER = Authority.root("Root")  # of the same name


def authority(*, ca=True, path_length=None, uses=("key_cert_sign",), constraints=True, usage=True):
    """An authority below ROOT, as it is told."""
    key = new_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(common_name("Odd"))
        .issuer_name(ROOT.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now())
        .not_valid_after(now().replace(year=now().year + 1, day=1))
    )
    if constraints:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    if usage:
        builder = builder.add_extension(key_usage(*uses), critical=True)
    return Authority(builder.sign(ROOT.key, hashes.SHA256()), key)


def refused(*chain):
    with pytest.raises(Refused) as caught:
        check_issued([each if isinstance(each, bytes) else each.der for each in chain])
    assert caught.value.reason is Reason.CERTIFICATE_UNTRUSTED


def test_a_chain_whose_certificates_issued_each_other_passes():
    check_issued([ISSUING.issue("alice").der, ISSUING.der, ROOT.der])
    check_issued([ROOT.issue("alice").der, ROOT.der])
    odd = authority(path_length=0)
    check_issued([odd.issue("alice").der, odd.der, ROOT.der])
    check_issued([odd.intermediate().der, odd.der, ROOT.der])  # the first one may be anything


def test_one_that_another_key_has_signed_does_not():
    refused(OTHER.issue("alice"), ROOT)
    refused(ISSUING.issue("alice"), ISSUING, OTHER)


def test_one_that_names_another_issuer_does_not():
    refused(ISSUING.issue("alice"), ROOT)
    refused(ISSUING.issue("alice"), ROOT, ISSUING)


def test_what_is_no_authority_issues_nothing():
    leaf = authority(ca=False, uses=("digital_signature",))
    for odd in (
        leaf,
        authority(ca=False),
        authority(uses=("crl_sign",)),
        authority(constraints=False),
        authority(usage=False),
    ):
        refused(odd.issue("alice"), odd, ROOT)


def test_an_authority_has_no_more_below_it_than_it_may():
    odd = authority(path_length=0)
    below = odd.intermediate("Below")
    refused(below.issue("alice"), below, odd, ROOT)
    wider = authority(path_length=1)
    below = wider.intermediate("Below")
    check_issued([below.issue("alice").der, below.der, wider.der, ROOT.der])


def test_what_cannot_be_read_passes_nothing():
    refused(b"\x30\x00", ROOT)
    refused(ROOT.issue("alice"), b"")
