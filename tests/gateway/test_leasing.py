"""Leases between workers and a ledger in memory, which fails when it is told to, or has other gateways."""

import asyncio
import time

import pytest

from portguard.gateway import leasing, ledger_health
from portguard.gateway.messages import LeaseReturned
from portguard.limits.leases import FIRST_BYTES, RECALL_TICKS
from portguard.policy.quantities import Period
from tests.books import ALICE, BOB, Books, empty, leased
from tests.ledger_double import MemoryFleet, MemoryLedger

# Leases.


async def test_no_lease_is_given_before_the_ledger_has_it():
    books = Books('quota = ["100MB/day"]', MemoryLedger(prompt=False))
    await books.open()
    assert books.sent == []
    books.ledger.commit()
    await asyncio.sleep(0)
    assert books.sent == [leased(0, FIRST_BYTES)]
    assert books.used() >= FIRST_BYTES


async def test_what_the_ledger_holds_ahead_comes_with_the_ticket_and_nothing_else_does():
    books = Books('quota = ["100MB/day"]', MemoryLedger(prompt=False))
    await books.open(worker=0)
    assert books.ticket.lease_bytes == 0
    books.ledger.commit()
    await asyncio.sleep(0)
    assert books.take_sent() == [leased(0, FIRST_BYTES)]
    assert books.used() == 2 * FIRST_BYTES
    await books.open(worker=1)  # it uses up what the ledger holds
    assert books.ticket.lease_bytes == FIRST_BYTES
    await books.open(worker=0)  # which draws on what the first was leased
    assert books.ticket.lease_bytes == 0
    await books.open(BOB, worker=0)
    assert books.ticket.lease_bytes == 0
    assert books.take_sent() == [leased(1, FIRST_BYTES)]
    assert books.accounting.is_securing


async def test_a_lease_that_came_with_a_ticket_goes_to_another_once_it_is_given_back_or_its_worker_lost():
    for is_lost in (False, True):
        books = Books('quota = ["256KiB/day"]')
        books.end(await books.open(worker=0))
        await books.say(0, LeaseReturned(0, books.take_sent()[0][3]))
        session, other = await books.open(worker=0), await books.open(worker=1)
        held = books.ticket.lease_bytes
        assert held > 0
        assert await books.use_up(session) == [(1, "Recalled", 0)]
        books.move(other, 1000)
        books.end(other)
        if is_lost:
            books.accounting.lost(1)
        else:
            await books.say(1, LeaseReturned(0, held - 1000))
        await asyncio.sleep(0)
        assert books.take_sent() == [leased(0, held - 1000)]
        books.move(session, held - 1000)
        await books.say(0, empty())
        assert books.take_sent() == [(0, "Closed", 0, "quota_exhausted")]
        assert books.used() == 256 * 1024


async def test_what_the_ledger_holds_ahead_is_given_at_once():
    books = Books('quota = ["1MB/day"]', MemoryLedger(prompt=False))
    session = await books.open()
    kinds = []
    for _ in range(3):
        books.ledger.commit()
        await asyncio.sleep(0)
        while books.sent:
            books.move(session, sum(message[3] for message in books.take_sent()))
            await books.say(0, empty())
            kinds.append("at once" if books.sent else "once it is written")
    assert kinds[:3] == ["at once", "once it is written", "at once"]
    books.ledger.commit()
    assert books.used() >= books.moved(session)


async def test_a_worker_with_nothing_left_gets_what_another_gives_back():
    books = Books('quota = ["256KiB/day"]')
    session, _ = await books.open(worker=0), await books.open(worker=1)
    held = books.sent[1][3]
    assert await books.use_up(session) == [(1, "Recalled", 0)]
    await books.say(1, LeaseReturned(0, held))
    assert books.take_sent() == [leased(0, held)]
    books.move(session, held)
    await books.say(0, empty())
    assert books.take_sent() == [(0, "Closed", 0, "quota_exhausted")]
    assert books.used() == 256 * 1024


async def test_a_worker_with_nothing_left_gets_what_one_that_is_lost_had():
    books = Books('quota = ["256KiB/day"]')
    session, other = await books.open(worker=0), await books.open(worker=1)
    held = books.sent[1][3]
    books.move(other, held - 1000)
    assert await books.use_up(session) == [(1, "Recalled", 0)]
    books.end(other)
    books.accounting.lost(1)
    await asyncio.sleep(0)
    assert books.take_sent() == [leased(0, 1000)]


async def test_a_worker_that_keeps_what_was_recalled_is_ended_for_it():
    books = Books('quota = ["256KiB/day"]')
    session, other = await books.open(worker=0), await books.open(worker=1)
    assert await books.use_up(session) == [(1, "Recalled", 0)]
    for _ in range(RECALL_TICKS):
        await books.accounting.tick()
        await books.say(1, LeaseReturned(0, 0))
    assert books.misconduct == []
    await books.accounting.tick()
    assert books.misconduct == [(1, "account 0: expected what was recalled within 10 s, got less")]
    held = books.take_sent()
    assert {message[:2] for message in held} == {(1, "Recalled")}
    books.end(other)
    books.accounting.lost(1)
    await asyncio.sleep(0)
    assert [message[:2] for message in books.take_sent()] == [(0, "Leased")]


async def test_a_worker_that_gives_back_what_was_recalled_is_not_ended():
    books = Books('quota = ["256KiB/day"]')
    session, _ = await books.open(worker=0), await books.open(worker=1)
    held = books.sent[1][3]
    await books.use_up(session)
    await books.say(1, LeaseReturned(0, held))
    for _ in range(2 * RECALL_TICKS):
        await books.accounting.tick()
    assert books.misconduct == []


async def test_a_worker_is_not_ended_for_a_lease_of_which_the_ledger_has_kept_it_untold():
    books = Books('quota = ["256KiB/day"]', MemoryLedger(prompt=False))
    one, _ = await books.open(worker=0), await books.open(worker=1)
    while not any(kind == "Recalled" for _, kind, *_ in books.sent):
        books.accounting._leases.ask(0, ALICE, time.time(), empty=False)
        books.move(one, 256 * 1024)
        await books.say(0, empty())
    for _ in range(2 * RECALL_TICKS):
        await books.accounting.tick()
    assert books.misconduct == []
    books.ledger.commit()
    await asyncio.sleep(0)
    for _ in range(RECALL_TICKS + 2):
        await books.accounting.tick()
    assert {worker for worker, _ in books.misconduct} == {1}


async def test_who_waits_gets_what_an_administrator_grants():
    books = Books('quota = ["256KiB/day"]')
    session, _ = await books.open(worker=0), await books.open(worker=1)
    await books.use_up(session)
    books.accounting.accounts.grant(ALICE, [Period.DAY], 5000, time.time())
    books.accounting.serve_waiting("team")
    await asyncio.sleep(0)
    assert books.take_sent() == [leased(0, 5000)]
    assert books.ledger.rows[ALICE, Period.DAY].granted_bytes == 5000


# A ledger that fails.


async def test_a_lease_that_could_not_be_written_comes_when_the_ledger_is_back():
    books = Books('quota = ["100MB/day"]')
    books.ledger.trouble = "no space"
    books.ledger.failing_for_s = 0.1
    await books.open()
    await books.accounting.tick()
    assert (books.sent, books.accounting.health.errors) == ([], 1)
    books.ledger.trouble = None
    await books.accounting.tick()
    await asyncio.sleep(0)
    assert [message[:2] for message in books.sent] == [(0, "Leased")]
    await books.accounting.tick()
    assert len(books.sent) == 1


async def test_sessions_that_waited_for_the_ledger_too_long_end_for_it(monkeypatch):
    books = Books('quota = ["100MB/day"]')
    books.ledger.trouble = "no space"
    books.ledger.failing_for_s = 0.1
    await books.open()
    await books.accounting.tick()
    assert books.sent == []
    monkeypatch.setattr(leasing, "_PATIENCE_S", -1.0)
    await books.accounting.tick()
    await books.accounting.tick()
    assert books.sent == [(0, "Closed", 0, "ledger_unavailable")]


async def test_sessions_end_for_a_ledger_that_does_not_answer_at_all(monkeypatch):
    books = Books('quota = ["100MB/day"]', MemoryLedger(prompt=False))
    await books.open()
    await books.accounting.tick()
    assert books.sent == []
    monkeypatch.setattr(leasing, "_PATIENCE_S", -1.0)
    await books.accounting.tick()
    assert books.sent == [(0, "Closed", 0, "ledger_unavailable")]


async def test_with_allow_leases_are_given_that_could_not_be_written():
    books = Books('quota = ["256KiB/day"]', when_unavailable="allow")
    books.ledger.trouble = "no space"
    books.ledger.failing_for_s = 0.1
    await books.open()
    assert [message[:2] for message in books.sent] == [(0, "Leased")]


async def test_with_allow_a_quota_that_is_used_up_ends_nothing_while_the_ledger_is_away():
    books = Books('quota = ["256KiB/day"]', when_unavailable="allow")
    session = await books.open()
    books.ledger.trouble = "no space"
    books.ledger.failing_for_s = ledger_health.PATIENCE_S + 0.1
    with pytest.raises(AssertionError, match="got leases only"):
        await books.use_up(session)
    assert books.moved(session) > 256 * 1024
    books.ledger.failing_for_s = ledger_health.PATIENCE_S
    assert await books.use_up(session) == [(0, "Closed", 0, "quota_exhausted")]


# A ledger that other gateways write too.


async def test_a_lease_is_claimed_before_it_is_used():
    books = Books('quota = ["10MB/day"]', MemoryFleet())
    session = await books.open()
    [(_, _, _, first)] = books.take_sent()
    assert books.ledger.claims
    books.move(session, sent=first)
    await books.say(0, empty())
    assert [message[1] for message in books.take_sent()] == ["Leased"]


async def test_what_others_have_used_meanwhile_is_not_leased_again():
    books = Books('quota = ["10MB/day"]', MemoryFleet())
    books.ledger.others_used = 9_900_000  # of which nobody has told
    session = await books.open()
    await books.came.wait()
    leased = 0
    while (messages := books.take_sent()) and messages[0][1] == "Leased":
        leased += messages[0][3]
        books.move(session, sent=messages[0][3])
        await books.say(0, empty())
        await asyncio.sleep(0)
    assert leased == 100_000
    assert messages[0][1] == "Closed"
    books.end(session)
    assert books.refusal().reason == "quota_exhausted"


async def test_a_claim_that_cannot_be_made_waits_for_the_ledger():
    books = Books('quota = ["10MB/day"]', MemoryFleet())
    books.ledger.failing_for_s = 0.0
    books.ledger.trouble = "away"
    await books.open()
    assert books.take_sent() == []
    books.ledger.trouble = None
    await books.accounting.tick()
    await asyncio.sleep(0)
    assert [message[1] for message in books.take_sent()] == ["Leased"]
