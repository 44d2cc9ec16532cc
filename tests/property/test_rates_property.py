"""Connect rates, for any arrivals: never one too many, never refused for long, and a restart changes nothing."""

from hypothesis import given
from hypothesis import strategies as st

from portguard.limits.rates import CELLS, MAX_ENTRIES, Connects
from portguard.policy.quantities import Rate

NOW_S = 1_795_478_400.0
rates = st.builds(Rate, st.integers(1, 8) | st.integers(50, 150), st.sampled_from([1, 60, 86_400]))
# As parts of the window; most are short, so that the window fills.
pauses = st.lists(st.sampled_from([0.0, 0.0, 1e-4, 0.005, 1 / 60, 0.1, 1.0]) | st.floats(0, 0.05), max_size=250)
steps = st.lists(st.tuples(st.floats(-3, 3), st.booleans()), max_size=60)


@given(rates, pauses)
def test_no_window_ever_has_one_too_many(rate, pauses):
    connects, now_s, admitted = Connects(), NOW_S, []
    for pause in pauses:
        now_s += pause * rate.per_s
        if connects.admit(now_s, rate) == 0.0:
            admitted.append(now_s)
        assert len(connects._entries) <= MAX_ENTRIES
    for first, following in zip(admitted, admitted[rate.count :], strict=False):
        # A window that starts with the first no longer holds the one that comes `count` later.
        assert following - first >= rate.per_s - 1e-6


@given(rates, pauses)
def test_whoever_is_refused_would_have_been_one_too_many_within_a_cell_and_is_admitted_after_the_wait(rate, pauses):
    connects, now_s, admitted = Connects(), NOW_S, []
    for pause in pauses:
        now_s += pause * rate.per_s
        wait_s = connects.admit(now_s, rate)
        if wait_s == 0.0:
            admitted.append(now_s)
            continue
        assert 0 < wait_s <= rate.per_s + 0.003
        remembered_s = rate.per_s * (1 + 1 / CELLS) + 0.003
        assert sum(now_s - at_s < remembered_s for at_s in admitted) >= rate.count
        assert Connects.from_text(connects.to_text()).admit(now_s + wait_s, rate) == 0.0


@given(rates, steps)
def test_restarts_and_a_clock_that_is_set_forgive_nothing_and_refuse_for_no_longer_than_the_window(rate, steps):
    connects, restarted, now_s = Connects(), Connects(), NOW_S
    for step, restart in steps:
        now_s += step * rate.per_s
        before = sum(count for last_ms, count in connects._entries if last_ms / 1000 + rate.per_s > now_s + 0.002)
        wait_s = connects.admit(now_s, rate)
        assert (wait_s == 0.0) <= (before < rate.count)
        assert wait_s <= rate.per_s + 0.003
        assert restarted.admit(now_s, rate) == wait_s
        if restart:
            restarted = Connects.from_text(restarted.to_text())


@given(st.text() | st.from_regex(r"[0-9]{1,5}:[0-9]{1,6}:[0-9x,]{1,12}", fullmatch=True))
def test_any_text_reads_back_the_same_or_is_refused(text):
    try:
        connects = Connects.from_text(text)
    except ValueError as error:
        assert str(error).isprintable()  # noqa: PT017 - most texts raise, some do not
        return
    assert Connects.from_text(connects.to_text()).to_text() == connects.to_text()
