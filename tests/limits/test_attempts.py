"""How a ledger's attempts to write go: what is said of those that fail, and of one that does not end."""

import pytest

from portguard.limits import attempts
from portguard.limits.attempts import RETRY_S, Attempts


@pytest.fixture
def clock(monkeypatch):
    """`clock.s` is what time.monotonic() says."""

    class Clock:
        s = 1000.0

    monkeypatch.setattr(attempts.time, "monotonic", lambda: Clock.s)
    return Clock


@pytest.fixture
def events(monkeypatch):
    events = []
    monkeypatch.setattr(attempts.log, "event", lambda level, name, **fields: events.append((level, name, fields)))
    return events


@pytest.fixture
def made(clock):
    return Attempts({"file": "ledger.db"}, stuck_s=2.0, stuck="a write that does not end")


def attempt(made, cause):
    made.begin()
    made.settle(cause)


def test_what_is_written_leaves_nothing_to_say(made, events):
    attempt(made, None)
    assert (made.failing(), made.failing_s(), made.failed, made.hopeless, made.errors) == (None, None, False, False, 0)
    assert events == []


def test_failures_in_a_row_are_one_trouble_since_the_first_of_them_began(made, clock, events):
    attempt(made, "a full disk")
    clock.s += 10
    attempt(made, "no file any more")
    assert made.failing() == (1000.0, "no file any more")
    assert made.failing_s() == 10
    assert made.errors == 2
    attempt(made, None)
    assert made.failing() is None
    assert events == [
        ("error", "ledger.unavailable", {"file": "ledger.db", "message": "a full disk"}),
        ("info", "ledger.resume", {"seconds": 10.0}),
    ]


def test_after_a_failure_another_attempt_is_hopeless_for_a_while(made, clock, events):
    attempt(made, "a full disk")
    assert made.hopeless
    clock.s += RETRY_S
    assert not made.hopeless
    assert made.failed


def test_who_will_not_wait_can_make_the_next_one_at_once(made, events):
    attempt(made, "a full disk")
    made.retry_at_s = 0.0
    assert not made.hopeless


def test_an_attempt_that_does_not_end_counts_as_failing(made, clock):
    made.begin()
    clock.s += 2
    assert made.failing() is None
    clock.s += 1
    assert made.failing() == (1000.0, "a write that does not end")
    assert (made.failing_s(), made.errors) == (3, 0)
    made.settle(None)
    assert made.failing() is None


def test_a_writer_that_has_ended_is_never_taken_for_one_that_writes(made):
    made.end()
    assert made.failing() == (1000.0, "a writer that has ended")


def test_why_it_failed_is_not_forgotten_at_the_end(made, events):
    attempt(made, "a full disk")
    made.end()
    assert made.failing() == (1000.0, "a full disk")
