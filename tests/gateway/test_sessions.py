"""How sessions begin and end when things come in an order that nobody wants."""

import asyncio
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from portguard.errors import Refused
from portguard.gateway.accounting import Accounting
from portguard.gateway.admission import Admission
from portguard.gateway.bundle import read_bundle
from portguard.gateway.messages import (
    Admit,
    End,
    Ended,
    ForecastWanted,
    LeaseReturned,
    Misconduct,
    PastRefusalsWanted,
    Refusal,
    Regrant,
    Regranted,
    Ticket,
)
from portguard.gateway.meter import Meter
from portguard.gateway.sessions import Sessions
from portguard.gateway.slots import CONNECTED, RECEIVED, UPSTREAM
from portguard.gateway.snapshot import build
from portguard.gateway.standing import Standings
from portguard.limits.ledger import LockRow, LockTarget, Owner
from portguard.limits.locks import Locks
from portguard.reasons import Reason
from tests.gateway_folder import GatewayFolder
from tests.ledger_double import MemoryLedger
from tests.slots import Slots

A, B, C = "aa" * 16, "bb" * 16, "cc" * 16


class Trail:
    """An audit that answers when the test says so."""

    def __init__(self):
        self.undecided = []
        self.ended = []
        self.moved_to = []
        self.refuses = False

    def opens(self, request, on_decided):
        self.undecided.append(on_decided)

    def moved(self, session, now_s):
        self.moved_to.append(session.owner.role)

    def closed(self, account, reason, upstream):
        self.ended.append((account.session.id, reason, upstream))


class Worker:
    def __init__(self, number):
        self.number = number
        self.sent = []
        self.channel = SimpleNamespace(send=self.sent.append)

    @property
    def tickets(self):
        return [message for message in self.sent if isinstance(message, Ticket)]


class Gateway:
    """The sessions, the real books around them, and two workers."""

    def __init__(self, snapshot):
        self.snapshot = snapshot
        self.one, self.other = self.workers = Worker(1), Worker(2)
        self.slots = Slots(8, 1, 2)
        self.locks = Locks()
        self.ledger = MemoryLedger()
        self.ending = SimpleNamespace(cutting=False)
        self.trail = Trail()
        self.admission = Admission(self.slots, max_pending=9, max_pending_per_address=9)
        self.meter = Meter(self.slots, self.admission.sessions, written=snapshot.written, max_identities=9)
        self.accounting = Accounting(
            snapshot.policy,
            self.slots,
            self.ledger,
            when_unavailable="refuse",
            send=self.send,
            on_misconduct=lambda *_: None,
            on_warned=lambda _: None,
        )
        self.standings = Standings(self.accounting, self.admission.sessions_of)
        self.sessions = Sessions(
            snapshot,
            locks=self.locks,
            ending=self.ending,
            drain=self,
            admission=self.admission,
            accounting=self.accounting,
            trail=self.trail,
            meter=self.meter,
            standings=self.standings,
            send=self.send,
        )
        self.drained = False

    def send(self, number, message):
        self.workers[number - 1].sent.append(message)

    def check(self):
        if self.drained:
            raise Refused(Reason.DRAINING)

    def ask(self, session, *, worker=None, service="orders-db", policy=None):
        """Have a worker ask for a session; return the connection's number."""
        worker = worker or self.one
        connection = self.admission.begin(worker.number, ip_address("192.0.2.1"))
        about = ("local", "alice", service, "dba", [], "1", "ab", None, 0.1, policy or self.snapshot.revision)
        self.sessions.admit(worker, Admit(connection, session, *about))
        return connection

    def foresee(self, *services):
        """What a worker would be told that asks for these sessions: reason and message, or None, of each."""
        sessions = [(service, "dba") for service in services or ["orders-db"]]
        forecast = self.sessions.forecast(ForecastWanted(7, "local", "alice", "1", "ab", sessions))
        assert forecast.connection == 7
        self.waits_s = [each and each.retry_after_s for each in forecast.refusals]
        return [each and (each.reason, each.message) for each in forecast.refusals]

    def limit(self, folder, limits):
        """Have the role, which ends the policy, also say this."""
        folder.add("policy.toml", f"\n{limits}\n")
        snapshot = build(read_bundle(folder.configuration))
        self.accounting.configure(snapshot.policy, "refuse")
        self.sessions.configure(snapshot)

    def open(self, session, **more):
        """Open a session; return its slot."""
        self.ask(session, **more)
        self.trail.undecided.pop()(True)
        return (more.get("worker") or self.one).tickets[-1].slot

    def end(self, slot, reason=Reason.CLIENT_CLOSED, returned=None):
        self.sessions.ended(self.one, Ended(slot, reason, None, returned))

    @property
    def live(self):
        return {session.id: session for session in self.admission.sessions.values()}

    @property
    def refusals(self):
        return [(message.reason, message.message) for message in self.one.sent if isinstance(message, Refusal)]

    @property
    def past(self):
        past = self.standings.answer(PastRefusalsWanted(7, "local", "alice")).refusals
        return [(refusal.session, refusal.reason) for refusal in past]


@pytest.fixture
def folder(tmp_path):
    return GatewayFolder(tmp_path)


@pytest.fixture
async def gateway(folder):
    return Gateway(build(read_bundle(folder.configuration)))


# Beginning.


async def test_a_session_gets_its_ticket_once_the_audit_has_its_line(gateway):
    connection = gateway.ask(A)
    assert gateway.one.sent == []
    gateway.trail.undecided.pop()(True)
    assert [(type(message), message.connection) for message in gateway.one.sent] == [(Ticket, connection)]


async def test_without_its_line_a_session_is_refused_and_gives_its_slot_back(gateway):
    gateway.ask(A)
    gateway.trail.undecided.pop()(False)
    assert gateway.refusals == [(Reason.AUDIT_UNAVAILABLE, Reason.AUDIT_UNAVAILABLE.sentence)]
    assert gateway.trail.ended == [(A, "audit_unavailable", None)]
    assert gateway.live == {}


@pytest.mark.parametrize("may", [True, False])
async def test_a_decision_for_a_worker_that_died_leaves_the_slots_next_session_alone(gateway, may):
    gateway.ask(A)
    late = gateway.trail.undecided.pop()
    gateway.admission.lose(gateway.one.number, 0)
    gateway.ask(B, worker=gateway.other)
    late(may)
    assert gateway.one.sent == []
    assert gateway.trail.ended == []
    assert list(gateway.live) == [B]


async def test_nobody_gets_in_while_an_operator_drains(gateway):
    gateway.drained = True
    gateway.ask(A)
    assert gateway.trail.undecided == []
    assert [reason for reason, _ in gateway.refusals] == ["draining"]


async def test_nobody_gets_in_once_sessions_are_cut(gateway):
    gateway.ending.cutting = True
    gateway.ask(A)
    assert gateway.trail.undecided == []
    assert [reason for reason, _ in gateway.refusals] == ["draining"]


async def test_that_one_is_locked_out_is_told_before_anything_else(gateway):
    gateway.locks.add(LockRow(LockTarget("identity", "local", "alice"), "INC-1", "uid 0 (root)", 1, None))
    gateway.ending.cutting = True
    gateway.ask(A)
    assert gateway.trail.undecided == []
    assert gateway.refusals == [("locked", "the identity is locked")]


async def test_a_service_that_is_not_there_any_more_is_refused(gateway):
    gateway.ask(A, service="gone-db")
    assert [reason for reason, _ in gateway.refusals] == ["unknown_service"]


async def test_another_policy_bounds_the_sessions_to_come(gateway, folder):
    gateway.open(A)
    folder.add("policy.toml", "\nmax_sessions = 1\n")
    snapshot = build(read_bundle(folder.configuration))
    gateway.accounting.configure(snapshot.policy, "refuse")
    gateway.sessions.configure(snapshot)
    gateway.ask(B)
    assert [reason for reason, _ in gateway.refusals] == ["max_sessions"]
    assert list(gateway.live) == [A]


async def test_nobody_gets_in_beyond_what_limits_and_the_ledger_allow(gateway):
    gateway.ledger.trouble = "disk full"
    gateway.ask(A)
    assert [reason for reason, _ in gateway.refusals] == ["ledger_unavailable"]
    assert gateway.live == {}


# What is foreseen.


def lock(gateway):
    gateway.locks.add(LockRow(LockTarget("identity", "local", "alice"), "INC-1", "uid 0 (root)", 1, None))


def cut(gateway):
    gateway.ending.cutting = True


def drain(gateway):
    gateway.drained = True


def break_the_ledger(gateway):
    gateway.ledger.trouble = "disk full"


def fill(gateway):
    while len(gateway.admission.sessions) < gateway.slots.capacity:
        gateway.open(A, worker=gateway.other)


def open_one(gateway):
    gateway.open(A, worker=gateway.other)


def use_up(gateway):
    owner = Owner("dba", "local", "alice")
    for account in gateway.accounting.accounts.charged(owner):
        gateway.accounting.accounts.use(account, 10_000)


def let_others_use_up(gateway):
    owner = Owner("dba", "local", "bob")
    for account in gateway.accounting.accounts.charged(owner):
        gateway.accounting.accounts.use(account, 10_000)


@pytest.mark.parametrize(
    ("limits", "happens", "reason"),
    [
        ("", lock, "locked"),
        ("", cut, "draining"),
        ("", drain, "draining"),
        ("max_sessions = 1", open_one, "max_sessions"),
        ("[defaults.service]\nmax_sessions = 1", open_one, "service_full"),
        ("", break_the_ledger, "ledger_unavailable"),
        ('quota = ["10kB/day"]', use_up, "quota_exhausted"),
        ('pooled_quota = ["10kB/day"]', let_others_use_up, "quota_exhausted"),
        ('connect_rate = "1/d"', open_one, "connect_rate"),
        ("", fill, "gateway_full"),
    ],
)
async def test_what_is_foreseen_is_what_comes(gateway, folder, limits, happens, reason):
    gateway.limit(folder, limits)
    assert gateway.foresee() == [None]
    happens(gateway)
    [foreseen], [wait_s] = gateway.foresee(), gateway.waits_s
    gateway.ask(B)
    [refusal] = [message for message in gateway.one.sent if isinstance(message, Refusal)]
    assert (refusal.reason, refusal.message) == foreseen
    assert refusal.reason == reason
    if reason in ("quota_exhausted", "connect_rate"):
        assert wait_s == pytest.approx(refusal.retry_after_s, abs=20)
    else:
        assert wait_s is refusal.retry_after_s is None


@pytest.mark.parametrize("already", range(4))
async def test_of_several_reasons_that_is_foreseen_which_would_be_told(gateway, folder, already):
    gateway.limit(folder, "max_sessions = 1")
    gateway.open(A, worker=gateway.other)
    for happens in [break_the_ledger, cut, lock][:already]:
        happens(gateway)
    [foreseen] = gateway.foresee()
    gateway.ask(B)
    assert gateway.refusals == [foreseen]
    assert foreseen[0] == ["max_sessions", "max_sessions", "draining", "locked"][already]


async def test_an_audit_that_cannot_be_written_is_foreseen_last(gateway, folder):
    gateway.trail.refuses = True
    assert gateway.foresee() == [(Reason.AUDIT_UNAVAILABLE, Reason.AUDIT_UNAVAILABLE.sentence)]
    gateway.drained = True
    assert [reason for reason, _ in gateway.foresee()] == ["draining"]


async def test_each_service_is_foreseen_by_itself(gateway):
    assert gateway.foresee("orders-db", "gone-db", "orders-db") == [
        None,
        (Reason.UNKNOWN_SERVICE, Reason.UNKNOWN_SERVICE.sentence),
        None,
    ]


async def test_to_foresee_counts_nothing(gateway, folder):
    gateway.limit(folder, 'max_sessions = 1\nconnect_rate = "1/d"\nquota = ["1MB/day"]')
    for _ in range(3):
        assert gateway.foresee() == [None]
    assert gateway.accounting.accounts.owners() == ()
    assert gateway.live == {}
    gateway.open(A)
    assert gateway.refusals == []


# Going on otherwise.


async def test_a_session_goes_on_in_another_role(gateway, tmp_path):
    folder = GatewayFolder(tmp_path / "more")
    folder.add("policy.toml", '\n[[roles]]\nname = "readers"\nmembers = ["alice"]\nservices = ["*"]\n')
    gateway.sessions.configure(build(read_bundle(folder.configuration)))
    slot = gateway.open(A)
    gateway.sessions.regrant(gateway.one, Regrant(slot, "readers"))
    assert gateway.one.sent[-1].slot == slot
    assert gateway.live[A].owner.role == "readers"
    assert gateway.trail.moved_to == ["readers"]


async def test_a_session_stays_in_its_role_when_there_is_no_such_other_and_its_worker_is_answered(gateway):
    slot = gateway.open(A)
    gateway.sessions.regrant(gateway.one, Regrant(slot, "made-up"))
    assert (type(gateway.one.sent[-1]), gateway.one.sent[-1].slot) == (Regranted, slot)
    assert gateway.live[A].owner.role == "dba"
    assert gateway.trail.moved_to == []


async def test_a_session_that_its_worker_has_not_heard_of_cannot_go_on_in_another_role(gateway):
    gateway.ask(A)
    slot = gateway.live[A].slot
    with pytest.raises(Misconduct, match=f"slot {slot}: expected a session that its worker knows of"):
        gateway.sessions.regrant(gateway.one, Regrant(slot, "dba"))
    gateway.trail.undecided.pop()(True)
    assert [type(message) for message in gateway.one.sent] == [Ticket]


# Being ended.


async def test_a_session_that_is_to_end_is_ended_by_its_worker(gateway):
    gateway.open(A)
    slot = gateway.open(B, worker=gateway.other)
    gateway.sessions.end(gateway.live[B], Reason.KILLED)
    assert gateway.other.sent[1:] == [End(slot, "killed")]
    assert len(gateway.one.sent) == 1


async def test_a_session_that_is_to_end_while_it_waits_for_the_audit_ends_as_it_begins(gateway):
    gateway.ask(A)
    gateway.sessions.end(gateway.live[A], Reason.KILLED)
    assert gateway.one.sent == []  # a worker that has not heard of the session would let it begin later all the same
    gateway.trail.undecided.pop()(True)
    assert gateway.one.sent[1:] == [End(gateway.one.tickets[0].slot, "killed")]
    gateway.open(B)
    assert [type(message) for message in gateway.one.sent[2:]] == [Ticket]


# Ending.


@pytest.mark.parametrize("is_returned", [True, False])
async def test_what_ended_with_a_session_is_leased_to_the_next(gateway, folder, is_returned):
    folder.add("policy.toml", '\nquota = ["1MB/day"]\n')
    gateway.accounting.configure(build(read_bundle(folder.configuration)).policy, "refuse")
    slot = gateway.open(A)
    await asyncio.sleep(0)  # for the ledger to have it
    account = gateway.one.tickets[0].account
    gateway.end(slot, returned=LeaseReturned(account, 250_000) if is_returned else None)
    gateway.open(B)
    assert [ticket.lease_bytes for ticket in gateway.one.tickets] == [0, 250_000 if is_returned else 0]


async def test_what_the_gateway_ended_is_told_to_whom_it_belonged_and_what_the_client_ended_is_not(gateway):
    gateway.end(gateway.open(A), Reason.KILLED)
    gateway.end(gateway.open(B), Reason.CLIENT_CLOSED)
    assert gateway.past == [(A, "killed")]
    assert [(session, reason) for session, reason, _ in gateway.trail.ended] == [(A, "killed"), (B, "client_closed")]


async def test_what_ended_is_counted(gateway):
    for reason in (Reason.KILLED, Reason.WORKER_LOST):
        slot = gateway.open(A)
        gateway.slots[slot][CONNECTED] = 1
        if reason is Reason.WORKER_LOST:
            gateway.sessions.lost(gateway.one)
        else:
            gateway.end(slot, reason)
    assert gateway.meter.totals.opened.total() == 2
    assert gateway.meter.totals.closed == {("orders-db", "killed"): 1, ("orders-db", "worker_lost"): 1}


async def test_what_a_lost_worker_had_leased_and_not_used_is_there_again(gateway, folder):
    folder.add("policy.toml", '\nquota = ["1MB/day"]\n')
    gateway.accounting.configure(build(read_bundle(folder.configuration)).policy, "refuse")
    slot = gateway.open(A)
    await asyncio.sleep(0)  # for the ledger to have it
    owner = gateway.live[A].owner
    assert gateway.accounting.accounts.left(owner) < 900_000
    gateway.slots[slot][RECEIVED] = 100_000
    gateway.sessions.lost(gateway.one)
    assert gateway.accounting.accounts.left(owner) == 900_000


@pytest.mark.parametrize(("policy", "expected"), [(None, True), ("of before the reload", False)])
async def test_the_end_of_a_lost_session_tells_what_it_had_reached_unless_that_may_be_another(
    gateway, policy, expected
):
    slot = gateway.open(A, policy=policy)
    gateway.slots[slot][UPSTREAM] = 1
    assert gateway.sessions.lost(gateway.one) == 1
    upstream = str(gateway.snapshot.policy.services["orders-db"].upstreams[0])
    assert gateway.trail.ended == [(A, "worker_lost", upstream if expected else None)]


@pytest.mark.parametrize(("cutting", "reason"), [(False, "worker_lost"), (True, "gateway_stopped")])
async def test_all_that_a_worker_had_is_lost_with_it_and_nothing_else(gateway, cutting, reason):
    gateway.open(A)
    gateway.ask(B)
    gateway.open(C, worker=gateway.other)
    gateway.ending.cutting = cutting
    assert gateway.sessions.lost(gateway.one) == 2
    assert gateway.past == [(B, reason), (A, reason)]
    assert list(gateway.live) == [C]
    assert gateway.sessions.lost(gateway.one) == 0


async def test_nothing_is_remembered_of_a_session_whose_worker_died_before_it_began(gateway):
    gateway.ask(A)
    gateway.sessions.end(gateway.live[A], Reason.KILLED)
    gateway.sessions.lost(gateway.one)
    assert gateway.sessions._undecided == {}
