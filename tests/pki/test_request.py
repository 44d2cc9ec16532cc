from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from portguard.pki.errors import PkiError
from portguard.pki.request import LARGEST_BYTES, check_public_key, read_request


def _request(key: object, name: str = "mallory") -> x509.CertificateSigningRequest:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, digest)


def _refused(data: bytes, *fragments: str) -> None:
    with pytest.raises(PkiError) as raised:
        read_request(data, "alice.csr")
    for fragment in ("alice.csr: expected", *fragments):
        assert fragment in str(raised.value)


_RSA_2048 = rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        _RSA_2048,
        ed25519.Ed25519PrivateKey.generate(),
    ],
)
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_a_request_gives_its_public_key(key: object, encoding: Encoding) -> None:
    asked = _request(key)
    request = read_request(asked.public_bytes(encoding), "alice.csr")
    assert request.public_key == key.public_key()
    assert request.der == asked.public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: ec.generate_private_key(ec.SECP521R1()), "EC secp521r1"),
        (lambda: ec.generate_private_key(ec.SECP256K1()), "EC secp256k1"),
        (lambda: rsa.generate_private_key(65537, 1024), "RSA 1024"),
        (
            lambda: rsa.generate_private_key(65537, 4104),
            "RSA 4104",
        ),  # seconds, which not all who import this shall wait
        (ed448.Ed448PrivateKey.generate, "Ed448"),
        (lambda: dsa.generate_private_key(2048), "DSA"),
    ],
)
def test_a_key_that_is_weak_or_strange_is_refused(make: Callable[[], Any], found: str) -> None:
    key = make()
    _refused(
        _request(key).public_bytes(Encoding.PEM),
        "expected a key on P-256 or P-384, of RSA with 2048 to 4096 bits, or of Ed25519, got",
        found,
    )
    with pytest.raises(PkiError, match="public key: expected a key on P-256"):
        check_public_key(key.public_key(), "public key")


def test_a_key_that_is_taken_passes_the_check_alone() -> None:
    check_public_key(_RSA_2048.public_key(), "public key")


def test_a_request_that_another_key_has_signed_is_refused() -> None:
    """Else somebody could have a certificate for a key that he does not have."""
    mine, theirs = (_request(ec.generate_private_key(ec.SECP256R1())) for _ in range(2))
    der, other = mine.public_bytes(Encoding.DER), theirs.public_bytes(Encoding.DER)
    info, foreign = mine.tbs_certrequest_bytes, theirs.tbs_certrequest_bytes
    assert len(info) == len(foreign)
    forged = other.replace(foreign, info)
    assert forged != der
    _refused(forged, "a request that its own key has signed, got another signature")


def test_a_request_that_was_changed_on_the_way_is_refused() -> None:
    der = _request(ec.generate_private_key(ec.SECP256R1())).public_bytes(Encoding.DER)
    _refused(der.replace(b"mallory", b"Mallory"), "a request that its own key has signed")


def _pem(key: object) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "got nothing"),
        (b"hello", "got something else"),
        (b"\x30\x82", "got something else"),
        (_pem(_RSA_2048), "got a private key"),
        (_request(_RSA_2048).public_bytes(Encoding.PEM) * 2, "got 2 PEM blocks"),
        (_request(_RSA_2048).public_bytes(Encoding.PEM) + _pem(_RSA_2048), "got a private key"),
        (b"-----BEGIN CERTIFICATE-----\n", "got a certificate"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\n", "got something else"),
        (_request(_RSA_2048).public_bytes(Encoding.DER) + b"\x00", "got something else"),
        (b"\xff" * (LARGEST_BYTES + 1), f"at most {LARGEST_BYTES} bytes, got {LARGEST_BYTES + 1} or more"),
    ],
)
def test_what_is_no_request_is_refused(data: bytes, found: str) -> None:
    _refused(data, found)


@pytest.mark.parametrize("text_before", [False, True])
def test_a_request_of_openssl_is_read(tmp_path: Path, openssl: Callable[..., object], text_before: bool) -> None:
    options = ["-text"] if text_before else ["-newhdr"]
    openssl(
        "req", "-new", "-newkey", "ed25519", "-nodes", "-keyout", tmp_path / "k", "-subj", "/CN=x",
        "-out", tmp_path / "r", *options,
    )  # fmt: skip
    assert isinstance(read_request((tmp_path / "r").read_bytes(), "r").public_key, ed25519.Ed25519PublicKey)
