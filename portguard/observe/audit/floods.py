"""Bounds on what others can cause to be recorded, so that nobody fills the disk by being refused.

Every refusal counts: those that are not recorded one by one are in the `held_back` of the next that is.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from portguard.observe.audit.records import Fields
from portguard.observe.log import FloodGate

_BURST = 20
_PER_S = 1.0
_REPORT_S = 60.0
_MOST_KEYS = 4096


@dataclass(slots=True)
class _Gate:
    gate: FloodGate
    about: Fields  # what all that it holds back has in common


class RefusalGates:
    """One gate for all strangers together, and one for each identity, so that none hides another's refusals."""

    def __init__(self) -> None:
        self._gates: OrderedDict[Hashable, _Gate] = OrderedDict()
        self._report_s: float | None = None
        self._evicted: list[tuple[Fields, int]] = []

    def admit(self, key: Hashable, about: Fields, now_s: float) -> int | None:
        """Return how many of `key` were held back since the last that was let through; None to hold this one back.

        `about` is what to say of those that are held back and never followed by another.
        """
        gate = self._gates.get(key)
        if gate is None:
            gate = self._gates[key] = _Gate(FloodGate(burst=_BURST, per_s=_PER_S), about)
            if len(self._gates) > _MOST_KEYS:
                _, oldest = self._gates.popitem(last=False)
                if held_back := oldest.gate.take_held_back():
                    self._evicted.append((oldest.about, held_back))
        self._gates.move_to_end(key)
        return gate.gate.admit(now_s)

    def report(self, now_s: float, *, at_once: bool = False) -> Iterator[tuple[Fields, int]]:
        """Yield, once a minute, what was held back and is not told of yet: about whom, and how many."""
        if self._report_s is None:
            self._report_s = now_s
        if not at_once and now_s - self._report_s < _REPORT_S:
            return
        self._report_s = now_s
        yield from self._evicted
        self._evicted.clear()
        for gate in self._gates.values():
            if held_back := gate.gate.take_held_back():
                yield gate.about, held_back
