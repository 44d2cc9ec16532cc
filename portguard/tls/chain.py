"""Certificate chains and keys from memory into a TLS context.

OpenSSL takes both only by file name. A memory file (`memfd_create`) has a name under /proc and no place on a disk, so
a key that was read once, by the supervisor, is never written again.
"""

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NoReturn

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from portguard.errors import PortguardError


class UnusableChain(PortguardError):
    """A certificate chain and key that TLS cannot use.

    `part` names the one at fault; `expected` and `found` complete "expected …, got …". None of the key is in them.
    """

    def __init__(self, part: Literal["certificate", "key", "ca"], expected: str, found: str):
        self.part = part
        self.expected = expected
        self.found = found
        super().__init__(f"{part}: expected {expected}, got {found}")


def load_chain(
    context: ssl.SSLContext, certificate_pem: bytes, key_pem: bytes, passphrase: bytes | None = None
) -> None:
    """Make `context` present this certificate.

    `certificate_pem` is the chain, leaf first, the anchor left out; `key_pem` is the leaf's key, encrypted when there
    is a `passphrase`, which no part of this writes anywhere. The key never reaches a disk where the platform has memory
    files; elsewhere it passes, as encrypted as it came, through a 0600 file in a 0700 folder that is deleted at once.

    Raises UnusableChain when either is not PEM of its kind, the key has another passphrase or is another certificate's,
    or OpenSSL's security level forbids them. A context that raised must not be used.
    """
    try:
        with _named(certificate_pem) as certificate_path, _named(key_pem) as key_path:
            # Without a callback OpenSSL would ask for a passphrase on the terminal, and a service would hang there.
            context.load_cert_chain(certificate_path, key_path, password=passphrase or _refuse_passphrase)
    except (ssl.SSLError, ValueError) as error:
        raise _diagnosis(certificate_pem, key_pem, passphrase, error) from error


@contextlib.contextmanager
def _named(content: bytes) -> Iterator[str]:
    """Give `content` a file name that this process alone can open, for the length of the block."""
    with contextlib.ExitStack() as cleanup:
        try:
            path = _memory_file(content, cleanup)
        except (AttributeError, OSError):  # no memfd_create on this platform, or no /proc in this sandbox
            path = _temporary_file(content, cleanup)
        yield path


def _memory_file(content: bytes, cleanup: contextlib.ExitStack) -> str:
    descriptor = os.memfd_create("portguard")
    cleanup.callback(os.close, descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    path = f"/proc/self/fd/{descriptor}"
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    return path


def _temporary_file(content: bytes, cleanup: contextlib.ExitStack) -> str:
    folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="portguard-"))
    path = Path(folder, "pem")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
    return str(path)


def _refuse_passphrase() -> NoReturn:
    raise UnusableChain("key", "a private key without a passphrase", "an encrypted one")


def _diagnosis(certificate_pem: bytes, key_pem: bytes, passphrase: bytes | None, error: Exception) -> UnusableChain:
    """Say which part OpenSSL refused; its own words ("PEM lib") are the same for both."""
    try:
        leaf = x509.load_pem_x509_certificates(certificate_pem)[0]
    except ValueError:
        return UnusableChain("certificate", "a PEM certificate chain", "something else")
    try:
        key = load_pem_private_key(key_pem, password=passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if passphrase is not None:
            return UnusableChain(
                "key", "a PEM private key that the passphrase opens", "another passphrase, or no such key"
            )
        return UnusableChain("key", "a PEM private key", "something else")
    if leaf.public_key() != key.public_key():
        return UnusableChain("key", "the certificate's key", "the key of another certificate")
    reason = getattr(error, "reason", None) or str(error)
    return UnusableChain("certificate", "a chain that OpenSSL takes", f"its refusal, {reason}")
