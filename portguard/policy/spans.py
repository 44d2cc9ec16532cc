"""Spans of whole numbers: minutes of a week, addresses of a network."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

Span = tuple[int, int]
"""From a number (included) to a larger one (excluded)."""


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same numbers in as few spans as possible, ascending."""
    result: list[Span] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return tuple(result)


def contains(wide: Iterable[Span], narrow: Iterable[Span]) -> bool:
    """Whether every number of `narrow` is in `wide`; both are merged."""
    wide = tuple(wide)
    return all(any(start <= a and b <= end for start, end in wide) for a, b in narrow)


class Steps:
    """For any number, the mask of those whose spans hold it; it changes only where a span begins or ends."""

    def __init__(self, numbered_spans: Iterable[tuple[int, Iterable[Span]]]):
        changes: defaultdict[int, int] = defaultdict(int)
        for number, spans in numbered_spans:
            # Merged spans do not overlap, so each border turns the bit on or off.
            for start, end in merged(spans):
                changes[start] ^= 1 << number
                changes[end] ^= 1 << number
        self._starts: list[int] = sorted(changes)
        self._masks = [0]
        for start in self._starts:
            self._masks.append(self._masks[-1] ^ changes[start])

    def at(self, number: int) -> int:
        """The mask at `number`."""
        return self._masks[bisect_right(self._starts, number)]


def network_span(network: IPv4Network | IPv6Network) -> Span:
    """The addresses of a network, as numbers."""
    start = int(network.network_address)
    return start, start + network.num_addresses
