"""Every policy that was ever loaded, by revision, and when: so that the audit can be read years later.

In `state/policies/`: a folder for each revision with the policy's files, and `loads.jsonl` with a line for each time
that a policy came into force. A line also holds what names in the policy meant then: trusts may be others today.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from portguard.errors import PortguardError, because
from portguard.gateway.bundle import Bundle, policy_files
from portguard.gateway.configuration import Configuration
from portguard.identity.names import SOURCES, Namespace
from portguard.policy.read import PolicyFile, policy_file_names

_FOLDER = "policies"
_LOADS = "loads.jsonl"
_REVISION = re.compile(r"[0-9a-f]{64}")
_ABBREVIATED = re.compile(r"[0-9a-f]{6,64}")


class NotKept(PortguardError):
    """A policy that is asked for is not kept, or cannot be read."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Load:
    """A policy came into force at `at` (aware). What is not known is None.

    `by`: who had it loaded; `message`: why, in that person's words. `namespace` and `gateway_name`: by which its names
    were read. `by` and `message` may hold anything.
    """

    at: datetime
    revision: str
    by: str | None = None
    message: str | None = None
    namespace: Namespace | None = None
    gateway_name: str | None = None


def keep_policy(bundle: Bundle, configuration: Configuration) -> Path:
    """Keep the policy's files in `state/policies/REVISION/` and return that folder; it may be there already.

    Only the policy: certificates' keys are never copied. Raises OSError; then no part of the folder is there.
    """
    folder = Path(configuration.gateway.state) / _FOLDER
    kept = folder / bundle.revision
    if kept.is_dir():
        return kept
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / f".{secrets.token_hex(8)}.tmp"
    temporary.mkdir(mode=0o700)
    try:
        for path, content in policy_files(configuration, bundle.files):
            descriptor = os.open(
                temporary / Path(path).name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
        os.rename(temporary, kept)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return kept


def record_load(
    configuration: Configuration, revision: str, at: datetime, *, by: str | None = None, message: str | None = None
) -> None:
    """Record that the policy of a revision came into force at `at` (aware). Raises OSError."""
    folder = Path(configuration.gateway.state) / _FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    namespace = configuration.namespace
    fields = {
        "time": at.isoformat(timespec="microseconds"),
        "revision": revision,
        "by": by,
        "message": message,
        "gateway": configuration.gateway.name,
        "sources": dict(namespace.sources),
        "default": namespace.default,
        "domains": dict(namespace.domains),
    }
    descriptor = os.open(folder / _LOADS, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+b", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        # A crash may have left half a line; what is added to it would be lost with it.
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(fields).encode() + b"\n")
        os.fsync(descriptor)


def recorded_loads(state: str) -> tuple[Load, ...]:
    """What came into force, in the order of time; nothing where no gateway ever ran. Raises NotKept.

    Lines that are not whole, as a crash leaves them, are passed over.
    """
    path = Path(state) / _FOLDER / _LOADS
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise NotKept(f"{path}: expected a file that can be read, got {because(error)}") from error
    found = (_parse(line) for line in lines)
    return tuple(sorted((load for load in found if load is not None), key=lambda load: load.at))


def in_force(loads: Sequence[Load], at: datetime) -> Load | None:
    """The last of `loads`, which are in the order of time, that is not after `at` (aware); None: all are."""
    return next((load for load in reversed(loads) if load.at <= at), None)


def is_like_revision(text: str) -> bool:
    """Whether `text` could be the beginning of a revision."""
    return _ABBREVIATED.fullmatch(text) is not None


def kept_revision(state: str, text: str) -> str | None:
    """The one revision that begins with `text`, at least 6 digits; None where `text` is none. Raises NotKept."""
    if not is_like_revision(text):
        return None
    folder = Path(state) / _FOLDER
    try:
        found = [name for name in os.listdir(folder) if _REVISION.fullmatch(name) and name.startswith(text)]
    except OSError as error:
        raise NotKept(f"{folder}: expected kept policies, got {because(error)}") from error
    if len(found) != 1:
        raise NotKept(f"{text}: expected the revision of one kept policy, got that of {len(found)} in {folder}")
    return found[0]


def kept_files(state: str, revision: str) -> tuple[PolicyFile, ...]:
    """The files of a kept policy, by the paths at which they are kept. Raises NotKept."""
    folder = Path(state).absolute() / _FOLDER / revision
    try:
        names = policy_file_names(os.listdir(folder)) or sorted(os.listdir(folder))
        return tuple((str(folder / name), (folder / name).read_bytes()) for name in names)
    except OSError as error:
        raise NotKept(f"{folder}: expected a kept policy, got {because(error)}") from error


def _parse(line: bytes) -> Load | None:
    try:
        fields = json.loads(line)
        at = datetime.fromisoformat(fields["time"])
        if at.tzinfo is None or not _REVISION.fullmatch(fields["revision"]):
            return None
        by, message = (_text(fields.get(key)) for key in ("by", "message"))
        return Load(at, fields["revision"], by, message, _namespace(fields), _text(fields.get("gateway")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _namespace(fields: Mapping[str, object]) -> Namespace | None:
    sources, default, domains = (fields.get(key) for key in ("sources", "default", "domains"))
    if not isinstance(sources, dict) or not isinstance(domains, dict):
        return None
    if not set(sources.values()) <= set(SOURCES) or not set(domains.values()) <= set(sources):
        return None
    return Namespace(sources, default if isinstance(default, str) and default in sources else None, domains)
