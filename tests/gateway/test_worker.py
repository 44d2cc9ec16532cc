"""A worker in the test's own process, under a supervisor that the test plays: what must not happen even when things
come at the wrong moment."""

import asyncio
import contextlib
import gc
import io
import json
import os
import socket
import ssl
import struct
import time
import weakref
from datetime import timedelta

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes

from portguard.gateway import audit_trail, lingerers
from portguard.gateway import connection as connection_module
from portguard.gateway import worker as worker_module
from portguard.gateway.bundle import read_bundle
from portguard.gateway.channel import Channel
from portguard.gateway.messages import (
    Accepted,
    Admit,
    Apply,
    Beat,
    Configure,
    Configured,
    End,
    Ended,
    EnrolmentWanted,
    Forecast,
    ForecastWanted,
    ForeseenRefusal,
    Gone,
    Hello,
    Leased,
    LeaseReturned,
    LeaseWanted,
    Locked,
    PastRefusal,
    PastRefusals,
    PastRefusalsWanted,
    Prepare,
    Prepared,
    QuotaStanding,
    Rechecked,
    Refusal,
    Regrant,
    Regranted,
    RenewalWanted,
    RoleStanding,
    Standing,
    StandingWanted,
    Ticket,
    TurnedAway,
    Unlocked,
)
from portguard.gateway.slots import RECEIVED, SlotTable
from portguard.gateway.worker import Worker
from portguard.observe import log
from portguard.reasons import Reason
from portguard.tls.chain import load_chain
from portguard.tls.tls_socket import TlsSocket
from tests.certificates import Authority, common_name, dns, now
from tests.echo import echo_service
from tests.gateway_folder import NAME, GatewayFolder
from tests.patience import PATIENCE_S
from tests.tcp_options import WANTED_TCP_OPTIONS, tcp_options
from tests.trusting import trusting

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture
def echo():
    with echo_service() as address:
        yield address


@pytest.fixture
def folder(tmp_path, echo):
    folder = GatewayFolder(tmp_path)
    folder.write("policy.toml", (tmp_path / "policy.toml").read_text().replace("10.0.3.7:5432", echo))
    return folder


@pytest.fixture
def lines(monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    return lambda name: [line for line in stderr.getvalue().splitlines() if f" {name} " in line]


class Supervising:
    """The supervisor's side of the channel. With `answering`, it admits everybody."""

    def __init__(self, folder, slots):
        ours, self.theirs = Channel.pair()
        self.channel = Channel(ours, on_message=self._on_message, on_closed=lambda: None)
        self.answering = True
        self.lease_bytes = None  # that come with a ticket; None: its session needs none
        self.said = []
        self._said_more = asyncio.Event()
        self._folder = folder
        self._slots = slots
        self._free = list(range(slots.capacity))
        self._connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._contexts = {}
        self._holders = {}  # by name, of the certificate issued last
        self._clients = []

    def _on_message(self, message, _descriptor):
        match message:
            case Hello():
                bundle = os.memfd_create("bundle")
                os.write(bundle, read_bundle(self._folder.configuration).to_bytes())
                self.channel.send(Configure(), bundle)
            case Admit() if self.answering:
                self.channel.send(self.ticket(message.connection))
            case StandingWanted() if self.answering:
                quota = QuotaStanding("day", False, 100, 0, 40, 1)
                self.channel.send(Standing(message.connection, [RoleStanding(2, 0.5, [quota])] * len(message.roles)))
            case ForecastWanted() if self.answering:
                foreseen = ForeseenRefusal(Reason.SERVICE_FULL, "it is full", None)
                self.channel.send(Forecast(message.connection, [foreseen] * len(message.sessions)))
            case PastRefusalsWanted() if self.answering:
                past = [PastRefusal(1.5, "orders-db", "killed", "an operator ended the session", "ab" * 16)]
                self.channel.send(PastRefusals(message.connection, past))
            case Beat():
                return
        self.said.append(message)
        self._said_more.set()

    def ticket(self, connection):
        slot = self._free.pop()
        self._slots.open(slot, 0, 1)
        return Ticket(connection, slot, 0, self.lease_bytes is not None, False, self.lease_bytes or 0)

    async def hears(self, kind, count=1):
        """The last of `count` messages of that type, once they have come."""
        async with asyncio.timeout(PATIENCE_S):
            while len(found := [message for message in self.said if isinstance(message, kind)]) < count:
                self._said_more.clear()
                await self._said_more.wait()
        return found[-1]

    async def connection(
        self, name="alice", server_name="orders-db." + NAME, seen=lambda _accepted: None, session=None
    ):
        """A client whose handshake is complete, as far as it can tell; and the number of its connection."""
        sock = socket.create_connection(self._listening.getsockname(), timeout=PATIENCE_S)
        accepted, address = self._listening.accept()
        self._connections += 1
        number = self._connections
        seen(accepted)
        self.channel.send(Accepted(number, 0, *address), accepted.detach())
        shake_hands = self._context(name).wrap_socket
        client = await asyncio.to_thread(
            shake_hands, sock, server_hostname=server_name, suppress_ragged_eofs=False, session=session
        )
        self._clients.append(client)
        return client, number

    def _context(self, name):
        if name not in self._contexts:
            context = trusting(cadata=self._folder.authority.pem.decode())
            holder = self._holders[name] = self._folder.authority.issue(name)
            load_chain(context, holder.pem, holder.key_pem)
            self._contexts[name] = context
        return self._contexts[name]

    def close(self):
        self.channel.close()
        self._listening.close()
        for client in self._clients:
            client.close()


@pytest.fixture
async def supervisor(folder, lines):
    supervisor = Supervising(folder, SlotTable.create(50))
    yield supervisor
    supervisor.close()


@pytest.fixture
async def worker(supervisor):
    worker = Worker(supervisor.theirs, supervisor._slots, log.Floods())
    running = asyncio.create_task(worker.run())
    await supervisor.hears(Configured)
    yield worker
    worker._stop(Reason.GATEWAY_STOPPED)
    for lingering in list(worker.lingering):
        lingering.close()
    async with asyncio.timeout(PATIENCE_S):
        await running
    gc.unfreeze()


def say(client, data):
    client.sendall(data)
    return client.recv(65536)


async def echoed(client):
    assert await asyncio.to_thread(say, client, b"x") == b"x"


def reset(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    client.close()


async def ends(client):
    """Wait for an end that is no good one."""
    with pytest.raises(OSError, match=r"reset|EOF|alert"):
        await asyncio.to_thread(client.recv, 1)


# Memory.


async def close_well(supervisor):
    client, _ = await supervisor.connection()
    await echoed(client)
    await asyncio.to_thread(client.unwrap)
    client.close()


async def break_off(supervisor):
    client, _ = await supervisor.connection()
    await echoed(client)
    reset(client)


async def be_refused_by_the_policy(supervisor):
    client, _ = await supervisor.connection("bob")
    await ends(client)
    client.close()


async def be_refused_by_the_supervisor(supervisor):
    supervisor.answering = False
    before = len([message for message in supervisor.said if isinstance(message, Admit)])
    client, number = await supervisor.connection()
    await supervisor.hears(Admit, before + 1)
    supervisor.channel.send(Refusal(number, Reason.GATEWAY_FULL, "full", None))
    await ends(client)
    client.close()


async def ask_for_what_there_is_not(supervisor):
    client, _ = await supervisor.connection(server_name=NAME)
    answer = await asyncio.to_thread(say, client, b"CONNECT nope HTTP/1.1\r\nHost: nope\r\n\r\n")
    assert b"unknown_service" in answer
    client.close()


async def ask_who_one_is(supervisor):
    client, _ = await supervisor.connection(server_name=NAME)
    answer = await asyncio.to_thread(say, client, b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b'"reason":"killed"' in answer
    client.close()


async def ask_what_there_is_and_get_no_answer(supervisor):
    supervisor.answering = False
    before = len([message for message in supervisor.said if isinstance(message, StandingWanted)])
    client, number = await supervisor.connection(server_name=NAME)
    await asyncio.to_thread(client.sendall, b"GET /v1/services HTTP/1.1\r\nHost: x\r\n\r\n")
    await supervisor.hears(StandingWanted, before + 1)
    supervisor.channel.send(Refusal(number, Reason.LEDGER_UNAVAILABLE, "no answer", None))
    assert b"ledger_unavailable" in await asyncio.to_thread(client.recv, 65536)
    client.close()


async def show_no_certificate_of_ours(supervisor):
    context = trusting(cadata=supervisor._folder.authority.pem.decode())
    supervisor._contexts["stranger"] = context
    client, _ = await supervisor.connection("stranger")
    await ends(client)
    client.close()


@pytest.mark.parametrize(
    "act",
    [
        close_well,
        break_off,
        be_refused_by_the_policy,
        be_refused_by_the_supervisor,
        ask_for_what_there_is_not,
        ask_who_one_is,
        ask_what_there_is_and_get_no_answer,
        show_no_certificate_of_ours,
    ],
    ids=lambda act: act.__name__,
)
async def test_a_connection_leaves_nothing_for_the_garbage_collector(worker, supervisor, act):
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            await act(supervisor)
        await supervisor.hears(Ended | Gone, 3)
        async with asyncio.timeout(PATIENCE_S):
            while worker._tasks or worker.live or worker.lingering:  # noqa: ASYNC110  # no event, only for a test
                await asyncio.sleep(0.001)
        gc.unfreeze()
        assert [thing for thing in gc.get_objects() if isinstance(thing, TlsSocket)] == []
    finally:
        gc.enable()


# Leases that come with tickets, and go with the end.


def said_of_leases(supervisor):
    return [message for message in supervisor.said if isinstance(message, LeaseWanted | LeaseReturned)]


async def test_a_short_session_costs_no_message_about_its_lease(worker, supervisor):
    supervisor.lease_bytes = 1000
    client, _ = await supervisor.connection()
    await echoed(client)
    reset(client)
    ended = await supervisor.hears(Ended)
    assert ended.returned == LeaseReturned(0, 998)
    assert said_of_leases(supervisor) == []


async def test_only_the_last_session_of_an_account_takes_the_lease_with_it(worker, supervisor):
    supervisor.lease_bytes = 1000
    first, _ = await supervisor.connection()
    await echoed(first)
    supervisor.lease_bytes = 0
    last, _ = await supervisor.connection()
    await echoed(last)
    reset(first)
    assert (await supervisor.hears(Ended)).returned is None
    reset(last)
    assert (await supervisor.hears(Ended, 2)).returned == LeaseReturned(0, 996)
    assert said_of_leases(supervisor) == []


async def test_a_session_whose_lease_is_not_there_yet_asks_and_moves_nothing_before(worker, supervisor):
    supervisor.lease_bytes = 0
    client, _ = await supervisor.connection()
    await asyncio.to_thread(client.sendall, b"x")
    assert await supervisor.hears(LeaseWanted) == LeaseWanted(0, empty=True)
    (slot,) = worker.live
    assert worker.slots.cells[worker.slots.base(slot) + RECEIVED] == 0
    supervisor.channel.send(Leased(0, 100))
    assert await asyncio.to_thread(client.recv, 10) == b"x"


async def test_a_lease_whose_session_never_began_goes_back_with_its_end(worker, supervisor):
    supervisor.answering, supervisor.lease_bytes = False, 1000
    _, number = await supervisor.connection()
    await supervisor.hears(Admit)
    worker._tasks[number].cancel()
    await supervisor.hears(Gone)
    supervisor.channel.send(supervisor.ticket(number))
    ended = await supervisor.hears(Ended)
    assert ended.returned == LeaseReturned(0, 1000)
    assert said_of_leases(supervisor) == []


# Answers that come too late, or with something else.


async def test_a_ticket_for_a_connection_that_has_gone_is_given_back(worker, supervisor):
    supervisor.answering = False
    _, number = await supervisor.connection()
    await supervisor.hears(Admit)
    worker._tasks[number].cancel()
    assert (await supervisor.hears(Gone)).connection == number
    ticket = supervisor.ticket(number)
    supervisor.channel.send(ticket)
    ended = await supervisor.hears(Ended)
    assert (ended.slot, ended.reason) == (ticket.slot, Reason.CLIENT_RESET)
    assert not worker.live


async def test_a_refusal_for_a_connection_that_has_gone_is_nothing(worker, supervisor):
    supervisor.answering = False
    _, number = await supervisor.connection()
    await supervisor.hears(Admit)
    worker._tasks[number].cancel()
    await supervisor.hears(Gone)
    supervisor.channel.send(Refusal(number, Reason.GATEWAY_FULL, "full", None))
    supervisor.answering = True
    client, _ = await supervisor.connection()
    await echoed(client)
    client.close()
    await supervisor.hears(Ended)
    assert [type(message) for message in supervisor.said if isinstance(message, Ended | Gone)] == [Gone, Ended]


async def test_a_ticket_that_comes_with_the_end_is_given_back(worker, supervisor):
    supervisor.answering = False
    _, number = await supervisor.connection()
    await supervisor.hears(Admit)
    ticket = supervisor.ticket(number)
    worker._on_message(ticket, None)
    worker._tasks[number].cancel()
    assert (await supervisor.hears(Ended)).slot == ticket.slot


async def test_a_session_that_nobody_decides_about_is_refused(worker, supervisor, monkeypatch):
    monkeypatch.setattr(worker_module, "_ANSWER_S", 0.0)
    supervisor.answering = False
    client, number = await supervisor.connection()
    refusal = await supervisor.hears(TurnedAway)
    assert (refusal.name, refusal.service, refusal.reason) == ("alice", "orders-db", Reason.LEDGER_UNAVAILABLE)
    assert refusal.message == "supervisor: expected an answer within 0 s, got none"
    await ends(client)
    client.close()
    assert (await supervisor.hears(Gone)).connection == number


async def test_only_those_are_refused_who_waited_long_enough(worker, supervisor):
    supervisor.answering = False
    early, late = await supervisor.connection(), await supervisor.connection()
    await supervisor.hears(Admit, 2)
    asked = {number: worker._asked[number].deadline_s for _, number in (early, late)}
    worker._refuse_unanswered(asked[early[1]] - 0.001)
    assert not any(asked.answer.done() for asked in worker._asked.values())
    worker._refuse_unanswered(asked[early[1]])
    await supervisor.hears(TurnedAway)
    supervisor.channel.send(supervisor.ticket(late[1]))
    await echoed(late[0])
    assert len([message for message in supervisor.said if isinstance(message, TurnedAway)]) == 1


async def test_a_session_is_waited_for_as_long_as_the_audit_may_take(worker, supervisor):
    supervisor.answering = False
    _, number = await supervisor.connection()
    await supervisor.hears(Admit)
    assert worker._asked[number].deadline_s > time.monotonic() + audit_trail.PATIENCE_S


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_ticket_for_a_session_that_was_refused_for_want_of_it_is_given_back(worker, supervisor, at_once):
    supervisor.answering = False
    client, number = await supervisor.connection()
    await supervisor.hears(Admit)
    ticket = supervisor.ticket(number)
    worker._refuse_unanswered(time.monotonic() + 60)
    if at_once:
        worker._on_message(ticket, None)
    else:
        await supervisor.hears(TurnedAway)
        supervisor.channel.send(ticket)
    ended = await supervisor.hears(Ended)
    assert (ended.slot, ended.reason) == (ticket.slot, Reason.CLIENT_RESET)
    await ends(client)
    assert not worker.live


async def test_an_answer_that_came_with_the_deadline_counts(worker, supervisor):
    supervisor.answering = False
    client, number = await supervisor.connection()
    await supervisor.hears(Admit)
    worker._on_message(supervisor.ticket(number), None)
    worker._refuse_unanswered(time.monotonic() + 60)
    await echoed(client)


def get(client, path):
    """The status and the document that a whole answer has."""
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = b""
    while data := client.recv(65536):
        answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)


async def test_what_is_left_is_asked_of_the_supervisor_for_the_caller_alone(worker, supervisor):
    client, number = await supervisor.connection(server_name=NAME)
    status, document = await asyncio.to_thread(get, client, "/v1/services")
    assert status == 200
    assert [(each["name"], each["limits"]["quotas"][0]["left_bytes"]) for each in document["services"]] == [
        ("orders-db", 60)
    ]
    assert await supervisor.hears(StandingWanted) == StandingWanted(number, "local", "alice", ["dba"])
    client.close()
    await supervisor.hears(Gone)


async def test_how_a_session_would_be_answered_is_asked_for_the_callers_certificate(worker, supervisor):
    client, number = await supervisor.connection(server_name=NAME)
    status, document = await asyncio.to_thread(get, client, "/v1/services/orders-db")
    assert (status, document["refusal"]["reason"]) == (200, "service_full")
    admitted, _ = await supervisor.connection()
    admit, wanted = await supervisor.hears(Admit), await supervisor.hears(ForecastWanted)
    assert wanted == ForecastWanted(
        number, "local", "alice", admit.serial, admit.fingerprint, [(admit.service, admit.role)]
    )
    client.close()
    admitted.close()


async def test_whoami_needs_no_role(worker, supervisor):
    client, number = await supervisor.connection("bob", server_name=NAME)
    status, document = await asyncio.to_thread(get, client, "/v1/whoami")
    assert (status, document["identity"], document["source"]) == (200, "bob", "127.0.0.1")
    assert [refusal["reason"] for refusal in document["refusals"]] == ["killed"]
    assert await supervisor.hears(PastRefusalsWanted) == PastRefusalsWanted(number, "local", "bob")
    client.close()


@pytest.mark.parametrize("path", ["/v1/services", "/v1/services/orders-db", "/v1/whoami"])
async def test_what_nobody_answers_is_unavailable(worker, supervisor, monkeypatch, path):
    monkeypatch.setattr(worker_module, "_ANSWER_S", 0.0)
    supervisor.answering = False
    client, _ = await supervisor.connection(server_name=NAME)
    status, document = await asyncio.to_thread(get, client, path)
    assert (status, document["reason"]) == (503, "ledger_unavailable")
    client.close()


async def test_a_standing_for_a_connection_that_has_gone_is_nothing(worker, supervisor):
    supervisor.answering = False
    client, number = await supervisor.connection(server_name=NAME)
    await asyncio.to_thread(client.sendall, b"GET /v1/services HTTP/1.1\r\nHost: x\r\n\r\n")
    await supervisor.hears(StandingWanted)
    worker._tasks[number].cancel()
    await supervisor.hears(Gone)
    supervisor.channel.send(Standing(number, []))
    supervisor.answering = True
    other, _ = await supervisor.connection()
    await echoed(other)
    other.close()
    await supervisor.hears(Ended)


async def test_a_list_larger_than_any_buffer_arrives_whole_at_a_client_that_is_slow(worker, supervisor, folder):
    count = 2000
    services = "".join(
        f'[services.s{number}]\nupstream = ["10.0.0.1:1"]\ndescription = "{"x" * 2000}"\n' for number in range(count)
    )
    folder.write("policy.toml", f'{services}\n[[roles]]\nname = "dba"\nmembers = ["alice"]\nservices = ["*"]\n')
    bundle = os.memfd_create("bundle")
    os.write(bundle, read_bundle(folder.configuration).to_bytes())
    supervisor.channel.send(Configure(), bundle)
    await supervisor.hears(Configured, 2)
    client, _ = await supervisor.connection(server_name=NAME)
    client.sendall(b"GET /v1/services HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(PATIENCE_S):
        while not worker.lingering:  # noqa: ASYNC110  # no event, only for a test
            await asyncio.sleep(0.001)
    assert [one._end.backlog is not None for one in worker.lingering] == [True]
    answer = b""
    while data := await asyncio.to_thread(client.recv, 65536):
        answer += data
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert len(answer) > count * 2000
    assert [service["name"] for service in body["services"]] == [f"s{number}" for number in range(count)]
    client.close()


async def test_a_connection_whose_descriptor_was_lost_is_given_back_and_told_of(worker, supervisor, lines):
    supervisor.channel.send(Accepted(7, 0, "192.0.2.1", 50000))
    assert (await supervisor.hears(Gone)).connection == 7
    (line,) = lines("connection.refuse")
    assert "source=192.0.2.1 reason=gateway_full" in line


async def test_of_too_many_connections_that_linger_the_oldest_is_closed(worker, supervisor, monkeypatch):
    monkeypatch.setattr(lingerers, "MOST_LINGERING", 2)
    clients = []
    for _ in range(4):
        client, _ = await supervisor.connection("bob")
        clients.append(client)
        await ends(client)  # and then does not end its own side
    assert (await supervisor.hears(Gone, 2)).connection == 2
    assert len(worker.lingering) == 2
    client, _ = await supervisor.connection()
    await echoed(client)
    assert len([message for message in supervisor.said if isinstance(message, Gone)]) == 2
    for client in clients:
        client.close()
    assert (await supervisor.hears(Gone, 4)).connection == 4
    assert not worker.lingering


# Faults of our own.


async def test_a_fault_ends_its_connection_and_no_other(worker, supervisor, lines, monkeypatch):
    other, _ = await supervisor.connection()
    await echoed(other)

    def fail(*_):
        raise LookupError("nobody expects this")

    monkeypatch.setattr(connection_module, "decide", fail)
    client, number = await supervisor.connection()
    await ends(client)
    assert (await supervisor.hears(Gone)).connection == number
    await echoed(other)
    (line,) = lines("gateway.fault")
    assert "error=LookupError" in line
    assert "nobody expects this" in json.loads(line.partition("traceback=")[2])
    other.close()
    client.close()
    await supervisor.hears(Ended)


async def test_a_client_that_came_before_the_options_were_set_has_them_once_it_is_served(worker, supervisor):
    kept = []
    client, _ = await supervisor.connection(seen=lambda accepted: kept.append(accepted.dup()))
    await echoed(client)
    (sock,) = kept
    with sock:
        assert tcp_options(sock) == WANTED_TCP_OPTIONS


async def test_a_session_of_tls_that_is_resumed_is_refused(worker, supervisor):
    # Tickets are not given. Should they ever be: a resumed session has no verified chain.
    worker.setup.contexts.by_name.num_tickets = 2
    first, _ = await supervisor.connection()
    await echoed(first)
    assert first.session.has_ticket
    again, _ = await supervisor.connection(session=first.session)
    assert again.session_reused
    await ends(again)
    refused = await supervisor.hears(TurnedAway)
    assert (refused.reason, refused.name) == (Reason.HANDSHAKE_FAILED, None)
    assert "resumed" in refused.message
    other, _ = await supervisor.connection()
    await echoed(other)


async def test_a_message_that_nobody_knows_is_a_fault_and_the_next_one_is_heard(worker, supervisor, lines):
    supervisor.channel._sock.send(msgspec.msgpack.encode(["Unheard"]))
    client, _ = await supervisor.connection()
    await echoed(client)
    client.close()
    await supervisor.hears(Ended)
    (line,) = lines("gateway.fault")
    assert "expected a message of version" in line


async def test_a_worker_that_cannot_be_configured_ends():
    ours, theirs = Channel.pair()
    channel = Channel(ours, on_message=lambda *_: None, on_closed=lambda: None)
    worker = Worker(theirs, SlotTable.create(1), log.Floods())
    bundle = os.memfd_create("bundle")
    os.write(bundle, b"no bundle")
    channel.send(Configure(), bundle)
    with pytest.raises(ValueError, match="bundle"):
        await worker.run()
    channel.close()


async def test_without_its_supervisor_a_worker_ends_at_once(worker, supervisor, monkeypatch):
    ended = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(os, "_exit", ended.set_result)
    supervisor.channel.close()
    assert await ended == 1


# Locks.


def locked(name="alice", until_s=None):
    return Locked("identity", "local", name, until_s)


def certificate_of(supervisor, name):
    """Fingerprint and serial number."""
    supervisor._context(name)
    certificate = supervisor._holders[name].certificate
    return certificate.fingerprint(hashes.SHA256()).hex(), f"{certificate.serial_number:x}"


async def is_let_in(supervisor, name="alice"):
    client, _ = await supervisor.connection(name)
    await echoed(client)


async def is_locked_out(supervisor, name="alice"):
    before = len([message for message in supervisor.said if isinstance(message, TurnedAway)])
    client, _ = await supervisor.connection(name)
    await ends(client)
    refusal = await supervisor.hears(TurnedAway, before + 1)
    assert (refusal.name, refusal.service, refusal.reason) == (name, "orders-db", "locked")
    return refusal.message


async def test_a_locked_identity_is_refused_before_the_supervisor_is_asked(supervisor, worker):
    supervisor.channel.send(locked())
    assert await is_locked_out(supervisor) == "the identity is locked"
    assert [message for message in supervisor.said if isinstance(message, Admit)] == []
    supervisor.channel.send(Unlocked("identity", "local", "alice"))
    await is_let_in(supervisor)


async def test_a_locked_identity_that_no_role_names_is_locked_all_the_same(supervisor, worker):
    supervisor.channel.send(locked("bob"))
    await is_locked_out(supervisor, "bob")
    await is_let_in(supervisor)


async def test_a_lock_that_is_over_keeps_nobody_out(supervisor, worker):
    supervisor.channel.send(locked(until_s=int(time.time())))
    await is_let_in(supervisor)


@pytest.mark.parametrize("kind", ["fingerprint", "serial"])
async def test_a_locked_certificate_is_refused_and_others_are_not(supervisor, worker, kind):
    fingerprint, serial = certificate_of(supervisor, "alice")
    value, trust = (fingerprint, "") if kind == "fingerprint" else (serial, "local")
    supervisor.channel.send(Locked(kind, trust, value, None))
    assert await is_locked_out(supervisor) == "the certificate is locked"
    supervisor._contexts.clear()  # it has another one issued
    await is_let_in(supervisor)


@pytest.mark.parametrize(
    ("target", "service"),
    [
        ("CONNECT orders-db", "orders-db"),
        ("CONNECT nope", None),
        ("GET /v1/whoami", None),
        ("GET /v1/services", None),
        ("POST /v1/enroll", None),
        ("nonsense", None),
    ],
)
async def test_who_asks_by_http_is_told_until_when_and_nothing_else(supervisor, worker, target, service):
    supervisor.channel.send(locked(until_s=4_000_000_000))
    client, _ = await supervisor.connection(server_name=NAME)
    answer = await asyncio.to_thread(say, client, f"{target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) | {"session": None} == {
        "reason": "locked",
        "message": "the identity is locked until 2096-10-02T07:06:40Z",
        "session": None,
    }
    refusal = await supervisor.hears(TurnedAway)
    assert (refusal.name, refusal.service, refusal.reason) == ("alice", service, "locked")


async def test_a_session_that_was_let_in_as_the_lock_came_ends_before_a_byte_moves(supervisor, worker):
    supervisor.answering = False
    client, number = await supervisor.connection()
    await asyncio.to_thread(client.sendall, b"x")
    await supervisor.hears(Admit)
    supervisor.channel.send(locked())
    ticket = supervisor.ticket(number)
    supervisor.channel.send(ticket)
    await ends(client)
    ended = await supervisor.hears(Ended)
    assert (ended.slot, ended.reason) == (ticket.slot, "locked")
    assert supervisor._slots.free(ticket.slot) == (0, 0)


# Reload.


def memory_file(folder):
    bundle = os.memfd_create("bundle")
    os.write(bundle, read_bundle(folder.configuration).to_bytes())
    return bundle


async def prepare(supervisor, folder, reload=1):
    supervisor.channel.send(Prepare(reload), memory_file(folder))
    async with asyncio.timeout(PATIENCE_S):
        while (answer := await supervisor.hears(Prepared)).reload != reload:  # noqa: ASYNC110  # no event, only for a test
            await asyncio.sleep(0.001)
    return answer.failure


async def apply(supervisor, folder, reload=1):
    assert await prepare(supervisor, folder, reload) is None
    supervisor.channel.send(Apply(reload))
    return await supervisor.hears(Rechecked, len([m for m in supervisor.said if isinstance(m, Rechecked)]) + 1)


async def session(supervisor, name="alice"):
    client, _ = await supervisor.connection(name)
    await echoed(client)
    return client


def put(folder, old, new):
    text = (folder.path / "policy.toml").read_text()
    assert old in text
    folder.write("policy.toml", text.replace(old, new))


@pytest.fixture
def both(folder):
    """alice and bob may; a test takes bob's right away."""
    put(folder, '"alice"', '"alice", "bob"')


async def test_what_was_made_ready_changes_nothing_before_it_is_applied(both, worker, supervisor, folder):
    bob, alice = await session(supervisor, "bob"), await session(supervisor)
    put(folder, ', "bob"', "")
    assert await prepare(supervisor, folder) is None
    await echoed(bob)
    await echoed(await session(supervisor, "bob"))
    supervisor.channel.send(Apply(1))
    assert await supervisor.hears(Rechecked) == Rechecked(1, 2)
    await ends(bob)
    ended = await supervisor.hears(Ended)
    assert ended.reason == "no_role"
    await echoed(alice)
    supervisor._contexts.clear()
    bob, _ = await supervisor.connection("bob")
    await ends(bob)
    assert (await supervisor.hears(TurnedAway)).reason == "no_role"


async def test_what_cannot_be_made_ready_is_told_and_changes_nothing(both, worker, supervisor, folder):
    bob = await session(supervisor, "bob")
    before = worker.setup
    folder.write("policy.toml", "what")
    assert (await prepare(supervisor, folder)).startswith("ConfigurationError: ")
    assert worker.setup is before
    assert worker._prepared is None
    await echoed(bob)


async def test_a_failure_that_names_what_is_no_text_is_told_all_the_same(worker, supervisor, folder, monkeypatch):
    def fail(*_):
        raise OSError("policy-\udce9.toml")

    monkeypatch.setattr(worker_module, "build", fail)
    assert await prepare(supervisor, folder) == "OSError: policy-\\udce9.toml"


async def test_what_was_made_ready_too_late_is_not_taken_for_the_next(both, worker, supervisor, folder, monkeypatch):
    first = asyncio.get_running_loop().create_future()
    make = asyncio.to_thread

    async def slow(read, descriptor, before):
        setup = await make(read, descriptor, before)
        await first
        return setup

    monkeypatch.setattr(worker_module.asyncio, "to_thread", slow)
    put(folder, ', "bob"', "# first\n")
    supervisor.channel.send(Prepare(1), memory_file(folder))
    await asyncio.sleep(0)
    while worker._reload != 1:  # noqa: ASYNC110  # no event, only for a test
        await asyncio.sleep(0.001)
    monkeypatch.undo()
    put(folder, "# first\n", ', "bob", "carol"')
    assert await prepare(supervisor, folder, 2) is None
    first.set_result(None)
    for _ in range(10):
        await asyncio.sleep(0.001)
    supervisor.channel.send(Apply(2))
    assert await supervisor.hears(Rechecked) == Rechecked(2, 0)
    assert [message.reload for message in supervisor.said if isinstance(message, Prepared)] == [2]
    await echoed(await session(supervisor, "carol"))


async def test_a_worker_that_is_configured_once_more_looks_at_its_sessions_too(both, worker, supervisor, folder):
    bob, alice = await session(supervisor, "bob"), await session(supervisor)
    put(folder, ', "bob"', "")
    supervisor.channel.send(Configure(), memory_file(folder))
    await ends(bob)
    assert (await supervisor.hears(Ended)).reason == "no_role"
    await echoed(alice)


async def test_a_session_that_was_decided_on_before_ends_before_a_byte_moves(both, worker, supervisor, folder):
    supervisor.answering = False
    bob, number = await supervisor.connection("bob")
    await asyncio.to_thread(bob.sendall, b"x")
    await supervisor.hears(Admit)
    put(folder, ', "bob"', "")
    assert await apply(supervisor, folder) == Rechecked(1, 0)
    ticket = supervisor.ticket(number)
    supervisor.channel.send(ticket)
    await ends(bob)
    ended = await supervisor.hears(Ended)
    assert (ended.slot, ended.reason) == (ticket.slot, "no_role")
    assert supervisor._slots.free(ticket.slot) == (0, 0)


async def test_what_a_client_sent_early_goes_nowhere_when_its_right_ends_meanwhile(
    both, worker, supervisor, folder, monkeypatch
):
    started = []
    monkeypatch.setattr(connection_module.Relay, "start", lambda _relay, early: started.append(early))
    supervisor.answering = False
    bob, number = await supervisor.connection("bob", NAME)
    await asyncio.to_thread(bob.sendall, b"CONNECT orders-db HTTP/1.1\r\nHost: orders-db\r\n\r\nearly")
    await supervisor.hears(Admit)
    put(folder, ', "bob"', "")
    await apply(supervisor, folder)
    ticket = supervisor.ticket(number)
    supervisor.channel.send(ticket)
    assert (await supervisor.hears(Ended)).reason == "no_role"
    assert supervisor._slots.free(ticket.slot) == (0, 0)
    assert started == []


async def test_a_fault_with_one_session_ends_it_and_the_others_are_looked_at(
    both, worker, supervisor, folder, capsys, monkeypatch
):
    clients = [await session(supervisor, name) for name in ("alice", "bob", "alice")]
    first = next(iter(worker.live.values()))
    monkeypatch.setattr(type(first), "recheck", _failing_for(first))
    put(folder, ', "bob"', "")
    assert await apply(supervisor, folder) == Rechecked(1, 2)
    await ends(clients[0])
    await ends(clients[1])
    await echoed(clients[2])
    assert sorted(message.reason for message in supervisor.said if isinstance(message, Ended)) == [
        "no_role",
        "policy_changed",
    ]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if " gateway.fault " in line]
    assert "error=LookupError" in line


def _failing_for(one):
    recheck = type(one).recheck

    def fail(live, setup, at):
        if live is one:
            raise LookupError("nobody expects this")
        return recheck(live, setup, at)

    return fail


async def test_a_session_under_another_kind_of_limit_is_held_until_it_may_go_on(worker, supervisor, folder):
    client = await session(supervisor)
    (slot,) = worker.live
    folder.add("policy.toml", '\nquota = ["1GB/day"]\n')
    assert await apply(supervisor, folder) == Rechecked(1, 0)
    assert await supervisor.hears(Regrant) == Regrant(slot, "dba")
    await asyncio.to_thread(client.sendall, b"held")
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert worker.slots.cells[worker.slots.base(slot) + RECEIVED] == 1
    supervisor.channel.send(Regranted(slot, 5, leased=True, paced=False, lease_bytes=0))
    supervisor.channel.send(Leased(5, 100))
    assert await asyncio.to_thread(client.recv, 10) == b"held"
    assert worker.slots.cells[worker.slots.base(slot) + RECEIVED] == 5


async def test_a_session_that_moves_on_twice_is_held_until_the_second_answer(worker, supervisor, folder):
    client = await session(supervisor)
    (slot,) = worker.live
    policy = (folder.path / "policy.toml").read_text()
    folder.write("policy.toml", policy + '\nquota = ["1GB/day"]\n')
    await apply(supervisor, folder)
    folder.write("policy.toml", policy + '\nquota = ["1GB/day"]\nbandwidth = "1GB/s"\n')
    await apply(supervisor, folder, 2)
    await supervisor.hears(Regrant, 2)
    await asyncio.to_thread(client.sendall, b"held")
    supervisor.channel.send(Regranted(slot, 5, leased=True, paced=False, lease_bytes=100))
    assert await supervisor.hears(LeaseReturned) == LeaseReturned(5, 100)
    assert worker.slots.cells[worker.slots.base(slot) + RECEIVED] == 1
    supervisor.channel.send(Regranted(slot, 6, leased=True, paced=False, lease_bytes=100))
    assert await asyncio.to_thread(client.recv, 10) == b"held"
    assert worker.slots.cells[worker.slots.base(slot) + RECEIVED] == 5


async def test_a_lease_for_a_session_that_ended_before_it_came_goes_back(worker, supervisor, folder):
    client = await session(supervisor)
    (slot,) = worker.live
    folder.add("policy.toml", '\nquota = ["1GB/day"]\n')
    await apply(supervisor, folder)
    await supervisor.hears(Regrant)
    reset(client)
    ended = await supervisor.hears(Ended)
    assert (ended.slot, ended.returned) == (slot, None)
    supervisor.channel.send(Regranted(slot, 5, leased=True, paced=False, lease_bytes=0))
    supervisor.channel.send(Regranted(slot, 6, leased=True, paced=False, lease_bytes=100))
    assert await supervisor.hears(LeaseReturned) == LeaseReturned(6, 100)
    assert said_of_leases(supervisor) == [LeaseReturned(6, 100)]


async def test_the_end_of_a_grant_is_noticed_by_itself(worker, supervisor, folder, monkeypatch):
    client = await session(supervisor)
    (live,) = worker.live.values()
    monkeypatch.setattr(type(live), "recheck", lambda live, setup, at: live.relay.close(Reason.GRANT_EXPIRED))
    live.until_s = time.time()
    await ends(client)
    assert (await supervisor.hears(Ended)).reason == "grant_expired"


async def test_an_end_that_the_supervisor_says_is_one_also_before_the_session_has_begun(
    worker, supervisor, monkeypatch
):
    client = await session(supervisor)
    (slot,) = worker.live
    supervisor.channel.send(End(slot, Reason.KILLED))
    supervisor.channel.send(End(slot + 1, Reason.KILLED))  # of no session
    await ends(client)
    ended = await supervisor.hears(Ended)
    assert (ended.slot, ended.reason) == (slot, "killed")
    supervisor.answering = False
    client, number = await supervisor.connection()
    await asyncio.to_thread(client.sendall, b"x")
    await supervisor.hears(Admit, 2)
    over, dial = asyncio.Event(), type(worker.dialer).dial

    async def slow(*given, **named):
        await over.wait()
        return await dial(*given, **named)

    monkeypatch.setattr(type(worker.dialer), "dial", slow)
    ticket = supervisor.ticket(number)
    supervisor.channel.send(ticket)
    supervisor.channel.send(End(ticket.slot, Reason.KILLED))
    supervisor.channel.send(End(ticket.slot + 1, Reason.KILLED))
    supervisor.channel.send(Leased(0, 1))  # which is answered, as nobody has a use for it
    await supervisor.hears(LeaseReturned)
    over.set()
    await ends(client)
    ended = await supervisor.hears(Ended, 2)
    assert (ended.slot, ended.reason) == (ticket.slot, "killed")


async def test_what_was_in_force_before_is_freed_without_the_garbage_collector(worker, supervisor, folder):
    client = await session(supervisor)
    before = [weakref.ref(worker.setup.contexts), weakref.ref(worker.setup.snapshot.trusts)]
    gc.disable()
    try:
        folder.write("ca.crt", folder.authority.pem + b"\n")
        assert await apply(supervisor, folder) == Rechecked(1, 0)
        async with asyncio.timeout(PATIENCE_S):
            # The thread that has made ready lets go of what was before a moment after its answer is there.
            while [one() for one in before] != [None, None]:  # noqa: ASYNC110  # no event, only for a test
                await asyncio.sleep(0.001)
    finally:
        gc.enable()
    await echoed(client)


async def test_trusts_that_have_not_changed_are_the_same_ones(worker, supervisor, folder):
    before = worker.setup.snapshot.trusts
    folder.add("policy.toml", "\n# more\n")
    await apply(supervisor, folder)
    assert worker.setup.snapshot.trusts is before
    folder.write("ca.crt", folder.authority.pem + b"\n")
    await apply(supervisor, folder, 2)
    assert worker.setup.snapshot.trusts is not before


async def test_of_strangers_it_is_not_told_what_they_asked_for(supervisor, worker):
    holder = supervisor._folder.authority.issue("alice", sans=[dns("alice.test")])
    supervisor._contexts["nobody"] = context = trusting(cadata=supervisor._folder.authority.pem.decode())
    load_chain(context, holder.pem, holder.key_pem)
    client, _ = await supervisor.connection("nobody")
    await ends(client)
    refusal = await supervisor.hears(TurnedAway)
    assert (refusal.name, refusal.service, refusal.reason) == (None, None, "no_identity")


async def test_a_session_that_is_still_dialling_ends_at_once_with_the_reason(supervisor, worker, monkeypatch):
    dialling = asyncio.Event()

    async def dial(*_, **__):
        dialling.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(worker.dialer, "dial", dial)
    client, _ = await supervisor.connection()
    await dialling.wait()
    [slot] = worker._admitted
    supervisor.channel.send(End(slot, "locked"))
    await ends(client)
    assert await supervisor.hears(Ended) == Ended(slot, Reason.LOCKED, None, None)
    assert (worker._admitted, worker._doomed) == ({}, {})


async def refused_with(supervisor, holder):
    """What is told of a client with a certificate that nobody took."""
    context = trusting(cadata=supervisor._folder.authority.pem.decode())
    load_chain(context, holder.pem, holder.key_pem)
    supervisor._contexts["stranger"] = context
    before = len([message for message in supervisor.said if isinstance(message, TurnedAway)])
    client, _ = await supervisor.connection("stranger")
    with contextlib.suppress(ssl.SSLError):
        await asyncio.to_thread(client.recv, 1)
    return await supervisor.hears(TurnedAway, before + 1)


async def test_whose_certificate_was_refused_is_told_as_it_claims(worker, supervisor, folder, lines):
    expired = folder.authority.issue("alice", not_before=now() - timedelta(days=2), not_after=now() - timedelta(days=1))
    impostor = Authority.root("Other Root").issue("alice", sans=[], subject=common_name("al ice\n"))
    nameless = folder.authority.issue("alice", sans=[dns("alice")])
    for holder, subject, issuer, reason in (
        (expired, "spiffe://gateway.test/alice", folder.authority.subject.rfc4514_string(), "certificate_expired"),
        (impostor, "CN=al ice\n", "CN=Other Root", "certificate_untrusted"),
        (nameless, "CN=alice", folder.authority.subject.rfc4514_string(), "no_identity"),
    ):
        refusal = await refused_with(supervisor, holder)
        serial, fingerprint = f"{holder.certificate.serial_number:x}", holder.certificate.fingerprint(hashes.SHA256())
        assert refusal.reason == reason
        assert refusal.claim == (subject, issuer, serial, fingerprint.hex())
        assert (refusal.name, refusal.serial, refusal.fingerprint) == (None, None, None)
        line = lines("handshake.fail")[-1]
        assert f"claimed_subject={json.dumps(subject) if '=' in subject else subject} " in line
        assert f"claimed_serial={serial} claimed_fingerprint={fingerprint.hex()}" in line


ENROLS = b"POST /v1/enroll HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("server_name", "asked", "reason"),
    [
        (NAME, ENROLS, "bad_request"),  # understood: the trust has no authority
        (NAME, ENROLS.replace(b"POST", b"GET"), "no_identity"),
        (NAME, ENROLS.replace(b"enroll", b"renew"), "no_identity"),
        (NAME, b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\n\r\n", "no_identity"),
        (NAME, b"GET /v1/services HTTP/1.1\r\nHost: x\r\n\r\n", "no_identity"),
        (NAME, b"CONNECT orders-db HTTP/1.1\r\nHost: x\r\n\r\n", "no_identity"),
        (f"orders-db.{NAME}", ENROLS, "no_identity"),
    ],
)
async def test_whose_certificate_names_nobody_may_ask_for_one_and_for_nothing_else(
    worker, supervisor, folder, server_name, asked, reason
):
    holder = folder.authority.issue(subject=common_name(), sans=())
    supervisor._contexts["nobody"] = context = trusting(cadata=folder.authority.pem.decode())
    load_chain(context, holder.pem, holder.key_pem)
    client, _ = await supervisor.connection("nobody", server_name)
    with contextlib.suppress(OSError):
        await asyncio.to_thread(client.sendall, asked)
    refusal = await supervisor.hears(TurnedAway)
    assert (refusal.reason, refusal.name) == (reason, None)
    assert refusal.claim.serial == f"{holder.certificate.serial_number:x}"
    assert not [message for message in supervisor.said if isinstance(message, Admit | EnrolmentWanted | RenewalWanted)]


async def test_nothing_is_claimed_by_who_is_known_and_by_who_shows_no_certificate(worker, supervisor, folder):
    await supervisor.connection("bob")
    known = await supervisor.hears(TurnedAway)
    assert (known.name, known.reason, known.claim) == ("bob", "no_role", None)
    supervisor._contexts["stranger"] = trusting(cadata=folder.authority.pem.decode())
    await supervisor.connection("stranger")
    unknown = await supervisor.hears(TurnedAway, 2)
    assert (unknown.name, unknown.reason, unknown.claim) == (None, "certificate_missing", None)


async def test_a_client_that_sent_no_intermediate_is_told_from_others(worker, supervisor, folder):
    intermediate = folder.authority.intermediate("Issuing")
    alone = await refused_with(supervisor, intermediate.issue("alice"))
    assert alone.message == (
        "unable to get local issuer certificate; it is of no trust, or the client sent it without its intermediate"
    )
    assert alone.claim.issuer == "CN=Issuing"
    expired = folder.authority.issue(not_before=now() - timedelta(days=2), not_after=now() - timedelta(days=1))
    assert (await refused_with(supervisor, expired)).message == "certificate has expired"
