"""What the audit says of past requests, as a policy can be asked about them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address

from portguard.identity.names import Group, Identity
from portguard.observe.audit.records import Record
from portguard.policy.decide import DECIDED_REASONS
from portguard.policy.model import Address
from portguard.policy.replay import Past
from portguard.reasons import Reason

OPENED = "session.open"
REFUSED = "session.refuse"

_TURNABLE = frozenset({*DECIDED_REASONS, Reason.UNKNOWN_SERVICE})
"""Refusals that another policy may turn."""

_CUT = "… and "  # how a list of groups ends of which not all are recorded


@dataclass(slots=True)
class Replayable:
    """Counts what was seen. `unclear`: records that do not tell all that a decision needs; they are passed over.

    `held_back`: refusals that have no record of their own.
    """

    sessions: int = 0
    refusals: int = 0
    unclear: int = 0
    held_back: int = 0

    def requests(self, records: Iterable[Record]) -> Iterator[Past]:
        """Yield the sessions, and the refusals that were the policy's, of a log. Nothing in it is trusted."""
        for record in records:
            fields = record.fields
            held_back = fields.get("held_back")
            if isinstance(held_back, int) and held_back > 0:
                self.held_back += held_back
            if record.event == REFUSED and fields.get("reason") not in _TURNABLE:
                continue
            if record.event not in {OPENED, REFUSED}:
                continue
            try:
                past = _request(record)
            except (ValueError, TypeError, KeyError):
                self.unclear += 1
                continue
            if record.event == OPENED:
                self.sessions += 1
            else:
                self.refusals += 1
            yield past


def _request(record: Record) -> Past:
    """Raises ValueError, TypeError, KeyError."""
    fields = record.fields
    trust, name, service = (_text(fields[key]) for key in ("trust", "identity", "service"))
    at = datetime.fromisoformat(record.time)
    if at.tzinfo is None:
        raise ValueError("expected a time with an offset")
    opened = record.event == OPENED
    if not opened and fields["reason"] == Reason.UNKNOWN_SERVICE:
        # With a service it was the port of the CONNECT that was wrong, which is not told. The service alone would be
        # let in, and whoever asks for the wrong port would look like somebody who gains access.
        raise ValueError("expected what was asked for")
    return Past(
        identity=Identity(trust, name),
        groups=_groups(trust, fields.get("groups", [])),
        service=service,
        source=_source(fields.get("source")),
        at=at,
        role=_text(fields["role"]) if opened else None,
        reason=None if opened else Reason(_text(fields["reason"])),
    )


def _groups(trust: str, value: object) -> frozenset[Group]:
    if not isinstance(value, list) or any(_text(name).startswith(_CUT) for name in value):
        raise ValueError("expected all groups")
    return frozenset(Group(trust, name) for name in value)


def _source(value: object) -> Address | None:
    return None if value is None else ip_address(_text(value))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value
