"""What a gateway that runs has recorded in its audit."""

import json
from typing import Any


def audited(gateway: Any, event: str) -> list[dict[str, Any]]:
    """The records of an event, in their order."""
    # What follows the last end of a line is one that is just being written.
    *whole, _ = (gateway.folder / "state/audit/audit.jsonl").read_bytes().split(b"\n")
    return [record for record in map(json.loads, whole) if record["event"] == event]


def wait_for_audit(gateway: Any, event: str, count: int = 1) -> list[dict[str, Any]]:
    """Wait until the audit has `count` records of an event; return them."""
    gateway.program.wait_until(lambda: len(audited(gateway, event)) >= count, f"{count} lines of {event} in its audit")
    return audited(gateway, event)
