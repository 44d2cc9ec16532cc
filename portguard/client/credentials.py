"""What a profile names, read and checked: the anchors to trust, the certificate to show, and its key."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from portguard.client.key_pair import PrivateKey, finish_replacing
from portguard.client.profile import Profile
from portguard.client.secret_file import NotSecret, expect_secret, read_secret
from portguard.errors import ConfigurationError, Problem
from portguard.secret_line import NotOneLine, read_secret_line
from portguard.tls.chain import UnusableChain
from portguard.tls.client import HTTP_ALPN, client_context

AskPassphrase = Callable[[Path], str]
"""Asks a person for the passphrase of the key in this file. Raises UsageError when there is nobody to ask."""

_ENCRYPTED = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")  # PKCS #8, and what came before


@dataclass(frozen=True, slots=True)
class Credentials:
    """A client's certificate and key, and whom it trusts."""

    profile: Profile
    certificate: x509.Certificate
    _anchors_pem: str = field(repr=False)
    _certificate_pem: bytes = field(repr=False)
    _key_pem: bytes = field(repr=False)
    _passphrase: bytes | None = field(repr=False)

    def context(self, alpn: tuple[str, ...] = HTTP_ALPN) -> ssl.SSLContext:
        """Return a TLS context that uses them. Raises ConfigurationError."""
        try:
            return client_context(
                anchors_pem=self._anchors_pem,
                certificate_pem=self._certificate_pem,
                key_pem=self._key_pem,
                passphrase=self._passphrase,
                alpn=alpn,
            )
        except UnusableChain as error:
            path = self.profile.key if error.part == "key" else self.profile.certificate
            raise _problem(self.profile, error.part, f"{error.expected} in {path}", error.found) from error

    def key(self) -> PrivateKey:
        """Return the private key. Raises ConfigurationError for one of a kind that makes no request."""
        expected = f"an EC, RSA or Ed25519 key in PEM in {self.profile.key}"
        try:
            key = load_pem_private_key(self._key_pem, self._passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise _problem(self.profile, "key", expected, "something else, or another passphrase") from error
        if not isinstance(key, PrivateKey):
            raise _problem(self.profile, "key", expected, type(key).__name__)
        return key

    def key_file(self, key: PrivateKey) -> bytes:
        """Return what a file with another key holds, PEM: encrypted with the old one's passphrase, if it has one."""
        encryption = NoEncryption() if self._passphrase is None else BestAvailableEncryption(self._passphrase)
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)

    def chain(self) -> list[x509.Certificate]:
        """Return the certificate and those that go with it."""
        return x509.load_pem_x509_certificates(self._certificate_pem)

    def anchors(self) -> list[x509.Certificate]:
        """Return whom the profile trusts."""
        return x509.load_pem_x509_certificates(self._anchors_pem.encode())


def read_certificate(profile: Profile) -> x509.Certificate:
    """Read the certificate of a profile alone. Raises ConfigurationError."""
    path = profile.certificate
    return _certificates(profile, "certificate", path, _read(profile, "certificate", path))[0]


def read_credentials(profile: Profile, ask: AskPassphrase) -> Credentials:
    """Read the files that `profile` names. `ask` is called when the key has a passphrase and no file holds it.

    Fails closed: a key that others can read is not used. Raises ConfigurationError, and what `ask` raises.
    """
    key_pem = _secret(profile, "key", profile.key, lambda: read_secret(profile.key))
    anchors_pem = _read(profile, "ca", profile.ca)
    certificate_pem = _read(profile, "certificate", profile.certificate)
    _certificates(profile, "ca", profile.ca, anchors_pem)
    _certificates(profile, "certificate", profile.certificate, certificate_pem)
    passphrase = _passphrase(profile, key_pem, ask)
    certificate_pem = finish_replacing(profile.certificate, certificate_pem, key_pem, passphrase)
    leaf = _certificates(profile, "certificate", profile.certificate, certificate_pem)[0]
    return Credentials(
        profile=profile,
        certificate=leaf,
        _anchors_pem=anchors_pem.decode("ascii", errors="replace"),
        _certificate_pem=certificate_pem,
        _key_pem=key_pem,
        _passphrase=passphrase,
    )


def _passphrase(profile: Profile, key_pem: bytes, ask: AskPassphrase) -> bytes | None:
    encrypted = any(mark in key_pem for mark in _ENCRYPTED)
    if profile.key_passphrase_file is None:
        return ask(profile.key).encode() if encrypted else None
    if not encrypted:
        # Who gives a passphrase believes that the key is encrypted, and should learn that it is not.
        raise _problem(profile, "key_passphrase_file", f"an encrypted key in {profile.key}", "one without a passphrase")
    path = profile.key_passphrase_file
    try:
        return _secret(profile, "key_passphrase_file", path, lambda: read_secret_line(path, expect_secret))
    except NotOneLine as error:
        raise _problem(profile, "key_passphrase_file", f"one line with a passphrase in {path}", str(error)) from error


def _certificates(profile: Profile, key: str, path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise _problem(profile, key, f"certificates in PEM in {path}", "something else") from error


def _read(profile: Profile, key: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(profile, key, path, error) from error


def _secret(profile: Profile, key: str, path: Path, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except NotSecret as error:
        found = f"mode {error.mode:04o} (chmod 600 {path})"
        raise _problem(profile, key, f"a file that only its owner can read at {path}", found) from error
    except OSError as error:
        raise _unreadable(profile, key, path, error) from error


def _unreadable(profile: Profile, key: str, path: Path, error: OSError) -> ConfigurationError:
    return _problem(profile, key, f"a file that can be read at {path}", f"“{error.strerror}”")


def _problem(profile: Profile, key: str, expected: str, found: str) -> ConfigurationError:
    return ConfigurationError([Problem(str(profile.path), key, expected, found)])
