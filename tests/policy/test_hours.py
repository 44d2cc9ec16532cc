from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from portguard.policy.hours import DAY_MINUTES, WEEK_MINUTES, Hours, Window, minute_of_week, parse_window
from portguard.policy.quantities import Unexpected

ZURICH = ZoneInfo("Europe/Zurich")
HOUR = 60


def hours(*texts: str) -> Hours:
    return Hours(tuple(map(parse_window, texts)))


def holds(text: str, at: datetime, zone=ZURICH) -> bool:
    minute = minute_of_week(at.astimezone(zone))
    return any(start <= minute < end for start, end in hours(text).spans)


@pytest.mark.parametrize(
    ("text", "days", "start", "end"),
    [
        ("Mon-Fri 07:00-20:00", (0, 1, 2, 3, 4), 7 * HOUR, 20 * HOUR),
        ("Fri 22:00-06:00", (4,), 22 * HOUR, 6 * HOUR),
        ("Sat-Mon 22:00-23:30", (0, 5, 6), 22 * HOUR, 23 * HOUR + 30),
        ("Mon,Wed,Sat-Sun 01:00-02:00", (0, 2, 5, 6), HOUR, 2 * HOUR),
        ("Sat-Sun", (5, 6), 0, DAY_MINUTES),
        ("mon", (0,), 0, DAY_MINUTES),
        ("08:00-12:00", (0, 1, 2, 3, 4, 5, 6), 8 * HOUR, 12 * HOUR),
        ("Sun 20:00-24:00", (6,), 20 * HOUR, DAY_MINUTES),
        ("Sun 20:00-00:00", (6,), 20 * HOUR, 0),
        ("00:00-24:00", (0, 1, 2, 3, 4, 5, 6), 0, DAY_MINUTES),
    ],
)
def test_a_window_is_read(text, days, start, end):
    assert parse_window(text) == Window(days, start, end)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Monday",
        "Mon-",
        "-Mon",
        "Mon,",
        "Mon-Tue-Wed",
        "Mon  08:00-09:00",
        " Mon",
        "Mon 08:00",
        "08:00-12:00 Mon",
        "Mon 08:00-09:00 Tue",
        "Mon-Fri07:00-20:00",
        "Mon 8:00-9:00",
        "Mon 08:60-09:00",
        "Mon 08:00-24:01",
        "Mon 08:00-25:00",
        "Mon ٠٨:00-09:00",
        "Mon\n",
        "Mon 08:00-09:00\n",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(Unexpected, match='hours such as "Mon-Fri 07:00-20:00"'):
        parse_window(text)


def test_a_window_does_not_start_at_midnight_of_the_next_day():
    with pytest.raises(Unexpected, match="do not start at 24:00"):
        parse_window("Mon 24:00-08:00")


def test_a_window_that_ends_when_it_starts_is_refused_as_it_may_mean_nothing_or_all_day():
    with pytest.raises(Unexpected, match=r"00:00-24:00.* for the whole day"):
        parse_window("Mon 08:00-08:00")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("mon-fri 07:00-20:00", "Mon-Fri 07:00-20:00"),
        ("Sat-Mon", "Sat-Mon"),
        ("Mon-Sun 08:00-12:00", "08:00-12:00"),
        ("Mon-Sun", "Mon-Sun"),
        ("00:00-24:00", "Mon-Sun"),
        ("Tue,Mon,Sun 22:00-00:00", "Sun-Tue 22:00-00:00"),
        ("Mon,Wed,Fri", "Mon,Wed,Fri"),
    ],
)
def test_a_window_is_written_in_one_way(text, written):
    assert str(parse_window(text)) == written


def test_a_window_past_midnight_belongs_to_the_day_on_which_it_starts():
    friday, saturday = 4 * DAY_MINUTES, 5 * DAY_MINUTES
    assert hours("Fri 22:00-06:00").spans == ((friday + 22 * HOUR, saturday + 6 * HOUR),)


def test_a_window_past_the_end_of_the_week_goes_on_at_its_start():
    assert hours("Sun 22:00-06:00").spans == ((0, 6 * HOUR), (WEEK_MINUTES - 2 * HOUR, WEEK_MINUTES))


def test_a_window_until_midnight_stops_there_however_it_is_written():
    assert (
        hours("Sun 22:00-24:00").spans == hours("Sun 22:00-00:00").spans == ((WEEK_MINUTES - 2 * HOUR, WEEK_MINUTES),)
    )


def test_windows_that_touch_or_overlap_become_one_span():
    assert hours("Mon 08:00-12:00", "Mon 12:00-14:00", "Mon 13:00-15:00").spans == ((8 * HOUR, 15 * HOUR),)


@pytest.mark.parametrize(
    ("at", "held"),
    [
        (datetime(2026, 3, 2, 6, 59, 59, 999999, tzinfo=ZURICH), False),
        (datetime(2026, 3, 2, 7, 0, tzinfo=ZURICH), True),
        (datetime(2026, 3, 2, 19, 59, 59, tzinfo=ZURICH), True),
        (datetime(2026, 3, 2, 20, 0, tzinfo=ZURICH), False),
        (datetime(2026, 3, 7, 12, 0, tzinfo=ZURICH), False),
        (datetime(2026, 7, 6, 5, 0, tzinfo=UTC), True),  # summer: 07:00
        (datetime(2026, 1, 5, 5, 0, tzinfo=UTC), False),  # winter: 06:00
    ],
)
def test_hours_are_those_of_the_zone_with_its_daylight_saving(at, held):
    assert holds("Mon-Fri 07:00-20:00", at) is held


def test_the_hour_that_comes_twice_in_autumn_counts_twice():
    first, second = datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    assert (first.astimezone(ZURICH).hour, second.astimezone(ZURICH).hour) == (2, 2)
    assert holds("Sun 02:00-03:00", first)
    assert holds("Sun 02:00-03:00", second)


@pytest.mark.parametrize(
    ("texts", "at", "closes"),
    [
        (["Mon-Fri 07:00-20:00"], datetime(2026, 3, 2, 9, 30, 7, 5, tzinfo=UTC), datetime(2026, 3, 2, 19, tzinfo=UTC)),
        (["Fri 22:00-06:00"], datetime(2026, 3, 6, 22, 0, tzinfo=UTC), datetime(2026, 3, 7, 5, tzinfo=UTC)),
        (["Sat-Sun", "Mon 00:00-08:00"], datetime(2026, 3, 7, 12, 0, tzinfo=UTC), datetime(2026, 3, 9, 7, tzinfo=UTC)),
        # Clocks go forward on the way: the night has an hour less.
        (["Sat 22:00-06:00"], datetime(2026, 3, 28, 22, 0, tzinfo=UTC), datetime(2026, 3, 29, 4, tzinfo=UTC)),
        # They go forward past the end: 02:30 does not happen, and the hours end with the jump from 02:00 to 03:00.
        (["Sun 01:00-02:30"], datetime(2026, 3, 29, 0, 30, tzinfo=UTC), datetime(2026, 3, 29, 1, tzinfo=UTC)),
        # They go back on the way: the night has an hour more.
        (["Sat 22:00-06:00"], datetime(2026, 10, 24, 21, 0, tzinfo=UTC), datetime(2026, 10, 25, 5, tzinfo=UTC)),
        # They go back at the very end, from 03:00 to 02:00: the hours hold for another hour.
        (["Sun 02:00-03:00"], datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 2, tzinfo=UTC)),
        # The end comes twice, and counts the first time.
        (["Sun 01:00-02:30"], datetime(2026, 10, 25, 0, 0, tzinfo=UTC), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
    ],
)
def test_hours_close_at_the_first_instant_at_which_they_do_not_hold(texts, at, closes):
    assert hours(*texts).closes(at, ZURICH) == closes


def test_hours_that_hold_no_longer_close_at_once():
    at = datetime(2026, 3, 7, 12, 0, 0, 5, tzinfo=UTC)
    assert hours("Mon").closes(at, ZURICH) == at


def test_hours_of_the_whole_week_never_close():
    assert hours("Sat-Sun", "Mon-Fri").closes(datetime(2026, 3, 2, tzinfo=UTC), ZURICH) is None


def test_hours_of_all_but_a_minute_close():
    late = datetime(2026, 3, 2, 0, 1, tzinfo=UTC)
    assert hours("00:01-00:00").closes(late, UTC) == late + timedelta(minutes=DAY_MINUTES - 1)
