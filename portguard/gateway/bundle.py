"""Every file that the gateway is configured by, read once.

The supervisor reads, and hands the same bytes to all workers. So a file that is replaced meanwhile cannot make two
workers decide differently, and workers need no access to keys on the disk.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from portguard.errors import Problem, because
from portguard.gateway.configuration import Configuration, read_configuration
from portguard.gateway.credentials import GATEWAY_KEY_PASSPHRASE, credential, read_credential
from portguard.pki import ca_certificates
from portguard.pki.errors import PkiError
from portguard.policy.read import PolicyFile, policy_file_names, tls_files
from portguard.secret_line import NotOneLine

LARGEST_FILE_BYTES = 64 * 2**20
"""Revocation lists of large authorities have tens of megabytes. Beyond is a slip, such as a device or a disk image."""

PRIVATE_MODE = "mode 0600 or less, or 0640 or less if root owns it"
"""What files with secrets are expected to be of, in words: see `too_open`."""

_MAGIC = b"portguard bundle 1\n"


@dataclass(frozen=True, slots=True)
class Bundle:
    """The files by their absolute paths, and what was wrong with reading them.

    What is read from a bundle depends on nothing else: `read_at` (aware) stands for the clock, so that a worker which
    starts weeks later accepts what the supervisor accepted.
    """

    configuration_path: str
    files: Mapping[str, bytes] = field(repr=False)
    read_at: datetime
    problems: tuple[Problem, ...] = ()

    @property
    def revision(self) -> str:
        """SHA-256, in hexadecimal, of all paths and contents."""
        digest = hashlib.sha256()
        for path, content in sorted(self.files.items()):
            for part in (os.fsencode(path), content):
                digest.update(len(part).to_bytes(8))
                digest.update(part)
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """The bundle for `from_bytes`. Holds private keys."""
        files = sorted(self.files.items())
        header = {
            "configuration_path": self.configuration_path,
            "read_at": self.read_at.isoformat(),
            "problems": [[problem.file, problem.key, problem.expected, problem.found] for problem in self.problems],
            "files": [[path, len(content)] for path, content in files],
        }
        return b"".join([_MAGIC, json.dumps(header).encode(), b"\n", *(content for _, content in files)])

    @classmethod
    def from_bytes(cls, data: bytes) -> "Bundle":
        """The very bundle that `to_bytes` was called on. Raises ValueError for anything else."""
        magic, rest = data[: len(_MAGIC)], data[len(_MAGIC) :]
        if magic != _MAGIC:
            raise ValueError(f"bundle: expected {_MAGIC!r} at its beginning, got {magic!r}")
        line, _, contents = rest.partition(b"\n")
        header = json.loads(line)
        files = {}
        position = 0
        for path, length in header["files"]:
            files[path] = contents[position : position + length]
            position += length
        if position != len(contents):
            raise ValueError(f"bundle: expected {position} bytes of files, got {len(contents)}")
        return cls(
            configuration_path=header["configuration_path"],
            files=files,
            read_at=datetime.fromisoformat(header["read_at"]),
            problems=tuple(Problem(*parts) for parts in header["problems"]),
        )


def read_bundle(configuration_path: str, at: datetime | None = None) -> Bundle:
    """Read the configuration and every file that it and the policy name.

    Never raises for a file: what cannot be read is among the bundle's problems, for `snapshot.build` to report
    together with everything else. `at` is the current time, aware; None: the clock is read.
    """
    return _bundle(configuration_path, at, [_read_gateway_files, _read_policy_files, _read_upstream_files])


def read_policy_bundle(configuration_path: str, at: datetime | None = None) -> Bundle:
    """Like `read_bundle`, for `snapshot.build_policy`: the configuration and the policy, and nothing secret."""
    return _bundle(configuration_path, at, [_read_policy_files])


def _bundle(
    configuration_path: str, at: datetime | None, steps: Sequence[Callable[[Configuration, "_Reading"], None]]
) -> Bundle:
    path = os.path.abspath(configuration_path)
    reading = _Reading()
    content = reading.read(path, "the configuration")
    if content is not None:
        # What is wrong with the content is found again, and told, by `build`.
        configuration = read_configuration(path, content, [])
        for step in steps:
            step(configuration, reading)
    return Bundle(path, reading.files, at or datetime.now(UTC), tuple(reading.problems))


def policy_files(configuration: Configuration, files: Mapping[str, bytes]) -> tuple[PolicyFile, ...]:
    """The policy's file, or the files of its folder in their order, out of the `files` of a bundle."""
    policy = configuration.gateway.policy
    if policy in files:
        return ((policy, files[policy]),)
    names = [os.path.basename(path) for path in files if os.path.dirname(path) == policy]
    return tuple((path, files[path]) for path in (os.path.join(policy, name) for name in policy_file_names(names)))


class _Reading:
    """Files read so far, and problems."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.problems: list[Problem] = []
        self._failed: set[str] = set()

    def read(self, path: str, use: str) -> bytes | None:
        """The content of `path`, which `use` names; None where there is a problem, or no path."""
        if not path or path in self._failed:
            return None
        if path not in self.files:
            expected = f"a file that can be read ({use})"
            try:
                self.files[path] = _content(path)
            except _Unusable as error:
                self.report(path, error.expected, error.found)
            except OSError as error:
                self.report(path, expected, because(error))
        return self.files.get(path)

    def open_key(self, path: str, passphrase_file: Path | None) -> None:
        """Take the passphrase off a private key, if it has one and it is known: workers get it as it stands here."""
        pem = self.files.get(path)
        # PKCS #8 and the older kind of PEM both say so, RFC 7468 section 11 and RFC 1421 section 4.6.1.1.
        if pem is None or passphrase_file is None or b"ENCRYPTED" not in pem:
            return
        try:
            key = load_pem_private_key(pem, read_credential(passphrase_file))
        except OSError as error:
            self.report(str(passphrase_file), "a credential that can be read", because(error))
        except NotOneLine as error:
            self.report(str(passphrase_file), "one line with a passphrase", str(error))
        except (ValueError, UnsupportedAlgorithm):
            del self.files[path]
            self.report(path, f"a private key that {passphrase_file.name} opens", "another passphrase, or no such key")
        else:
            self.files[path] = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def report(self, path: str, expected: str, found: str) -> None:
        """Note what is wrong with a file or folder as a whole."""
        self._failed.add(path)
        self.problems.append(Problem(path, "", expected, found))


class _Unusable(Exception):
    """A file that is not to be used, whatever it holds."""

    def __init__(self, expected: str, found: str):
        self.expected = expected
        self.found = found
        super().__init__(f"expected {expected}, got {found}")


def _read_gateway_files(configuration: Configuration, reading: _Reading) -> None:
    gateway = configuration.gateway
    reading.read(gateway.certificate, "gateway.certificate")
    reading.read(gateway.key, "gateway.key")
    reading.open_key(gateway.key, credential(GATEWAY_KEY_PASSPHRASE))
    for trust in configuration.trusts:
        reading.read(trust.ca, f"trusts.{trust.name}.ca")
        for index, crl in enumerate(trust.crl):
            reading.read(crl, f"trusts.{trust.name}.crl[{index}]")
        if trust.authority is not None:
            _read_authority(trust.authority, f"trusts.{trust.name}.authority", reading)


def _read_authority(directory: str, use: str, reading: "_Reading") -> None:
    """Read the certificates of an authority, and make sure of its key, which is in no bundle."""
    # With it come SQLite and more, which workers do without.
    from portguard.gateway.issuing import open_authority  # noqa: PLC0415

    root, intermediate = (os.path.join(directory, name) for name in (ca_certificates.ROOTS, ca_certificates.ISSUING))
    reading.read(root, use)
    if os.path.lexists(intermediate):
        reading.read(intermediate, use)
    if root in reading.files:
        try:
            authority = open_authority(directory)
            _content(str(authority.key_path))
        except PkiError as error:
            reading.report(error.subject, error.expected, error.found)
        except _Unusable as error:
            reading.report(str(authority.key_path), error.expected, error.found)
        except OSError as error:
            reading.report(root, f"an authority that can be read ({use})", because(error))


def _read_policy_files(configuration: Configuration, reading: _Reading) -> None:
    policy = configuration.gateway.policy
    if os.path.isdir(policy):
        _read_policy_folder(policy, reading)
    else:
        reading.read(policy, "gateway.policy")


def _read_upstream_files(configuration: Configuration, reading: _Reading) -> None:
    for path in tls_files(policy_files(configuration, reading.files)):
        reading.read(path, "tls of a service")


def _read_policy_folder(folder: str, reading: _Reading) -> None:
    try:
        names = policy_file_names(os.listdir(folder))
    except OSError as error:
        reading.report(folder, "a folder that can be read (gateway.policy)", because(error))
        return
    if not names:
        # Most likely a mount that is missing; an empty policy can be written down as an empty file.
        reading.report(folder, "at least one *.toml (gateway.policy)", "none")
    for name in names:
        reading.read(os.path.join(folder, name), "gateway.policy")


def _content(path: str) -> bytes:
    """All of a regular file. Raises _Unusable, OSError. *Fails closed* for private keys that others may read."""
    # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _Unusable("a regular file", "a folder" if stat.S_ISDIR(status.st_mode) else "something else")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(LARGEST_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > LARGEST_FILE_BYTES:
        raise _Unusable(f"a file of at most {LARGEST_FILE_BYTES} bytes", "a larger one")
    if b"PRIVATE KEY-----" in content and (found := too_open(status)) is not None:
        raise _Unusable(f"a private key of {PRIVATE_MODE}", found)
    return content


def too_open(status: os.stat_result) -> str | None:
    """Return the mode and owner of a secret that more accounts may read than those which the gateway trusts anyway.

    None: it is as `PRIVATE_MODE` says. That is PostgreSQL's rule for server keys: its owner alone, or root and a group,
    which is how Debian's `ssl-cert`, systemd credentials with an access list, and secrets mounted into containers come.
    """
    mode = stat.S_IMODE(status.st_mode)
    allowed = 0o640 if status.st_uid == 0 else 0o600
    if mode & 0o077 & ~allowed:
        return f"mode {mode:04o}, owner {'root' if status.st_uid == 0 else status.st_uid}"
    return None
