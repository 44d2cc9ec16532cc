"""Bandwidth, over any interleaving of askers: never above the rate, and nobody waits for ever."""

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from portguard.limits.bandwidth import DEPTH_S, GRANT_S, Bucket

rates = st.sampled_from([1, 19, 21, 1000, 65_537, 50_000_000, 10**10]) | st.integers(1, 10**9)
# Pauses between acts: most are short, since what matters happens within the depth.
pauses_s = st.sampled_from([0.0, 0.0, 1e-4, 0.001, 0.0125, 0.025, 0.05, 0.3]) | st.floats(0, 0.1)
acts = st.lists(
    st.tuples(pauses_s, st.sampled_from(["ask", "ask", "ask", "grants", "due", "forget"]), st.integers(0, 4)),
    max_size=120,
)


@given(rates, acts, st.sampled_from([0.0, 86_400.5, 3e6]))
def test_grants_in_any_interval_stay_within_the_rate_and_the_depth(rate, acts, now_s):
    bucket = Bucket(rate, now_s)
    granted: list[tuple[float, int]] = []
    for pause_s, act, worker in acts:
        now_s += pause_s
        if act == "ask":
            bucket.ask(worker, now_s)
        elif act == "forget":
            bucket.forget(worker)
        elif act == "due" and (due_s := bucket.due_s(now_s)) is not None:
            now_s = due_s
        granted += [(now_s, size) for _, size in bucket.grants(now_s)]
    assert all(size > 0 for _, size in granted)
    totals = list(accumulate((size for _, size in granted), initial=0))
    for first, (start_s, _) in enumerate(granted):
        for last in range(first, len(granted)):
            allowed = rate * (granted[last][0] - start_s) + DEPTH_S * rate + 1
            # Steps of a clock in a float, in bytes.
            assert totals[last + 1] - totals[first] <= allowed + rate * 1e-8


@given(rates, st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_who_waits_is_served_within_a_round(rate, askers):
    now_s = 1000.0
    bucket = Bucket(rate, now_s)
    waiting: dict[int, float] = {}
    longest_s = max(2 * GRANT_S, 7 / rate) + 1e-3
    for asker in askers:
        bucket.ask(asker, now_s)
        waiting.setdefault(asker, now_s)
        now_s = bucket.due_s(now_s)
        for worker, _ in bucket.grants(now_s):
            assert now_s - waiting.pop(worker) <= longest_s
    while (due_s := bucket.due_s(now_s)) is not None:
        now_s = due_s
        grants = bucket.grants(now_s)
        assert grants
        for worker, _ in grants:
            assert now_s - waiting.pop(worker) <= longest_s
    assert not waiting


@given(rates, st.integers(1, 5))
def test_those_who_always_ask_share_alike(rate, count):
    bucket = Bucket(rate, 0.0)
    served = dict.fromkeys(range(count), 0)
    now_s = 0.0
    for worker in served:
        bucket.ask(worker, now_s)
    for _ in range(60):
        now_s = bucket.due_s(now_s)
        for worker, _size in bucket.grants(now_s):
            served[worker] += 1
            bucket.ask(worker, now_s)
    assert max(served.values()) - min(served.values()) <= 1
