"""How an owner stands, asked for alone."""

from datetime import UTC

from portguard.limits.accounts import Accounts, QuotaLine
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
