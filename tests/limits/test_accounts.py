"""What owners have used, what the ledger is told, who is warned, and how an owner stands."""

from datetime import UTC
from zoneinfo import ZoneInfo

import pytest

from portguard.limits.accounts import Accounts, Holding, QuotaLine, Warned
from portguard.limits.ledger import Owner, UsageRow
from portguard.limits.periods import span_at
from portguard.policy.model import Limits
from portguard.policy.quantities import Period, Quota

NOW_S = 1_795_000_000.0
DAY = span_at(Period.DAY, NOW_S, UTC)
ANNA, BEN = Owner("dba", "staff", "anna"), Owner("dba", "staff", "ben")
LIMITS = Limits(quota=(Quota(20_000, Period.DAY), Quota(10_000, Period.DAY)), pooled_quota=(Quota(50_000, Period.DAY),))


def accounts():
    accounts = Accounts({"dba": LIMITS}, UTC, NOW_S)
    accounts.load([UsageRow(ANNA, Period.DAY, *DAY, 4_000, 500)])
    return accounts


def test_one_owner_stands_as_among_all():
    asked = accounts()
    for owner in (ANNA, ANNA.pool):
        assert asked.lines_of(owner, NOW_S) == list(asked.lines(lambda each, owner=owner: each == owner, NOW_S))
    assert asked.lines_of(ANNA, NOW_S) == [QuotaLine(ANNA, Period.DAY, 10_000, 500, 4_000, 0, DAY.end_s)]


def test_who_was_never_seen_has_used_nothing_and_gets_no_account_by_being_asked_for():
    asked = accounts()
    before = asked.owners()
    assert asked.lines_of(BEN, NOW_S) == [QuotaLine(BEN, Period.DAY, 10_000, 0, 0, 0, DAY.end_s)]
    assert asked.lines_of(BEN._replace(role="unknown"), NOW_S) == asked.lines_of(Owner("unknown", "", ""), NOW_S) == []
    assert asked.owners() == before


def test_a_period_that_is_over_is_not_told_of():
    asked = accounts()
    (line,) = asked.lines_of(ANNA, DAY.end_s)
    assert (line.used_bytes, line.granted_bytes, line.end_s) == (0, 0, DAY.end_s + 86_400)


# Leases and the ledger.


def leased(asked, size_bytes, owner=ANNA):
    """Take a lease as if a worker held it; return whether the ledger holds as much."""
    holding = Holding(owner, 1, lambda _slot: 0, 0)
    holding.leased = size_bytes
    for account in asked.charged(owner):
        account.holdings[owner, 1] = holding
    return asked.lease(owner, size_bytes)


def fresh(limits=LIMITS, rows=(), zone=UTC, now_s=NOW_S):
    accounts = Accounts({"dba": limits}, zone, now_s)
    accounts.load(rows)
    return accounts


def day_row(rows, owner=ANNA):
    (row,) = [row for row in rows if (row.owner, row.period) == (owner, Period.DAY)]
    return row


def test_a_lease_is_safe_when_the_ledger_holds_it_in_every_period_and_account():
    asked = fresh()
    assert not asked.lease(ANNA, 100)
    rows = asked.rows_for(ANNA)
    assert {row.owner for row in rows} == {ANNA, ANNA.pool}
    assert {row.used_bytes for row in rows} == {200}
    asked.written([row for row in rows if row.period is not Period.HOUR])
    assert not asked.lease(ANNA, 50)
    asked.written(asked.rows_for(ANNA))
    assert asked.lease(ANNA, 50)
    assert not asked.lease(ANNA, 1)


def test_what_was_written_of_a_period_that_is_over_makes_nothing_safe():
    asked = fresh()
    asked.lease(ANNA, 100)
    rows = asked.rows_for(ANNA)
    asked.roll(DAY.end_s)
    asked.written(rows)
    asked.put_back(ANNA, asked.account(ANNA).used[2])
    assert asked.account(ANNA).safe[:2] == [0, 0]


def test_at_a_turn_the_ledger_holds_nothing_of_the_new_period():
    asked = fresh()
    asked.lease(ANNA, 100)
    asked.written(asked.rows_for(ANNA))
    asked.roll(DAY.end_s)
    assert not asked.lease(ANNA, 50)


def test_once_settled_the_ledger_is_told_less_and_holds_no_more():
    asked = fresh()
    asked.lease(ANNA, 100)
    asked.written(asked.rows_for(ANNA))
    asked.put_back(ANNA, 90)
    asked.settle()
    assert day_row(asked.take_rows(NOW_S)).used_bytes == 10
    assert not asked.lease(ANNA, 50)


def test_nothing_is_settled_while_somebody_draws_on_it():
    asked = fresh()
    leased(asked, 100)
    asked.written(asked.rows_for(ANNA))
    asked.settle()
    assert asked.lease(ANNA, 100)


def test_nothing_is_settled_while_its_rows_are_being_written():
    asked = fresh()
    asked.lease(ANNA, 100)
    rows = asked.rows_for(ANNA)
    asked.put_back(ANNA, 100)  # its worker was killed
    asked.settle()
    assert asked.take_rows(NOW_S) == []
    asked.written(rows)
    assert asked.lease(ANNA, 100)
    asked.put_back(ANNA, 100)
    asked.settle()
    assert day_row(asked.take_rows(NOW_S)).used_bytes == 0
    assert not asked.lease(ANNA, 100)


# Warnings.


def test_most_of_a_quota_is_warned_of_once_a_period():
    asked = fresh(Limits(quota=(Quota(1_000, Period.DAY),)))
    asked.use(asked.account(ANNA), 799)
    assert asked.warnings() == []
    asked.use(asked.account(ANNA), 1)
    assert asked.warnings() == [Warned(ANNA, Quota(1_000, Period.DAY), 800)]
    asked.use(asked.account(ANNA), 100)
    assert asked.warnings() == []
    asked.roll(DAY.end_s)
    asked.use(asked.account(ANNA), 900)
    assert len(asked.warnings()) == 1


def test_what_is_only_leased_is_not_warned_of():
    asked = fresh(Limits(quota=(Quota(1_000, Period.DAY),)))
    leased(asked, 900)
    assert asked.warnings() == []


def test_after_a_restart_nobody_is_warned_again():
    limits = Limits(quota=(Quota(1_000, Period.DAY),))
    asked = fresh(limits, [UsageRow(ANNA, Period.DAY, *DAY, 850, 0), UsageRow(BEN, Period.DAY, *DAY, 700, 0)])
    asked.use(asked.account(ANNA), 1)
    asked.use(asked.account(BEN), 100)
    assert [warned.owner for warned in asked.warnings()] == [BEN]


# What a ledger held.


def test_what_was_used_in_a_day_of_another_zone_counts_and_is_written_anew():
    start_s, end_s = DAY
    asked = fresh(rows=[UsageRow(ANNA, Period.DAY, start_s - 3600, end_s - 3600, 4_000, 500)])
    assert asked.left(ANNA) == 10_000 + 500 - 4_000
    assert day_row(asked.take_rows(NOW_S)) == UsageRow(ANNA, Period.DAY, *DAY, 4_000, 500)
    assert not asked.lease(ANNA, 1)


HOURLY = Limits(quota=(Quota(10_000, Period.HOUR),))
HOUR_END_S = span_at(Period.HOUR, NOW_S, UTC).end_s


def used_of_the_hour(asked, now_s):
    return sum(line.used_bytes for line in asked.lines_of(ANNA, now_s) if line.period is Period.HOUR)


@pytest.mark.parametrize(("now_s", "used"), [(HOUR_END_S - 1800.5, 4_000), (HOUR_END_S - 1800, 0)])
def test_in_another_zone_a_period_ends_when_it_ends_there(now_s, used):
    asked = fresh(HOURLY)
    asked.use(asked.account(ANNA), 4_000)
    asked.configure({"dba": HOURLY}, ZoneInfo("Asia/Kolkata"), NOW_S)  # five hours and a half ahead
    assert used_of_the_hour(asked, now_s) == used


@pytest.mark.parametrize(("now_s", "used"), [(HOUR_END_S - 0.5, 4_000), (HOUR_END_S, 0)])
def test_a_period_that_ends_while_another_program_takes_over_has_ended(now_s, used):
    before = fresh(HOURLY)
    before.use(before.account(ANNA), 4_000)
    asked = fresh(HOURLY, now_s=now_s)
    asked.restore(before.state())
    assert used_of_the_hour(asked, now_s) == used


def test_a_shared_quota_that_comes_later_counts_what_members_used_before():
    rows = [UsageRow(owner, Period.DAY, *DAY, 4_000, 0) for owner in (ANNA, BEN)]
    assert fresh(rows=rows).account(ANNA.pool).used[1] == 8_000
    asked = fresh(Limits(), rows)
    asked.configure({"dba": LIMITS}, UTC, NOW_S)
    assert asked.account(ANNA.pool).used[1] == 8_000


def test_what_the_ledger_has_of_a_shared_quota_stands_over_a_restart_and_a_reload():
    rows = [UsageRow(ANNA, Period.DAY, *DAY, 4_000, 0), UsageRow(ANNA.pool, Period.DAY, *DAY, 100, 0)]
    asked = fresh(rows=rows)
    assert asked.account(ANNA.pool).used[1] == 100
    asked.configure({"dba": LIMITS}, UTC, NOW_S)
    assert asked.account(ANNA.pool).used[1] == 100


# What operators do.


def test_a_reset_forgets_one_period_and_what_is_leased_stays_taken():
    asked = fresh()
    asked.use(asked.account(ANNA), 5_000)
    leased(asked, 300)
    asked.reset(ANNA, [Period.DAY], NOW_S)
    assert asked.account(ANNA).used == [5_300, 300, 5_300, 5_300]
    assert asked.left(ANNA) == 9_700


def test_a_grant_lasts_until_its_period_ends():
    asked = fresh()
    asked.grant(ANNA, [Period.DAY], 700, NOW_S)
    assert asked.left(ANNA) == 10_700
    assert day_row(asked.take_rows(NOW_S)).granted_bytes == 700
    asked.roll(DAY.end_s)
    assert asked.left(ANNA) == 10_000
