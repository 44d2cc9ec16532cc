"""What owners have used, what the ledger is told, who is warned, and how an owner stands."""

from datetime import UTC
from zoneinfo import ZoneInfo

import pytest

from portguard.limits.account import Holding
from portguard.limits.accounts import Accounts, QuotaLine, Warned
from portguard.limits.fleet import Others
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


def test_the_ledger_is_told_of_a_reset_at_once_while_somebody_draws_on_the_account_too():
    asked = fresh()
    asked.use(asked.account(ANNA), 5_000)
    leased(asked, 300)
    asked.written(asked.rows_for(ANNA))
    asked.reset(ANNA, [Period.DAY], NOW_S)
    assert day_row(asked.take_rows(NOW_S)).used_bytes == 300
    assert not asked.lease(ANNA, 1)  # of what was put aside before, the ledger holds nothing any more


def test_what_is_being_written_is_not_said_to_be_less_by_a_reset():
    asked = fresh()
    leased(asked, 300)
    rows = asked.rows_for(ANNA)
    asked.reset(ANNA, [Period.DAY], NOW_S)
    assert day_row(asked.take_rows(NOW_S)).used_bytes == 600
    asked.written(rows)
    assert asked.lease(ANNA, 300)
    assert not asked.lease(ANNA, 1)


def test_a_grant_lasts_until_its_period_ends():
    asked = fresh()
    asked.grant(ANNA, [Period.DAY], 700, NOW_S)
    assert asked.left(ANNA) == 10_700
    assert day_row(asked.take_rows(NOW_S)).granted_bytes == 700
    asked.roll(DAY.end_s)
    assert asked.left(ANNA) == 10_000


# Where several gateways share a ledger.


def shared(limits=LIMITS):
    return Accounts({"dba": limits}, UTC, NOW_S, shared=True)


def elsewhere(used, granted=0, resets=0, owner=ANNA, start_s=DAY.start_s):
    return Others(owner, Period.DAY, start_s, used, granted, resets)


def test_what_others_have_used_is_not_left_and_is_shown():
    asked = shared()
    assert asked.hear([elsewhere(4_000, granted=500)], NOW_S) == {"dba"}
    assert asked.left(ANNA) == 10_000 + 500 - 4_000
    assert asked.lines_of(ANNA, NOW_S) == [QuotaLine(ANNA, Period.DAY, 10_000, 500, 4_000, 0, DAY.end_s)]


def test_what_others_have_used_in_another_period_is_left():
    asked = shared()
    assert asked.hear([elsewhere(4_000, start_s=DAY.start_s - 86_400)], NOW_S) == set()
    assert asked.left(ANNA) == 10_000
    asked.hear([elsewhere(4_000)], NOW_S)
    assert asked.lines_of(ANNA, DAY.end_s)[0].used_bytes == 0


def test_a_quota_that_others_have_used_up_is_exhausted():
    asked = shared()
    asked.hear([elsewhere(10_000)], NOW_S)
    assert asked.left(ANNA) == 0
    assert "daily quota of 10 kB is used up" in asked.exhausted(ANNA, NOW_S).message


def test_who_is_not_named_among_all_has_used_nothing_elsewhere():
    asked = shared()
    asked.hear([elsewhere(4_000)], NOW_S)
    asked.hear([elsewhere(1_000, owner=BEN)], NOW_S)
    assert (asked.left(ANNA), asked.left(BEN)) == (6_000, 9_000)
    asked.hear([elsewhere(1_000, owner=BEN)], NOW_S, all_there_is=True)
    assert (asked.left(ANNA), asked.left(BEN)) == (10_000, 9_000)


def test_a_warning_counts_what_others_have_used():
    asked = shared()
    asked.hear([elsewhere(8_000)], NOW_S)
    assert asked.warnings() == [Warned(ANNA, Quota(10_000, Period.DAY), 8_000)]


def test_a_reset_elsewhere_forgets_what_was_used_here_and_the_ledger_is_told():
    asked = shared()
    asked.use(asked.account(ANNA), 3_000)
    asked.take_rows(NOW_S)
    asked.hear([elsewhere(0, resets=1)], NOW_S)
    assert asked.left(ANNA) == 10_000
    [row] = [row for row in asked.take_rows(NOW_S) if row.period is Period.DAY]
    assert (row.used_bytes, row.resets) == (0, 1)
    asked.use(asked.account(ANNA), 200)
    asked.hear([elsewhere(0, resets=1)], NOW_S)  # the same one, heard of again
    assert asked.left(ANNA) == 9_800


def test_a_reset_here_is_numbered_and_what_was_put_aside_is_given_up():
    asked = shared()
    assert not leased(asked, 100)
    asked.claimed(ANNA, [claim.row for claim in asked.claims_for(ANNA)])
    for account in asked.charged(ANNA):
        account.holdings.clear()
    for owner in (ANNA, ANNA.pool):
        asked.reset(owner, list(Period), NOW_S)
    assert {(row.used_bytes, row.resets) for row in asked.take_rows(NOW_S)} == {(0, 1)}
    assert not leased(asked, 100)


def test_a_reset_of_a_ledger_that_nobody_shares_is_not_numbered():
    alone = accounts()
    alone.reset(ANNA, [Period.DAY], NOW_S)
    assert {row.resets for row in alone.take_rows(NOW_S)} == {0}


def test_a_claim_names_what_is_needed_and_the_smallest_quota():
    asked = shared()
    leased(asked, 100)
    claims = {(claim.row.owner, claim.row.period): claim for claim in asked.claims_for(ANNA)}
    assert claims[ANNA, Period.DAY][1:] == (100, 10_000)
    assert claims[ANNA.pool, Period.DAY][1:] == (100, 50_000)
    assert claims[ANNA, Period.WEEK][1:] == (100, None)
    assert claims[ANNA, Period.DAY].row.used_bytes == 200


def test_a_claim_that_is_met_in_part_is_no_more_than_that():
    asked = shared()
    leased(asked, 100)
    rows = [claim.row._replace(used_bytes=150) for claim in asked.claims_for(ANNA)]
    asked.claimed(ANNA, rows)
    assert leased(asked, 50)
    assert not leased(asked, 1)


def test_near_the_end_nothing_is_put_aside_for_later():
    asked = shared()
    asked.hear([elsewhere(9_000)], NOW_S)
    leased(asked, 100)
    assert {claim.row.used_bytes for claim in asked.claims_for(ANNA)} == {100}
    alone = fresh()
    leased(alone, 9_100)
    assert {row.used_bytes for row in alone.rows_for(ANNA)} == {18_200}


def test_what_was_claimed_in_vain_is_not_asked_for_again():
    asked = shared()
    leased(asked, 100)
    asked.claims_for(ANNA)
    asked.not_written(ANNA)
    asked.put_back(ANNA, 100)
    asked.give_up(ANNA)
    asked.use(asked.account(ANNA), 5)
    assert {row.used_bytes for row in asked.take_rows(NOW_S)} == {5}


def test_what_was_put_aside_before_a_reset_is_of_no_use_after_it():
    asked = shared()
    leased(asked, 100)
    claims = asked.claims_for(ANNA)
    for owner in (ANNA, ANNA.pool):
        for account in asked.charged(ANNA):
            account.holdings.clear()
        asked.reset(owner, list(Period), NOW_S)
    asked.claimed(ANNA, [claim.row for claim in claims])
    assert not leased(asked, 100)


def test_while_another_claim_is_under_way_no_row_says_less_than_that():
    asked = shared()
    leased(asked, 100)
    first = asked.claims_for(ANNA)
    leased(asked, 300)
    asked.claims_for(ANNA)
    asked.claimed(ANNA, [claim.row for claim in first])
    asked.use(asked.account(ANNA), 0)
    assert {row.used_bytes for row in asked.take_rows(NOW_S)} == {700}


def test_what_was_used_before_the_start_counts_when_it_is_learnt_late():
    asked = shared()
    asked.use(asked.account(ANNA), 1_000)
    asked.load_late([UsageRow(ANNA, Period.DAY, *DAY, 2_000, 300, 2)], NOW_S)
    assert asked.left(ANNA) == 10_000 + 300 - 3_000
    [row] = [row for row in asked.take_rows(NOW_S) if row.period is Period.DAY]
    assert row[4:] == (3_000, 300, 2)


def test_after_a_handover_nothing_is_taken_to_be_put_aside():
    before = shared()
    leased(before, 100)
    after = shared()
    after.restore(before.state())
    assert not leased(after, 1)
