"""Durations, sizes, rates, bandwidths, quotas: what is taken, what is refused, and in which words."""

import pytest

from portguard.policy.quantities import (
    MAX_DURATION_S,
    MAX_SIZE_BYTES,
    Period,
    Quota,
    Rate,
    Unexpected,
    format_bandwidth,
    format_duration,
    format_quota,
    format_rate,
    format_size,
    parse_bandwidth,
    parse_duration,
    parse_duration_or_off,
    parse_quota,
    parse_rate,
    parse_size,
    written_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("1ms", 0.001),
        ("10s", 10.0),
        ("1.5s", 1.5),
        ("5m", 300.0),
        ("24h", 86_400.0),
        ("30d", 2_592_000.0),
        ("0.1h", 360.0),
        ("0s", 0.0),
        ("36500d", MAX_DURATION_S),
    ],
)
def test_a_duration_is_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "10", "s", "10 s", " 10s", "10s\n", "-1s", "+1s", "10S", "1h30m", "1e3s", "1_000s", "٣s", "inf", "off", ".5s"],
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(Unexpected, match=r'^a duration such as "250ms", "10s", "5m", "24h" or "30d"$'):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5ms", "a duration in whole milliseconds"),
        ("0.0001s", "a duration in whole milliseconds"),
        ("36501d", "a duration of at most 36500d"),
        ("3153600000001ms", "a duration of at most 36500d"),
    ],
)
def test_a_duration_has_a_resolution_and_a_limit(text, expected):
    with pytest.raises(Unexpected) as caught:
        parse_duration(text)
    assert str(caught.value) == expected


def test_off_is_none_only_where_it_is_allowed():
    assert parse_duration_or_off("off") is None
    assert parse_duration_or_off("2m") == 120.0
    with pytest.raises(Unexpected, match=r'or "off"$'):
        parse_duration_or_off("Off")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "off"),
        (0.0, "0s"),
        (86_400.0, "1d"),
        (0.25, "250ms"),
        (1.5, "1500ms"),
        (10.0, "10s"),
        (90.0, "90s"),
        (300.0, "5m"),
        (3600.0, "1h"),
    ],
)
def test_a_duration_is_written_in_its_largest_whole_unit(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0B", 0),
        ("512B", 512),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("500MB", 500_000_000),
        ("64MiB", 64 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("1.1TB", 1_100_000_000_000),
        ("0.3kB", 300),
        ("2GiB", 2**31),
        ("3TiB", 3 * 2**40),
        ("9223372036854775807B", MAX_SIZE_BYTES),
    ],
)
def test_a_size_is_bytes_and_exact(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "20", "20 GB", "20gb", "20KB", "20Gb", "20G", "-1GB", "1e3GB", "GB", "20GB ", "0x10B", "1,5GB"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(Unexpected, match=r'^a size such as "500kB", "20GB" or "64MiB"$'):
        parse_size(text)


def test_a_size_is_whole_bytes_and_fits_64_bits():
    with pytest.raises(Unexpected, match=r"^a size in whole bytes$"):
        parse_size("1.0005kB")
    with pytest.raises(Unexpected, match=r"^a size below 8388608TiB$"):
        parse_size("9223372036854775808B")
    with pytest.raises(Unexpected, match=r"^a size below"):
        parse_size("8388608TiB")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1kB"),
        (1024, "1KiB"),
        (1_500_000_000, "1.5GB"),
        (1_234_567, "1234567B"),
        (2**40, "1TiB"),
        (200_000_000_000, "200GB"),
        (500_000_000_000, "500GB"),
        (1_200_000_000_000, "1.2TB"),
        (300, "300B"),
        (512 * 2**10, "512KiB"),
    ],
)
def test_a_size_is_written_in_the_shortest_exact_form_without_a_leading_zero(size_bytes, text):
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1023, "1.02 kB"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (512 * 2**10, "512 KiB"),
        (1000 * 2**10, "1000 KiB"),
        (1025 * 2**10, "1.05 MB"),
        (1152 * 2**10, "1.18 MB"),
        (8192 * 2**40, "8192 TiB"),
        (20_000_000_000, "20 GB"),
        (200_000_000_000, "200 GB"),
        (1_500_000_000_000, "1.5 TB"),
        (12_345_678_901, "12.3 GB"),
        (12_010_000_000, "12 GB"),
        (999_499, "999 kB"),
        (999_999, "1 MB"),
        (MAX_SIZE_BYTES, "9220000 TB"),
    ],
)
def test_a_size_in_a_sentence_is_exact_when_round_and_else_has_three_digits(size_bytes, text):
    assert written_size(size_bytes) == text


@pytest.mark.parametrize(
    ("text", "rate"),
    [("5/s", Rate(5, 1)), ("30/m", Rate(30, 60)), ("100/h", Rate(100, 3600)), ("1000/d", Rate(1000, 86400))],
)
def test_a_rate_is_a_count_per_unit(text, rate):
    assert parse_rate(text) == rate
    assert format_rate(rate) == text


@pytest.mark.parametrize("text", ["", "30", "30/", "/m", "0/m", "-1/m", "1.5/m", "30/min", "30/m/s", "30 / m", "٣/m"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(Unexpected, match=r'^a rate of at least 1 such as "5/s"'):
        parse_rate(text)


def test_a_bandwidth_is_bytes_per_second():
    assert parse_bandwidth("50MB/s") == 50_000_000
    assert format_bandwidth(50_000_000) == "50MB/s"


@pytest.mark.parametrize("text", ["50MB", "50MB/m", "50/s", "50Mbit/s", "MB/s", "0B/s", "50MB/s/s", ""])
def test_what_is_no_bandwidth_is_refused(text):
    with pytest.raises(Unexpected, match=r'^a bandwidth in bytes such as "50MB/s"'):
        parse_bandwidth(text)


@pytest.mark.parametrize("period", Period)
def test_a_quota_is_a_size_per_calendar_period(period):
    quota = Quota(20 * 10**9, period)
    assert parse_quota(f"20GB/{period}") == quota
    assert format_quota(quota) == f"20GB/{period}"


@pytest.mark.parametrize("text", ["20GB", "20GB/", "20GB/year", "20GB/d", "20/day", "0B/day", "20GB/day/day", ""])
def test_what_is_no_quota_is_refused(text):
    with pytest.raises(Unexpected, match=r'^a quota such as "20GB/day"'):
        parse_quota(text)


def test_a_message_never_repeats_the_value():
    for parse in (parse_duration, parse_size, parse_rate, parse_bandwidth, parse_quota):
        with pytest.raises(Unexpected) as caught:
            parse("s3cret/day")
        assert "s3cret" not in str(caught.value)
