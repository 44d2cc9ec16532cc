from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from portguard.errors import UsageError
from portguard.pki import keys
from portguard.pki.errors import PkiError, WrongPassphrase
from portguard.pki.keys import KeyType


def test_types_are_p256_and_rsa_3072() -> None:
    elliptic, factoring = keys.generate(KeyType.EC), keys.generate(KeyType.RSA)
    assert isinstance(elliptic, ec.EllipticCurvePrivateKey)
    assert isinstance(elliptic.curve, ec.SECP256R1)
    assert isinstance(factoring, rsa.RSAPrivateKey)
    assert factoring.key_size == 3072
    assert keys.describe(elliptic.public_key()) == "EC secp256r1"
    assert keys.describe(factoring.public_key()) == "RSA 3072"
    assert keys.type_of(elliptic) is KeyType.EC
    assert keys.type_of(factoring) is KeyType.RSA


@pytest.mark.parametrize("passphrase", [None, b"correct horse", "Straße".encode(), b"x" * 1023])
def test_a_key_comes_back(passphrase: bytes | None) -> None:
    key = keys.generate(KeyType.EC)
    pem = keys.to_pem(key, passphrase)
    assert keys.is_encrypted(pem) == (passphrase is not None)
    assert keys.from_pem(pem, passphrase, "ca.key").public_key() == key.public_key()


def test_an_encrypted_key_opens_with_openssl_and_only_with_its_passphrase(tmp_path: Path, openssl: Callable) -> None:
    (tmp_path / "key").write_bytes(keys.to_pem(keys.generate(KeyType.EC), b"correct horse"))
    assert openssl("pkey", "-in", tmp_path / "key", "-noout", "-passin", "pass:correct horse").returncode == 0
    assert openssl("pkey", "-in", tmp_path / "key", "-noout", "-passin", "pass:wrong horse").returncode != 0


def test_another_passphrase_is_wrong() -> None:
    pem = keys.to_pem(keys.generate(KeyType.EC), b"correct horse")
    with pytest.raises(WrongPassphrase, match=r"ca\.key: expected the passphrase of this key, got another one") as e:
        keys.from_pem(pem, b"battery staple", "ca.key")
    assert "battery" not in str(e.value)


def test_a_missing_passphrase_is_wrong() -> None:
    pem = keys.to_pem(keys.generate(KeyType.EC), b"correct horse")
    with pytest.raises(
        WrongPassphrase, match=r"ca\.key: expected a passphrase, because the key is encrypted, got none"
    ):
        keys.from_pem(pem, None, "ca.key")


def test_a_passphrase_for_a_key_that_is_not_encrypted_is_wrong() -> None:
    pem = keys.to_pem(keys.generate(KeyType.EC))
    with pytest.raises(WrongPassphrase, match="expected no passphrase, because the key is not encrypted, got one"):
        keys.from_pem(pem, b"correct horse", "ca.key")


@pytest.mark.parametrize(
    ("passphrase", "message"),
    [
        (b"", "expected 1 to 1023 bytes, got 0"),
        (b"x" * 1024, "expected 1 to 1023 bytes, got 1024"),
        (b"\xff\xfe", "expected text in UTF-8, got other bytes"),
    ],
)
def test_a_passphrase_that_could_not_be_typed_again_is_refused(passphrase: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        keys.to_pem(keys.generate(KeyType.EC), passphrase)


@pytest.mark.parametrize("pem", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_something_else_is_not_a_key(pem: bytes) -> None:
    with pytest.raises(PkiError, match=r"ca\.key: expected a private key in PEM, got something else"):
        keys.from_pem(pem, None, "ca.key")


def test_a_key_of_another_kind_is_refused() -> None:
    pem = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(PkiError, match="expected an EC or RSA key, got Ed25519"):
        keys.from_pem(pem, None, "ca.key")
