"""Instants as programs read them."""

from datetime import UTC, datetime, timedelta, timezone

from portguard.instants import written_instant, written_second


def test_an_instant_is_written_in_utc_to_the_second():
    zurich = timezone(timedelta(hours=1))
    assert written_instant(datetime(2026, 11, 23, 8, 0, 0, 999_999, zurich)) == "2026-11-23T07:00:00Z"


def test_seconds_since_the_epoch_are_the_same_instant():
    assert written_second(datetime(2026, 11, 23, 7, tzinfo=UTC).timestamp() + 0.9) == "2026-11-23T07:00:00Z"
