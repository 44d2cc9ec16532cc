"""The time zone that a gateway names, on the machine that shows its times."""

from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo


def zone_here(name: str) -> tzinfo:
    """The zone of that name; UTC where this machine does not know it."""
    try:
        return ZoneInfo(name) if name != "UTC" else UTC
    except (LookupError, ValueError, OSError):
        return UTC
