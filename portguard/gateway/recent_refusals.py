"""Why clients were refused of late: the differences between counts that were taken now and then."""

from collections import Counter, deque
from collections.abc import Mapping

SPAN_S = 300.0
_EVERY_S = 10.0


class RecentRefusals:
    """Belongs to a count that only grows, by service and reason. Kept are sums by reason, about thirty of them."""

    def __init__(self, refused: Mapping[tuple[str, str], int], now_s: float):
        self._refused = refused
        self._taken: deque[tuple[float, Counter[str]]] = deque([(now_s, self._by_reason())])

    def tick(self, now_s: float) -> None:
        """To be called about once a second, at time.monotonic()."""
        if now_s - self._taken[-1][0] < _EVERY_S:
            return
        self._taken.append((now_s, self._by_reason()))
        while now_s - self._taken[1][0] >= SPAN_S:  # the one before it is older than what is asked for
            self._taken.popleft()

    def top(self, most: int) -> list[tuple[str, int]]:
        """The reasons that were given most often, and how often each, in the last five minutes or a little more."""
        return (self._by_reason() - self._taken[0][1]).most_common(most)

    def _by_reason(self) -> Counter[str]:
        reasons: Counter[str] = Counter()
        for (_, reason), count in self._refused.items():
            reasons[reason] += count
        return reasons
