"""That the supervisor's parts hear of each other. What each does by itself is in its own tests."""

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
    EnrolmentWanted,
    ForecastWanted,
    Gone,
    LeaseWanted,
    Locked,
    Misconduct,
    PastRefusalsWanted,
    Refusal,
    Regrant,
    RenewalWanted,
    StandingWanted,
    Stop,
    Ticket,
    Tried,
    TurnedAway,
)
from portguard.gateway.notify import Notifier
from portguard.gateway.reloading import InForce
from portguard.gateway.snapshot import build
from portguard.gateway.supervisor import Supervisor
from portguard.observe import log
from portguard.reasons import Reason
from tests.gateway_folder import GatewayFolder
from tests.ledger_double import MemoryLedger
from tests.peers import until
from tests.slots import Slots

A, B, C = "aa" * 16, "bb" * 16, "cc" * 16
ROOT = Peer(0, 0, 1, "root")


class Trail:
    """An audit that answers when the test says so."""

    def __init__(self):
        self.refuses = False
        self.undecided = []

    def opens(self, request, on_decided):
        self.undecided.append(on_decided)

    def closed(self, account, reason, upstream):
        pass

    def refused(self, message, now_s):
        pass

    def lock_expired(self, lock):
        pass

    def tick(self, now_s):
        pass

    failing = None


class Worker:
    def __init__(self, number):
        self.number = number
        self.retiring = False
        self.sent = []
        self.channel = SimpleNamespace(send=self.sent.append)

    @property
    def tickets(self):
        return [message for message in self.sent if isinstance(message, Ticket)]


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
        yield Supervisor(in_force, Slots(8, 1, 2), control, log.Floods(), trail, MemoryLedger(), Notifier())
    control.close()
    loop.set_exception_handler(handler)


@pytest.fixture
async def worker(supervisor):
    worker = supervisor._workers._all[1] = Worker(1)
    return worker


def ask(supervisor, worker, session):
    """Have a worker ask for a session."""
    connection = supervisor._admission.begin(worker.number, ip_address("192.0.2.1"))
    about = ("local", "alice", "orders-db", "dba", [], "1", "ab", None, 0.1, supervisor._snapshot.revision)
    supervisor._on_message(worker, Admit(connection, session, *about))


def admit(supervisor, trail, worker, session):
    """Open a session; return its slot."""
    ask(supervisor, worker, session)
    trail.undecided.pop()(True)
    return worker.tickets[-1].slot


async def act(supervisor, path, **given):
    return await supervisor._control._routes[path, "POST"].handler(ROOT, given)


# What operators do.


async def test_a_session_that_is_killed_is_ended_by_its_worker(supervisor, trail, worker):
    other = supervisor._workers._all[2] = Worker(2)
    admit(supervisor, trail, worker, A)
    slot = admit(supervisor, trail, other, B)
    assert await act(supervisor, "/v1/sessions/kill", session=B) == {"killed": 1, "sessions": [B]}
    assert other.sent[1:] == [End(slot, "killed")]
    assert len(worker.sent) == 1


async def test_a_lock_keeps_out_and_ends_what_is_open_and_what_is_about_to_be(supervisor, trail, worker):
    slot = admit(supervisor, trail, worker, A)
    ask(supervisor, worker, B)
    answer = await act(supervisor, "/v1/lock", identity="alice", reason="INC-1")
    assert answer["sessions"] == 2
    assert worker.sent[1:] == [Locked("identity", "local", "alice", None), End(slot, "locked")]
    trail.undecided.pop()(True)
    assert worker.sent[4:] == [End(worker.tickets[-1].slot, "locked")]
    ask(supervisor, worker, C)
    assert trail.undecided == []
    assert worker.sent[5].reason == "locked"


async def test_a_worker_is_greeted_with_the_locks(supervisor, worker):
    assert list(supervisor._workers._greeting()) == []
    await act(supervisor, "/v1/lock", identity="alice", reason="INC-1")
    assert list(supervisor._workers._greeting()) == [Locked("identity", "local", "alice", None)]


# Workers in somebody else's hands.


async def test_a_worker_ends_moves_and_admits_nothing_that_another_has(supervisor, trail, worker):
    other = supervisor._workers._all[2] = Worker(2)
    slot = admit(supervisor, trail, worker, A)
    connection = supervisor._admission.begin(worker.number, ip_address("192.0.2.1"))
    revision = supervisor._snapshot.revision
    for message in (
        Ended(slot, Reason.CLIENT_CLOSED, None, None),
        Regrant(slot, "other"),
        Admit(connection, B, "local", "bob", "orders-db", "dba", [], "1", "ab", None, 0.1, revision),
        RenewalWanted(connection, B, None, [b"", b""], b"", None),
        EnrolmentWanted(connection, B, None, [b"", b""], b"", None),
        Gone(connection, None),
        LeaseWanted(99, True),
    ):
        with pytest.raises(Misconduct):
            supervisor._on_message(other, message)
    (session,) = supervisor._admission.sessions.values()
    assert (session.id, session.owner.role, supervisor._admission.pending) == (A, "dba", 1)
    assert (trail.undecided, other.sent) == ([], [])


async def test_a_worker_makes_up_no_services_and_upstreams(supervisor, worker, monkeypatch):
    monkeypatch.setattr(supervisor._trail, "refused", lambda *_: None)
    for service in ("orders-db", "made-up", None):
        supervisor._on_message(
            worker, TurnedAway(A, "local", "alice", [], "1", "ab", None, service, Reason.NO_ROLE, "")
        )
    assert supervisor._meter.totals.refused == {("orders-db", "no_role"): 1, ("", "no_role"): 2}
    supervisor._on_message(worker, Tried([("10.0.3.7:5432", True), ("made-up", True)]))
    assert supervisor._meter.state()["up"] == {"10.0.3.7:5432": True}


async def test_nobody_gets_in_while_an_operator_drains(supervisor, trail, worker):
    await act(supervisor, "/v1/drain")
    ask(supervisor, worker, A)
    assert [(type(message), message.reason) for message in worker.sent] == [(Refusal, "draining")]
    await act(supervisor, "/v1/resume")
    admit(supervisor, trail, worker, B)
    assert not supervisor._ending.begun


# The end.


async def test_who_was_accepted_before_the_gateway_began_to_end_still_gets_in_until_sessions_are_cut(
    supervisor, trail, worker
):
    await act(supervisor, "/v1/drain", exit=True)
    await asyncio.sleep(0)  # once the answer is out
    admit(supervisor, trail, worker, A)
    assert [type(message) for message in worker.sent] == [Drain, Ticket]
    supervisor._ending.on_signal()
    ask(supervisor, worker, B)
    assert [(type(message), message.reason) for message in worker.sent[2:]] == [
        (Stop, "gateway_stopped"),
        (Refusal, "draining"),
    ]


@pytest.mark.parametrize("ends", [True, False])
async def test_the_exit_code_tells_whether_a_session_was_lost_with_the_last_worker(supervisor, trail, worker, ends):
    slot = admit(supervisor, trail, worker, A)
    supervisor._ending.begin()
    if ends:
        supervisor._on_message(worker, Ended(slot, Reason.CLIENT_CLOSED, None, None))
    assert not supervisor._ending.over.done()
    del supervisor._workers._all[1]
    supervisor._on_worker_gone(worker)
    assert supervisor._ending.over.result() == (0 if ends else 1)


async def test_a_worker_that_is_lost_while_the_gateway_serves_is_counted(supervisor, trail, worker):
    admit(supervisor, trail, worker, A)
    supervisor._on_worker_gone(worker)
    assert supervisor._meter.totals.worker_restarts == 1
    assert past(supervisor) == [("orders-db", "worker_lost", A)]


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
    asking = Worker(1)
    supervisor._on_message(asking, PastRefusalsWanted(7, "local", name))
    return [(refusal.service, refusal.reason, refusal.session) for refusal in asking.sent[0].refusals]


async def test_who_was_refused_or_cut_finds_out_why_and_nobody_else_does(supervisor, trail, worker):
    supervisor._on_message(
        worker, TurnedAway(A, "local", "alice", [], "1", "ab", None, "orders-db", Reason.NO_ROLE, "no role has it")
    )
    slot = admit(supervisor, trail, worker, B)
    supervisor._on_message(worker, Ended(slot, Reason.KILLED, None, None))
    assert past(supervisor) == [("orders-db", "killed", B), ("orders-db", "no_role", A)]
    assert past(supervisor, "bob") == []


async def test_open_sessions_are_told_to_whom_they_belong(supervisor, trail, worker):
    admit(supervisor, trail, worker, A)
    for name, role, expected in [("alice", "dba", 1), ("alice", "other", 0), ("bob", "dba", 0)]:
        supervisor._on_message(worker, StandingWanted(7, "local", name, [role]))
        assert worker.sent[-1].connection == 7
        assert [standing.sessions for standing in worker.sent[-1].roles] == [expected]


@pytest.mark.parametrize(("outcome", "level"), [("done", "info"), ("not_found", "info"), ("forbidden", "warning")])
async def test_who_tries_what_is_forbidden_is_warned_of(supervisor, monkeypatch, outcome, level):
    told = []
    monkeypatch.setattr(log, "event", lambda level, name, **fields: told.append((level, name, fields["outcome"])))
    monkeypatch.setattr(supervisor._trail, "acted", lambda *_, **__: None, raising=False)
    supervisor._on_act(ROOT, "POST", "/v1/drain", {}, outcome)
    assert told == [(level, "control.act", outcome)]


async def test_how_a_session_would_be_answered_is_told_to_the_worker_that_asks(supervisor, worker):
    supervisor._on_message(worker, ForecastWanted(7, "local", "alice", "1", "ab", [("orders-db", "dba"), ("x", "dba")]))
    assert worker.sent[-1].connection == 7
    assert [refusal and refusal.reason for refusal in worker.sent[-1].refusals] == [None, "unknown_service"]
