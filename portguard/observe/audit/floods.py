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
_BURST_OF_ALL = 1000
_PER_S_OF_ALL = 100.0
_REPORT_S = 60.0
_MOST_KEYS = 4096
_MOST_EVICTED = 1000
_SOME: Fields = {"identity": None}  # held back of identities, and not known any more of which


@dataclass(slots=True)
class _Gate:
    gate: FloodGate
    about: Fields  # what all that it holds back has in common


class RefusalGates:
    """One gate for all strangers together, and one for each identity, so that none hides another's refusals.

    Behind them is one for all, as who has an authority's key, or a worker in its hands, has identities without end.
    """

    def __init__(self) -> None:
        self._gates: OrderedDict[Hashable, _Gate] = OrderedDict()
        self._all = FloodGate(burst=_BURST_OF_ALL, per_s=_PER_S_OF_ALL)
        self._report_s: float | None = None
        self._evicted: list[tuple[Fields, int]] = []
        self._evicted_unnamed = 0  # of more than _MOST_EVICTED

    def admit(self, key: Hashable, about: Fields, now_s: float) -> int | None:
        """Return how many of `key` were held back since the last that was let through; None to hold this one back.

        `about` is what to say of those that are held back and never followed by another.
        """
        gate = self._gates.get(key)
        if gate is None:
            gate = self._gates[key] = _Gate(FloodGate(burst=_BURST, per_s=_PER_S), about)
            if len(self._gates) > _MOST_KEYS:
                _, oldest = self._gates.popitem(last=False)
                self._evict(oldest)
        self._gates.move_to_end(key)
        held_back = gate.gate.admit(now_s)
        if held_back is not None and self._all.admit(now_s) is None:
            gate.gate.hold_back(held_back + 1)
            return None
        return held_back

    def _evict(self, gate: _Gate) -> None:
        held_back = gate.gate.take_held_back()
        if len(self._evicted) >= _MOST_EVICTED:
            self._evicted_unnamed += held_back
        elif held_back:
            self._evicted.append((gate.about, held_back))

    def report(self, now_s: float, *, at_once: bool = False) -> Iterator[tuple[Fields, int]]:
        """Yield, once a minute, what was held back and is not told of yet: about whom, and how many."""
        if self._report_s is None:
            self._report_s = now_s
        if not at_once and now_s - self._report_s < _REPORT_S:
            return
        self._report_s = now_s
        yield from self._evicted
        self._evicted.clear()
        if self._evicted_unnamed:
            yield _SOME, self._evicted_unnamed
            self._evicted_unnamed = 0
        for gate in self._gates.values():
            if held_back := gate.gate.take_held_back():
                yield gate.about, held_back
