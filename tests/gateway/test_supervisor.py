"""What the supervisor decides when things come in an order that nobody wants."""

import asyncio
import socket
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from portguard.control.access import Peer
from portguard.control.listening import listen
from portguard.gateway import recent_refusals
from portguard.gateway import supervisor as supervisor_module
from portguard.gateway.bundle import read_bundle
from portguard.gateway.messages import (
    Admit,
    Drain,
    End,
    Ended,
    LeaseReturned,
    Locked,
    PastRefusalsWanted,
    Refusal,
    StandingWanted,
    Ticket,
    TurnedAway,
)
from portguard.gateway.notify import Notifier
from portguard.gateway.reloading import InForce
from portguard.gateway.slots import UPSTREAM, SlotTable
from portguard.gateway.snapshot import build
from portguard.gateway.supervisor import Supervisor
from portguard.observe import log
from portguard.reasons import Reason
from tests.gateway_folder import GatewayFolder
from tests.ledger_double import MemoryLedger
from tests.peers import until


class Trail:
    """An audit that answers when the test says so."""

    def __init__(self):
        self.undecided = []
        self.ended = []
        self.upstreams = []

    def opens(self, request, on_decided):
        self.undecided.append(on_decided)

    def closed(self, account, reason, upstream):
        self.ended.append((account.session.id, reason))
        self.upstreams.append(upstream)

    def refused(self, message, now_s):
        pass

    def tick(self, now_s):
        pass

    failing = None


@pytest.fixture
async def trail():
    return Trail()


@pytest.fixture
async def supervisor(tmp_path, trail):
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    bundle = read_bundle(GatewayFolder(tmp_path).configuration)
    control = listen(str(tmp_path / "control.sock"), "root", bundle.configuration_path)
    with socket.socket() as metrics:
        in_force = InForce(bundle, build(bundle), (), metrics)
        yield Supervisor(in_force, SlotTable.create(8), control, log.Floods(), trail, MemoryLedger(), Notifier())
    control.close()
    loop.set_exception_handler(handler)


def worker(number):
    sent = []
    return SimpleNamespace(number=number, sent=sent, channel=SimpleNamespace(send=sent.append))


def ask(supervisor, worker, session, policy=None):
    policy = policy or supervisor._snapshot.revision
    connection = supervisor._admission.begin(worker.number, ip_address("192.0.2.1"))
    supervisor._admit(
        worker, Admit(connection, session, "local", "alice", "orders-db", "dba", [], "1", "ab", None, 0.1, policy)
    )
    return connection


async def test_a_session_gets_its_ticket_once_the_audit_has_its_line(supervisor, trail):
    one = worker(1)
    connection = ask(supervisor, one, "aa" * 16)
    assert one.sent == []
    trail.undecided.pop()(True)
    assert [type(message) for message in one.sent] == [Ticket]
    assert one.sent[0].connection == connection


async def test_without_its_line_a_session_is_refused_and_gives_its_slot_back(supervisor, trail):
    one = worker(1)
    ask(supervisor, one, "aa" * 16)
    trail.undecided.pop()(False)
    assert [(type(message), message.reason) for message in one.sent] == [(Refusal, "audit_unavailable")]
    assert trail.ended == [("aa" * 16, "audit_unavailable")]
    assert supervisor._admission.sessions == {}


@pytest.mark.parametrize("may", [True, False])
async def test_a_decision_for_a_worker_that_died_leaves_the_slots_next_session_alone(supervisor, trail, may):
    dead, other = worker(1), worker(2)
    ask(supervisor, dead, "aa" * 16)
    late = trail.undecided.pop()
    supervisor._admission.lose(dead.number, 0)
    ask(supervisor, other, "bb" * 16)
    late(may)
    assert dead.sent == []
    assert trail.ended == []
    assert [session.id for session in supervisor._admission.sessions.values()] == ["bb" * 16]


@pytest.mark.parametrize("is_returned", [True, False])
async def test_what_ended_with_a_session_is_leased_to_the_next(supervisor, trail, tmp_path, is_returned):
    folder = GatewayFolder(tmp_path / "limited")
    folder.add("policy.toml", '\nquota = ["1MB/day"]\n')
    supervisor._accounting.configure(build(read_bundle(folder.configuration)).policy, "refuse")
    one = worker(1)
    ask(supervisor, one, "aa" * 16)
    trail.undecided.pop()(True)
    await asyncio.sleep(0)  # for the ledger to have it
    returned = LeaseReturned(one.sent[0].account, 250_000) if is_returned else None
    supervisor._on_message(one, Ended(one.sent[0].slot, Reason.CLIENT_CLOSED, None, returned))
    ask(supervisor, one, "bb" * 16)
    trail.undecided.pop()(True)
    assert [ticket.lease_bytes for ticket in one.sent] == [0, 250_000 if is_returned else 0]


async def test_who_was_accepted_before_the_drain_still_gets_in(supervisor, trail):
    one = worker(1)
    supervisor._workers._all[1] = one
    supervisor._ending.begin()
    ask(supervisor, one, "aa" * 16)
    trail.undecided.pop()(True)
    assert [type(message) for message in one.sent] == [Drain, Ticket]


async def test_nobody_gets_in_once_sessions_are_cut(supervisor, trail):
    one = worker(1)
    supervisor._ending.cut()
    ask(supervisor, one, "aa" * 16)
    assert trail.undecided == []
    assert [(type(message), message.reason) for message in one.sent] == [(Refusal, "draining")]


# Sessions that an operator ends.


async def kill(supervisor, session):
    route = supervisor._control._routes["/v1/sessions/kill", "POST"]
    return await route.handler(Peer(0, 0, 1, "root"), {"session": session})


async def test_a_session_that_is_killed_is_ended_by_its_worker(supervisor, trail):
    one, other = worker(1), worker(2)
    supervisor._workers._all.update({1: one, 2: other})
    for each, session in ((one, "aa" * 16), (other, "bb" * 16)):
        ask(supervisor, each, session)
        trail.undecided.pop()(True)
    assert await kill(supervisor, "bb" * 16) == {"killed": 1, "sessions": ["bb" * 16]}
    assert other.sent[1:] == [End(other.sent[0].slot, "killed")]
    assert len(one.sent) == 1


async def test_a_session_that_is_killed_while_it_waits_for_the_audit_ends_as_it_begins(supervisor, trail):
    one = worker(1)
    supervisor._workers._all[1] = one
    ask(supervisor, one, "aa" * 16)
    await kill(supervisor, "aa" * 16)
    assert one.sent == []  # a worker that has not heard of the session would let it begin later all the same
    trail.undecided.pop()(True)
    assert one.sent[1:] == [End(one.sent[0].slot, "killed")]
    ask(supervisor, one, "bb" * 16)
    trail.undecided.pop()(True)
    assert [type(message) for message in one.sent[2:]] == [Ticket]


async def test_nothing_is_remembered_of_a_session_whose_worker_died_before_it_began(supervisor, trail):
    one = worker(1)
    ask(supervisor, one, "aa" * 16)
    await kill(supervisor, "aa" * 16)
    supervisor._log_lost(one)
    assert supervisor._undecided == {}


# What operators are told.


async def test_refusals_are_looked_at_as_time_goes_so_that_old_ones_are_forgotten(supervisor, monkeypatch):
    monkeypatch.setattr(supervisor_module, "_TICK_S", 0.0)
    monkeypatch.setattr(recent_refusals, "_EVERY_S", 0.0)
    monkeypatch.setattr(recent_refusals, "SPAN_S", 0.0)
    supervisor._meter.refused("orders-db", "no_role")
    assert supervisor._status.refusals.top(5) == [("no_role", 1)]
    ticking = asyncio.create_task(supervisor._tick())
    await until(lambda: supervisor._status.refusals.top(5) == [])
    ticking.cancel()


# What identities are told.


def past(supervisor, name="alice"):
    one = worker(1)
    supervisor._on_message(one, PastRefusalsWanted(7, "local", name))
    return [(refusal.service, refusal.reason, refusal.session) for refusal in one.sent[0].refusals]


async def test_who_was_refused_or_cut_finds_out_why_and_nobody_else_does(supervisor, trail):
    one = worker(1)
    supervisor._on_message(
        one,
        TurnedAway("aa" * 16, "local", "alice", [], "1", "ab", None, "orders-db", Reason.NO_ROLE, "no role has it"),
    )
    ask(supervisor, one, "bb" * 16)
    trail.undecided.pop()(True)
    supervisor._on_message(one, Ended(one.sent[0].slot, Reason.KILLED, None, None))
    ask(supervisor, one, "cc" * 16)
    trail.undecided.pop()(True)
    supervisor._on_message(one, Ended(one.sent[1].slot, Reason.CLIENT_CLOSED, None, None))
    assert past(supervisor) == [("orders-db", "killed", "bb" * 16), ("orders-db", "no_role", "aa" * 16)]
    assert past(supervisor, "bob") == []


@pytest.mark.parametrize(("policy", "expected"), [(None, True), ("of before the reload", False)])
async def test_the_end_of_a_lost_session_tells_what_it_had_reached_unless_that_may_be_another(
    supervisor, trail, policy, expected
):
    one = worker(1)
    ask(supervisor, one, "aa" * 16, policy)
    trail.undecided.pop()(True)
    slots = supervisor._slots
    slots.cells[slots.base(one.sent[0].slot) + UPSTREAM] = 1
    supervisor._log_lost(one)
    upstream = str(supervisor._snapshot.policy.services["orders-db"].upstreams[0])
    assert trail.ended == [("aa" * 16, "worker_lost")]
    assert trail.upstreams == [upstream if expected else None]


async def test_a_session_that_was_lost_with_its_worker_is_among_them(supervisor, trail):
    one = worker(1)
    ask(supervisor, one, "aa" * 16)
    trail.undecided.pop()(True)
    supervisor._log_lost(one)
    assert past(supervisor) == [("orders-db", "worker_lost", "aa" * 16)]


async def test_open_sessions_are_told_to_whom_they_belong(supervisor, trail):
    one = worker(1)
    ask(supervisor, one, "aa" * 16)
    trail.undecided.pop()(True)
    for name, role, expected in [("alice", "dba", 1), ("alice", "other", 0), ("bob", "dba", 0)]:
        supervisor._on_message(one, StandingWanted(7, "local", name, [role]))
        assert one.sent[-1].connection == 7
        assert [standing.sessions for standing in one.sent[-1].roles] == [expected]


# Locks.


async def test_a_lock_comes_before_everything_else(supervisor, trail):
    lock = {route.path: route for route in supervisor._lock_desk.routes}["/v1/lock"].handler
    one = worker(1)
    ask(supervisor, one, "aa" * 16)
    ask(supervisor, one, "bb" * 16)
    trail.undecided.pop(0)(True)
    supervisor._workers._all[1] = one
    answer = await lock(Peer(0, 0, 1, "root"), {"identity": "alice", "reason": "INC-1"})
    assert answer["sessions"] == 2
    assert one.sent[1:] == [Locked("identity", "local", "alice", None), End(one.sent[0].slot, "locked")]
    trail.undecided.pop()(True)
    assert one.sent[4:] == [End(one.sent[3].slot, "locked")]
    supervisor._ending.cutting = True
    ask(supervisor, one, "cc" * 16)
    assert trail.undecided == []
    assert [(message.reason, message.message) for message in one.sent[5:]] == [("locked", "the identity is locked")]
