"""Calendar periods: where they start and end when clocks change, and how their ends are said."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from portguard.limits.periods import Span, span_at, written_end, written_period
from portguard.policy.quantities import Period

HOUR_S = 3600
DAY_S = 24 * HOUR_S


def instant(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def bounds(period: Period, at: str, zone: str) -> tuple[str, str]:
    """The start and the end of the period that holds `at` (ISO 8601, with its offset), as clocks in the zone show."""
    span = span_at(period, instant(at), ZoneInfo(zone))
    start, end = (datetime.fromtimestamp(at_s, ZoneInfo(zone)).isoformat(timespec="minutes") for at_s in span)
    return start, end


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        (Period.HOUR, "2026-11-24T13:00+01:00", "2026-11-24T14:00+01:00"),
        (Period.DAY, "2026-11-24T00:00+01:00", "2026-11-25T00:00+01:00"),
        (Period.WEEK, "2026-11-23T00:00+01:00", "2026-11-30T00:00+01:00"),
        (Period.MONTH, "2026-11-01T00:00+01:00", "2026-12-01T00:00+01:00"),
    ],
)
def test_a_period_is_that_of_the_calendar_in_the_zone(period, start, end):
    assert bounds(period, "2026-11-24T12:34:56+00:00", "Europe/Zurich") == (start, end)


@pytest.mark.parametrize("period", Period)
def test_a_period_holds_its_start_and_not_its_end(period):
    zone = ZoneInfo("Europe/Zurich")
    span = span_at(period, instant("2026-11-24T12:34:56+01:00"), zone)
    assert span_at(period, span.start_s, zone) == span
    assert span_at(period, span.end_s - 0.001, zone) == span
    assert span_at(period, span.start_s - 0.001, zone).end_s == span.start_s
    assert span_at(period, span.end_s, zone).start_s == span.end_s


def test_each_zone_has_its_own_day():
    at = "2026-11-24T23:30+00:00"
    assert bounds(Period.DAY, at, "UTC")[0] == "2026-11-24T00:00+00:00"
    assert bounds(Period.DAY, at, "Europe/Zurich")[0] == "2026-11-25T00:00+01:00"
    assert bounds(Period.DAY, at, "Asia/Kathmandu")[0] == "2026-11-25T00:00+05:45"
    assert span_at(Period.DAY, instant(at), UTC) == span_at(Period.DAY, instant(at), ZoneInfo("UTC"))


@pytest.mark.parametrize(("month", "days"), [("2026-01", 31), ("2026-02", 28), ("2028-02", 29), ("2026-12", 31)])
def test_a_month_has_its_own_length(month, days):
    span = span_at(Period.MONTH, instant(f"{month}-17T00:00+00:00"), UTC)
    assert span == Span(instant(f"{month}-01T00:00+00:00"), instant(f"{month}-01T00:00+00:00") + days * DAY_S)


def test_a_week_goes_from_monday_over_the_end_of_a_year():
    assert bounds(Period.WEEK, "2026-12-31T12:00+00:00", "UTC") == ("2026-12-28T00:00+00:00", "2027-01-04T00:00+00:00")
    assert bounds(Period.WEEK, "2027-01-03T23:59+00:00", "UTC")[0] == "2026-12-28T00:00+00:00"


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-28", 24), ("2026-03-29", 23), ("2026-10-25", 25), ("2026-10-26", 24)]
)
def test_a_day_on_which_clocks_change_is_longer_or_shorter(day, hours):
    span = span_at(Period.DAY, instant(f"{day}T11:00+00:00"), ZoneInfo("Europe/Zurich"))
    assert span.end_s - span.start_s == hours * HOUR_S


@pytest.mark.parametrize(
    ("zone", "at", "start"),
    [
        ("America/Havana", "2026-03-08T12:00-04:00", "2026-03-08T01:00-04:00"),
        ("Asia/Beirut", "2026-03-29T12:00+03:00", "2026-03-29T01:00+03:00"),
        ("America/Sao_Paulo", "2018-11-04T12:00-02:00", "2018-11-04T01:00-02:00"),
        # From 23:30 to 00:30: midnight lies amidst what is left out.
        ("America/Toronto", "1919-03-31T12:00-04:00", "1919-03-31T00:30-04:00"),
    ],
)
def test_a_day_without_midnight_starts_where_clocks_go_on(zone, at, start):
    found = bounds(Period.DAY, at, zone)
    assert found[0] == start
    before = span_at(Period.DAY, instant(start) - 1, ZoneInfo(zone))
    assert before.end_s == instant(start)
    assert before.end_s - before.start_s in (24 * HOUR_S, 23.5 * HOUR_S)


def test_a_day_with_two_midnights_starts_at_the_first():
    # At 01:00 the clocks go back to 00:00.
    for at in ("2026-11-01T00:30-04:00", "2026-11-01T00:30-05:00"):
        assert bounds(Period.DAY, at, "America/Havana") == ("2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00")


def test_a_day_that_clocks_go_back_to_from_midnight_has_not_ended():
    # At what would be midnight of the 25th they show 23:00 of the 24th again.
    for at in ("2026-10-24T23:30+03:00", "2026-10-24T23:30+02:00"):
        assert bounds(Period.DAY, at, "Asia/Beirut") == ("2026-10-24T00:00+03:00", "2026-10-25T00:00+02:00")


def test_a_day_that_has_begun_goes_on_when_clocks_go_back_across_its_midnight():
    # At 00:01 of the 29th they show 23:01 of the 28th again.
    start = instant("2006-10-29T00:00-02:30")
    for at in ("2006-10-29T00:00:30-02:30", "2006-10-28T23:30-03:30", "2006-10-29T12:00-03:30"):
        span = span_at(Period.DAY, instant(at), ZoneInfo("America/St_Johns"))
        assert span == Span(start, instant("2006-10-30T00:00-03:30"))
    assert span_at(Period.DAY, start - 1, ZoneInfo("America/St_Johns")).end_s == start


def test_a_date_that_a_zone_leaves_out_has_no_instant():
    # After 29 December 2011 came the 31st.
    change = instant("2011-12-31T00:00+14:00")
    assert span_at(Period.DAY, change - 1, ZoneInfo("Pacific/Apia")) == Span(change - DAY_S, change)
    assert span_at(Period.DAY, change, ZoneInfo("Pacific/Apia")) == Span(change, change + DAY_S)
    week = span_at(Period.WEEK, change, ZoneInfo("Pacific/Apia"))
    assert week.end_s - week.start_s == 6 * DAY_S
    month = span_at(Period.MONTH, change, ZoneInfo("Pacific/Apia"))
    assert month.end_s - month.start_s == 30 * DAY_S


@pytest.mark.parametrize(
    ("zone", "at", "start", "end"),
    [
        ("Europe/Zurich", "2026-10-25T02:30+02:00", "2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00"),
        ("Europe/Zurich", "2026-10-25T02:30+01:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"),
        ("Europe/Zurich", "2026-03-29T01:30+01:00", "2026-03-29T01:00+01:00", "2026-03-29T03:00+02:00"),
        ("Europe/Zurich", "2026-03-29T03:30+02:00", "2026-03-29T03:00+02:00", "2026-03-29T04:00+02:00"),
        ("Asia/Kathmandu", "2026-11-24T12:34+05:45", "2026-11-24T12:00+05:45", "2026-11-24T13:00+05:45"),
    ],
)
def test_an_hour_is_of_sixty_minutes_also_where_it_comes_twice(zone, at, start, end):
    assert bounds(Period.HOUR, at, zone) == (start, end)
    assert instant(end) - instant(start) == HOUR_S


@pytest.mark.parametrize(
    ("at", "start", "end"),
    [
        ("2026-04-05T01:40+11:00", "2026-04-05T01:00+11:00", "2026-04-05T01:30+10:30"),
        ("2026-04-05T01:40+10:30", "2026-04-05T01:30+10:30", "2026-04-05T02:00+10:30"),
        ("2026-10-04T01:40+10:30", "2026-10-04T01:00+10:30", "2026-10-04T02:30+11:00"),
        ("2026-10-04T02:40+11:00", "2026-10-04T02:30+11:00", "2026-10-04T03:00+11:00"),
    ],
)
def test_clocks_that_change_by_half_an_hour_leave_half_an_hour(at, start, end):
    assert bounds(Period.HOUR, at, "Australia/Lord_Howe") == (start, end)


def test_clocks_that_change_after_a_minute_leave_a_minute():
    zone = ZoneInfo("America/St_Johns")
    start = instant("2006-10-29T00:00-02:30")
    assert span_at(Period.HOUR, start + 30, zone) == Span(start, start + 60)
    assert span_at(Period.HOUR, start + 60, zone) == Span(start + 60, start + HOUR_S)


def test_offsets_of_seconds_make_no_gap():
    # Zurich's mean time, 29 minutes and 46 seconds ahead, ended when Central European Time came.
    zone = ZoneInfo("Europe/Zurich")
    change = instant("1894-06-01T00:00:00+00:29:46")
    span = span_at(Period.DAY, change - 1, zone)
    assert span.end_s == change
    assert span_at(Period.HOUR, change - 1, zone).end_s == span_at(Period.HOUR, change, zone).start_s == change


@pytest.mark.parametrize(
    ("period", "now", "text"),
    [
        (Period.DAY, "2026-11-24T12:00+01:00", "00:00 Europe/Zurich"),
        (Period.DAY, "2026-11-24T00:00:01+01:00", "00:00 Europe/Zurich"),
        # At midnight itself "00:00" could be taken for now.
        (Period.DAY, "2026-11-24T00:00+01:00", "2026-11-25 00:00 Europe/Zurich"),
        (Period.HOUR, "2026-11-24T12:10+01:00", "13:00 Europe/Zurich"),
        (Period.MONTH, "2026-11-24T12:00+01:00", "2026-12-01 00:00 Europe/Zurich"),
        (Period.MONTH, "2026-11-30T12:00+01:00", "00:00 Europe/Zurich"),
        (Period.WEEK, "2026-11-28T12:00+01:00", "2026-11-30 00:00 Europe/Zurich"),
        # A quarter past midnight on a day of 25 hours: clocks show 00:15 again before it ends.
        (Period.DAY, "2026-10-25T00:15+02:00", "2026-10-26 00:00 Europe/Zurich"),
        (Period.DAY, "2026-10-25T01:15+02:00", "00:00 Europe/Zurich"),
    ],
)
def test_an_end_is_said_with_its_date_unless_it_comes_within_a_day(period, now, text):
    zone = ZoneInfo("Europe/Zurich")
    assert written_end(span_at(period, instant(now), zone), zone, instant(now)) == text


def test_an_end_is_said_as_clocks_in_the_zone_show_it():
    at = instant("2026-11-24T12:00+00:00")
    assert written_end(span_at(Period.DAY, at, UTC), UTC, at) == "00:00 UTC"
    havana = ZoneInfo("America/Havana")
    eve = instant("2026-03-07T12:00-05:00")
    assert written_end(span_at(Period.DAY, eve, havana), havana, eve) == "01:00 America/Havana"


def test_a_period_has_its_adjective():
    assert [written_period(period) for period in Period] == ["hourly", "daily", "weekly", "monthly"]
