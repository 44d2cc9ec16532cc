"""The connections of a worker whose last bytes are still on their way."""

from collections.abc import Callable, Iterator, MutableSet

from portguard.gateway.admission import MOST_LINGERING
from portguard.gateway.lingering import Lingering


class Lingerers(MutableSet[Lingering]):
    """All of them, the oldest first. `on_empty()` is called when the last one is closed.

    Their sessions count no more, so there is a bound on them here: of more than `MOST_LINGERING` the oldest is closed
    at once. A client that ends one session after the other and takes nothing of what is left for it could otherwise
    use up the descriptors of all.
    """

    def __init__(self, on_empty: Callable[[], None]):
        self._on_empty = on_empty
        self._by_age: dict[Lingering, None] = {}

    def __contains__(self, one: object) -> bool:
        return one in self._by_age

    def __iter__(self) -> Iterator[Lingering]:
        return iter(self._by_age)

    def __len__(self) -> int:
        return len(self._by_age)

    def add(self, value: Lingering) -> None:
        """Note one, which is to be discarded when it is closed."""
        self._by_age[value] = None
        if len(self._by_age) > MOST_LINGERING:
            next(iter(self._by_age)).close()

    def discard(self, value: Lingering) -> None:
        """Forget one that is closed."""
        self._by_age.pop(value, None)
        if not self._by_age:
            self._on_empty()
