"""What the authority hands out: a certificate, or one with its key, and the files they go into."""

import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

from portguard.errors import UsageError
from portguard.pki import files, keys
from portguard.pki.files import PUBLIC, SECRET, NewFile
from portguard.pki.store import Record


def pem_paths(directory: str | os.PathLike[str], stem: str) -> tuple[Path, Path]:
    """Where a certificate and its key are written. Raises UsageError when `stem` is not a plain file name."""
    return certificate_path(directory, stem), _path(directory, stem, ".key")


def certificate_path(directory: str | os.PathLike[str], stem: str) -> Path:
    """Where a certificate is written whose key is elsewhere. Raises UsageError as `pem_paths` does."""
    return _path(directory, stem, ".crt")


def pkcs12_path(directory: str | os.PathLike[str], stem: str) -> Path:
    """Where certificate and key are written as PKCS #12. Raises UsageError as `pem_paths` does."""
    return _path(directory, stem, ".p12")


@dataclass(frozen=True, slots=True)
class SignedCertificate:
    """A new certificate for a key that is somebody else's."""

    record: Record
    certificate_pem: bytes = field(repr=False)
    """The certificate, then the CAs between it and the anchor: what its owner sends in a handshake."""
    anchor_pem: bytes = field(repr=False)
    """What its owner trusts when the other side answers."""

    @property
    def serial(self) -> int:
        """A positive number of at most 159 bits."""
        return self.record.serial

    @property
    def not_before(self) -> datetime:
        """The first second, aware."""
        return self.record.not_before

    @property
    def not_after(self) -> datetime:
        """The last second, aware. Earlier than asked for where the authority itself ends."""
        return self.record.not_after

    def write_certificate(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the certificate to `path`; its directory is made if it is missing. Raises PkiError as `write` does."""
        _publish([NewFile(path, self.certificate_pem, PUBLIC)], overwrite=overwrite)


@dataclass(frozen=True, slots=True)
class IssuedCertificate(SignedCertificate):
    """A new certificate and its key, which exists nowhere else."""

    key_pem: bytes = field(repr=False)

    def write(self, directory: str | os.PathLike[str], stem: str, *, overwrite: bool = False) -> tuple[Path, Path]:
        """Write `STEM.crt` and `STEM.key` (0600), both or neither, and return their paths.

        The directory is made if it is missing. Raises PkiError, also when one of them exists and not `overwrite`.
        """
        certificate, key = pem_paths(directory, stem)
        _publish(
            [NewFile(key, self.key_pem, SECRET), NewFile(certificate, self.certificate_pem, PUBLIC)],
            overwrite=overwrite,
        )
        return certificate, key

    def write_pkcs12(
        self, directory: str | os.PathLike[str], stem: str, passphrase: bytes, *, overwrite: bool = False
    ) -> Path:
        """Write `STEM.p12` (0600) with certificate, key and all CAs up to the anchor, and return its path.

        Raises PkiError as `write` does, and UsageError for a passphrase that cannot be one.
        """
        path = pkcs12_path(directory, stem)
        chain = x509.load_pem_x509_certificates(self.certificate_pem + self.anchor_pem)
        key = keys.from_pem(self.key_pem, None, "key")
        encryption = keys.encryption_with(passphrase)
        data = pkcs12.serialize_key_and_certificates(self.record.name.encode(), key, chain[0], chain[1:], encryption)
        _publish([NewFile(path, data, SECRET)], overwrite=overwrite)
        return path


def _path(directory: str | os.PathLike[str], stem: str, suffix: str) -> Path:
    if not stem or os.sep in stem or "\0" in stem:
        raise UsageError(f"file name: expected one without '/', got {stem!r}")
    return Path(directory) / f"{stem}{suffix}"


def _publish(new: list[NewFile], *, overwrite: bool) -> None:
    files.make_directory(new[0].path.parent, 0o777)
    files.publish(new, overwrite=overwrite)
