"""Leases: how large, when, to whom, and who is told that there is nothing."""

import json
from collections import defaultdict
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from portguard.errors import Refused
from portguard.limits.accounts import Accounts
from portguard.limits.leases import (
    FIRST_BYTES,
    LARGEST_BYTES,
    RECALL_TICKS,
    SMALLEST_BYTES,
    Exhausted,
    Leases,
    Recall,
)
from portguard.limits.ledger import Owner
from portguard.policy.model import NO_LIMITS, Limits
from portguard.policy.quantities import Period, Quota
from portguard.reasons import Reason

NOW_S = datetime(2026, 11, 24, 12, 30, tzinfo=UTC).timestamp()
HOUR_S = 3600
ANNA, BEN = Owner("dba", "staff", "anna"), Owner("dba", "staff", "ben")
W1, W2, W3 = 1, 2, 3
MANY = 10**12


class Stage:
    """Leases of one role, its sessions' counts, and the clock."""

    def __init__(self, *quota: Quota, pooled: tuple[Quota, ...] = (), zone=UTC, now_s=NOW_S):
        self.now_s = now_s
        self.moved = defaultdict(int)
        self.limits = Limits(quota=quota, pooled_quota=pooled)
        self.accounts = Accounts({"dba": self.limits, "free": NO_LIMITS}, zone, now_s)
        self.leases = Leases(self.accounts, lambda slot: self.moved[slot])

    def open(self, slot, worker, owner=ANNA):
        """The first lease, if there is one."""
        lease = self.leases.open(slot, worker, owner, self.now_s)
        return [] if lease is None else [lease]

    def ask(self, worker, owner=ANNA, *, empty=False):
        return self.leases.ask(worker, owner, self.now_s, empty=empty)

    def give_back(self, worker, unused_bytes, owner=ANNA):
        return self.leases.give_back(worker, owner, unused_bytes, self.now_s)

    def end(self, slot):
        self.leases.end(slot, self.moved[slot], self.now_s)

    def check(self, owner=ANNA):
        self.leases.check(owner, self.now_s)

    def use_up(self, slot, worker, owner=ANNA):
        """Take all there is, and move it."""
        answers = self.open(slot, worker, owner)
        while self.accounts.left(owner) > 0:
            answers += self.ask(worker, owner)
        self.moved[slot] = sum(sizes(answers))
        return answers


def day(size_bytes):
    return Quota(size_bytes, Period.DAY)


def sizes(answers):
    return [answer.lease_bytes for answer in answers]


def test_the_first_lease_is_small_and_each_is_four_times_as_large_up_to_the_largest():
    s = Stage(day(MANY))
    granted = sizes(s.open(0, W1))
    for _ in range(9):
        granted += sizes(s.ask(W1))
    assert granted == [FIRST_BYTES << 2 * n for n in range(4)] + [LARGEST_BYTES] * 6
    assert LARGEST_BYTES == FIRST_BYTES << 7


def test_a_second_session_of_a_worker_draws_on_the_lease_of_the_first():
    s = Stage(day(MANY))
    assert len(s.open(0, W1)) == 1
    assert s.open(1, W1) == []
    s.moved[0] = FIRST_BYTES
    assert sizes(s.open(2, W1)) == [4 * FIRST_BYTES]


def test_a_lease_is_at_most_a_fourth_of_what_is_left_shared_by_those_who_hold_one():
    s = Stage(day(1_000_000))
    assert sizes(s.open(0, W1)) == [250_000]
    assert sizes(s.open(1, W2)) == [750_000 // 8]


def test_near_its_end_a_quota_is_leased_in_the_smallest_pieces_and_the_last_goes_as_a_whole():
    s = Stage(day(3 * SMALLEST_BYTES + 1000))
    assert sizes(s.open(0, W1) + s.ask(W1) + s.ask(W1) + s.ask(W1)) == [SMALLEST_BYTES] * 3 + [1000]
    assert s.ask(W1) == []


def test_what_is_left_of_the_tightest_quota_counts():
    s = Stage(Quota(10_000, Period.HOUR), day(MANY), pooled=(Quota(20_000, Period.MONTH),))
    assert sizes(s.open(0, W1)) == [10_000]
    assert sizes(s.open(1, W1, BEN)) == [10_000]
    assert s.open(2, W1, Owner("dba", "staff", "carl")) == []


def test_a_role_without_a_quota_needs_no_lease():
    s = Stage()
    assert not s.leases.are_needed("dba")
    assert not s.leases.are_needed("unknown")
    assert s.open(0, W1) == []
    s.check()
    assert Stage(day(1)).leases.are_needed("dba")
    assert Stage(pooled=(day(1),)).leases.are_needed("dba")


def test_who_asks_while_half_is_left_is_leased_more_and_who_says_it_is_empty_too_early_is_not():
    s = Stage(day(MANY))
    s.open(0, W1)
    s.moved[0] = FIRST_BYTES // 2
    assert sizes(s.ask(W1)) == [4 * FIRST_BYTES]
    assert s.ask(W1, empty=True) == []
    s.moved[0] = 5 * FIRST_BYTES
    assert sizes(s.ask(W1, empty=True)) == [16 * FIRST_BYTES]


def test_who_holds_nothing_and_never_opened_is_not_answered():
    s = Stage(day(MANY))
    assert s.ask(W1, empty=True) == s.leases.lease_anyway(W1, ANNA) == s.give_back(W1, 0) == []


def test_a_lease_needs_the_ledger_first_and_as_much_again_does_not():
    s = Stage(day(MANY))
    (lease,) = s.open(0, W1)
    assert not lease.safe
    s.accounts.written(s.accounts.rows_for(ANNA))
    s.moved[0] = FIRST_BYTES
    s.give_back(W1, 0)
    (lease,) = s.ask(W1)
    assert (lease.lease_bytes, lease.safe) == (4 * FIRST_BYTES, False)
    s.accounts.written(s.accounts.rows_for(ANNA))
    assert [lease.safe for lease in s.open(1, W2)] == [True]
    assert [lease.safe for lease in s.ask(W2)] == [False]


def test_half_asked_for_at_the_end_says_nothing_yet():
    s = Stage(day(100_000))
    s.use_up(0, W1)
    assert s.ask(W1) == []
    (answer,) = s.ask(W1, empty=True)
    assert isinstance(answer, Exhausted)


def test_what_another_worker_holds_is_recalled_for_who_has_nothing():
    s = Stage(day(100_000))
    s.open(0, W1)
    s.ask(W1)
    assert s.open(1, W2) == []
    s.check()
    assert s.ask(W2, empty=True) == [Recall(W1, ANNA)]
    assert s.ask(W2, empty=True) == []  # waits already
    s.moved[0] = 60_000
    (lease,) = s.give_back(W1, 40_000)
    assert (lease.worker, lease.lease_bytes) == (W2, 40_000)


@pytest.mark.parametrize("forged", [0, 2**64 - 1])
def test_a_forged_count_uses_no_more_than_was_leased_and_gives_nothing_back_that_was_used(forged):
    s = Stage(day(MANY))
    s.open(0, W1)
    s.moved[0] = 1000
    s.end(0)
    s.leases.open(0, W1, ANNA, s.now_s, 5000)  # goes on from another role
    s.moved[0] = forged
    (account,) = s.accounts.charged(ANNA)
    assert 0 <= account.outstanding() <= FIRST_BYTES - 1000
    s.end(0)
    s.leases.lose(W1, s.now_s)
    assert MANY - FIRST_BYTES <= s.accounts.left(ANNA) <= MANY - 1000


def test_a_forged_count_takes_back_nothing_of_what_was_used_without_a_lease():
    s = Stage()
    s.open(0, W1)
    s.moved[0] = 5000
    s.leases.note(0, s.now_s)
    s.moved[0] = 0
    s.leases.note(0, s.now_s)
    s.end(0)
    (account,) = s.accounts.charged(ANNA)
    assert account.used == [5000] * 4


def test_two_who_wait_recall_once_and_are_served_in_turn():
    s = Stage(day(100_000))
    s.open(0, W1)
    s.ask(W1)
    s.open(1, W2)
    s.open(2, W3)
    assert s.ask(W3, empty=True) == [Recall(W1, ANNA)]
    assert s.ask(W2, empty=True) == []
    lease, *recalls = s.give_back(W1, 50_000)
    assert (lease.worker, lease.lease_bytes) == (W3, 50_000)
    assert recalls == [Recall(W1, ANNA), Recall(W3, ANNA)]


# Recalls that are not answered.


@pytest.fixture
def recalled():
    """Two workers: what W1 has not used is recalled from it, as W2 waits for it."""
    s = Stage(day(100_000))
    s.open(0, W1)
    s.moved[0] = 10_000
    s.open(1, W2)
    s.moved[1] = 100_000 - SMALLEST_BYTES
    assert s.ask(W2, empty=True) == [Recall(W1, ANNA)]
    return s


def ticks(s, count, untold=()):
    return [s.leases.overdue(untold) for _ in range(count)]


IN_TIME, LATE = [[]] * RECALL_TICKS, [Recall(W1, ANNA)]


def test_a_recall_that_is_not_answered_is_overdue_once(recalled):
    assert ticks(recalled, RECALL_TICKS + 3) == [*IN_TIME, LATE, [], []]


def test_a_recall_that_is_answered_is_not_overdue(recalled):
    ticks(recalled, RECALL_TICKS)
    recalled.give_back(W1, SMALLEST_BYTES - 10_000)
    assert ticks(recalled, 20) == [[]] * 20


def test_to_answer_again_and_again_and_keep_it_is_no_answer(recalled):
    for _ in range(RECALL_TICKS):
        assert recalled.give_back(W1, 0) == [Recall(W1, ANNA)]
        assert recalled.leases.overdue(()) == []
    recalled.give_back(W1, 0)
    assert recalled.leases.overdue(()) == LATE


def test_who_uses_up_what_was_recalled_has_nothing_to_give_back(recalled):
    ticks(recalled, RECALL_TICKS)
    recalled.moved[0] = SMALLEST_BYTES
    assert ticks(recalled, 20) == [[]] * 20


def test_what_nobody_waits_for_any_more_need_not_be_given_back(recalled):
    recalled.end(1)
    recalled.give_back(W2, 0)
    recalled.leases.lose(W2, recalled.now_s)
    assert recalled.give_back(W1, 0) == []
    assert ticks(recalled, 20) == [[]] * 20


def test_a_worker_has_the_whole_time_after_it_was_leased_more(recalled):
    ticks(recalled, RECALL_TICKS)
    recalled.accounts.grant(ANNA, [Period.DAY], 5000, recalled.now_s)
    assert len(recalled.ask(W1)) == 1
    assert ticks(recalled, RECALL_TICKS + 1) == [*IN_TIME, LATE]


def test_a_worker_that_was_not_told_of_its_lease_yet_need_not_give_it_back(recalled):
    untold = {(W1, ANNA)}
    assert ticks(recalled, 20, untold) == [[]] * 20
    assert ticks(recalled, RECALL_TICKS + 1) == [*IN_TIME, LATE]


def test_a_worker_that_is_lost_is_not_overdue(recalled):
    ticks(recalled, RECALL_TICKS)
    recalled.end(0)
    recalled.leases.lose(W1, recalled.now_s)
    assert ticks(recalled, 20) == [[]] * 20


def test_the_excess_of_a_quota_that_became_smaller_is_overdue_too():
    s = Stage(day(MANY))
    s.open(0, W1)
    s.accounts.configure({"dba": Limits(quota=(day(1),))}, UTC, s.now_s)
    assert s.leases.recall_excess() == [Recall(W1, ANNA)]
    assert ticks(s, RECALL_TICKS + 1) == [*IN_TIME, LATE]


def test_another_program_waits_for_a_recall_anew(recalled):
    ticks(recalled, RECALL_TICKS)
    other = Leases(recalled.accounts, lambda slot: recalled.moved[slot])
    other.restore(json.loads(json.dumps(recalled.leases.state())))
    assert [other.overdue(()) for _ in range(RECALL_TICKS + 1)] == [*IN_TIME, LATE]


def test_of_a_shared_quota_another_identity_gives_back():
    s = Stage(pooled=(day(100_000),))
    s.open(0, W1)
    s.ask(W1)
    s.open(1, W1, BEN)
    assert s.ask(W1, BEN, empty=True) == [Recall(W1, ANNA)]
    (lease,) = s.give_back(W1, 100_000)
    assert (lease.worker, lease.owner, lease.lease_bytes) == (W1, BEN, SMALLEST_BYTES)


def test_who_has_used_its_own_quota_is_refused_although_others_hold_of_the_shared_one():
    s = Stage(day(100_000), pooled=(day(MANY),))
    s.open(1, W2, BEN)
    s.use_up(0, W1)
    (answer,) = s.ask(W1, empty=True)
    assert isinstance(answer, Exhausted)
    assert answer.owner == ANNA
    with pytest.raises(Refused):
        s.check()
    s.check(BEN)


def test_when_both_are_short_only_its_own_are_recalled():
    s = Stage(day(100_000), pooled=(day(150_000),))
    s.open(0, W1)
    s.ask(W1)
    s.open(1, W1, BEN)
    assert s.accounts.left(BEN) == 0
    s.open(2, W2)
    assert s.ask(W2, empty=True) == [Recall(W1, ANNA)]


def test_who_waits_hears_that_nothing_is_left_when_the_others_used_all_and_ended():
    s = Stage(day(100_000))
    s.open(0, W1)
    s.ask(W1)
    s.open(1, W2)
    assert s.ask(W2, empty=True) == [Recall(W1, ANNA)]
    s.moved[0] = 100_000
    s.end(0)
    (answer,) = s.give_back(W1, 0)
    assert (type(answer), answer.worker) == (Exhausted, W2)


def test_who_waits_hears_it_when_the_others_used_all_and_were_killed():
    s = Stage(day(100_000))
    s.open(0, W1)
    s.ask(W1)
    s.open(1, W2)
    s.ask(W2, empty=True)
    s.moved[0] = 100_000
    s.end(0)
    (answer,) = s.leases.lose(W1, s.now_s)
    assert (type(answer), answer.worker) == (Exhausted, W2)


def test_what_a_killed_worker_held_goes_to_who_waits():
    s = Stage(day(100_000))
    s.open(0, W1)
    s.ask(W1)
    s.open(1, W2)
    s.ask(W2, empty=True)
    s.moved[0] = 30_000
    s.end(0)
    (lease,) = s.leases.lose(W1, s.now_s)
    assert (lease.worker, lease.lease_bytes) == (W2, SMALLEST_BYTES)
    assert s.accounts.left(ANNA) == 70_000 - SMALLEST_BYTES


def test_who_waits_and_was_killed_is_served_no_more():
    s = Stage(day(100_000))
    s.open(0, W1)
    s.ask(W1)
    s.open(1, W2)
    s.ask(W2, empty=True)
    s.end(1)
    assert s.leases.lose(W2, s.now_s) == []
    assert s.give_back(W1, 100_000) == []


def test_who_got_bytes_back_while_it_waited_is_not_told_that_there_is_nothing():
    s = Stage(day(100_000))
    s.open(0, W1)
    s.open(1, W2)
    assert s.accounts.left(ANNA) == 0
    s.moved[0] = SMALLEST_BYTES
    assert s.ask(W1, empty=True) == [Recall(W2, ANNA)]
    s.moved[0] -= 10  # a sink broke
    s.moved[1] = 100_000 - SMALLEST_BYTES
    assert s.give_back(W2, 0) == []
    s.moved[0] += 10
    (answer,) = s.ask(W1, empty=True)
    assert isinstance(answer, Exhausted)


def test_a_lease_that_could_not_be_written_is_as_if_never_given():
    s = Stage(day(100_000))
    (lease,) = s.open(0, W1)
    s.accounts.rows_for(ANNA)
    s.leases.cancel(lease)
    assert s.accounts.left(ANNA) == 100_000
    s.end(0)
    s.leases.cancel(lease)  # its worker is gone
    assert s.accounts.left(ANNA) == 100_000


def test_while_the_ledger_is_unavailable_leases_pass_the_quota_when_told_to():
    s = Stage(day(100))
    s.open(0, W1)
    (lease,) = s.leases.lease_anyway(W1, ANNA)
    assert lease.safe
    assert lease.lease_bytes > 100
    assert s.accounts.left(ANNA) == -lease.lease_bytes


def test_with_the_last_session_and_what_it_gives_back_nothing_is_held():
    s = Stage(day(MANY))
    s.open(0, W1)
    s.moved[0] = 1000
    s.end(0)
    s.give_back(W1, FIRST_BYTES - 1000)
    assert s.accounts.account(ANNA).holdings == {}
    assert s.accounts.left(ANNA) == MANY - 1000
    assert sizes(s.open(1, W1)) == [FIRST_BYTES]


@pytest.mark.parametrize("claimed", [FIRST_BYTES - 100, FIRST_BYTES - 99, MANY])
def test_no_more_comes_back_than_the_worker_can_hold(claimed):
    s = Stage(day(MANY))
    s.open(0, W1)
    s.moved[0] = 100
    s.give_back(W1, claimed)
    assert s.accounts.left(ANNA) == MANY - 100
    s.end(0)
    assert s.give_back(W1, claimed) == []
    assert s.accounts.left(ANNA) == MANY - 100


def test_a_session_that_ends_twice_is_a_fault():
    s = Stage(day(MANY))
    s.open(0, W1)
    s.end(0)
    with pytest.raises(KeyError):
        s.end(0)


def test_a_session_that_comes_from_another_role_brings_nothing_it_moved_there():
    s = Stage(day(MANY))
    s.moved[0] = s.moved[1] = 5000
    s.leases.open(0, W1, ANNA, s.now_s, 5000)
    s.leases.open(1, W1, Owner("free", "staff", "anna"), s.now_s, 5000)
    s.moved[0] = s.moved[1] = 5100
    s.leases.note(1, s.now_s)
    s.end(0)
    s.end(1)
    s.give_back(W1, FIRST_BYTES - 100)
    assert s.accounts.left(ANNA) == MANY - 100
    assert s.accounts.account(Owner("free", "staff", "anna")).used == [100] * 4


def test_what_a_session_moved_by_the_time_it_is_opened_counts():
    s = Stage(day(MANY))
    s.moved[0] = s.moved[1] = 70
    s.open(0, W1)
    s.open(1, W1, Owner("free", "staff", "anna"))
    s.end(0)
    s.end(1)
    s.give_back(W1, FIRST_BYTES - 70)
    assert s.accounts.left(ANNA) == MANY - 70
    assert s.accounts.account(Owner("free", "staff", "anna")).used == [70] * 4


def test_use_without_a_quota_is_noted_once():
    s = Stage()
    s.open(0, W1)
    s.moved[0] = 70
    s.leases.note(0, s.now_s)
    s.leases.note(0, s.now_s)
    s.moved[0] = 100
    s.end(0)
    s.leases.note(0, s.now_s)
    assert s.accounts.account(ANNA).used == [100] * 4
    assert s.leases.slots() == ()


def test_a_lease_that_is_out_when_the_period_turns_is_taken_off_the_new_one():
    s = Stage(Quota(300_000, Period.HOUR))
    s.open(0, W1)
    s.moved[0] = 5_000
    s.now_s += HOUR_S / 2
    s.check()
    assert s.accounts.left(ANNA) == 300_000 - (75_000 - 5_000)
    s.moved[0] = 6_000
    s.end(0)
    s.give_back(W1, 75_000 - 6_000)
    assert s.accounts.left(ANNA) == 300_000 - 1_000


def test_a_clock_that_steps_back_gives_nothing_twice():
    s = Stage(Quota(100_000, Period.HOUR))
    s.use_up(0, W1)
    s.now_s -= HOUR_S
    with pytest.raises(Refused):
        s.check()
    s.now_s += HOUR_S + HOUR_S / 2
    s.check()


# What is said.


def refusal(stage, owner=ANNA):
    with pytest.raises(Refused) as caught:
        stage.check(owner)
    assert caught.value.reason is Reason.QUOTA_EXHAUSTED
    return caught.value.message, caught.value.retry_after_s


def test_a_refusal_says_what_is_used_up_and_until_when():
    s = Stage(day(1_000_000), zone=ZoneInfo("Europe/Zurich"))
    s.check()
    s.use_up(0, W1)
    assert refusal(s) == ("daily quota of 1 MB is used up; it renews at 00:00 Europe/Zurich", 10.5 * HOUR_S)


def test_of_several_used_up_the_one_that_renews_last_is_named():
    s = Stage(Quota(1_000, Period.HOUR), day(1_000), Quota(2_000, Period.MONTH), zone=ZoneInfo("UTC"))
    s.use_up(0, W1)
    assert refusal(s) == ("daily quota of 1 kB is used up; it renews at 00:00 UTC", 11.5 * HOUR_S)


def test_of_two_that_renew_together_its_own_is_named():
    s = Stage(day(1_000), pooled=(day(1_000),), zone=ZoneInfo("UTC"))
    s.use_up(0, W1)
    assert refusal(s)[0].startswith("daily quota of")
    assert refusal(s, BEN)[0] == "the daily quota of 1 kB that role dba shares is used up; it renews at 00:00 UTC"


def test_a_quota_of_which_others_hold_the_rest_is_not_said_to_be_used_up():
    s = Stage(Quota(100_000, Period.HOUR), pooled=(Quota(150_000, Period.MONTH),), zone=ZoneInfo("UTC"))
    s.use_up(0, W1)
    s.open(1, W2, BEN)
    assert s.accounts.left(BEN) == 0
    assert refusal(s)[0] == "hourly quota of 100 kB is used up; it renews at 13:00 UTC"


def test_a_day_on_which_clocks_are_put_forward_renews_an_hour_earlier():
    zone = ZoneInfo("Europe/Zurich")
    s = Stage(day(1_000), zone=zone, now_s=datetime(2026, 3, 29, 1, tzinfo=zone).timestamp())
    s.use_up(0, W1)
    assert refusal(s)[1] == 22 * HOUR_S
    s.now_s += 22 * HOUR_S - 1
    refusal(s)
    s.now_s += 1
    s.check()


# Other limits.


def configure(s, *quota, pooled=(), zone=UTC):
    s.accounts.configure({"dba": Limits(quota=quota, pooled_quota=pooled), "free": NO_LIMITS}, zone, s.now_s)


def test_of_a_quota_that_became_smaller_the_excess_is_recalled_once():
    s = Stage(day(MANY))
    s.open(0, W1)
    s.open(1, W2, BEN)
    for _ in range(4):
        s.ask(W1)
    s.moved[0] = 100_000
    configure(s, day(2_000_000))
    assert s.leases.recall_excess() == [Recall(W1, ANNA)]
    assert s.leases.recall_excess() == []
    outstanding = s.accounts.account(ANNA).outstanding()
    s.give_back(W1, outstanding)
    assert s.accounts.left(ANNA) == 1_900_000
    configure(s, day(90_000))
    assert s.leases.recall_excess() == [Recall(W2, BEN)]  # she has nothing that she could give back


def test_nothing_is_recalled_of_what_a_quota_still_holds():
    s = Stage(day(MANY))
    s.open(0, W1)
    configure(s, day(FIRST_BYTES))
    assert s.leases.recall_excess() == []


def test_a_quota_that_the_role_shares_comes_with_leases_out_and_goes_with_them():
    s = Stage(day(MANY))
    s.open(0, W1)
    s.open(1, W2, BEN)
    s.moved[0], s.moved[1] = 1_000, 2_000
    configure(s, day(MANY), pooled=(day(MANY),))
    pool = s.accounts.account(ANNA.pool)
    assert pool.used[1] - pool.outstanding() == 3_000
    assert pool.outstanding() == 2 * FIRST_BYTES - 3_000
    s.give_back(W1, 50_000)
    assert pool.used[1] - pool.outstanding() == 3_000
    configure(s, day(MANY))
    assert (pool.used[1], pool.outstanding()) == (3_000, 0)
    s.give_back(W2, 50_000, BEN)
    s.moved[1] += 500
    configure(s, day(MANY), pooled=(day(MANY),))
    assert pool.used[1] - pool.outstanding() == 3_500
    s.moved[0] += FIRST_BYTES - 51_000
    for slot in (0, 1):
        s.end(slot)
    s.give_back(W2, FIRST_BYTES - 52_500, BEN)
    assert (pool.used[1], pool.outstanding()) == (FIRST_BYTES - 50_000 + 2_500, 0)
    assert not s.leases._holdings


def test_another_zone_begins_other_days_in_which_what_was_used_stays_used():
    s = Stage(day(MANY))
    s.open(0, W1)
    s.moved[0] = 1_000
    s.accounts.account(ANNA).asked = [MANY] * len(Period)
    s.accounts.written(s.accounts.rows_for(ANNA))
    assert all(answer.safe for answer in s.ask(W1))
    configure(s, day(MANY), zone=ZoneInfo("Pacific/Auckland"))
    (line,) = [line for line in s.accounts.lines_of(ANNA, s.now_s) if line.period is Period.DAY]
    assert (line.used_bytes, line.outstanding_bytes) == (1_000, 5 * FIRST_BYTES - 1_000)
    assert line.end_s == datetime(2026, 11, 26, tzinfo=ZoneInfo("Pacific/Auckland")).timestamp()
    assert not any(answer.safe for answer in s.ask(W1))  # the ledger has no row of this day yet
