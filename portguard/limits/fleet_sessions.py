"""How many sessions there are, of what has a bound, at this gateway of a fleet and at the others.

Only counts are shared, and only of identities in roles and of services that have a `max_sessions`.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable

from portguard.limits.fleet import Counted, SessionsElsewhere, SessionsRow


class FleetSessions:
    """Both counts. `is_bounded` says of what a bound is on."""

    def __init__(self, is_bounded: Callable[[Counted], bool]):
        self._is_bounded = is_bounded
        self._here: Counter[Counted] = Counter()
        self._changed: set[Counted] = set()
        self._told: set[Counted] = set()  # of what others have been told that there is some
        self._elsewhere: dict[Counted, dict[str, int]] = {}  # by gateway; what is nothing is left out

    def began(self, *counted: Counted) -> None:
        """A session has begun, that counts for all of these."""
        self._here.update(counted)
        self._changed.update(counted)

    def ended(self, *counted: Counted) -> None:
        """One has ended."""
        for each in counted:
            self._here[each] -= 1
            if not self._here[each]:
                del self._here[each]
        self._changed.update(counted)

    def bounds_changed(self) -> None:
        """Something may have a bound that had none, or none any more."""
        self._changed.update(self._here, self._told)

    def take_rows(self) -> list[SessionsRow]:
        """Return what others are to know, and were not told yet."""
        changed, self._changed = self._changed, set()
        # What has no bound any more would stay as it was told last, and count when it has one again.
        counts = {counted: self._here[counted] if self._is_bounded(counted) else 0 for counted in changed}
        rows = [SessionsRow(*each) for each in counts.items() if each[1] or each[0] in self._told]
        for counted, sessions in rows:
            (self._told.add if sessions else self._told.discard)(counted)
        return rows

    def hear(self, news: Iterable[SessionsElsewhere], gone: Collection[str], *, all_there_is: bool) -> None:
        """Take note of what others have told, and that gateways are `gone`, with their sessions.

        `all_there_is`: what is not named is nothing.
        """
        if all_there_is:
            self._elsewhere.clear()
        for counted, gateway, sessions in news:
            self._elsewhere.setdefault(counted, {})[gateway] = sessions
            self._drop(counted, () if sessions else (gateway,))
        if gone:
            for counted in list(self._elsewhere):
                self._drop(counted, gone)

    def elsewhere(self, counted: Counted) -> int:
        """How many there are at other gateways, as far as is known."""
        return sum(self._elsewhere.get(counted, {}).values())

    def _drop(self, counted: Counted, gateways: Collection[str]) -> None:
        counts = self._elsewhere[counted]
        for gateway in gateways:
            counts.pop(gateway, None)
        if not counts:
            del self._elsewhere[counted]
