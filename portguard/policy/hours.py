"""Hours of a week, as a role names them: "Mon-Fri 07:00-20:00", "Fri 22:00-06:00", "Sat-Sun", "08:00-12:00".

Hours are what a clock on the wall shows in the policy's time zone. So when clocks go back, an hour that comes twice
counts twice; when they go forward, what lies in the hour left out does not happen. A window holds its first minute and
not the one at its end: "07:00-20:00" ends when the clock turns 20:00. One that ends at or before its start ends on the
next day, and its days are those on which it starts: "Fri 22:00-06:00" goes on until Saturday morning.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo

from portguard.policy.quantities import Unexpected
from portguard.policy.spans import Span, merged

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_MINUTES = 24 * 60
WEEK_MINUTES = 7 * DAY_MINUTES

_EXPECTED = 'hours such as "Mon-Fri 07:00-20:00", "Fri 22:00-06:00", "Sat-Sun" or "08:00-12:00"'
_TIME = re.compile(r"(?P<hour>\d\d):(?P<minute>[0-5]\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Window:
    """The same hours on some days of the week.

    `days`: ascending, 0 is Monday. `start`: minute of the day, 0 to 1439. `end`: 1 to 1440, or 0 for midnight; where it
    is not after `start` it belongs to the next day.
    """

    days: tuple[int, ...]
    start: int
    end: int

    def __str__(self) -> str:
        """The text that `parse_window` reads back."""
        times = "" if (self.start, self.end) == (0, DAY_MINUTES) else f"{_clock(self.start)}-{_clock(self.end)}"
        days = "" if times and len(self.days) == len(DAYS) else _written_days(self.days)
        return " ".join(filter(None, (days, times)))

    def spans(self) -> Iterable[Span]:
        """Minutes of the week; a span that goes past Sunday is cut in two."""
        for day in self.days:
            start = day * DAY_MINUTES + self.start
            end = day * DAY_MINUTES + self.end + (DAY_MINUTES if self.end <= self.start else 0)
            yield start, min(end, WEEK_MINUTES)
            if end > WEEK_MINUTES:
                yield 0, end - WEEK_MINUTES


@dataclass(frozen=True, slots=True)
class Hours:
    """Windows, of which any may hold. `spans` are the minutes of the week that they hold, ascending and apart."""

    windows: tuple[Window, ...]
    spans: tuple[Span, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        spans = merged(span for window in self.windows for span in window.spans())
        object.__setattr__(self, "spans", spans)

    def __str__(self) -> str:
        return ", ".join(map(str, self.windows))

    def closes(self, at: datetime, zone: tzinfo) -> datetime | None:
        """The first instant from `at` (aware) on at which the hours do not hold, in UTC; None if they always hold."""
        if self.spans == ((0, WEEK_MINUTES),):
            return None
        moment = at.astimezone(UTC)
        while True:
            local = moment.astimezone(zone)
            left = self._minutes_left(minute_of_week(local))
            if left == 0:
                return moment
            end = moment - timedelta(seconds=local.second, microseconds=local.microsecond) + timedelta(minutes=left)
            if end.astimezone(zone).utcoffset() == local.utcoffset():
                return end
            # The clock is put forward or back on the way, perhaps past the end or to before it.
            moment = offset_change(zone, moment, end)

    def _minutes_left(self, minute: int) -> int:
        for start, end in self.spans:
            if start <= minute < end:
                goes_on = end == WEEK_MINUTES and self.spans[0][0] == 0
                return end - minute + (self.spans[0][1] if goes_on else 0)
        return 0


def parse_window(text: str) -> Window:
    """One entry of `hours`. Raises Unexpected."""
    words = text.split(" ")
    times = words.pop() if ":" in words[-1] else ""
    days = _parse_days(words.pop()) if words else tuple(range(len(DAYS)))
    if words:
        raise Unexpected(_EXPECTED)
    if not times:
        return Window(days, 0, DAY_MINUTES)
    first, dash, last = times.partition("-")
    if not dash:
        raise Unexpected(_EXPECTED)
    start, end = _parse_time(first), _parse_time(last)
    if start == DAY_MINUTES:
        raise Unexpected('hours that do not start at 24:00, which is "00:00" of the next day')
    if start == end:
        # Nothing or a whole day? The two could not be further apart.
        raise Unexpected('hours that end at another time than they start, or "00:00-24:00" for the whole day')
    return Window(days, start, end)


def minute_of_week(local: datetime) -> int:
    """0 at the start of Monday; `local` is in the zone whose hours are meant."""
    return (local.weekday() * 24 + local.hour) * 60 + local.minute


def offset_change(zone: tzinfo, before: datetime, after: datetime) -> datetime:
    """The instant in (before, after] at which the zone's offset stops being that of `before`, to the second."""
    offset = before.astimezone(zone).utcoffset()
    low, high = 0, int((after - before.replace(microsecond=0)).total_seconds())
    start = before.replace(microsecond=0)
    while high - low > 1:
        middle = (low + high) // 2
        if (start + timedelta(seconds=middle)).astimezone(zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return start + timedelta(seconds=high)


def _parse_days(text: str) -> tuple[int, ...]:
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        start = _parse_day(first)
        end = _parse_day(last) if dash else start
        days.update(day % len(DAYS) for day in range(start, (end if end >= start else end + len(DAYS)) + 1))
    return tuple(sorted(days))


def _parse_day(text: str) -> int:
    try:
        return DAYS.index(text.title())
    except ValueError:
        raise Unexpected(_EXPECTED) from None


def _parse_time(text: str) -> int:
    match = _TIME.fullmatch(text)
    if match is None or (minutes := int(match["hour"]) * 60 + int(match["minute"])) > DAY_MINUTES:
        raise Unexpected("times from 00:00 to 24:00, in " + _EXPECTED)
    return minutes


def _written_days(days: tuple[int, ...]) -> str:
    runs: list[list[int]] = []
    for day in days:
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    if len(runs) > 1 and runs[0][0] == 0 and runs[-1][-1] == 6:
        # "Sat-Mon", not "Mon,Sat-Sun".
        runs.append(runs.pop() + runs.pop(0))
    return ",".join(DAYS[run[0]] if len(run) == 1 else f"{DAYS[run[0]]}-{DAYS[run[-1]]}" for run in runs)


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
