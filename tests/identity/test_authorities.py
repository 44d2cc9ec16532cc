import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from portguard.identity.authorities import canonical_name, is_authority, read_authority
from portguard.identity.names import Malformed
from tests import certificates as pki

KEYS: dict[str, pki.PrivateKey] = {
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "rsa": rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "ed448": ed448.Ed448PrivateKey.generate(),
    "dsa": dsa.generate_private_key(2048),
}


@pytest.mark.parametrize("kind", KEYS)
def test_an_authority_has_issued_what_its_key_signed(kind: str) -> None:
    root = pki.Authority.root(key=KEYS[kind])
    assert read_authority(root.der).has_issued(read_authority(root.intermediate().der))


@pytest.mark.parametrize("other", KEYS)
@pytest.mark.parametrize("kind", KEYS)
def test_an_authority_has_not_issued_what_another_key_signed(kind: str, other: str) -> None:
    key = pki.new_key() if kind == other else KEYS[other]
    child = pki.Authority.root(key=key).intermediate()
    assert not read_authority(pki.Authority.root(key=KEYS[kind]).der).has_issued(read_authority(child.der))


def test_an_authority_of_another_name_has_not_issued_it() -> None:
    key = pki.new_key()
    child = pki.Authority.root("One", key=key).intermediate()
    assert not read_authority(pki.Authority.root("Other", key=key).der).has_issued(read_authority(child.der))


def test_a_signature_with_pss_is_checked() -> None:
    key = KEYS["rsa"]
    assert isinstance(key, rsa.RSAPrivateKey)
    root = pki.Authority.root(key=key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(pki.common_name("PSS"))
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(pki.now())
        .not_valid_after(pki.now())
    )
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    child = builder.sign(key, hashes.SHA256(), rsa_padding=pss).public_bytes(Encoding.DER)
    assert read_authority(root.der).has_issued(read_authority(child))
    other = pki.Authority.root(key=rsa.generate_private_key(65537, 2048))
    assert not read_authority(other.der).has_issued(read_authority(child))


def test_a_signature_of_an_unknown_algorithm_counts_as_the_issuers() -> None:
    """What OpenSSL may be able to verify, and we are not, must not go unnoticed."""
    root = pki.Authority.root()
    ecdsa_with_sha256, unknown = bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06082a8648ce3d04037f")
    child = read_authority(root.intermediate().der.replace(ecdsa_with_sha256, unknown))
    assert read_authority(root.der).has_issued(child)
    assert not read_authority(pki.Authority.root("Other").der).has_issued(child)


@pytest.mark.parametrize(
    "other",
    [
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "example  ROOT ca")]),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, " Example Root CA ")]),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example Root CA", x509.name._ASN1Type.PrintableString)]),
    ],
)
def test_names_that_openssl_takes_for_equal_are_equal(other: x509.Name) -> None:
    assert canonical_name(pki.common_name("Example Root CA")) == canonical_name(other)


@pytest.mark.parametrize(
    "other",
    [
        pki.common_name("Example Root C"),
        pki.common_name("ExampleRoot CA"),
        pki.common_name("Example Root CA", "Example Root CA"),
        x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example Root CA")]),
    ],
)
def test_other_names_are_not_equal(other: x509.Name) -> None:
    assert canonical_name(pki.common_name("Example Root CA")) != canonical_name(other)


def test_a_name_may_hold_bytes() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.X500_UNIQUE_IDENTIFIER, b"\x01", x509.name._ASN1Type.BitString)])
    assert canonical_name(name) != canonical_name(pki.common_name())


def test_one_key_is_one_key_however_its_point_is_encoded() -> None:
    """The key of an authority in a second certificate, its point compressed, as OpenSSL may write it."""
    plain = pki.Authority.root()
    key = plain.key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    point = key.public_key().public_numbers()
    uncompressed = b"\x04" + point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big")
    compressed = bytes([2 + point.y % 2]) + point.x.to_bytes(32, "big")
    # SubjectPublicKeyInfo and all that contains it become 32 bytes shorter; the signature no longer matters.
    tail = _shorten(plain.der, b"\x03\x42\x00" + uncompressed, b"\x03\x22\x00" + compressed)
    assert read_authority(tail).key == read_authority(plain.der).key
    assert tail != plain.der


def _shorten(der: bytes, old: bytes, new: bytes) -> bytes:
    """Replace `old` in a certificate and mend the lengths of the three SEQUENCEs around it."""
    less = len(old) - len(new)
    place = der.index(old)
    content = bytearray(der[:place] + new + der[place + len(old) :])
    for offset in (2, 6):  # Certificate and TBSCertificate: 30 82 LL LL
        assert content[offset - 2 : offset] == b"\x30\x82"
        length = int.from_bytes(content[offset : offset + 2], "big") - less
        content[offset : offset + 2] = length.to_bytes(2, "big")
    info = place - 21 - 2  # AlgorithmIdentifier has 21 bytes
    assert content[info] == 0x30
    content[info + 1] -= less
    return bytes(content)


def test_another_key_is_another_key() -> None:
    assert read_authority(pki.Authority.root().der).key != read_authority(pki.Authority.root().der).key


@pytest.mark.parametrize("der", [b"", b"\x30\x00", pki.Authority.root().der[:-1]])
def test_what_is_no_certificate_is_malformed(der: bytes) -> None:
    with pytest.raises(Malformed, match=r"a readable X\.509 certificate"):
        read_authority(der)


def test_a_certificate_says_whether_it_is_an_authority() -> None:
    root = pki.Authority.root()
    assert is_authority(root.certificate)
    assert not is_authority(root.issue().certificate)
    assert not is_authority(root.issue(ca=None).certificate)


def test_reading_an_odd_certificate_does_not_warn() -> None:
    with warnings.catch_warnings(action="ignore"):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x" * 100, _validate=False)])
        certificate = pki.Authority.root().issue(subject=subject).der
    assert read_authority(certificate).name == "CN=" + "x" * 100
