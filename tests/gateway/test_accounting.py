"""The supervisor's way into limits, with a ledger in memory that fails when it is told to."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC

import pytest

from portguard.errors import ConfigurationError, Refused
from portguard.gateway import accounting, leasing, ledger_health
from portguard.gateway.admission import Session
from portguard.gateway.messages import LeaseReturned, Regranted, ShareWanted, Ticket
from portguard.limits.fleet import News, Others, OthersConnects, SessionsElsewhere
from portguard.limits.leases import FIRST_BYTES
from portguard.limits.ledger import RateRow, UsageRow
from portguard.limits.periods import span_at
from portguard.policy.quantities import Period
from portguard.reasons import Reason
from tests.books import ALICE, BOB, CLIENT, MB, Books, empty, leased, policy_with
from tests.ledger_double import MemoryFleet, MemoryLedger
from tests.patience import PATIENCE_S

# Tickets and what comes with them.


@pytest.mark.parametrize(
    ("limits", "is_leased", "is_paced"),
    [
        ("max_sessions = 1", False, False),
        ('quota = ["1MB/day"]', True, False),
        ('pooled_quota = ["1MB/day"]', True, False),
        ('bandwidth = "1MB/s"', False, True),
        ('quota = ["1MB/day"]\nbandwidth = "1MB/s"', True, True),
    ],
)
async def test_a_ticket_says_what_a_session_may_not_move_unasked(limits, is_leased, is_paced):
    books = Books(limits)
    session = await books.open()
    assert books.ticket == Ticket(7, session.slot, 0, is_leased, is_paced, 0)
    assert bool(books.sent) == is_leased


async def test_an_account_is_of_an_identity_in_a_role_on_all_workers():
    books = Books()
    accounts = []
    for owner, worker in ((ALICE, 0), (BOB, 0), (ALICE, 1), (ALICE._replace(role="other"), 0)):
        await books.open(owner, worker)
        accounts.append(books.ticket.account)
    assert accounts == [0, 1, 0, 2]


# Who is refused, and for what first.


async def test_a_quota_that_is_used_up_refuses_and_is_no_attempt_to_connect():
    books = Books('quota = ["1MB/day"]\nconnect_rate = "2/d"')
    session = await books.open()
    assert await books.use_up(session) == [(0, "Closed", 0, "quota_exhausted")]
    books.end(session)
    for _ in range(3):
        refused = books.refusal()
        assert (refused.reason, refused.message[:34]) == (Reason.QUOTA_EXHAUSTED, "daily quota of 1 MB is used up; it")
        assert 0 < refused.retry_after_s <= 86_400
    books.accounting.accounts.reset(ALICE, [Period.DAY], time.time())
    books.accounting.check(ALICE)
    assert books.refusal().reason is Reason.CONNECT_RATE


@pytest.mark.parametrize(
    ("rate", "count", "message"),
    [
        ("1/s", 1, "role team allows 1 connection a second"),
        ("2/m", 2, "role team allows 2 connections a minute"),
        ("2/h", 2, "role team allows 2 connections an hour"),
        ("3/d", 3, "role team allows 3 connections a day"),
    ],
)
async def test_one_connection_too_many_is_refused_and_told_when_to_come_back(rate, count, message):
    books = Books(f'connect_rate = "{rate}"')
    for _ in range(count):
        books.accounting.check(ALICE)
    refused = books.refusal()
    assert (refused.reason, refused.message) == (Reason.CONNECT_RATE, message)
    assert refused.retry_after_s > 0
    books.accounting.check(BOB)


async def test_a_check_that_does_not_count_answers_the_same_and_is_no_attempt_to_connect():
    books = Books('quota = ["1MB/day"]\nconnect_rate = "1/d"')
    for _ in range(3):
        books.accounting.check(ALICE, counts=False)
    assert books.accounting.accounts.owners() == ()
    books.accounting.check(ALICE)
    with pytest.raises(Refused) as caught:
        books.accounting.check(ALICE, counts=False)
    assert caught.value.message == books.refusal().message == "role team allows 1 connection a day"
    assert caught.value.retry_after_s > 86_000


async def test_a_ledger_that_fails_for_long_refuses_everybody_before_all_else():
    books = Books('quota = ["1B/day"]')
    session = await books.open()
    books.move(session, 1)
    books.end(session)
    books.ledger.trouble = "no space"
    books.ledger.failing_for_s = ledger_health.PATIENCE_S
    assert (books.refusal().reason, books.accounting.health.unavailable) == (Reason.QUOTA_EXHAUSTED, False)
    books.ledger.failing_for_s = ledger_health.PATIENCE_S + 0.1
    assert (books.refusal().reason, books.accounting.health.unavailable) == (Reason.LEDGER_UNAVAILABLE, True)
    assert books.refusal(BOB).reason is Reason.LEDGER_UNAVAILABLE
    books.ledger.trouble = None
    assert (books.refusal().reason, books.accounting.health.unavailable) == (Reason.QUOTA_EXHAUSTED, False)


async def test_with_allow_a_ledger_that_fails_for_long_lifts_quotas_and_rates():
    books = Books('quota = ["1B/day"]\nconnect_rate = "1/d"', when_unavailable="allow")
    books.move(session := await books.open(), 1)
    books.end(session)
    assert books.refusal().reason is Reason.QUOTA_EXHAUSTED
    books.ledger.trouble = "no space"
    books.ledger.failing_for_s = ledger_health.PATIENCE_S
    assert books.refusal().reason is Reason.QUOTA_EXHAUSTED
    books.ledger.failing_for_s = ledger_health.PATIENCE_S + 0.1
    books.accounting.check(ALICE)
    assert books.accounting.health.unavailable
    books.ledger.trouble = None
    assert books.refusal().reason is Reason.QUOTA_EXHAUSTED


# Other limits for sessions that go on.


async def test_who_waits_gets_what_a_larger_quota_allows():
    books = Books('quota = ["256KiB/day"]')
    session, _ = await books.open(worker=0), await books.open(worker=1)
    await books.use_up(session)
    books.accounting.configure(policy_with('quota = ["100MB/day"]'), "refuse")
    await asyncio.sleep(0)
    assert [message[:2] for message in books.take_sent()] == [(0, "Leased")]


async def test_a_quota_that_became_smaller_than_what_was_used_ends_who_asks_for_more():
    books = Books('quota = ["100MB/day"]')
    session = await books.open()
    books.move(session, FIRST_BYTES)
    books.take_sent()
    books.accounting.configure(policy_with('quota = ["1kB/day"]'), "refuse")
    await books.say(0, empty())
    assert books.take_sent() == [(0, "Closed", 0, "quota_exhausted")]
    refused = books.refusal()
    assert (refused.reason, refused.message[:30]) == (Reason.QUOTA_EXHAUSTED, "daily quota of 1 kB is used up")


async def test_what_the_ledger_means_for_sessions_can_change():
    books = Books()
    books.ledger.trouble = "no space"
    assert books.refusal().reason is Reason.LEDGER_UNAVAILABLE
    books.accounting.configure(policy_with(""), "allow")
    books.accounting.check(ALICE)
    books.accounting.configure(policy_with(""), "refuse")
    assert books.refusal().reason is Reason.LEDGER_UNAVAILABLE


async def test_a_larger_bandwidth_applies_to_who_shares_one_already():
    books = Books('bandwidth = "1B/s"')
    await books.open()
    for _ in range(2):  # the second waits for a second
        await books.say(0, ShareWanted(0, 0))
    assert books.take_sent() == [(0, "Share", 0, 0, 1)]
    books.accounting.configure(policy_with('bandwidth = "1MB/s"'), "refuse")
    books.came.clear()
    await books.say(0, ShareWanted(0, 0))
    await asyncio.wait_for(books.came.wait(), PATIENCE_S)
    assert books.take_sent()[0][4] == 25_000
    await books.accounting.stop()


async def test_what_a_session_moved_before_it_went_to_another_role_stays_with_the_first():
    books = Books('quota = ["1MB/day"]')
    session = await books.open()
    books.move(session, 1000)
    await books.say(0, LeaseReturned(0, books.take_sent()[0][3] - 1000))
    other = replace(session, owner=ALICE._replace(role="other"))
    assert books.accounting.move(other) == Regranted(session.slot, 1, False, False, 0)
    books.move(other, 0, 200)
    books.end(other)
    await books.accounting.stop()
    assert (books.used(ALICE), books.used(other.owner)) == (1000, 200)


# Bandwidth.


async def test_sessions_without_a_quota_go_on_whatever_the_ledger_does(monkeypatch):
    monkeypatch.setattr(leasing, "_PATIENCE_S", -1.0)
    books = Books('bandwidth = "1MB/s"')
    await books.open()
    books.ledger.trouble = "no space"
    await books.accounting.tick()
    await books.say(0, ShareWanted(0, 0))
    assert [message[1] for message in books.sent] == ["Share"]


async def test_shares_of_a_bandwidth_go_to_who_asks_and_more_when_it_has_come_together():
    books = Books('bandwidth = "1MB/s"')
    await books.open(worker=0)
    await books.open(worker=1)
    for worker in (0, 1):
        await books.say(worker, ShareWanted(0, 1))
    assert [message[:4] for message in books.sent] == [(0, "Share", 0, 1), (1, "Share", 0, 1)]
    while len(books.sent) < 20:
        books.came.clear()
        for worker in (0, 1):
            await books.say(worker, ShareWanted(0, 1))
        await asyncio.wait_for(books.came.wait(), PATIENCE_S)
    assert max(share for *_, share in books.sent) <= 25_000
    await books.accounting.stop()


async def test_the_other_direction_has_a_bandwidth_of_its_own():
    books = Books('bandwidth = "20B/s"')
    await books.open()
    for direction in (0, 1):
        for _ in range(3):
            await books.say(0, ShareWanted(0, direction))
    given = [(direction, share) for *_, direction, share in books.sent]
    assert given == [(0, 1), (1, 1)]  # what has come together is one byte, in each
    await books.accounting.stop()


async def test_a_role_without_a_bandwidth_has_nothing_to_share():
    books = Books()
    await books.open()
    await books.say(0, ShareWanted(0, 0))
    assert books.sent == []


async def test_a_worker_without_a_session_of_an_account_takes_nobody_s_share_of_it():
    books = Books('bandwidth = "1MB/s"')
    await books.open(worker=0)
    session = await books.open(worker=1)
    await books.say(2, ShareWanted(0, 0))
    books.end(session)
    await books.say(1, ShareWanted(0, 0))
    assert books.take_sent() == []
    await books.say(0, ShareWanted(0, 0))
    assert [message[:2] for message in books.sent] == [(0, "Share")]
    await books.accounting.stop()


async def test_a_worker_that_is_lost_waits_for_no_share():
    books = Books('bandwidth = "1MB/s"')
    await books.open(worker=0)
    await books.open(worker=1)
    for _ in range(9):  # what came together is soon used up
        await books.say(1, ShareWanted(0, 0))
    books.accounting.lost(1)
    books.take_sent()
    books.came.clear()
    await books.say(0, ShareWanted(0, 0))
    await asyncio.wait_for(books.came.wait(), PATIENCE_S)
    assert {message[0] for message in books.sent} == {0}
    await books.accounting.stop()


# What is kept.


async def test_what_a_session_moved_is_in_the_ledger_to_the_byte_once_nobody_draws_on_the_account():
    books = Books('quota = ["100MB/day"]')
    session = await books.open()
    books.move(session, 1000, 234)
    books.end(session)
    await books.say(0, LeaseReturned(0, FIRST_BYTES - 1234))
    await books.accounting.stop()
    assert [books.used(period=period) for period in Period] == [1234] * len(Period)
    assert books.ledger.closed


async def test_a_session_that_was_never_opened_ends_without_a_trace():
    books = Books('quota = ["1MB/day"]')
    slot = books.slots.take(0, 0)
    books.end(Session("ab" * 16, slot, 0, ALICE, "db", CLIENT, (), 0))
    await books.accounting.stop()
    assert books.ledger.rows == {}


async def test_what_sessions_without_a_quota_move_is_noted_while_they_live(monkeypatch):
    monkeypatch.setattr(accounting, "_NOTE_EVERY_S", -1.0)
    monkeypatch.setattr(accounting, "_NOTED_AT_A_TIME", 1)
    books = Books()
    one, two = await books.open(), await books.open(BOB)
    books.move(one, 1000, 200)
    books.move(two, 1)
    await books.accounting.tick()
    assert (books.used(ALICE), books.used(BOB)) == (1200, 1)
    books.move(one, 1)
    await books.accounting.tick()
    assert books.used(ALICE) == 1201
    books.move(two, 5)
    books.end(two)
    assert books.used(BOB) == 6


async def test_who_nears_a_quota_is_told_of_once():
    books = Books('quota = ["1MB/day"]')
    session = await books.open()
    while not books.warned:
        books.move(session, sum(message[3] for message in books.take_sent()))
        await books.accounting.tick()
        assert bool(books.warned) == (books.moved(session) >= 800_000)
        await books.say(0, empty())
    await books.accounting.tick()
    assert [(warned.owner, warned.quota.period) for warned in books.warned] == [(ALICE, Period.DAY)]


async def test_another_supervisor_on_the_same_ledger_knows_what_was_used_and_who_connected():
    books = Books('quota = ["256KiB/day"]\nconnect_rate = "2/d"')
    session = await books.open()
    await books.use_up(session)
    books.end(session)
    books.accounting.check(BOB)
    books.accounting.check(BOB)
    await books.accounting.stop()
    again = Books('quota = ["256KiB/day"]\nconnect_rate = "2/d"', books.ledger)
    assert again.refusal(ALICE).reason is Reason.QUOTA_EXHAUSTED
    assert again.refusal(BOB).reason is Reason.CONNECT_RATE
    assert again.warned == []
    await again.accounting.tick()
    assert again.warned == []


async def test_connects_that_nobody_can_read_are_an_error_that_says_so():
    ledger = MemoryLedger()
    ledger.rows[ALICE, None] = RateRow(ALICE, "nonsense", int(time.time()) + 60)
    with pytest.raises(ConfigurationError, match="ledger: connects: expected what portguard writes, got "):
        Books(ledger=ledger)


async def test_rows_that_cannot_be_written_at_the_end_are_told_of(caplog):
    books = Books()
    books.move(session := await books.open(), 1)
    books.ledger.trouble = "no space"
    books.end(session)
    await books.accounting.stop()
    assert "ledger.unavailable" in caplog.messages


async def test_what_is_leased_beyond_a_quota_that_became_smaller_is_wanted_back():
    books = Books('quota = ["1GB/day"]')
    session = await books.open()
    books.take_sent()
    books.accounting.configure(policy_with('quota = ["60kB/day"]'), "refuse")
    assert books.take_sent() == [(0, "Recalled", 0)]
    await books.say(0, LeaseReturned(0, FIRST_BYTES))
    await books.say(0, empty())
    assert books.take_sent() == [leased(0, 60_000)]
    books.end(session)


async def test_what_becomes_of_clients_without_a_ledger_may_change():
    books = Books()
    books.ledger.trouble = "disk full"
    books.accounting.configure(policy_with(""), "allow")
    books.accounting.check(ALICE)
    books.accounting.configure(policy_with(""), "refuse")
    assert books.refusal().reason is Reason.LEDGER_UNAVAILABLE


# A ledger that other gateways write too.


def today():
    return span_at(Period.DAY, time.time(), UTC).start_s


def elsewhere(used, granted=0, resets=0):
    return News(use=[Others(ALICE, Period.DAY, today(), used, granted, resets)])


async def test_what_others_are_said_to_have_used_refuses_a_new_session():
    books = Books('quota = ["10MB/day"]', MemoryFleet())
    books.ledger.tell(elsewhere(10 * MB))
    assert books.refusal().reason == "quota_exhausted"
    books.ledger.tell(elsewhere(10 * MB, granted=1))
    books.accounting.check(ALICE)


async def test_connects_are_written_at_once_and_those_elsewhere_count():
    books = Books('connect_rate = "2/h"', MemoryFleet())
    await books.open()
    row = books.ledger.rows[ALICE, None]
    books.ledger.tell(News(connects=[OthersConnects(ALICE, "other", row.connects)]))
    assert books.refusal().reason == "connect_rate"
    assert books.accounting.connect_wait_s(ALICE) > 0
    assert books.accounting.connect_wait_s(BOB) == 0


async def test_sessions_that_have_a_bound_are_told_and_those_elsewhere_count():
    books = Books("max_sessions = 3", MemoryFleet())
    session = await books.open()
    assert books.ledger.sessions == {ALICE: 1}
    books.ledger.tell(News(sessions=[SessionsElsewhere(ALICE, "other", 2), SessionsElsewhere("db", "other", 5)]))
    assert [books.accounting.sessions_elsewhere(each) for each in (ALICE, BOB, "db")] == [2, 0, 5]
    books.end(session)
    assert books.ledger.sessions == {ALICE: 0}
    books.ledger.tell(News(gone={"other"}))
    assert books.accounting.sessions_elsewhere(ALICE) == 0


async def test_sessions_elsewhere_are_not_known_while_the_ledger_is_away():
    books = Books("max_sessions = 3", MemoryFleet())
    books.ledger.tell(News(sessions=[SessionsElsewhere(ALICE, "other", 2)]))
    books.ledger.trouble = "gone"
    assert books.accounting.sessions_elsewhere(ALICE) == 0
    books.ledger.trouble = None
    assert books.accounting.sessions_elsewhere(ALICE) == 2


async def test_sessions_without_a_bound_are_told_once_there_is_one():
    books = Books("", MemoryFleet())
    session = await books.open()
    assert books.ledger.sessions == {}
    books.accounting.configure(policy_with("max_sessions = 3", "max_sessions = 9"), "refuse")
    assert books.ledger.sessions == {ALICE: 1, "db": 1}
    after = Books("max_sessions = 3", MemoryFleet())
    after.accounting.restore(books.accounting.state(), {session.slot: session})
    assert after.ledger.sessions == {ALICE: 1}


async def test_a_reset_elsewhere_is_one_here_and_the_ledger_is_told():
    books = Books('quota = ["10MB/day"]', MemoryFleet())
    session = await books.open()
    [(_, _, _, first)] = books.take_sent()
    books.move(session, sent=first)
    books.end(session)
    assert books.accounting.accounts.left(ALICE) == 10 * MB - first
    books.ledger.tell(elsewhere(0, resets=1))
    assert books.accounting.accounts.left(ALICE) == 10 * MB
    row = books.ledger.rows[ALICE, Period.DAY]
    assert (row.used_bytes, row.resets) == (0, 1)


async def test_what_was_used_before_the_start_is_learnt_late_but_for_what_was_handed_over():
    books = Books('quota = ["10MB/day"]', MemoryFleet())
    own = News(own=[UsageRow(ALICE, Period.DAY, today(), today() + 86_400, 10 * MB, 0)])
    books.ledger.tell(own)
    assert books.refusal().reason == "quota_exhausted"
    assert books.used() == 10 * MB
    after = Books('quota = ["10MB/day"]', MemoryFleet())
    after.accounting.restore(Books('quota = ["10MB/day"]', MemoryFleet()).accounting.state(), {})
    after.ledger.tell(own)
    after.accounting.check(ALICE)


async def test_what_nobody_uses_any_more_is_given_up_within_a_second():
    books = Books('quota = ["100MB/day"]', MemoryFleet())
    session = await books.open()
    [(_, _, _, first)] = books.take_sent()
    books.move(session, sent=1000)
    books.end(session)
    await books.say(0, LeaseReturned(books.ticket.account, first - 1000))
    await books.accounting.tick()
    assert books.used() == 1000
