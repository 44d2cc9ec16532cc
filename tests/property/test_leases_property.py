"""Leases, over any interleaving of workers, ledger and clock: no quota is passed, no byte is lost, nobody is forgotten.

Workers are played by their real allowances, and talk with the supervisor over channels that keep their order. What is
under way, in either direction and to the ledger, arrives one by one when a rule says so. What moved is counted here,
by another hand, and compared after every step.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from portguard.errors import Refused
from portguard.gateway.gates import Allowance, Gate
from portguard.limits.account import PERIODS
from portguard.limits.accounts import Accounts
from portguard.limits.leases import Answer, Exhausted, Lease, Leases, Recall
from portguard.limits.ledger import Owner, UsageRow
from portguard.policy.model import NO_LIMITS, Limits
from portguard.policy.quantities import Period, Quota
from portguard.reasons import Reason

START_S = int(datetime(2026, 11, 30, 22, 40, tzinfo=UTC).timestamp())  # before the ends of an hour, a day and a month
HOUR_S = 3600

ALICE = Owner("ops", "clients", "alice")
BOB = Owner("ops", "clients", "bob")
CAROL = Owner("own", "clients", "carol")
FREE = Owner("free", "clients", "alice")
OWNERS = (ALICE, BOB, CAROL, FREE)
WORKERS = 3
LIMITS = {
    "ops": Limits(quota=(Quota(400_000, Period.HOUR),), pooled_quota=(Quota(600_000, Period.DAY),)),
    "own": Limits(quota=(Quota(150_000, Period.HOUR), Quota(350_000, Period.DAY))),
    "free": NO_LIMITS,
}
MANY_TURNS = 3_000  # more than any calm takes

picks = st.integers(0, 11)
amounts = st.sampled_from([1, 30_000, 65_536, 100_000, 150_000, 300_000, 2_000_000])


class WatchedAccounts(Accounts):
    """Accounts that tell when periods turn."""

    on_turn: Callable[[list[int]], None] | None = None

    def roll(self, now_s: float) -> None:
        before = list(self._spans)
        super().roll(now_s)
        turned = [number for number, span in enumerate(self._spans) if span != before[number]]
        if turned and self.on_turn is not None:
            self.on_turn(turned)


class Session:
    """One flow, which wants to move `wanted` bytes more."""

    def __init__(self, worker: "Worker", slot: int, owner: Owner, allowance: Allowance | None):
        self.worker = worker
        self.slot = slot
        self.owner = owner
        self.gate = None if allowance is None else Gate(allowance)
        self.allowance = allowance
        self.wanted = 0
        self.waits = False


class Worker:
    def __init__(self, number: int):
        self.number = number
        self.to_supervisor: deque[tuple[Any, ...]] = deque()
        self.to_worker: deque[tuple[Any, ...]] = deque()
        self.allowances: dict[Owner, Allowance] = {}


class LeasesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = START_S
        self.workers = [Worker(number) for number in range(WORKERS)]
        self.next_worker = WORKERS
        self.next_slot = 0
        self.sessions: dict[int, Session] = {}  # that their workers carry
        self.cells: dict[int, int] = {}
        # The ledger: what it holds, what is to be written, with whom to tell, and what its thread has to tell.
        self.ledger: dict[tuple[Owner, Period], UsageRow] = {}
        self.queue: deque[tuple[list[UsageRow], Lease | None]] = deque()
        self.written: deque[tuple[Lease, list[UsageRow], bool]] = deque()
        self.stalled: set[tuple[int, Owner]] = set()
        # What truly moved, by owner and number of a period, since that began; and what was charged for no byte.
        self.moved: dict[tuple[Owner, int], int] = defaultdict(int)
        self.lost: dict[tuple[Owner, int], int] = defaultdict(int)
        self.granted: dict[tuple[Owner, int], int] = defaultdict(int)
        self.carried: dict[tuple[Owner, int], int] = {}  # leased before a turn, until the ledger has the new row
        self.noted: dict[int, int] = defaultdict(int)
        self.begin()

    def begin(self) -> None:
        self.accounts = WatchedAccounts(LIMITS, UTC, self.now_s)
        self.accounts.load([row for row in self.ledger.values() if row.end_s > self.now_s])
        self.accounts.on_turn = self.turned
        self.leases = Leases(self.accounts, lambda slot: self.cells[slot])

    def turned(self, numbers: list[int]) -> None:
        for values in (self.moved, self.lost, self.granted):
            for key in [key for key in values if key[1] in numbers]:
                del values[key]
        for owner in self.accounts.owners():
            for number in numbers:
                self.carried[owner, number] = self.accounts.account(owner).outstanding()

    # Workers.

    def move(self, session: Session) -> None:
        session.waits = False
        while session.wanted and session.slot in self.sessions:
            size = session.wanted
            if session.allowance is not None:
                size = min(size, session.allowance.left)
                if size <= 0:
                    session.waits = True
                    session.allowance.wait(self.go_on, session)
                    return
                session.allowance.take(size)
                self.count(session.owner, size)
            session.wanted -= size
            self.cells[session.slot] += size

    def go_on(self, session: Session) -> None:
        if session.slot in self.sessions and session.waits:
            self.move(session)

    def count(self, owner: Owner, size: int) -> None:
        for account in self.accounts.charged(owner):
            for number in range(len(PERIODS)):
                self.moved[account.owner, number] += size

    def close(self, session: Session) -> None:
        worker = session.worker
        del self.sessions[session.slot]
        returned = None
        if session.allowance is not None and not self.of(worker, session.owner):
            del worker.allowances[session.owner]
            returned = session.owner, session.allowance.take_all()
        worker.to_supervisor.append(("ended", session.slot, self.cells[session.slot], returned))

    def of(self, worker: Worker, owner: Owner) -> list[Session]:
        return [session for session in self.sessions.values() if (session.worker, session.owner) == (worker, owner)]

    def hear(self, worker: Worker) -> None:
        match worker.to_worker.popleft():
            case ("ticket", slot, owner, leased):
                allowance = None
                if owner != FREE and (allowance := worker.allowances.get(owner)) is None:
                    allowance = worker.allowances[owner] = Allowance(
                        lambda empty: worker.to_supervisor.append(("wanted", owner, empty)), ahead=True
                    )
                self.sessions[slot] = Session(worker, slot, owner, allowance)
                if leased:
                    worker.allowances[owner].add(leased)
            case ("leased", owner, size):
                if owner in worker.allowances:
                    worker.allowances[owner].add(size)
                else:
                    worker.to_supervisor.append(("returned", owner, size))
            case ("recalled", owner):
                left = worker.allowances[owner].take_all() if owner in worker.allowances else 0
                worker.to_supervisor.append(("returned", owner, left))
            case ("closed", owner):
                for session in self.of(worker, owner):
                    self.close(session)

    # The supervisor.

    def listen(self, worker: Worker) -> None:
        match worker.to_supervisor.popleft():
            case ("wanted", owner, empty):
                self.act(self.leases.ask(worker.number, owner, self.now_s, empty=empty))
            case ("returned", owner, size):
                self.act(self.leases.give_back(worker.number, owner, size, self.now_s))
            case ("ended", slot, size, returned):
                self.end(slot, size)
                if returned is not None:
                    self.act(self.leases.give_back(worker.number, *returned, self.now_s))

    def end(self, slot: int, size: int) -> None:
        assert self.cells[slot] == size
        owner = self.leases._sessions[slot].account.owner
        self.accounts.roll(self.now_s)
        if owner == FREE:
            self.count(owner, size - self.noted[slot])
        self.leases.end(slot, size, self.now_s)
        del self.cells[slot]

    def send(self, number: int, message: tuple[Any, ...]) -> None:
        for worker in self.workers:
            if worker.number == number:
                worker.to_worker.append(message)

    def act(self, answers: list[Answer]) -> None:
        for answer in answers:
            match answer:
                case Lease(safe=True):
                    assert answer.lease_bytes > 0
                    self.send(answer.worker, ("leased", answer.owner, answer.lease_bytes))
                case Lease():
                    self.queue.append((self.accounts.rows_for(answer.owner), answer))
                case Recall():
                    self.send(answer.worker, ("recalled", answer.owner))
                case Exhausted():
                    assert answer.refused.reason is Reason.QUOTA_EXHAUSTED
                    assert self.used_up(answer.owner)
                    self.send(answer.worker, ("closed", answer.owner))

    def used_up(self, owner: Owner) -> bool:
        """Whether all of a quota was used, and not only leased."""
        return any(
            self.moved[key] + self.lost[key] >= quota.size_bytes + self.granted[key]
            for account in self.accounts.charged(owner)
            for quota in self.accounts.quotas(account.owner)
            for key in [(account.owner, PERIODS.index(quota.period))]
        )

    def commit(self) -> None:
        rows, lease = self.queue.popleft()
        for row in rows:
            self.ledger[row.owner, row.period] = row
            number = PERIODS.index(row.period)
            if row.start_s == self.accounts._spans[number].start_s:
                self.carried.pop((row.owner, number), None)
        if lease is not None:
            self.written.append((lease, rows, True))

    def answer(self) -> None:
        lease, rows, written = self.written.popleft()
        if written:
            self.accounts.written(rows)
            self.act([lease._replace(safe=True)])
        else:
            self.leases.cancel(lease)
            self.stalled.add((lease.worker, lease.owner))

    def resume(self) -> None:
        for number, owner in sorted(self.stalled):
            self.act(self.leases.ask(number, owner, self.now_s, empty=True))
        self.stalled.clear()

    # Rules.

    @initialize(places=st.lists(st.tuples(picks, st.sampled_from(OWNERS)), max_size=5))
    def begin_with_sessions(self, places: list[tuple[int, Owner]]) -> None:
        for worker, owner in places:
            self.open_session(worker, owner)
        self.all_is_delivered()

    @rule(worker=picks, owner=st.sampled_from(OWNERS))
    def open_session(self, worker: int, owner: Owner) -> None:
        self.accounts.roll(self.now_s)
        if self.used_up(owner):
            with pytest.raises(Refused) as caught:
                self.leases.check(owner, self.now_s)
            assert caught.value.reason is Reason.QUOTA_EXHAUSTED
            return
        self.leases.check(owner, self.now_s)
        carrier = self.workers[worker % WORKERS]
        slot, self.next_slot = self.next_slot, self.next_slot + 1
        self.cells[slot] = 0
        lease = self.leases.open(slot, carrier.number, owner, self.now_s)
        assert lease is None or lease.lease_bytes > 0
        at_once = lease is not None and lease.safe
        carrier.to_worker.append(("ticket", slot, owner, lease.lease_bytes if lease is not None and at_once else 0))
        if lease is not None and not at_once:
            self.act([lease])

    @precondition(lambda self: self.sessions)
    @rule(pick=picks, size=amounts)
    def want_to_move(self, pick: int, size: int) -> None:
        session = self.pick(pick)
        session.wanted += size
        if not session.waits:
            self.move(session)

    @precondition(lambda self: self.sessions)
    @rule(pick=picks, size=amounts)
    def fail_to_pass_on(self, pick: int, size: int) -> None:
        """A sink breaks. What was taken for it goes back, to others of the account that had begun to wait."""
        session = self.pick(pick)
        if session.gate is None or session.allowance is None or session.waits:
            return
        size = min(size, session.allowance.left)
        if size <= 0:
            return
        session.allowance.take(size)
        session.gate.give_back(size)
        session.gate.wake()

    @precondition(lambda self: self.sessions)
    @rule(pick=picks)
    def close_session(self, pick: int) -> None:
        self.close(self.pick(pick))

    def pick(self, pick: int) -> Session:
        return list(self.sessions.values())[pick % len(self.sessions)]

    @precondition(lambda self: any(worker.to_supervisor for worker in self.workers))
    @rule(pick=picks)
    def message_to_the_supervisor(self, pick: int) -> None:
        senders = [worker for worker in self.workers if worker.to_supervisor]
        self.listen(senders[pick % len(senders)])

    @precondition(lambda self: any(worker.to_worker for worker in self.workers))
    @rule(pick=picks)
    def message_to_a_worker(self, pick: int) -> None:
        receivers = [worker for worker in self.workers if worker.to_worker]
        self.hear(receivers[pick % len(receivers)])

    @precondition(lambda self: self.queue)
    @rule(count=st.integers(1, 4))
    def rows_are_written(self, count: int) -> None:
        for _ in range(min(count, len(self.queue))):
            self.commit()

    @precondition(lambda self: any(lease for _, lease in self.queue))
    @rule()
    def rows_cannot_be_written(self) -> None:
        """They stay in the queue all the same."""
        self.written += [(lease, rows, False) for rows, lease in self.queue if lease is not None]
        self.queue = deque((rows, None) for rows, _ in self.queue)

    @precondition(lambda self: self.written)
    @rule()
    def the_ledger_answers(self) -> None:
        self.answer()

    @precondition(lambda self: self.stalled)
    @rule()
    def stalled_workers_are_served(self) -> None:
        self.resume()

    @rule()
    def books_are_kept(self) -> None:
        self.sessions_without_quota_are_noted()
        self.accounts_are_settled()

    def accounts_are_settled(self) -> None:
        self.accounts.settle()
        self.queue.append((self.accounts.take_rows(self.now_s), None))

    def sessions_without_quota_are_noted(self) -> None:
        self.accounts.roll(self.now_s)
        for slot in self.leases.slots():
            if self.leases._sessions[slot].account.owner == FREE:
                self.count(FREE, self.cells[slot] - self.noted[slot])
                self.noted[slot] = self.cells[slot]
            self.leases.note(slot, self.now_s)

    @rule(seconds=st.sampled_from([1, 600, HOUR_S, 24 * HOUR_S, -1, -HOUR_S, -24 * HOUR_S]))
    def the_clock_goes(self, seconds: int) -> None:
        self.now_s += seconds

    @rule(index=st.integers(0, WORKERS))
    def a_worker_is_killed(self, index: int) -> None:
        if index == WORKERS:
            self.everything_is_killed()
            return
        dead = self.workers[index]
        self.workers[index] = Worker(self.next_worker)
        self.next_worker += 1
        opened = {message[1] for message in dead.to_worker if message[0] == "ticket"}
        ended = {message[1] for message in dead.to_supervisor if message[0] == "ended"}
        carried = {slot for slot, session in self.sessions.items() if session.worker is dead}
        for slot in sorted(opened | ended | carried):
            self.sessions.pop(slot, None)
            self.end(slot, self.cells[slot])
        self.act(self.leases.lose(dead.number, self.now_s))

    def everything_is_killed(self) -> None:
        self.workers = [Worker(self.next_worker + number) for number in range(WORKERS)]
        self.next_worker += WORKERS
        spans = self.accounts._spans
        self.sessions.clear()
        self.cells.clear()
        self.queue.clear()
        self.written.clear()
        self.stalled.clear()
        self.noted.clear()
        self.begin()
        turned = [n for n, span in enumerate(self.accounts._spans) if span.start_s > spans[n].start_s]
        for values in (self.moved, self.granted):
            for key in [key for key in values if key[1] in turned]:
                del values[key]
        self.lost.clear()
        for owner in {*self.accounts.owners(), *(owner for owner, _ in self.moved)}:
            for number in range(len(PERIODS)):
                key = owner, number
                used = self.accounts.account(owner).used[number]
                if number not in turned and owner != FREE:
                    assert used >= self.moved[key] - self.carried.get(key, 0)
                self.moved[key] = min(self.moved[key], used)
                self.lost[key] = used - self.moved[key]
                self.granted[key] = self.accounts.account(owner).granted[number]
        self.carried.clear()

    @rule(
        owner=st.sampled_from([*OWNERS[:3], ALICE.pool]),
        period=st.sampled_from([Period.HOUR, Period.DAY]),
        extra_bytes=st.sampled_from([None, 70_000]),
    )
    def an_operator_resets_or_grants(self, owner: Owner, period: Period, extra_bytes: int | None) -> None:
        key = owner, PERIODS.index(period)
        if extra_bytes is None:
            self.accounts.reset(owner, [period], self.now_s)
            self.moved[key] = self.lost[key] = 0
        else:
            self.accounts.grant(owner, [period], extra_bytes, self.now_s)
            self.granted[key] += extra_bytes
        self.act(self.leases.serve_waiting(owner.role, self.now_s))

    @rule()
    def all_is_delivered(self) -> None:
        turns = 0
        while self.queue or self.written or self.stalled or any(w.to_worker or w.to_supervisor for w in self.workers):
            turns += 1
            assert turns < MANY_TURNS
            while self.queue:
                self.commit()
            while self.written:
                self.answer()
            self.resume()
            for worker in self.workers:
                if worker.to_worker:
                    self.hear(worker)
                if worker.to_supervisor:
                    self.listen(worker)
        assert [session.owner for session in self.sessions.values() if session.waits] == []
        held = {
            (owner, worker.number): allowance.left
            for worker in self.workers
            for owner, allowance in worker.allowances.items()
        }
        assert {key: holding.unspent() for key, holding in self.leases._holdings.items()} == held

    # What always holds.

    @invariant()
    def no_quota_is_passed(self) -> None:
        for owner in self.accounts.owners():
            for quota in self.accounts.quotas(owner):
                key = owner, PERIODS.index(quota.period)
                assert self.moved[key] <= quota.size_bytes + self.granted[key], owner

    @invariant()
    def every_byte_is_accounted_for(self) -> None:
        for owner in self.accounts.owners():
            account = self.accounts.account(owner)
            if owner.is_pool and not self.accounts.quotas(owner):
                continue
            for number in range(len(PERIODS)):
                key = owner, number
                assert account.used[number] - account.outstanding() == self.moved[key] + self.lost[key], key

    @invariant()
    def what_is_outstanding_is_somewhere(self) -> None:
        somewhere: dict[tuple[Owner, int], int] = defaultdict(int)
        for worker in self.workers:
            for message in (*worker.to_worker, *worker.to_supervisor):
                match message:
                    case ("leased" | "returned", owner, size):
                        somewhere[owner, worker.number] += size
                    case ("ticket", _, owner, size) | ("ended", _, _, (owner, size)):
                        somewhere[owner, worker.number] += size
            for owner, allowance in worker.allowances.items():
                somewhere[owner, worker.number] += allowance.left
        for lease in [lease for _, lease in self.queue if lease] + [lease for lease, _, _ in self.written]:
            somewhere[lease.owner, lease.worker] += lease.lease_bytes
        for key, holding in self.leases._holdings.items():
            assert holding.unspent() == somewhere[key], key

    def teardown(self) -> None:
        self.all_is_delivered()
        while self.sessions:
            self.close(self.pick(0))
        self.all_is_delivered()
        assert not self.leases._sessions
        assert not self.leases._holdings
        assert not any(self.leases._waiting.values())
        self.accounts_are_settled()
        self.all_is_delivered()
        for owner in self.accounts.owners():
            for number, period in enumerate(PERIODS):
                used = self.accounts.account(owner).used[number]
                row = self.ledger.get((owner, period))
                if owner.is_pool and not self.accounts.quotas(owner):
                    continue
                assert used == self.moved[owner, number] + self.lost[owner, number]
                if row is None or row.start_s != self.accounts._spans[number].start_s:
                    assert used == 0
                else:
                    assert (row.used_bytes, row.granted_bytes) == (used, self.granted[owner, number])


def test_no_interleaving_passes_a_quota_loses_a_byte_or_forgets_who_waits() -> None:
    run_state_machine_as_test(LeasesMachine, settings=settings(max_examples=400, stateful_step_count=80))
