"""Private keys: made, written as PKCS #8, read back."""

from enum import StrEnum

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from portguard.errors import UsageError
from portguard.pki.errors import PkiError, WrongPassphrase

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

# What OpenSSL reads of a passphrase.
PASSPHRASE_MAX_BYTES = 1023

_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


class KeyType(StrEnum):
    """What a key is: elliptic-curve P-256, or RSA with 3072 bits, both of 128 bits of strength (NIST SP 800-57)."""

    EC = "ec"
    RSA = "rsa"


def generate(key_type: KeyType) -> PrivateKey:
    """Make a new key. RSA takes up to some seconds."""
    if key_type is KeyType.EC:
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=3072)


def to_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """Return `key` as PKCS #8 in PEM, encrypted with AES-256 when there is a passphrase. Raises UsageError."""
    encryption = serialization.NoEncryption() if passphrase is None else encryption_with(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def encryption_with(passphrase: bytes) -> serialization.KeySerializationEncryption:
    """Return how a file with a key is encrypted. Raises UsageError for a passphrase that could not be typed again."""
    try:
        passphrase.decode()
    except UnicodeDecodeError as error:
        raise UsageError("passphrase: expected text in UTF-8, got other bytes") from error
    if not 1 <= len(passphrase) <= PASSPHRASE_MAX_BYTES:
        raise UsageError(f"passphrase: expected 1 to {PASSPHRASE_MAX_BYTES} bytes, got {len(passphrase)}")
    return serialization.BestAvailableEncryption(passphrase)


def is_encrypted(pem: bytes) -> bool:
    """Say whether reading this key takes a passphrase."""
    return pem.lstrip().startswith(_ENCRYPTED)


def from_pem(pem: bytes, passphrase: bytes | None, subject: str) -> PrivateKey:
    """Read a key back. `subject` is the file's path, for messages.

    Raises WrongPassphrase when the passphrase does not fit, is missing, or is given where none is needed: who
    believes that a key is encrypted should learn that it is not. Raises PkiError when this is no key we can use.
    """
    encrypted = is_encrypted(pem)
    if encrypted and passphrase is None:
        raise WrongPassphrase(subject, "a passphrase, because the key is encrypted", "none")
    if not encrypted and passphrase is not None:
        raise WrongPassphrase(subject, "no passphrase, because the key is not encrypted", "one")
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except (ValueError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise WrongPassphrase(subject, "the passphrase of this key", "another one, or a damaged file") from error
        raise PkiError(subject, "a private key in PEM", "something else") from error
    if not isinstance(key, PrivateKey):
        raise PkiError(subject, "an EC or RSA key", type(key).__name__)
    return key


def type_of(key: PublicKeyTypes | PrivateKey) -> KeyType:
    """Say which of our types fits a key best: RSA for RSA, EC for all else."""
    return KeyType.RSA if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey) else KeyType.EC


def describe(key: PublicKeyTypes) -> str:
    """`EC secp256r1`, `RSA 3072`, else the name of the algorithm's class."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    return type(key).__name__.removesuffix("PublicKey")
