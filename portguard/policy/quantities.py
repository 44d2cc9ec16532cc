"""Durations, sizes, rates, bandwidths and quotas as people write them in a policy or a configuration.

Every `parse_*` takes the whole text and nothing around it, is exact (no binary fractions on the way), and raises
`Unexpected`. Every `format_*` is its inverse: parsing what it returns gives the same value again. What is `written_*`
is for sentences, and may be rounded.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

MAX_DURATION_S = 36_500 * 86_400.0
"""One hundred years: longer is a slip of the keyboard, and timers of the event loop would overflow."""

MAX_SIZE_BYTES = 2**63 - 1
"""What a signed 64-bit column and counter hold."""

_NUMBER = re.compile(r"(?P<number>[0-9]{1,19}(?:\.[0-9]{1,19})?)(?P<unit>[A-Za-z]*)", re.ASCII)

_MILLISECONDS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_DECIMAL = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3}
_BINARY = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_BYTES = {**_DECIMAL, **_BINARY, "B": 1}
_RATE_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Unexpected(ValueError):
    """A value is not what its place calls for. The text completes "expected …", and never repeats the value."""


class Period(StrEnum):
    """A calendar period, in the policy's time zone. A week begins on Monday."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` (at least 1) of something in any `per_s` seconds (1, 60, 3600 or 86400)."""

    count: int
    per_s: int


@dataclass(frozen=True, slots=True)
class Quota:
    """`size_bytes` (at least 1) in each `period`."""

    size_bytes: int
    period: Period


def parse_duration(text: str) -> float:
    """Seconds in "250ms", "10s", "5m", "24h", "30d" or "1.5h": whole milliseconds, from 0 to `MAX_DURATION_S`."""
    milliseconds = _scaled(text, _MILLISECONDS)
    if milliseconds is None:
        raise Unexpected('a duration such as "250ms", "10s", "5m", "24h" or "30d"')
    if milliseconds.denominator != 1:
        raise Unexpected("a duration in whole milliseconds")
    if milliseconds > MAX_DURATION_S * 1000:
        raise Unexpected("a duration of at most 36500d")
    return int(milliseconds) / 1000


def parse_duration_or_off(text: str) -> float | None:
    """Like `parse_duration`; None for "off"."""
    if text == "off":
        return None
    try:
        return parse_duration(text)
    except Unexpected as error:
        raise Unexpected(f'{error}, or "off"') from None


def format_duration(duration_s: float | None) -> str:
    """The inverse of `parse_duration_or_off`, in the largest unit that needs no fraction."""
    if duration_s is None:
        return "off"
    milliseconds = round(duration_s * 1000)
    if milliseconds == 0:
        return "0s"
    unit = next(unit for unit, size in _MILLISECONDS.items() if milliseconds % size == 0)
    return f"{milliseconds // _MILLISECONDS[unit]}{unit}"


def parse_size(text: str) -> int:
    """Bytes in "512B", "1.5GB" (decimal) or "64KiB" (binary): a whole number, from 0 to `MAX_SIZE_BYTES`."""
    size = _scaled(text, _BYTES)
    if size is None:
        raise Unexpected('a size such as "500kB", "20GB" or "64MiB"')
    if size.denominator != 1:
        raise Unexpected("a size in whole bytes")
    if size > MAX_SIZE_BYTES:
        raise Unexpected("a size below 8388608TiB")
    return int(size)


def format_size(size_bytes: int) -> str:
    """The inverse of `parse_size`: the shortest text that is exact; the larger and the decimal unit where two tie.

    No number is below 1: "200GB", where "0.2TB" would be as short.
    """
    candidates = []
    for unit, unit_bytes in _BYTES.items():
        if size_bytes >= unit_bytes and (number := _thousandths(size_bytes, unit_bytes)) is not None:
            candidates.append(f"{number}{unit}")
    return min(candidates, key=len) if size_bytes else "0B"


def written_size(size_bytes: int) -> str:
    """A size in a sentence for people: "20 GB", "64 MiB", or to three digits, "12.3 GB", where it is not that round."""
    rounded = round(size_bytes, 3 - len(str(size_bytes)))
    binary = next((unit for unit, unit_bytes in _BINARY.items() if size_bytes >= unit_bytes), None)
    if rounded != size_bytes and binary is not None:
        number = _thousandths(size_bytes, _BINARY[binary])
        if number is not None and ("." not in number or len(number) <= len("1.25")):
            return f"{number} {binary}"
    unit = next((unit for unit, unit_bytes in _DECIMAL.items() if rounded >= unit_bytes), "B")
    return f"{_thousandths(rounded, _BYTES[unit])} {unit}"


def parse_rate(text: str) -> Rate:
    """The rate in "30/m": a whole count of at least 1, per s, m, h or d."""
    count, _, unit = text.partition("/")
    if not re.fullmatch(r"[0-9]{1,9}", count) or int(count) == 0 or unit not in _RATE_UNITS:
        raise Unexpected('a rate of at least 1 such as "5/s", "30/m", "100/h" or "1000/d"')
    return Rate(int(count), _RATE_UNITS[unit])


def format_rate(rate: Rate) -> str:
    """The inverse of `parse_rate`."""
    unit = next(unit for unit, per_s in _RATE_UNITS.items() if per_s == rate.per_s)
    return f"{rate.count}/{unit}"


def parse_bandwidth(text: str) -> int:
    """Bytes per second in "50MB/s": a size of at least one byte, per second."""
    size, slash, unit = text.partition("/")
    if not slash or unit != "s":
        raise Unexpected('a bandwidth in bytes such as "50MB/s"')
    return _positive(size, 'a bandwidth in bytes such as "50MB/s"')


def format_bandwidth(bytes_per_s: int) -> str:
    """The inverse of `parse_bandwidth`."""
    return f"{format_size(bytes_per_s)}/s"


def parse_quota(text: str) -> Quota:
    """The quota in "20GB/day": a size of at least one byte, per hour, day, week or month."""
    size, _, period = text.partition("/")
    if period not in set(Period):
        raise Unexpected('a quota such as "20GB/day", per hour, day, week or month')
    return Quota(_positive(size, 'a quota such as "20GB/day"'), Period(period))


def format_quota(quota: Quota) -> str:
    """The inverse of `parse_quota`."""
    return f"{format_size(quota.size_bytes)}/{quota.period}"


def _positive(size: str, expected: str) -> int:
    try:
        size_bytes = parse_size(size)
    except Unexpected as error:
        raise Unexpected(f"{expected} ({error})") from None
    if size_bytes == 0:
        raise Unexpected(f"{expected}, of at least one byte")
    return size_bytes


def _thousandths(size_bytes: int, unit_bytes: int) -> str | None:
    """How many units the size is, with at most three decimals; None when that is not exact."""
    whole, rest = divmod(size_bytes * 1000, unit_bytes)
    if rest:
        return None
    fraction = f"{whole % 1000:03}".rstrip("0")
    return f"{whole // 1000}{'.' if fraction else ''}{fraction}"


def _scaled(text: str, units: dict[str, int]) -> Fraction | None:
    """The number in `text` times its unit; None when it is not a plain decimal number with one of `units`."""
    match = _NUMBER.fullmatch(text)
    if match is None or match["unit"] not in units:
        return None
    return Fraction(match["number"]) * units[match["unit"]]
