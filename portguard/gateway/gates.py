"""What a flow has to pass when its session may not move all that it likes: allowances, and the gate before them."""

import sys
from collections import deque
from collections.abc import Callable
from typing import Any

# A read of fewer bytes than a TLS record has would yield nothing for a long while. What was read too much is held.
_LEAST_READ = 16 * 1024

_NO_BOUND = sys.maxsize

_NOT_ASKED, _ASKED, _ASKED_EMPTY = range(3)


class Allowance:
    """Bytes that flows may move, and those that wait for more. `ask(empty)` asks for more.

    With `ahead` it is asked for while half is left, so that most often nobody waits.
    """

    __slots__ = ("_ahead", "_ask", "_asked", "_fresh", "_low", "_waiting", "left")

    def __init__(self, ask: Callable[[bool], None], *, ahead: bool):
        self._ask = ask
        self._ahead = ahead
        self._asked = _NOT_ASKED
        self._low = 0 if ahead else -1  # when no more than this is left, more is asked for
        self._waiting: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._fresh = False  # some came since the last lapse()
        self.left = 0

    def take(self, count: int) -> None:
        """Use `count` bytes of those that are left."""
        self.left -= count
        if self.left <= self._low and self._asked == _NOT_ASKED:
            self._asked = _ASKED
            self._ask(False)

    def wait(self, go_on: Callable[[Any], None], flow: object) -> None:
        """Have `go_on(flow)` called once there is something again. Nothing is left now."""
        self._waiting.append((go_on, flow))
        if self._asked != _ASKED_EMPTY:
            self._asked = _ASKED_EMPTY
            self._ask(True)

    def add(self, count: int) -> None:
        """More came. Those who wait go on, one after the other, as far as it lasts."""
        self.left += count
        self._fresh = True
        self._low = self.left // 2 if self._ahead else -1
        self._asked = _NOT_ASKED
        for _ in range(len(self._waiting)):
            if self.left <= 0:
                break
            go_on, flow = self._waiting.popleft()
            go_on(flow)
        if self._waiting and self.left <= 0 and self._asked != _ASKED_EMPTY:
            self._asked = _ASKED_EMPTY
            self._ask(True)

    def refused(self) -> None:
        """What was asked for will not come. Who waits is about to end; who comes next asks anew."""
        self._waiting.clear()
        self._asked = _NOT_ASKED

    def lapse(self) -> None:
        """Give up what came before the last call and is not used."""
        if self._fresh:
            self._fresh = False
        else:
            self.left = 0

    def wake(self) -> None:
        """Have those who wait go on with what is left: it came back, and nothing else may come."""
        if self._waiting and self.left > 0:
            self.add(0)

    def take_all(self) -> int:
        """Give up what is left; return how much that is."""
        left, self.left = self.left, 0
        return left


class Gate:
    """What one flow has to pass: the allowances of its account that concern it; without any, nothing passes."""

    __slots__ = ("_allowances", "held")

    def __init__(self, *allowances: Allowance):
        self._allowances = allowances
        self.held = b""  # was read, and may not be passed on yet

    def clip(self, limit: int) -> int:
        """How much to read at most, given that `limit` would be read otherwise.

        Never nothing: an end or a failure of the source is seen even when no byte may pass.
        """
        room = self._room(limit)
        return room if room > _LEAST_READ else min(limit, _LEAST_READ)

    def take(self, data: memoryview) -> memoryview:
        """Return what of `data` may be passed on now, which is used by that; the rest is held."""
        if self.held:
            self.held += data
            return data[:0]
        count = self._room(len(data))
        if count < len(data):
            self.held = bytes(data[count:])
            data = data[:count]
        if count:
            for allowance in self._allowances:
                allowance.take(count)
        return data

    def take_held(self) -> memoryview:
        """Return what was held, and hold it no longer."""
        held, self.held = self.held, b""
        return memoryview(held)

    def give_back(self, count: int) -> None:
        """Of what was taken, `count` bytes were not passed on. Call `wake` when others may go on."""
        for allowance in self._allowances:
            allowance.left += count

    def wake(self) -> None:
        """Have the flows that wait go on with what was given back."""
        for allowance in self._allowances:
            allowance.wake()

    def wait(self, go_on: Callable[[Any], None], flow: object) -> None:
        """Have `go_on(flow)` called once it may be worth while to try again."""
        if self._allowances:
            min(self._allowances, key=lambda allowance: allowance.left).wait(go_on, flow)

    def _room(self, count: int) -> int:
        """How many of `count` bytes may pass. Every chunk comes by, and comparisons take half of what min() does."""
        room = count if self._allowances else 0
        for allowance in self._allowances:
            if allowance.left < room:
                room = max(0, allowance.left)
        return room


def unlimited() -> Gate:
    """A gate that lets everything pass."""
    allowance = Allowance(lambda _empty: None, ahead=False)
    allowance.left = _NO_BOUND
    return Gate(allowance)
