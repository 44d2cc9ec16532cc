"""Times as a command line names them."""

from datetime import UTC, datetime, timedelta, tzinfo

from portguard.errors import UsageError
from portguard.policy.kinds import check_instant
from portguard.policy.quantities import Unexpected, parse_duration


def has_offset(text: str) -> bool:
    """Whether a time is meant in no zone but its own."""
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def instant(text: str | None, zone: tzinfo) -> datetime:
    """`--at` in UTC; without an offset it is meant in `zone`. None: now. Raises UsageError."""
    if text is None:
        return datetime.now(UTC)
    try:
        at = datetime.fromisoformat(text)
        return check_instant(at if at.tzinfo is not None else at.replace(tzinfo=zone)).astimezone(UTC)
    except Unexpected as error:
        raise UsageError(f"--at: expected {error}, got {text}") from None
    except ValueError:
        raise UsageError(f"--at: expected a date and time such as 2026-03-02T09:00+01:00, got {text}") from None


def since_instant(text: str, now: datetime) -> datetime:
    """`--since`: a time with an offset, or how long before `now` (aware). Raises UsageError."""
    try:
        return now - timedelta(seconds=parse_duration(text))
    except Unexpected:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise UsageError(
            f'--since: expected a time with an offset such as "2026-11-23T07:00:00Z", or "2h", got {text!r}'
        )
    return at
