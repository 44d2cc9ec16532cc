"""The token bucket: who is granted how much, in which order, and when."""

import pytest

from portguard.limits.bandwidth import DEPTH_S, GRANT_S, LAPSE_S, Bucket

RATE = 1_000_000
START_S = 1_000_000.25
DEPTH_BYTES = int(RATE * DEPTH_S)
GRANT_BYTES = int(RATE * GRANT_S)


def drain(bucket: Bucket, worker: int, now_s: float) -> int:
    """How much is there for a worker that asks again and again at one instant."""
    granted = 0
    while True:
        bucket.ask(worker, now_s)
        grants = bucket.grants(now_s)
        if not grants:
            return granted
        granted += sum(size for _, size in grants)


def simulate(bucket: Bucket, workers: range, seconds: float, late_s: float = 0.0) -> dict[int, int]:
    """What each is granted while all of them ask again as soon as they are served, by a timer that is `late_s` late."""
    now_s = START_S
    granted = dict.fromkeys(workers, 0)
    for worker in workers:
        bucket.ask(worker, now_s)
    while now_s < START_S + seconds:
        for worker, size in bucket.grants(now_s):
            granted[worker] += size
            bucket.ask(worker, now_s)
        due_s = bucket.due_s(now_s)
        assert due_s is not None
        now_s = due_s + late_s if due_s > now_s else now_s
    return granted


def test_who_asks_is_granted_a_share_at_once():
    bucket = Bucket(RATE, START_S)
    bucket.ask(7, START_S)
    assert bucket.due_s(START_S) == START_S
    assert bucket.grants(START_S) == [(7, GRANT_BYTES)]


def test_who_does_not_ask_is_granted_nothing():
    bucket = Bucket(RATE, START_S)
    assert bucket.grants(START_S) == []
    assert bucket.due_s(START_S) is None
    bucket.ask(7, START_S)
    assert bucket.grants(START_S)
    assert bucket.grants(START_S + 1) == []
    assert bucket.due_s(START_S + 1) is None


def test_nothing_is_granted_beyond_the_depth():
    bucket = Bucket(RATE, START_S)
    assert drain(bucket, 1, START_S) == DEPTH_BYTES
    assert drain(bucket, 1, START_S + 3600) == DEPTH_BYTES


def test_an_empty_bucket_is_due_when_a_grant_has_come_together():
    bucket = Bucket(RATE, START_S)
    drain(bucket, 1, START_S)
    due_s = bucket.due_s(START_S)
    assert due_s == pytest.approx(START_S + GRANT_S, abs=1e-5)
    assert bucket.grants(due_s - 1e-4) == []
    assert bucket.grants(due_s) == [(1, GRANT_BYTES)]


def test_a_timer_set_to_the_due_time_is_never_early():
    for rate in (1, 7, 999, 12_345_678, 10**10):
        bucket = Bucket(rate, START_S)
        drain(bucket, 1, START_S)
        now_s = START_S
        for _ in range(100):
            now_s = bucket.due_s(now_s)
            assert bucket.grants(now_s)
            bucket.ask(1, now_s)
            assert drain(bucket, 1, now_s) == 0


def test_turns_come_in_the_order_of_asking():
    bucket = Bucket(RATE, START_S)
    for worker in (3, 1, 2, 1, 3):
        bucket.ask(worker, START_S)
    granted = bucket.grants(START_S)
    assert granted == [(3, GRANT_BYTES // 3), (1, GRANT_BYTES // 3), (2, GRANT_BYTES // 3)]


def test_who_asks_again_waits_behind_the_others():
    bucket = Bucket(RATE, START_S)
    drain(bucket, 1, START_S)
    bucket.ask(2, START_S)
    now_s = bucket.due_s(START_S)
    assert [worker for worker, _ in bucket.grants(now_s)] == [1]
    bucket.ask(1, now_s)
    assert [worker for worker, _ in bucket.grants(bucket.due_s(now_s))] == [2]


def test_grants_are_split_by_all_who_may_hold_one():
    bucket = Bucket(RATE, START_S)
    for worker in range(4):
        bucket.ask(worker, START_S)
    assert [size for _, size in bucket.grants(START_S)] == [GRANT_BYTES // 4] * 4
    bucket.ask(0, START_S + LAPSE_S)
    assert bucket.grants(START_S + LAPSE_S) == [(0, GRANT_BYTES // 4)]


def test_a_grant_that_has_lapsed_is_held_by_nobody():
    bucket = Bucket(RATE, START_S)
    for worker in range(4):
        bucket.ask(worker, START_S)
    bucket.grants(START_S)
    later_s = START_S + LAPSE_S + 0.01
    bucket.ask(0, later_s)
    assert bucket.grants(later_s) == [(0, GRANT_BYTES)]


def test_who_waits_long_still_counts():
    bucket = Bucket(RATE, START_S)
    drain(bucket, 1, START_S)
    later_s = START_S + 5 * LAPSE_S
    bucket.ask(2, later_s)
    assert bucket.grants(later_s) == [(1, GRANT_BYTES // 2), (2, GRANT_BYTES // 2)]


def test_a_grant_is_held_from_when_it_was_made_and_not_from_when_it_was_asked_for():
    bucket = Bucket(RATE, START_S)
    drain(bucket, 1, START_S)
    later_s = START_S + 5 * LAPSE_S
    assert bucket.grants(later_s) == [(1, GRANT_BYTES)]
    bucket.ask(2, later_s + LAPSE_S / 2)
    assert bucket.grants(later_s + LAPSE_S / 2) == [(2, GRANT_BYTES // 2)]


def test_who_is_forgotten_neither_waits_nor_counts():
    bucket = Bucket(RATE, START_S)
    for worker in (1, 2):
        bucket.ask(worker, START_S)
    bucket.forget(1)
    bucket.forget(5)
    assert bucket.grants(START_S) == [(2, GRANT_BYTES)]
    bucket.forget(2)
    bucket.ask(3, START_S)
    assert bucket.grants(START_S) == [(3, GRANT_BYTES)]


@pytest.mark.parametrize("rate", [1, 19, 20, 21, 39])
def test_no_grant_is_of_no_bytes(rate):
    bucket = Bucket(rate, START_S)
    for worker in range(5):
        bucket.ask(worker, START_S)
    granted = []
    while (due_s := bucket.due_s(START_S + len(granted) * 2.0)) is not None:
        granted += bucket.grants(due_s)
    assert granted == [(worker, 1) for worker in range(5)]


def test_another_rate_applies_at_once_to_those_who_wait():
    bucket = Bucket(1000, START_S)
    drain(bucket, 1, START_S)
    bucket.set_rate(RATE, START_S)
    assert bucket.grants(START_S) == []
    assert bucket.due_s(START_S) == pytest.approx(START_S + GRANT_S, abs=1e-5)
    assert bucket.grants(START_S + GRANT_S + 1e-4) == [(1, GRANT_BYTES)]


def test_time_before_a_change_of_rate_counts_at_the_old_rate():
    bucket = Bucket(1000, START_S)
    drain(bucket, 1, START_S)
    bucket.set_rate(RATE, START_S + 1)
    assert bucket.grants(START_S + 1) == []


def test_a_lower_rate_has_a_lower_depth():
    bucket = Bucket(RATE, START_S)
    bucket.set_rate(1000, START_S)
    assert drain(bucket, 1, START_S) == 1000 * DEPTH_S


def test_a_clock_that_does_not_move_on_gives_nothing_and_takes_nothing():
    bucket = Bucket(RATE, START_S)
    drain(bucket, 1, START_S)
    assert bucket.grants(START_S - 5) == []
    assert bucket.grants(START_S) == []
    assert bucket.grants(START_S + GRANT_S + 1e-4) == [(1, GRANT_BYTES)]


def test_one_that_asks_alone_gets_the_whole_rate():
    assert simulate(Bucket(RATE, START_S), range(1), 10)[0] == pytest.approx(10 * RATE, rel=0.01)


def test_a_timer_that_is_somewhat_late_loses_nothing():
    assert simulate(Bucket(RATE, START_S), range(1), 10, late_s=0.02)[0] == pytest.approx(10 * RATE, rel=0.01)
    # Beyond the depth it does: nothing comes together for later.
    assert simulate(Bucket(RATE, START_S), range(1), 10, late_s=0.2)[0] < 4 * RATE


@pytest.mark.parametrize("count", [2, 5])
def test_those_who_always_ask_get_equal_shares_of_the_whole_rate(count):
    granted = simulate(Bucket(RATE, START_S), range(count), 10)
    assert sum(granted.values()) == pytest.approx(10 * RATE, rel=0.01)
    assert max(granted.values()) - min(granted.values()) <= GRANT_BYTES


def test_a_bucket_is_idle_when_a_new_one_would_be_the_same():
    bucket = Bucket(RATE, START_S)
    assert bucket.idle(START_S)
    bucket.ask(1, START_S)
    assert not bucket.idle(START_S)
    bucket.grants(START_S)
    assert not bucket.idle(START_S + LAPSE_S)
    assert bucket.idle(START_S + LAPSE_S + 0.01)
    bucket.ask(1, START_S + 2)
    bucket.grants(START_S + 2)
    bucket.forget(1)
    assert not bucket.idle(START_S + 2)
    assert bucket.idle(START_S + 2 + DEPTH_S)
