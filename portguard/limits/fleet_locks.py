"""The locks of a fleet as one of its gateways knows them, those that were taken away too; also kept in its folder."""

import threading
import time
from collections.abc import Iterable

from portguard.errors import because
from portguard.limits.fleet import MOST_LOCKS, StampedLock, is_long_over, merge_locks
from portguard.limits.fleet_folder import FleetFolder
from portguard.limits.ledger import LockRow
from portguard.limits.redis_texts import NotAFleet
from portguard.observe import log


class FleetLocks:
    """Those in the folder, and what is decided and heard afterwards. Any thread may call any method but `keep`."""

    def __init__(self, folder: FleetFolder):
        self._folder = folder
        self._guard = threading.Lock()
        self._locks = {lock.row.target: lock for lock in folder.locks}
        self._kept = True  # the folder has them
        self._keep_failed = False

    def in_force(self, now_s: float) -> tuple[LockRow, ...]:
        """Those that act at `now_s`, since the epoch."""
        rows = (lock.row for lock in self.all())
        return tuple(row for row in rows if row.until_s is None or now_s < row.until_s)

    def all(self) -> list[StampedLock]:
        """Those that are over too."""
        with self._guard:
            return list(self._locks.values())

    def decide(self, row: LockRow) -> StampedLock:
        """An operator of this gateway has locked, or taken a lock away."""
        with self._guard:
            held = self._locks.get(row.target)
            if held is None or held.row != row:
                # Later than what it decides about, whatever the clocks say: who sees a lock can take it away.
                at_ms = max(time.time_ns() // 1_000_000, held.at_ms + 1 if held is not None else 0)
                held = self._locks[row.target] = StampedLock(row, at_ms)
                self._kept = False
            return held

    def merge(self, heard: Iterable[StampedLock]) -> list[LockRow]:
        """Put what is newer in place of what is held; return what that was. Raises NotAFleet, and then merges none."""
        heard = tuple(heard)
        with self._guard:
            locks = dict(self._locks)
            newer = merge_locks(locks, heard)
            if newer:
                now_s = time.time()
                ends_s = [lock.row.until_s for lock in locks.values()]
                if sum(end_s is None or end_s > now_s for end_s in ends_s) > MOST_LOCKS:
                    raise NotAFleet(f"at most {MOST_LOCKS} locks", "more")
            self._locks = locks
            self._kept = self._kept and not newer
        return [lock.row for lock in newer]

    def forget(self, now_s: float) -> None:
        """Forget those of which nobody needs to hear any more at `now_s`, since the epoch."""
        with self._guard:
            for lock in [lock for lock in self._locks.values() if is_long_over(lock, now_s)]:
                del self._locks[lock.row.target]

    def keep(self) -> None:
        """Have the folder hold them, if it does not. Where that fails it is logged once, and the next call tries."""
        with self._guard:
            if self._kept:
                return
            locks = list(self._locks.values())
            self._kept = True
        try:
            self._folder.keep(locks)
        except OSError as error:
            with self._guard:
                self._kept = False
            if not self._keep_failed:
                log.event("error", "ledger.locks_not_kept", file=self._folder.path, message=because(error))
            self._keep_failed = True
        else:
            self._keep_failed = False
