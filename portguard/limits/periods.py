"""Calendar periods as spans of instants: which hour, day, week or month an instant belongs to, and how to say its end.

Spans tile time, whatever the clocks on the wall do: each instant is in exactly one hour, one day, one week, one month.

- A day starts at the first instant that shows its date, or a later one. So when midnight does not exist the day starts
  where the clocks go on; when it comes twice it starts at the first; when clocks go back across it, the day before does
  not return; and a date that a zone leaves out has no instant.
- Weeks start with their Monday, months with their first day.
- An hour starts when the clock shows its full hour, or is put forward or back: an hour that comes twice is two hours,
  and where clocks change by half an hour there is one of half an hour.
"""

import math
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import NamedTuple

from portguard.policy.hours import offset_change
from portguard.policy.quantities import Period

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ADJECTIVES = {Period.HOUR: "hourly", Period.DAY: "daily", Period.WEEK: "weekly", Period.MONTH: "monthly"}


class Span(NamedTuple):
    """Whole seconds since the epoch: from `start_s` until before `end_s`."""

    start_s: int
    end_s: int


def span_at(period: Period, at_s: float, zone: tzinfo) -> Span:
    """The calendar period in `zone` that holds the instant `at_s` (since the epoch; until the year 9998)."""
    at = _EPOCH + timedelta(seconds=math.floor(at_s))
    start, end = _hour(at, zone) if period is Period.HOUR else _days(period, at, zone)
    return Span(_since_epoch(start), _since_epoch(end))


def written_period(period: Period) -> str:
    """The adjective: "daily" for a day."""
    return _ADJECTIVES[period]


def written_end(span: Span, zone: tzinfo, now_s: float) -> str:
    """When it ends, for people: "00:00 Europe/Zurich", with the date before it where the time alone says too little."""
    end = (_EPOCH + timedelta(seconds=span.end_s)).astimezone(zone)
    day = "" if span.end_s - now_s < 86_400 else f"{end:%Y-%m-%d} "
    return f"{day}{end:%H:%M} {zone}"


def _hour(at: datetime, zone: tzinfo) -> tuple[datetime, datetime]:
    local = at.astimezone(zone)
    start = at - timedelta(minutes=local.minute, seconds=local.second)
    end = start + timedelta(hours=1)
    if start.astimezone(zone).utcoffset() != local.utcoffset():
        start = offset_change(zone, start, at)
    if end.astimezone(zone).utcoffset() != local.utcoffset():
        end = offset_change(zone, at, end)
    return start, end


def _days(period: Period, at: datetime, zone: tzinfo) -> tuple[datetime, datetime]:
    first = _first_date(period, at.astimezone(zone).date())
    start = _first_instant(first, zone)
    while True:
        first = _next_date(period, first)
        end = _first_instant(first, zone)
        if at < end:
            return start, end
        # The clock was put back to before a midnight that has been, or the zone leaves out a whole day.
        start = end


def _first_date(period: Period, day: date) -> date:
    match period:
        case Period.WEEK:
            return day - timedelta(days=day.weekday())
        case Period.MONTH:
            return day.replace(day=1)
        case _:
            return day


def _next_date(period: Period, first: date) -> date:
    match period:
        case Period.WEEK:
            return first + timedelta(days=7)
        case Period.MONTH:
            return (first + timedelta(days=31)).replace(day=1)
        case _:
            return first + timedelta(days=1)


def _first_instant(day: date, zone: tzinfo) -> datetime:
    """The first instant, in UTC, whose local date is `day` or later."""
    midnight = datetime.combine(day, time(), zone)
    instant = midnight.astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == midnight.replace(tzinfo=None):
        return instant
    # There is no such midnight: PEP 495 lays the two readings of it on either side of the change, or on it.
    return offset_change(zone, midnight.replace(fold=1).astimezone(UTC), instant)


def _since_epoch(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(seconds=1)
