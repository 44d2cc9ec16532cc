"""Instants as programs read them: RFC 3339, in UTC, whole seconds, `2026-11-23T07:00:00Z`."""

from datetime import UTC, datetime


def written_instant(at: datetime) -> str:
    """Write `at`, which is aware."""
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def written_second(at_s: float) -> str:
    """Write a time in seconds since the epoch."""
    return written_instant(datetime.fromtimestamp(at_s, UTC))
