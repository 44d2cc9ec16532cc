"""One line of the audit, and how lines hold together.

A line is a JSON object in ASCII. `seq` counts from 1 over all files; `prev` is the SHA-256 of the line before, without
its newline, as it stands in the file. So a line fixes all lines before it. Anybody can compute such a chain anew,
hence checkpoints: lines signed with Ed25519 (RFC 8032), and through `prev` everything before them. The head is a
checkpoint apart from the log that says how far the log goes, because a chain whose end was cut off is still a chain.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from portguard.observe.audit.keys import fingerprint

Field = str | int | float | bool | Sequence[str] | Mapping[str, "Field"] | None
Fields = Mapping[str, Field]

CHECKPOINT = "audit.checkpoint"
RECOVER = "audit.recover"
ROTATE = "audit.rotate"

GENESIS = "0" * 64
"""`prev` of the first line of all."""

LONGEST_LINE_BYTES = 1 << 20

_SIGNED_AS = b"portguard audit checkpoint 1\n"
_HEAD_SIGNED_AS = b"portguard audit head 1\n"
_SIGNATURE = b',"signature":"'
_HASH = re.compile(r"[0-9a-f]{64}")
_HEAD_BYTES = 512

_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class NotARecord(ValueError):
    """A line is not one that the gateway wrote. The text completes "expected a record, got …"."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a chain stands: the number of its last line, and that line's SHA-256 in hexadecimal."""

    seq: int
    hash: str


BEGINNING = Position(0, GENESIS)


@dataclass(frozen=True, slots=True)
class Record:
    """A line that was read. `fields` is all of it."""

    line: bytes  # without its newline
    seq: int
    time: str
    event: str
    prev: str
    fields: Mapping[str, object]

    @property
    def position(self) -> Position:
        """Where the chain stands after it."""
        return Position(self.seq, line_hash(self.line))


def line_hash(line: bytes) -> str:
    """The SHA-256 of a line without its newline, in hexadecimal."""
    return hashlib.sha256(line).hexdigest()


def encode(after: Position, time: datetime, event: str, fields: Fields) -> tuple[bytes, Position]:
    """Return the line that follows `after`, without newline, and where the chain then stands.

    Fields that are None are left out. `time` is aware, in UTC.
    """
    document = {"seq": after.seq + 1, "time": written(time), "event": event}
    document |= {key: value for key, value in fields.items() if value is not None}
    document["prev"] = after.hash
    line = _to_json(document).encode()
    return line, Position(after.seq + 1, line_hash(line))


def encode_checkpoint(after: Position, time: datetime, cause: str, key: Ed25519PrivateKey) -> tuple[bytes, Position]:
    """Return a line that signs itself and all before it, and where the chain then stands."""
    unsigned, _ = encode(after, time, CHECKPOINT, {"cause": cause, "key": fingerprint(key.public_key())})
    body = unsigned.removesuffix(b"}")
    line = body + _SIGNATURE + base64.b64encode(key.sign(_SIGNED_AS + body)) + b'"}'
    return line, Position(after.seq + 1, line_hash(line))


def is_signed(record: Record, keys: Mapping[str, Ed25519PublicKey]) -> bool:
    """Whether one of `keys`, by fingerprint, signed this checkpoint. *Fails closed.*"""
    body, _, signature = record.line.rpartition(_SIGNATURE)
    key = keys.get(str(record.fields.get("key")))
    return _verifies(key, _SIGNED_AS + body, signature.removesuffix(b'"}'))


def encode_head(position: Position, time: datetime, key: Ed25519PrivateKey) -> bytes:
    """Return the signed statement that the log reaches `position`. Always of one length, to be written in place."""
    text = {"seq": position.seq, "hash": position.hash, "time": written(time), "key": fingerprint(key.public_key())}
    body = _to_json(text).encode().removesuffix(b"}")
    signature = base64.b64encode(key.sign(_HEAD_SIGNED_AS + body))
    return (body + _SIGNATURE + signature + b'"}').ljust(_HEAD_BYTES - 1) + b"\n"


def parse_head(data: bytes, keys: Mapping[str, Ed25519PublicKey]) -> Position:
    """Return how far the log reaches by a head. Raises NotARecord for one that none of `keys` signed."""
    body, _, rest = data.rstrip().rpartition(_SIGNATURE)
    try:
        document = json.loads(body + b"}")
        position = Position(document["seq"], document["hash"])
        key = keys.get(document["key"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise NotARecord("something else than a head") from None
    if not _verifies(key, _HEAD_SIGNED_AS + body, rest.removesuffix(b'"}')):
        raise NotARecord("a head that this key has not signed")
    return position


def parse(line: bytes) -> Record:
    """Read one line, without its newline. Raises NotARecord."""
    if len(line) > LONGEST_LINE_BYTES:
        raise NotARecord(f"more than {LONGEST_LINE_BYTES} bytes")
    try:
        document = json.loads(line.decode("ascii"))
    except (ValueError, RecursionError):
        raise NotARecord("what is no JSON object") from None
    if not isinstance(document, dict):
        raise NotARecord("what is no JSON object")
    seq, time, event, prev = (document.get(key) for key in ("seq", "time", "event", "prev"))
    if not isinstance(seq, int) or isinstance(seq, bool) or seq < 1:
        raise NotARecord("an object without its number")
    if not (isinstance(time, str) and isinstance(event, str) and isinstance(prev, str) and _HASH.fullmatch(prev)):
        raise NotARecord("an object without time, event or prev")
    return Record(line, seq, time, event, prev, document)


def written(time: datetime) -> str:
    """A time as it stands in a line: RFC 3339, microseconds, UTC."""
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _verifies(key: Ed25519PublicKey | None, message: bytes, signature: bytes) -> bool:
    if key is None:
        return False
    try:
        decoded = base64.b64decode(signature, validate=True)
        key.verify(decoded, message)
    except (InvalidSignature, binascii.Error):
        return False
    # Base64 leaves bits unused at the end: one signature must not have two spellings.
    return base64.b64encode(decoded) == signature
