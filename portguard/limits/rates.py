"""How often an owner may connect: a sliding window over the wall clock, which outlives restarts.

At most `count` are admitted in any `per_s` seconds, and never one more. Each is remembered for `per_s`; where many are,
those of the same sixtieth of `per_s` are remembered together until the last of them is over. So it may refuse for up to
a sixtieth of `per_s` longer than need be, and never needs more than `MAX_ENTRIES`.

The wall clock is set now and then. What lies in its future when it was put back counts as of now: that neither forgives
nor refuses for longer than `per_s`. Putting it forward forgives.
"""

import math
import re
from collections.abc import Iterable, Iterator
from itertools import accumulate

from portguard.limits.fleet import OthersConnects
from portguard.limits.ledger import Owner, RateRow
from portguard.policy.quantities import Rate

CELLS = 60
MAX_ENTRIES = CELLS + 1
"""A window that starts amidst a cell ends amidst another."""

_TEXT = re.compile(r"(?P<per_s>[0-9]{1,5}):(?P<last_ms>[0-9]{1,15}):(?P<entries>[0-9x,]+)", re.ASCII)
_ENTRY = re.compile(r"(?P<before_ms>[0-9]{1,15})(?:x(?P<count>[0-9]{1,9}))?", re.ASCII)
_EXPECTED = 'connects such as "60:1795478400250:2000,250,0x3"'
_FEW_OWNERS = 1024


class Connects:
    """When one owner connected of late, as far as a rate needs it. Every `now_s` is of the wall clock."""

    __slots__ = ("_count", "_entries", "_per_s")

    def __init__(self) -> None:
        self._per_s = 1
        # (when the last of them was, in milliseconds since the epoch, rounded up; how many), in the order of time.
        self._entries: list[tuple[int, int]] = []
        self._count = 0  # of them all

    def admit(self, now_s: float, rate: Rate, others: Iterable["Connects"] = ()) -> float:
        """0.0, and it is counted; or, if that would be one too many, after how many seconds (above 0) to try again.

        `others` are the same owner's connects to other gateways, which count too. What is refused is not counted. After
        a change of the rate, what is still remembered counts against the new one. *Fails closed*: whatever is not known
        to the millisecond is taken to be later.
        """
        self.put_back(now_s)
        self._per_s = rate.per_s
        per_ms = rate.per_s * 1000
        floor_ms = math.floor(now_s * 1000)
        self._forget(floor_ms - per_ms)
        now_ms = math.ceil(now_s * 1000)
        elsewhere = [entry for other in others for entry in other.between(floor_ms - per_ms, now_ms)]
        entries = sorted(self._entries + elsewhere) if elsewhere else self._entries
        surplus = self._count + sum(count for _, count in elsewhere) + 1 - rate.count
        if surplus <= 0:
            self._remember(now_ms, per_ms)
            return 0.0
        over_by = accumulate(count for _, count in entries)
        last_ms = next(last_ms for (last_ms, _), over in zip(entries, over_by, strict=True) if over >= surplus)
        # A millisecond more: the sum of two floats may lie just below the instant that is meant.
        return (last_ms + per_ms - floor_ms + 1) / 1000

    def wait_s(self, now_s: float, rate: Rate, others: Iterable["Connects"] = ()) -> float:
        """What `admit` would answer. Nothing is counted, and nothing forgotten."""
        trial = Connects()
        trial._entries, trial._count = self._entries.copy(), self._count
        return trial.admit(now_s, rate, others)

    def between(self, from_ms: int, now_ms: int) -> Iterator[tuple[int, int]]:
        """When how many were after `from_ms`; as of now what lies in the future: their clock may be ahead."""
        return ((min(last_ms, now_ms), count) for last_ms, count in self._entries if last_ms > from_ms)

    def put_back(self, now_s: float) -> None:
        """Count as of now what the clock, if it was put back, has in its future."""
        now_ms = math.ceil(now_s * 1000)
        if self._entries and self._entries[-1][0] > now_ms:
            future = sum(count for last_ms, count in self._entries if last_ms > now_ms)
            self._entries = [entry for entry in self._entries if entry[0] <= now_ms] + [(now_ms, future)]

    def idle(self, now_s: float) -> bool:
        """Whether nothing is remembered any more."""
        return now_s >= self.end_s

    @property
    def end_s(self) -> int:
        """When it will be idle (whole seconds since the epoch, rounded up), if no more come; 0 when none came."""
        return math.ceil(self._entries[-1][0] / 1000) + self._per_s if self._entries else 0

    def to_text(self) -> str:
        """Compact, for the ledger: the window, the last instant, and how long before it how many came. "" for none."""
        if not self._entries:
            return ""
        newest_ms = self._entries[-1][0]
        entries = ",".join(
            f"{newest_ms - last_ms}x{count}" if count > 1 else f"{newest_ms - last_ms}"
            for last_ms, count in self._entries
        )
        return f"{self._per_s}:{newest_ms}:{entries}"

    @classmethod
    def from_text(cls, text: str) -> "Connects":
        """The inverse of `to_text`. Raises ValueError."""
        connects = cls()
        if text and not connects._read(text):
            raise ValueError(f"expected {_EXPECTED}, got {text[:100]!a}")
        return connects

    def _read(self, text: str) -> bool:
        match = _TEXT.fullmatch(text)
        written = match["entries"].split(",") if match else []
        entries = [entry for entry in map(_ENTRY.fullmatch, written) if entry]
        if match is None or len(entries) != len(written) or len(entries) > MAX_ENTRIES:
            return False
        self._per_s = int(match["per_s"])
        last_ms = int(match["last_ms"])
        self._entries = [(last_ms - int(entry["before_ms"]), int(entry["count"] or 1)) for entry in entries]
        times_ms = [0, *(at_ms for at_ms, _ in self._entries)]
        counts = [count for _, count in self._entries]
        self._count = sum(counts)
        return (
            1 <= self._per_s <= 86_400 and times_ms == sorted(times_ms) and times_ms[-1] == last_ms and min(counts) > 0
        )

    def _forget(self, until_ms: int) -> None:
        over = 0
        for last_ms, count in self._entries:
            if last_ms > until_ms:
                break
            over += 1
            self._count -= count
        del self._entries[:over]

    def _remember(self, at_ms: int, per_ms: int) -> None:
        """Count one that came after all others."""
        self._count += 1
        if len(self._entries) < MAX_ENTRIES:
            self._entries.append((at_ms, 1))
            return
        last_ms, count = self._entries[-1]
        if last_ms * CELLS // per_ms == at_ms * CELLS // per_ms:
            self._entries[-1] = (at_ms, count + 1)
        else:
            self._entries.append((at_ms, 1))
            self._merge_cells(per_ms)

    def _merge_cells(self, per_ms: int) -> None:
        merged: dict[int, tuple[int, int]] = {}
        for last_ms, count in self._entries:
            cell = last_ms * CELLS // per_ms
            merged[cell] = (last_ms, count + (merged[cell][1] if cell in merged else 0))
        self._entries = list(merged.values())


class ConnectRates:
    """The connects of every owner. It forgets those who are idle, and tells the ledger what has changed."""

    def __init__(self) -> None:
        self._connects: dict[Owner, Connects] = {}
        self._others: dict[Owner, dict[str, Connects]] = {}  # to other gateways, by those
        self._changed: dict[Owner, None] = {}
        self._many = _FEW_OWNERS

    def admit(self, owner: Owner, rate: Rate, now_s: float) -> float:
        """As `Connects.admit`."""
        connects = self._connects.get(owner)
        if connects is None:
            if len(self._connects) >= self._many:
                self.forget_idle(now_s)
                # Not again before as many more have come: to look at all of them takes its time.
                self._many = max(_FEW_OWNERS, 2 * len(self._connects))
            connects = self._connects[owner] = Connects()
        end_s = connects.end_s
        wait_s = connects.admit(now_s, rate, self._elsewhere(owner))
        # Without an admission it ends at another time when the clock was put back, or the rate has another window.
        if not wait_s or connects.end_s != end_s:
            self._changed[owner] = None
        return wait_s

    def wait_s(self, owner: Owner, rate: Rate, now_s: float) -> float:
        """As `Connects.wait_s`."""
        connects = self._connects.get(owner)
        if connects is None and owner not in self._others:
            return 0.0
        return (connects or Connects()).wait_s(now_s, rate, self._elsewhere(owner))

    def hear(self, news: Iterable[OthersConnects], *, all_there_is: bool = False) -> None:
        """Take note of connects to other gateways. `all_there_is`: what is not named is forgotten.

        Raises ValueError when one is nonsense.
        """
        if all_there_is:
            self._others.clear()
        for owner, gateway, text in news:
            self._others.setdefault(owner, {})[gateway] = Connects.from_text(text)

    def _elsewhere(self, owner: Owner) -> Iterable[Connects]:
        return self._others[owner].values() if owner in self._others else ()

    def load(self, rows: Iterable[RateRow]) -> None:
        """Remember what the ledger has. Raises ValueError, and remembers none of them, when one is nonsense."""
        loaded = {}
        for row in rows:
            try:
                loaded[row.owner] = Connects.from_text(row.connects)
            except ValueError as error:
                raise ValueError(f"connects of {row.owner.name!a} in role {row.owner.role!a}: {error}") from None
        self._connects.update(loaded)

    def changed(self) -> list[RateRow]:
        """The rows to write: of those whose connects have changed since the last call. One that is over says ""."""
        rows = []
        for owner in self._changed:
            connects = self._connects.get(owner) or Connects()
            rows.append(RateRow(owner, connects.to_text(), connects.end_s))
        self._changed.clear()
        return rows

    def reset(self, owner: Owner) -> None:
        """Forget how often the owner has connected."""
        if self._connects.pop(owner, None) is not None:
            self._changed[owner] = None

    def forget_idle(self, now_s: float) -> None:
        """Forget those of whom nothing is remembered any more."""
        for owner, connects in list(self._connects.items()):
            end_s = connects.end_s
            connects.put_back(now_s)
            if connects.end_s != end_s:
                self._changed[owner] = None
            if connects.idle(now_s):
                del self._connects[owner]
        for owner, others in list(self._others.items()):
            if all(connects.idle(now_s) for connects in others.values()):
                del self._others[owner]
