"""Shares of bandwidths as the supervisor hands them out: to workers that ask, by turns, as bytes come together."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator

from portguard.limits.bandwidth import Bucket
from portguard.limits.ledger import Owner


class Shares:
    """The buckets of all owners, one for each direction. Belongs to the running loop.

    `bandwidth(role)` is in bytes a second, None for a role without. `give(worker, owner, direction, share_bytes)`
    tells a worker what it may forward.
    """

    def __init__(self, bandwidth: Callable[[str], int | None], give: Callable[[int, Owner, int, int], None]):
        self._bandwidth = bandwidth
        self._give = give
        self._loop = asyncio.get_running_loop()
        self._buckets: dict[tuple[Owner, int], Bucket] = {}  # by direction
        self._pouring: dict[tuple[Owner, int], asyncio.TimerHandle] = {}

    def configure(self) -> None:
        """Roles have other bandwidths: they are for those who share one already, too."""
        for (owner, _), bucket in self._buckets.items():
            if (bandwidth := self._bandwidth(owner.role)) is not None:
                bucket.set_rate(bandwidth, time.monotonic())

    def ask(self, worker: int, owner: Owner, direction: int) -> None:
        """A worker wants a share, which it is given now or later; none of a role that has no bandwidth."""
        bandwidth = self._bandwidth(owner.role)
        if bandwidth is None:
            return
        key, now_s = (owner, direction), time.monotonic()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(bandwidth, now_s)
        bucket.ask(worker, now_s)
        if key not in self._pouring:
            self._pour(key)

    def forget(self, worker: int) -> None:
        """A worker is no more."""
        for bucket in self._buckets.values():
            bucket.forget(worker)

    def waiting(self) -> Iterator[tuple[Owner, int, Collection[int]]]:
        """Owners and directions, and the workers that wait for a share, in the order of their turns."""
        for (owner, direction), bucket in self._buckets.items():
            yield owner, direction, bucket.waiting

    def drop_idle(self) -> None:
        """Let go of what nobody draws on. Now and then."""
        for key, bucket in list(self._buckets.items()):
            if key not in self._pouring and bucket.idle(time.monotonic()):
                del self._buckets[key]

    def stop(self) -> None:
        """Give nobody anything any more."""
        for timer in self._pouring.values():
            timer.cancel()

    def _pour(self, key: tuple[Owner, int]) -> None:
        self._pouring.pop(key, None)
        bucket, now_s = self._buckets[key], time.monotonic()
        for worker, share_bytes in bucket.grants(now_s):
            self._give(worker, *key, share_bytes)
        due_s = bucket.due_s(now_s)
        if due_s is not None:
            self._pouring[key] = self._loop.call_later(due_s - now_s, self._pour, key)
