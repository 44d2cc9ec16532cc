"""An accounting of the supervisor's, with sessions that move what a test says, and a ledger in memory."""

import asyncio

import pytest
from msgspec.structs import astuple

from portguard.errors import Refused
from portguard.gateway.accounting import Accounting
from portguard.gateway.admission import Account, Client, Session
from portguard.gateway.messages import Leased, LeaseWanted
from portguard.gateway.slots import RECEIVED, SENT
from portguard.identity.names import Namespace
from portguard.limits.ledger import Owner
from portguard.policy.quantities import Period
from portguard.policy.read import read_policy
from tests.ledger_double import MemoryLedger
from tests.slots import Slots

MB = 1_000_000
ALICE, BOB = Owner("team", "local", "alice"), Owner("team", "local", "bob")
CLIENT = Client((), "1f", "cd" * 32, None)


def policy_with(limits, of_service=""):
    text = f"""
[[roles]]
name = "team"
members = ["alice", "bob"]
services = ["*"]
{limits}
[services.db]
upstream = ["10.0.0.1:1"]
{of_service}
"""
    return read_policy([("p.toml", text.encode())], Namespace({"local": "spiffe"}, "local", {}))


class Books:
    """An Accounting with sessions that move what the test says.

    `sent` is what workers were sent, and by what name; a lease that a ticket brings stands there as one of its own.
    """

    def __init__(self, limits="", ledger=None, when_unavailable="refuse"):
        self.ledger = MemoryLedger() if ledger is None else ledger
        self.slots = Slots(8, *range(4))
        self.sent = []
        self.came = asyncio.Event()
        self.warned = []
        self.misconduct = []
        self.accounting = Accounting(
            policy_with(limits),
            self.slots,
            self.ledger,
            when_unavailable=when_unavailable,
            send=self._send,
            on_misconduct=lambda worker, error: self.misconduct.append((worker, str(error))),
            on_warned=self.warned.append,
        )

    def _send(self, worker, message):
        self.sent.append((worker, type(message).__name__, *astuple(message)))
        self.came.set()

    def take_sent(self):
        sent, self.sent = self.sent, []
        return sent

    async def open(self, owner=ALICE, worker=0):
        """A session that was checked and let in, and all that follows from it."""
        self.accounting.check(owner)
        slot = self.slots.take(worker, 0)
        session = Session("ab" * 16, slot, worker, owner, "db", CLIENT, (), 0)
        self.ticket = self.accounting.open(7, session)
        if self.ticket.lease_bytes:
            self._send(worker, Leased(self.ticket.account, self.ticket.lease_bytes))
        await asyncio.sleep(0)
        return session

    def move(self, session, received=0, sent=0):
        cells = self.slots[session.slot]
        cells[RECEIVED] += received
        cells[SENT] += sent

    def moved(self, session):
        return self.slots.moved(session.slot)

    def end(self, session):
        self.accounting.ended(Account(session, *self.slots.free(session.slot), 1.0, 0.1, None))

    async def say(self, worker, message):
        self.accounting.on_message(worker, message)
        await asyncio.sleep(0)

    async def use_up(self, session):
        """Move what is leased and ask for more, until something else is said; return that."""
        for _ in range(100):
            messages = self.take_sent()
            if any(message[1] != "Leased" for message in messages):
                return messages
            self.move(session, sum(message[3] for message in messages if message[0] == session.worker))
            await self.say(session.worker, empty())
        raise AssertionError("expected an end, got leases only")

    def refusal(self, owner=ALICE):
        with pytest.raises(Refused) as caught:
            self.accounting.check(owner)
        return caught.value

    def used(self, owner=ALICE, period=Period.DAY):
        """What the ledger holds."""
        return self.ledger.rows[owner, period].used_bytes


def leased(worker, lease_bytes, account=0):
    return worker, "Leased", account, lease_bytes


def empty(account=0):
    return LeaseWanted(account, empty=True)
