"""Calendar periods tile time, in every zone and across every change of its clocks."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from portguard.limits.periods import span_at
from portguard.policy.quantities import Period

zones = st.sampled_from(
    [
        "UTC",
        "Europe/Zurich",
        "America/Havana",
        "America/Sao_Paulo",
        "America/St_Johns",
        "America/Toronto",
        "Asia/Beirut",
        "Asia/Kathmandu",
        "Australia/Lord_Howe",
        "Africa/Casablanca",
        "Antarctica/Troll",
        "Pacific/Apia",
        "Pacific/Kwajalein",
    ]
).map(ZoneInfo)
# Most of them close to changes of clocks: of 2026 in Europe, Havana, Beirut, Lord Howe; Samoa's; those at 00:01.
changes = st.sampled_from(
    [
        datetime(2026, 3, 29, 1, tzinfo=UTC),
        datetime(2026, 10, 25, 1, tzinfo=UTC),
        datetime(2026, 3, 8, 5, tzinfo=UTC),
        datetime(2026, 11, 1, 5, tzinfo=UTC),
        datetime(2026, 3, 28, 22, tzinfo=UTC),
        datetime(2026, 10, 24, 21, tzinfo=UTC),
        datetime(2026, 4, 4, 15, tzinfo=UTC),
        datetime(2026, 10, 3, 15, 30, tzinfo=UTC),
        datetime(2011, 12, 30, 10, tzinfo=UTC),
        datetime(2006, 10, 29, 2, 31, tzinfo=UTC),
        datetime(1919, 3, 31, 4, 30, tzinfo=UTC),
    ]
).map(lambda at: int(at.timestamp()))
near = st.tuples(changes, st.integers(-2 * 86_400, 2 * 86_400)).map(sum)
instants_s = near | st.integers(-(2**32), 2**33) | st.floats(0, 2**33)


@given(st.sampled_from(Period), instants_s, zones)
def test_spans_tile_time(period, at_s, zone):
    span = span_at(period, at_s, zone)
    assert span.start_s <= at_s < span.end_s
    assert span_at(period, span.start_s, zone) == span_at(period, span.end_s - 1, zone) == span
    assert span_at(period, span.end_s, zone).start_s == span.end_s
    assert span_at(period, span.start_s - 1, zone).end_s == span.start_s


@given(instants_s, zones)
def test_a_day_starts_at_the_first_instant_of_its_date_or_a_later_one(at_s, zone):
    def shown(second: int) -> date:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)).astimezone(zone).date()

    span = span_at(Period.DAY, at_s, zone)
    first = shown(span.start_s)
    step_s = 1800
    assert shown(span.start_s - 1) < first
    assert all(shown(second) <= first for second in range(span.start_s, span.end_s, step_s))
    assert shown(span.end_s - 1) <= first < shown(span.end_s)


@given(st.sampled_from([Period.HOUR, Period.DAY, Period.WEEK]), instants_s, zones)
def test_shorter_periods_do_not_cross_the_ends_of_longer_ones(period, at_s, zone):
    longer = Period.DAY if period is Period.HOUR else Period.WEEK if period is Period.DAY else None
    span = span_at(period, at_s, zone)
    if longer is None:
        # A week may well begin in another month; days do not.
        assert span_at(Period.DAY, span.start_s, zone).start_s == span.start_s
        return
    around = span_at(longer, at_s, zone)
    assert around.start_s <= span.start_s
    assert span.end_s <= around.end_s
