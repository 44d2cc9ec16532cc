"""Workers that the host has left behind: the files by which they resolve names are there no more.

A confined worker reads files as they were when it began, not what took their place (`confinement.resolver_files`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from portguard.observe import log

if TYPE_CHECKING:
    from portguard.gateway.workers import Worker

_SETTLED_S = 2.0  # what was changed on the host may change once more
_MOST_GENERATIONS = 3  # of workers that finish their sessions


class Outdated:
    """Finds those whose place others are to take."""

    def __init__(self) -> None:
        self._resolver: object = None  # by which files names were resolved at the last look
        self._since_s = 0.0  # since when it is these
        self._told: object = None  # those for which it was said that too many workers are left

    def among(self, workers: Collection[Worker], resolver: object, now_s: float) -> list[Worker]:
        """Return who is to be replaced now, as names are resolved by the files `resolver`; at time.monotonic().

        Nobody as long as the files may change once more, or too many who were replaced before are still there.
        """
        if resolver != self._resolver:
            self._resolver, self._since_s = resolver, now_s
        outdated = [worker for worker in workers if not worker.retiring and worker.resolver != resolver]
        if not outdated or now_s - self._since_s < _SETTLED_S:
            return []
        # Or a host that changes all the time would fill up with workers that have a long session each.
        if sum(worker.retiring for worker in workers) >= _MOST_GENERATIONS * len(outdated):
            if self._told != resolver:
                self._told = resolver
                message = "expected workers of before to have ended, got too many: names may not resolve until they do"
                log.event("warning", "worker.outdated", message=message)
            return []
        return outdated
