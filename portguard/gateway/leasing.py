"""Leases between the workers, who ask for them, and the ledger, which has each one before a byte of it is used."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from portguard.gateway.ledger_health import LedgerHealth
from portguard.gateway.messages import Closed, Leased, LeaseReturned, LeaseWanted, Message, Misconduct, Recalled
from portguard.limits.accounts import Accounts
from portguard.limits.fleet import Fleet
from portguard.limits.leases import RECALL_TICKS, Answer, Exhausted, Lease, Leases, Recall
from portguard.limits.ledger import Owner, Store, UsageRow
from portguard.reasons import Reason

_PATIENCE_S = 10.0  # for how long sessions that go on wait for the ledger


class Leasing:
    """What `leases` decides is told to workers; what needs the ledger is written there before.

    `number(owner)` is by what workers know an account. `send` and `on_misconduct` are as in `Accounting`.
    """

    def __init__(
        self,
        leases: Leases,
        accounts: Accounts,
        store: Store,
        health: LedgerHealth,
        *,
        number: Callable[[Owner], int],
        send: Callable[[int, Message], None],
        on_misconduct: Callable[[int, Misconduct], None],
    ):
        self._leases = leases
        self._accounts = accounts
        self._store = store
        self._fleet = store if isinstance(store, Fleet) else None
        self._health = health
        self._number = number
        self._send = send
        self._on_misconduct = on_misconduct
        # Workers that wait for the ledger, and since when: their lease is being written, or could not be.
        self._securing: dict[tuple[int, Owner], float] = {}
        self._stalled: dict[tuple[int, Owner], float] = {}
        self._untold: Counter[tuple[int, Owner]] = Counter()  # how many leases are being written, by worker and owner

    @property
    def is_securing(self) -> bool:
        """Whether a lease waits for the ledger."""
        return bool(self._securing)

    @property
    def stalled(self) -> Collection[tuple[int, Owner]]:
        """Each worker whose lease could not be written, with the owner of the lease."""
        return tuple(self._stalled)

    def ask_again(self, stalled: Iterable[tuple[int, Owner]]) -> None:
        """Ask in the place of the workers that are `stalled`, here or in the program that this one follows."""
        for worker, owner in stalled:
            self.act(self._leases.ask(worker, owner, time.time(), empty=True))

    def open(self, slot: int, worker: int, owner: Owner, moved_bytes: int) -> int:
        """A session begins to draw; return what it may move at once. A lease that the ledger has not yet follows."""
        lease = self._leases.open(slot, worker, owner, time.time(), moved_bytes)
        if lease is None:
            return 0
        if not lease.safe:
            self._secure(lease)
            return 0
        return lease.lease_bytes

    def on_message(self, worker: int, owner: Owner, message: LeaseWanted | LeaseReturned) -> None:
        """Answer a worker, now or later."""
        match message:
            case LeaseWanted():
                self.act(self._leases.ask(worker, owner, time.time(), empty=message.empty))
            case LeaseReturned():
                self.act(self._leases.give_back(worker, owner, message.lease_bytes, time.time()))

    def act(self, answers: Iterable[Answer]) -> None:
        """Have what was decided happen."""
        for answer in answers:
            match answer:
                case Lease(safe=True):
                    self._send(answer.worker, Leased(self._number(answer.owner), answer.lease_bytes))
                case Lease():
                    self._secure(answer)
                case Recall():
                    self._send(answer.worker, Recalled(self._number(answer.owner)))
                case Exhausted() if self._health.unavailable and not self._health.refuses:
                    self.act(self._leases.lease_anyway(answer.worker, answer.owner))
                case Exhausted():
                    self._send(answer.worker, Closed(self._number(answer.owner), answer.refused.reason))

    def tick(self) -> None:
        """To be called about once a second."""
        self._resume()
        self._end_waiting(self._securing)
        self._end_waiting(self._stalled)
        self._end_hoarders()

    # The ledger.

    def _secure(self, lease: Lease) -> None:
        """Have the ledger hold a lease before it is used."""
        key = lease.worker, lease.owner
        self._securing.setdefault(key, time.monotonic())
        self._untold[key] += 1
        if self._fleet is not None:
            self._fleet.claim(self._accounts.claims_for(lease.owner), partial(self._on_claimed, lease))
            return
        rows = self._accounts.rows_for(lease.owner)
        self._store.write(rows, partial(self._on_secured, lease, rows))

    def _told(self, lease: Lease) -> None:
        """The ledger has answered, one way or the other."""
        key = lease.worker, lease.owner
        self._securing.pop(key, None)
        self._untold[key] -= 1
        if not self._untold[key]:
            del self._untold[key]

    def _on_secured(self, lease: Lease, rows: list[UsageRow], written: bool) -> None:
        self._told(lease)
        if written:
            self._accounts.written(rows)
            self.act([lease._replace(safe=True)])
            return
        self._leases.cancel(lease)
        if self._health.refuses:
            self._stalled.setdefault((lease.worker, lease.owner), time.monotonic())
        else:
            self.act(self._leases.lease_anyway(lease.worker, lease.owner))

    def _on_claimed(self, lease: Lease, rows: Sequence[UsageRow] | None) -> None:
        if rows is None:
            self._on_secured(lease, [], written=False)
            return
        self._told(lease)
        worker, owner = lease.worker, lease.owner
        if rows:
            self._accounts.claimed(owner, rows)
            self.act([lease._replace(safe=True)])
            return
        # Others were quicker, of which we have heard by now: there is less, or nothing.
        self._leases.cancel(lease)
        self._accounts.give_up(owner)
        now_s = time.time()
        self.act(
            self._leases.ask(worker, owner, now_s, empty=False) or self._leases.ask(worker, owner, now_s, empty=True)
        )

    def _resume(self) -> None:
        """Ask again for those whose lease could not be written."""
        if self._store.failing_s() is None:
            stalled, self._stalled = self._stalled, {}
            self.ask_again(stalled)

    def _end_waiting(self, waiting: dict[tuple[int, Owner], float]) -> None:
        """Close the sessions of those who wait for the ledger too long."""
        for (worker, owner), since_s in list(waiting.items()):
            if time.monotonic() - since_s > _PATIENCE_S:
                del waiting[worker, owner]
                self._send(worker, Closed(self._number(owner), Reason.LEDGER_UNAVAILABLE))

    def _end_hoarders(self) -> None:
        """Others wait for what was recalled: a worker that keeps it is broken, or in somebody else's hands."""
        for recall in self._leases.overdue(self._untold):
            error = (
                f"account {self._number(recall.owner)}: expected what was recalled within {RECALL_TICKS} s, got less"
            )
            self._on_misconduct(recall.worker, Misconduct(error))
