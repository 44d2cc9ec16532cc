"""Leases: where a role has a quota, no byte moves that is not leased, so all workers together never pass it.

A lease is taken off every quota that it falls under, of the identity and of its role as a whole, before it is given.
A worker holds that of an identity in a role for all the sessions of the two that it carries. It

    asks        when it has used half of its lease, and once more when it has nothing left
    is leased   bytes, fewer as the quota nears its end; or it waits, while others hold what is left
    is recalled and gives back what it has not used, at once, because somebody else has nothing
    is refused  when nothing is left, and nobody holds anything

and gives back what is left with the last session. How much it has used is told by its sessions' counts, also after it
was killed. Time is seconds since the epoch.
"""

from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from portguard.errors import Refused
from portguard.limits.account import Account, Holding
from portguard.limits.accounts import Accounts
from portguard.limits.ledger import Owner

FIRST_BYTES = 1024 * 1024
LARGEST_BYTES = 128 * 1024 * 1024
_GROWTH = 4  # of who asks again, so that a transfer is soon held up no more
SMALLEST_BYTES = 64 * 1024
"""What is left is shared out in no smaller pieces: the last one goes to one worker as a whole."""

RECALL_TICKS = 10
"""How often `overdue` is called, about once a second, until a recall should have been answered."""

_SHARES = 4  # a lease is at most this part of what is left, for each worker that holds one


class Lease(NamedTuple):
    """A worker may use so many bytes more. Not `safe`: only once the ledger has the accounts' `rows_for` the owner."""

    worker: int
    owner: Owner
    lease_bytes: int
    safe: bool


class Recall(NamedTuple):
    """A worker shall give back what it has not used."""

    worker: int
    owner: Owner


class Exhausted(NamedTuple):
    """There is nothing for a worker any more, until the period ends."""

    worker: int
    owner: Owner
    refused: Refused


Answer = Lease | Recall | Exhausted


@dataclass(slots=True)
class _Session:
    account: Account
    holding: Holding | None  # None: its role has no quota
    noted: int  # of a session without holding: how much of what it has moved is in the account, or another one


class Leases:
    """All leases. `moved(slot)` is how many bytes a live session has moved so far, both ways together."""

    def __init__(self, accounts: Accounts, moved: Callable[[int], int]):
        self._accounts = accounts
        self._moved = moved
        self._sessions: dict[int, _Session] = {}  # by slot
        self._holdings: dict[tuple[Owner, int], Holding] = {}
        self._waiting: dict[str, list[Holding]] = {}  # by role, first come first served
        self._recalls: dict[tuple[Owner, int], int] = {}  # under way, and how many ticks ago each began

    def are_needed(self, role: str) -> bool:
        """Whether sessions of the role may move leased bytes only."""
        limits = self._accounts.limits(role)
        return bool(limits.quota or limits.pooled_quota)

    def check(self, owner: Owner, now_s: float) -> None:
        """Raise Refused with `quota_exhausted` if a session would find nothing to use. *Fails closed*."""
        self._accounts.roll(now_s)
        if (
            self.are_needed(owner.role)
            and self._accounts.left(owner) <= 0
            and not any(holding.unspent() > 0 for holding in self._accounts.short(owner).holdings.values())
        ):
            raise self._accounts.exhausted(owner, now_s)

    def state(self) -> dict[str, Any]:
        """Everything, for another program that goes on with it: what json.dumps() takes."""
        return {
            "holdings": [
                [
                    *holding.owner,
                    holding.worker,
                    list(holding.slots.items()),
                    holding.leased,
                    holding.spent,
                    holding.next_bytes,
                    holding.recalled,
                ]
                for holding in self._holdings.values()
            ],
            "sessions": [
                [
                    slot,
                    *session.account.owner,
                    None if session.holding is None else session.holding.worker,
                    session.noted,
                ]
                for slot, session in self._sessions.items()
            ],
            "waiting": [[*holding.owner, holding.worker] for row in self._waiting.values() for holding in row],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`; that of the accounts is restored already."""
        for role, trust, name, worker, slots, leased, spent, next_bytes, recalled in state["holdings"]:
            holding = self._hold(Owner(role, trust, name), worker)
            holding.slots = dict(map(tuple, slots))
            holding.leased, holding.spent, holding.next_bytes, holding.recalled = leased, spent, next_bytes, recalled
            if recalled:
                self._recalls[holding.owner, worker] = 0
        for slot, role, trust, name, worker, noted in state["sessions"]:
            owner = Owner(role, trust, name)
            holding_of = None if worker is None else self._holdings[owner, worker]
            self._sessions[slot] = _Session(self._accounts.account(owner), holding_of, noted)
        for role, trust, name, worker in state["waiting"]:
            holding = self._holdings[Owner(role, trust, name), worker]
            holding.waiting = True
            self._waiting.setdefault(role, []).append(holding)

    # Sessions.

    def open(self, slot: int, worker: int, owner: Owner, now_s: float, moved_bytes: int = 0) -> Lease | None:
        """A session begins, or goes on in another role: `end` it there before, at the same `moved_bytes`.

        The answer is its first lease, if it needs one and there is one.
        """
        self._accounts.roll(now_s)
        account = self._accounts.account(owner)
        if not self.are_needed(owner.role):
            self._sessions[slot] = _Session(account, None, moved_bytes)
            return None
        holding = self._holdings.get((owner, worker))
        if holding is None:
            holding = self._hold(owner, worker)
        holding.slots[slot] = moved_bytes
        self._sessions[slot] = _Session(account, holding, 0)
        if holding.waiting or holding.unspent() > 0 or self._accounts.left(owner) <= 0:
            return None
        return self._lease(holding)

    def end(self, slot: int, moved_bytes: int, now_s: float) -> None:
        """A session has ended, and has moved so much altogether. Raises KeyError for one that never began."""
        self._accounts.roll(now_s)
        session = self._sessions.pop(slot)
        if session.holding is None:
            self._accounts.use(session.account, max(0, moved_bytes - session.noted))
            return
        holding = session.holding
        # As in unspent(): no worker's word makes it more than what was leased, nor gives back what was used before.
        used_bytes = max(0, moved_bytes - holding.slots.pop(slot))
        holding.spent = min(holding.leased, holding.spent + used_bytes)
        self._drop_if_over(holding)

    def slots(self) -> Collection[int]:
        """The slots of all sessions."""
        return tuple(self._sessions)

    def note(self, slot: int, now_s: float) -> None:
        """Enter what a live session without a lease has moved; nothing for others, and for one that has ended."""
        self._accounts.roll(now_s)
        session = self._sessions.get(slot)
        # Less than before is a count that its worker has forged, or bytes that did not get out: they do again.
        if session is not None and session.holding is None and (moved := self._moved(slot)) > session.noted:
            self._accounts.use(session.account, moved - session.noted)
            session.noted = moved

    # Leases.

    def ask(self, worker: int, owner: Owner, now_s: float, *, empty: bool) -> list[Answer]:
        """A worker wants more; `empty`: it has nothing left, and sessions wait."""
        self._accounts.roll(now_s)
        holding = self._holdings.get((owner, worker))
        if holding is None or holding.waiting or (empty and holding.unspent() > 0):
            return []  # what it asks for is on its way, or will be
        if self._accounts.left(owner) > 0:
            return [self._lease(holding)]
        if not empty:
            return []  # it will say when it is
        holding.waiting = True
        self._waiting.setdefault(owner.role, []).append(holding)
        return self.serve_waiting(owner.role, now_s)

    def give_back(self, worker: int, owner: Owner, unused_bytes: int, now_s: float) -> list[Answer]:
        """A worker gives back what it has not used of a lease, of its own accord or because it was recalled.

        *Fails closed*: no more comes back than the worker can hold.
        """
        self._accounts.roll(now_s)
        holding = self._holdings.get((owner, worker))
        if holding is not None:
            holding.recalled = False
            # More than that was used already, by somebody: a worker that a stranger took over could undo a quota.
            self._put_back(holding, min(unused_bytes, holding.unspent()))
            self._drop_if_over(holding)
        # Also when its sessions have ended and used everything: somebody may have waited to hear so.
        answers = self.serve_waiting(owner.role, now_s)
        if holding is not None and not holding.recalled:  # else it kept what was wanted, which is no answer
            self._recalls.pop((owner, worker), None)
        return answers

    def recall_excess(self) -> list[Answer]:
        """Have given back what is leased beyond the quotas, which may have become smaller."""
        excess = [
            holding
            for holding in self._holdings.values()
            if not holding.recalled and holding.unspent() > 0 and self._accounts.left(holding.owner) < 0
        ]
        return [self._recall(holding) for holding in excess]

    def overdue(self, untold: Container[tuple[int, Owner]]) -> list[Recall]:
        """Return the recalls that were not answered in time, or without what is wanted. To be called once a second.

        Calls are counted, and not seconds: that this program was stopped for a while is nobody's fault. Workers and
        owners that are `untold` of a lease cannot give it back, and are given time.
        """
        late = []
        for key, ticks in list(self._recalls.items()):
            owner, worker = key
            if (worker, owner) in untold or not self._holdings[key].unspent():
                self._recalls[key] = 0
            elif ticks < RECALL_TICKS:
                self._recalls[key] = ticks + 1
            else:
                del self._recalls[key]
                late.append(Recall(worker, owner))
        return late

    def cancel(self, lease: Lease) -> None:
        """A lease could not be written, and its worker was not told of it."""
        self._accounts.not_written(lease.owner)
        holding = self._holdings.get((lease.owner, lease.worker))
        if holding is not None:
            self._put_back(holding, lease.lease_bytes)
            self._drop_if_over(holding)

    def lose(self, worker: int, now_s: float) -> list[Answer]:
        """A worker is no more, and its sessions have been ended: nobody will use what it still held."""
        self._accounts.roll(now_s)
        lost = [holding for holding in self._holdings.values() if holding.worker == worker]
        for holding in lost:
            self._put_back(holding, holding.unspent())
            self._drop(holding)
        # Not only those of what it held: what was recalled from it may have been used before its sessions ended.
        return [answer for role in list(self._waiting) for answer in self.serve_waiting(role, now_s)]

    def lease_anyway(self, worker: int, owner: Owner) -> list[Answer]:
        """Lease on, whatever the quotas say: the ledger is unavailable, and sessions shall go on."""
        holding = self._holdings.get((owner, worker))
        return [] if holding is None else [self._lease(holding, bounded=False)._replace(safe=True)]

    def serve_waiting(self, role: str, now_s: float) -> list[Answer]:
        """Give to those who wait what there is for them by now."""
        answers: list[Answer] = []
        still: list[Holding] = []
        for holding in self._waiting.pop(role, []):
            if holding.unspent() > 0:  # a sink broke and its bytes came back; it asks anew once they are used
                holding.waiting = False
                continue
            if self._accounts.left(holding.owner) > 0:
                holding.waiting = False
                answers.append(self._lease(holding))
                continue
            # Those only who hold something of what is short: nobody else's bytes would help.
            rivals = [rival for rival in self._accounts.short(holding.owner).holdings.values() if rival.unspent() > 0]
            if not rivals:
                holding.waiting = False
                answers.append(Exhausted(holding.worker, holding.owner, self._accounts.exhausted(holding.owner, now_s)))
                continue
            still.append(holding)
            answers += [self._recall(rival) for rival in rivals if not rival.recalled]
        if still:
            self._waiting[role] = still
        return answers

    # Holdings.

    def _hold(self, owner: Owner, worker: int) -> Holding:
        key = owner, worker
        holding = self._holdings[key] = Holding(owner, worker, self._moved, FIRST_BYTES)
        for account in self._accounts.charged(owner):
            account.holdings[key] = holding
        return holding

    def _drop_if_over(self, holding: Holding) -> None:
        if not holding.slots and holding.leased <= holding.spent:
            self._drop(holding)

    def _drop(self, holding: Holding) -> None:
        key = holding.owner, holding.worker
        if holding.waiting:
            self._waiting[holding.owner.role].remove(holding)
        del self._holdings[key]
        self._recalls.pop(key, None)
        for account in self._accounts.charged(holding.owner):
            del account.holdings[key]

    def _recall(self, holding: Holding) -> Recall:
        holding.recalled = True
        self._recalls.setdefault((holding.owner, holding.worker), 0)
        return Recall(holding.worker, holding.owner)

    def _rivals(self, owner: Owner) -> Collection[Holding]:
        """Those who draw on the same quotas, itself among them."""
        return self._accounts.charged(owner)[-1].holdings.values()

    def _lease(self, holding: Holding, *, bounded: bool = True) -> Lease:
        size = holding.next_bytes
        holding.next_bytes = min(size * _GROWTH, LARGEST_BYTES)
        if bounded:
            left = self._accounts.left(holding.owner)
            share = left // (_SHARES * len(self._rivals(holding.owner)))
            size = min(left, size, max(SMALLEST_BYTES, share))
        holding.leased += size
        if (holding.owner, holding.worker) in self._recalls:  # of this it may not have heard
            self._recalls[holding.owner, holding.worker] = 0
        return Lease(holding.worker, holding.owner, size, self._accounts.lease(holding.owner, size))

    def _put_back(self, holding: Holding, unused_bytes: int) -> None:
        holding.leased -= unused_bytes
        self._accounts.put_back(holding.owner, unused_bytes)
