from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from hypothesis import assume, given
from hypothesis import strategies as st

from portguard.policy.hours import DAY_MINUTES, Hours, Window, minute_of_week, parse_window
from portguard.policy.spans import Steps, contains, merged

days = st.sets(st.integers(0, 6), min_size=1).map(lambda found: tuple(sorted(found)))
windows = st.builds(
    Window, days, st.integers(0, DAY_MINUTES - 1), st.integers(0, DAY_MINUTES)
).filter(lambda window: window.start != window.end)  # fmt: skip
spans = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)).map(lambda pair: (pair[0], sum(pair))), max_size=6)
# Half of them around jumps: the day that Samoa left out, and the changes to and from summer time.
starts = st.just(datetime(2011, 1, 1, tzinfo=UTC)) | st.sampled_from(
    [
        datetime(2011, 12, 29, tzinfo=UTC),
        datetime(2026, 3, 28, tzinfo=UTC),
        datetime(2026, 10, 24, tzinfo=UTC),
        datetime(2026, 4, 4, tzinfo=UTC),
        datetime(2026, 11, 1, tzinfo=UTC),
    ]
)
minutes = starts.flatmap(
    lambda start: st.integers(0, 2 * 24 * 60 if start.year > 2011 or start.month > 1 else 20 * 365 * 24 * 60).map(
        lambda minute: start + timedelta(minutes=minute)
    )
)
# Offsets of whole and half hours, jumps of an hour and of half an hour, north and south, and of a whole day.
zones = st.sampled_from(["UTC", "Europe/Zurich", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia"]).map(
    ZoneInfo
)


@given(windows)
def test_a_written_window_reads_back(window):
    assert parse_window(str(window)) == window


@given(st.lists(windows, max_size=4).map(tuple), minutes, zones)
def test_hours_close_at_the_first_minute_at_which_they_do_not_hold(several, at, zone):
    hours = Hours(several)

    def holds(moment: datetime) -> bool:
        minute = minute_of_week(moment.astimezone(zone))
        return any(start <= minute < end for start, end in hours.spans)

    closes = hours.closes(at, zone)
    if closes is None:
        assert hours.spans == ((0, 7 * DAY_MINUTES),)
        return
    assert not holds(closes)
    assume(closes - at < timedelta(days=3))
    step = timedelta(minutes=1)
    assert all(holds(at + step * minute) for minute in range(int((closes - at) / step)))


@given(spans)
def test_merged_spans_hold_the_same_numbers_and_lie_apart(many):
    found = merged(many)
    assert {n for start, end in found for n in range(start, end)} == {
        n for start, end in many for n in range(start, end)
    }
    assert all(end < start for (_, end), (start, _) in pairwise(found))


@given(spans, spans)
def test_spans_contain_what_has_no_number_outside(wide, narrow):
    numbers = [{n for start, end in many for n in range(start, end)} for many in (wide, narrow)]
    assert contains(merged(wide), merged(narrow)) is (numbers[1] <= numbers[0])


@given(st.lists(spans, max_size=4), st.integers(-1, 52))
def test_steps_tell_whose_spans_hold_a_number(several, number):
    expected = sum(1 << bit for bit, many in enumerate(several) if any(start <= number < end for start, end in many))
    assert Steps(enumerate(several)).at(number) == expected
