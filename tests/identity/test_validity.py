"""When it is said of a certificate that it ends soon."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from portguard.identity.validity import ends_soon, written
from tests.certificates import Authority

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(("lasts", "soon"), [(100 * DAY, 10 * DAY), (50 * DAY, 10 * DAY), (5 * DAY, DAY)])
def test_it_ends_soon_in_the_last_days_or_in_the_last_fifth_of_a_short_life(lasts: timedelta, soon: timedelta) -> None:
    end = START + lasts
    certificate = Authority.root().issue(not_before=START, not_after=end).certificate
    assert not ends_soon(certificate, end - soon, 10 * DAY)
    assert ends_soon(certificate, end - soon + SECOND, 10 * DAY)
    assert ends_soon(certificate, end + DAY, 10 * DAY)


def test_times_are_written_in_utc_and_whole_seconds() -> None:
    zone = timezone(timedelta(hours=1))
    assert written(datetime(2026, 1, 1, 0, 30, 59, 999_999, tzinfo=zone)) == "2025-12-31 23:30:59 UTC"
