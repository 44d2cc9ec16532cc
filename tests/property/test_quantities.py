"""Quantities for every value: what is formatted parses to the same, and any text parses or is refused in our words."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

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
)

SIZES = st.one_of(
    st.integers(0, MAX_SIZE_BYTES),
    st.builds(lambda n, unit: min(n * unit, MAX_SIZE_BYTES), st.integers(0, 5000), st.sampled_from([10**6, 2**30])),
)
POSITIVE_SIZES = SIZES.map(lambda size: max(size, 1))


@given(st.one_of(st.none(), st.integers(0, int(MAX_DURATION_S * 1000)).map(lambda ms: ms / 1000)))
def test_a_formatted_duration_parses_to_itself(duration_s):
    assert parse_duration_or_off(format_duration(duration_s)) == duration_s


@given(SIZES)
def test_a_formatted_size_parses_to_itself(size_bytes):
    assert parse_size(format_size(size_bytes)) == size_bytes


@given(POSITIVE_SIZES, st.sampled_from(Period))
def test_a_formatted_bandwidth_and_quota_parse_to_themselves(size_bytes, period):
    assert parse_bandwidth(format_bandwidth(size_bytes)) == size_bytes
    assert parse_quota(format_quota(Quota(size_bytes, period))) == Quota(size_bytes, period)


@given(st.integers(1, 999_999_999), st.sampled_from([1, 60, 3600, 86_400]))
def test_a_formatted_rate_parses_to_itself(count, per_s):
    assert parse_rate(format_rate(Rate(count, per_s))) == Rate(count, per_s)


@given(st.one_of(st.text(), st.from_regex(r"[0-9.]{1,25} ?[a-zA-Z]{0,4}(/[a-z]{0,6})?", fullmatch=True)))
def test_any_text_parses_or_is_refused_in_our_words(text):
    for parse in (parse_duration, parse_duration_or_off, parse_size, parse_rate, parse_bandwidth, parse_quota):
        with contextlib.suppress(Unexpected):
            parse(text)


@given(st.integers(0, 10**6), st.integers(0, 999))
def test_decimal_fractions_are_exact(whole, thousandths):
    assert parse_size(f"{whole}.{thousandths:03}kB") == whole * 1000 + thousandths
    assert round(parse_duration(f"{whole}.{thousandths:03}s") * 1000) == whole * 1000 + thousandths
