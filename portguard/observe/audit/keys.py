"""The key that signs the audit's checkpoints: Ed25519 (RFC 8032), made at the gateway's first start.

Who holds the private key can write another history. Who holds the public one, somewhere else, can tell.
"""

import hashlib
import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from portguard.errors import ConfigurationError, Problem, because

PRIVATE = "audit.key"
PUBLIC = "audit.pub"


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's 32 bytes, in hexadecimal."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def signing_key(folder: Path, handed_over: Path | None = None) -> Ed25519PrivateKey:
    """Return the key kept in `folder`; make it, and its public half beside it, when there is none.

    `handed_over` is the file of a private key that is kept elsewhere and used instead; its public half stays here.
    The private key is created exclusively with mode 0600. Raises ConfigurationError; also for a key that others may
    read, and for a public key alone: a new private one would make an old log look forged. *Fails closed.*
    """
    private, public = handed_over or folder / PRIVATE, folder / PUBLIC
    try:
        if not private.exists():
            if public.exists():
                expected = f"the private half of {PUBLIC} (move that away to begin with a new key)"
                raise _problem(private, expected, "none")
            _create(private, _pem(Ed25519PrivateKey.generate()), 0o600)
        # systemd makes a credential of root's readable for the gateway by an access list, which looks like 0440.
        key = _read_private(private, others_of_root=0o040 if handed_over else 0)
        if not public.exists():
            pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            _create(public, pem, 0o644)
    except OSError as error:
        raise _problem(private, "a key, or a folder to make one in", because(error)) from error
    if fingerprint(read_public_key(public)) != fingerprint(key.public_key()):
        raise _problem(public, f"the public half of {private.name}", "another key")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key in PEM. Raises ConfigurationError."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise _problem(path, "the audit's public key", because(error)) from error
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise _problem(path, "an Ed25519 public key in PEM", "something else")
    return key


def _read_private(path: Path, *, others_of_root: int = 0) -> Ed25519PrivateKey:
    """Read a private key. Those of root may have the bits `others_of_root` beside 0600. *Fails closed.*"""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077 & ~(others_of_root if status.st_uid == 0 else 0):
            raise _problem(path, "a private key of mode 0600 or less", f"mode {mode:04o}")
        pem = file.read()
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise _problem(path, "an Ed25519 private key in PEM, without a passphrase", "something else")
    return key


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a file that appears whole or not at all, and never in the place of another. Raises OSError."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.link(temporary, path)
    finally:
        temporary.unlink()


def _problem(path: Path, expected: str, found: str) -> ConfigurationError:
    return ConfigurationError([Problem(str(path), "", expected, found)])
