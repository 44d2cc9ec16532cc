"""Bandwidth: a token bucket that workers draw from by turns, for one owner and one direction.

A worker asks when it needs bytes to forward, and is granted some once they have come together; whoever asks again waits
behind those who asked before. So one that asks alone gets the whole rate, and several get equal shares of it.

Grants in any interval are at most the rate times its length, and `DEPTH_S` of the rate. What a worker was granted, it
may use at once or hold: hence a grant is `GRANT_S` of the rate, split by all who may hold one, and lapses after
`LAPSE_S`.
"""

DEPTH_S = 0.05
"""How many seconds' worth of bytes come together while nobody asks, to make up for what comes late, or in bursts."""

GRANT_S = DEPTH_S / 2
"""How many seconds' worth all who ask are granted in a round.

Below the depth: what a timer that is late by half the depth finds has not run over.
"""

LAPSE_S = 1.0
"""A worker throws away what it was granted longer ago than this. Until then it counts as one who may hold a grant."""

_MARGIN_S = 1e-6
"""Above the steps of a clock in a float: a timer set to `due_s` must not find that it is early, and set itself anew."""


class Bucket:
    """The tokens of one owner in one direction. Every `now_s` is monotonic; workers are known by a number.

    `bytes_per_s` is at least 1. The bucket starts full.
    """

    __slots__ = ("_asked_s", "_bytes_per_s", "_filled_s", "_tokens", "_waiting")

    def __init__(self, bytes_per_s: int, now_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._filled_s = now_s
        self._tokens = self._depth
        self._waiting: dict[int, None] = {}  # in the order of their turns
        self._asked_s: dict[int, float] = {}  # when each was last seen to ask, or granted something

    def ask(self, worker: int, now_s: float) -> None:
        """Wait for a turn. Who waits already keeps the turn they have."""
        self._waiting.setdefault(worker)
        self._asked_s[worker] = now_s

    def grants(self, now_s: float) -> list[tuple[int, int]]:
        """Who may forward how many bytes now (at least 1 each), in order. They wait no more: they ask for the next."""
        self._fill(now_s)
        size = self._grant_bytes(now_s)
        granted: list[tuple[int, int]] = []
        while self._waiting and self._tokens >= size:
            worker = next(iter(self._waiting))
            del self._waiting[worker]
            self._asked_s[worker] = now_s
            self._tokens -= size
            granted.append((worker, size))
        return granted

    @property
    def waiting(self) -> tuple[int, ...]:
        """The workers that wait, in the order of their turns."""
        return tuple(self._waiting)

    def due_s(self, now_s: float) -> float | None:
        """The time, by the clock of `now_s` and not before it, at which `grants` has something; None: nobody waits."""
        if not self._waiting:
            return None
        self._fill(now_s)
        missing = self._grant_bytes(now_s) - self._tokens
        return now_s if missing <= 0 else now_s + missing / self._bytes_per_s + _MARGIN_S

    def forget(self, worker: int) -> None:
        """The worker is gone, or has nothing to forward: it neither waits nor holds anything."""
        self._waiting.pop(worker, None)
        self._asked_s.pop(worker, None)

    def set_rate(self, bytes_per_s: int, now_s: float) -> None:
        """From now on another rate applies, also to those who wait."""
        self._fill(now_s)
        self._bytes_per_s = bytes_per_s

    def idle(self, now_s: float) -> bool:
        """Whether a new bucket in its place would be the same: it is full, nobody waits or may hold anything."""
        self._fill(now_s)
        return not self._waiting and self._tokens >= self._depth and not self._holders(now_s)

    @property
    def _depth(self) -> float:
        return max(1.0, DEPTH_S * self._bytes_per_s)

    def _fill(self, now_s: float) -> None:
        elapsed_s = max(0.0, now_s - self._filled_s)
        self._tokens = min(self._depth, self._tokens + elapsed_s * self._bytes_per_s)
        self._filled_s = max(self._filled_s, now_s)

    def _grant_bytes(self, now_s: float) -> int:
        return max(1, int(GRANT_S * self._bytes_per_s / max(1, self._holders(now_s))))

    def _holders(self, now_s: float) -> int:
        """How many wait, or may hold a grant."""
        for worker, asked_s in list(self._asked_s.items()):
            if now_s - asked_s > LAPSE_S and worker not in self._waiting:
                del self._asked_s[worker]
        return len(self._asked_s)
