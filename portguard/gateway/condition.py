"""What is wrong with the gateway at the moment, since when, and the sentence that says so to a tired person."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    """How the gateway is, in one word."""

    SERVING = "serving"
    DEGRADED = "degraded"  # clients are served, and somebody should look
    REFUSING = "refusing"  # nobody gets in
    DRAINING = "draining"  # nobody gets in, as somebody wanted


class Failing(NamedTuple):
    """For how many seconds something could not be written, and why, for people."""

    seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is not as it should be. `code` is stable; `detail` is for people, and may have a path in it."""

    code: str
    state: State
    detail: str
    problem: str  # a sentence of its own, for /readyz
    since_s: float | None = None  # since the epoch; None: since it was first seen


@dataclass(frozen=True, slots=True)
class Condition:
    """The gateway at one moment. The troubles are in the order of their weight, each with its time since the epoch."""

    troubles: tuple[tuple[Trouble, float], ...]
    sessions: int

    @property
    def state(self) -> State:
        """The word for the weightiest."""
        return self.troubles[0][0].state if self.troubles else State.SERVING

    @property
    def since_s(self) -> float | None:
        """When the weightiest began; None when there is none."""
        return self.troubles[0][1] if self.troubles else None

    @property
    def not_ready(self) -> Sequence[str]:
        """Why nobody gets in."""
        return [trouble.problem for trouble, _ in self.troubles if trouble.state is not State.DEGRADED]

    def verdict(self, now: datetime) -> str:
        """One line; times are in the zone of `now`."""
        if not self.troubles:
            return "SERVING"
        trouble, since_s = self.troubles[0]
        since = _clock_time(since_s, now)
        match trouble.state:
            case State.DRAINING:
                left = f"{self.sessions} session{'s' * (self.sessions != 1)} left"
                line = f"DRAINING since {since}: {trouble.detail}, {left}"
            case State.REFUSING:
                line = f"REFUSING ALL since {since}: {trouble.code} ({trouble.detail})"
            case _:
                line = f"DEGRADED since {since}: {trouble.detail}"
        more = len(self.troubles) - 1
        return f"{line}; and {more} more" if more else line


class Troubles:
    """Remembers when each began. `look()` answers those that there are now; `clock()` is seconds since the epoch."""

    def __init__(self, look: Callable[[], Iterable[Trouble]], clock: Callable[[], float]):
        self._look = look
        self._clock = clock
        self._since_s: dict[str, float] = {}  # by code

    def now(self) -> tuple[tuple[Trouble, float], ...]:
        """Those that there are, weightiest first. To be called now and then, or it is late to say when one began."""
        found = sorted(self._look(), key=lambda trouble: _WEIGHT.index(trouble.state))  # stable: order of looking
        now_s = self._clock()
        before, self._since_s = self._since_s, {}
        for trouble in found:
            first_s = before.get(trouble.code, now_s)
            self._since_s[trouble.code] = trouble.since_s if trouble.since_s is not None else first_s
        return tuple((trouble, self._since_s[trouble.code]) for trouble in found)


_WEIGHT = (State.DRAINING, State.REFUSING, State.DEGRADED)


def _clock_time(instant_s: float, now: datetime) -> str:
    instant = datetime.fromtimestamp(instant_s, _zone(now))
    return instant.strftime("%H:%M" if instant.date() == now.date() else "%Y-%m-%d %H:%M")


def _zone(now: datetime) -> tzinfo | None:
    return now.tzinfo
