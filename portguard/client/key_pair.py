"""A certificate and its key in files, as they are replaced by the next ones: at no moment is there a pair that is lost.

The new files are written beside the old ones, as `NAME.new`, and synced. Then each takes its name in one step, the key
first. After a crash in between, the key fits the certificate in `NAME.new`: whoever of us reads the pair next finishes
the work (`finish_replacing`). Before and after, the pair in place is one.
"""

import contextlib
import os
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from portguard.errors import PortguardError
from portguard.identity.authorities import UNREADABLE

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

_SECRET = 0o640  # the most that others get of a key: a group, if it has one already
_PUBLIC = 0o666


def expect_room(certificate: Path, key: Path) -> None:
    """Find out before a certificate is asked for whether it could be written. Raises PortguardError."""
    for path in (certificate, key):
        folder = Path(os.path.realpath(path)).parent
        if not os.access(folder, os.W_OK):
            raise PortguardError(f"{path}: expected a folder that can be written, got {folder}, which cannot")


def replace_pair(certificate: Path, key: Path, certificate_pem: bytes, key_pem: bytes | None) -> None:
    """Put a new certificate, and a new key unless that is None, in the place of those that fit each other now.

    Both stay whose they are; the key is readable by no one who could not read the old one. The two paths may be one
    file. Raises PortguardError; then the old ones are still there, or `finish_replacing` finds the new ones.
    """
    # A symbolic link stays one, to the new file.
    certificate, key = Path(os.path.realpath(certificate)), Path(os.path.realpath(key))
    if certificate == key:
        assert key_pem is not None
        new = [(key, key_pem + certificate_pem, _SECRET)]
    else:
        new = [(certificate, certificate_pem, _PUBLIC)]
        if key_pem is not None:
            new.insert(0, (key, key_pem, _SECRET))
    path = certificate
    try:
        with contextlib.ExitStack() as undo:
            for path, data, most in new:
                undo.callback(_next(path).unlink, missing_ok=True)
                _write_beside(path, data, most)
            for path, _, _ in new:
                _sync_folder(path)
            for path, _, _ in new:
                os.replace(_next(path), path)
                # From the first one on, the second must stay for whoever finishes this.
                undo.pop_all()
            for path, _, _ in new:
                _sync_folder(path)
    except OSError as error:
        raise PortguardError(f"{path}: expected to replace it, got “{error.strerror}”") from error


def finish_replacing(certificate: Path, certificate_pem: bytes, key_pem: bytes, passphrase: bytes | None) -> bytes:
    """Return the certificate that fits the key: the one in place, or the one that a crash has left beside it.

    The latter takes its place, if we may. Where nothing was left, or it does not fit, this changes nothing.
    """
    certificate = Path(os.path.realpath(certificate))
    try:
        left = _next(certificate).read_bytes()
    except OSError:
        return certificate_pem
    try:
        key = load_pem_private_key(key_pem, passphrase)
        if not isinstance(key, PrivateKey) or _fits(certificate_pem, key) or not _fits(left, key):
            return certificate_pem
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return certificate_pem  # whoever uses the key says what is wrong with it
    with contextlib.suppress(OSError):
        os.replace(_next(certificate), certificate)
    return left


def _fits(certificate_pem: bytes, key: PrivateKey) -> bool:
    try:
        return x509.load_pem_x509_certificates(certificate_pem)[0].public_key() == key.public_key()
    except UNREADABLE:
        return False


def _next(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _write_beside(path: Path, data: bytes, most: int) -> None:
    """Write what takes the place of `path`, synced, with its owner and mode as far as `most` goes. Raises OSError."""
    old = path.stat()
    _next(path).unlink(missing_ok=True)  # of a renewal that was interrupted; if one is under way, the other fails
    with open(_next(path), "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as stream:
        stream.write(data)
        stream.flush()
        if hasattr(os, "fchown"):
            mode = stat.S_IMODE(old.st_mode) & most
            new = os.fstat(stream.fileno())
            if new.st_uid != old.st_uid:
                os.fchown(stream.fileno(), old.st_uid, -1)
            if new.st_gid != old.st_gid:
                try:
                    os.fchown(stream.fileno(), -1, old.st_gid)
                except PermissionError:
                    mode &= ~0o070  # or another group than the old one's could read it
            os.fchmod(stream.fileno(), mode | 0o600)
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    """Make a name that was given survive a power loss, where folders can be synced."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
