"""Why clients were refused in the last five minutes, and not before."""

from collections import Counter

from portguard.gateway.recent_refusals import RecentRefusals


def test_reasons_are_summed_over_services_the_most_frequent_first():
    refused = Counter({("db", "no_role"): 100})
    recent = RecentRefusals(refused, 0.0)
    assert recent.top(5) == []
    refused.update({("db", "no_role"): 2, ("web", "no_role"): 3, ("", "certificate_missing"): 9, ("db", "locked"): 1})
    assert recent.top(5) == [("certificate_missing", 9), ("no_role", 5), ("locked", 1)]
    assert recent.top(1) == [("certificate_missing", 9)]


def test_what_was_refused_is_told_for_five_minutes_and_then_no_more():
    refused = Counter()
    recent = RecentRefusals(refused, 0.0)
    for second in range(1, 1001):
        if second == 100:
            refused["db", "no_role"] += 1
        recent.tick(float(second))
        told = dict(recent.top(5)).get("no_role", 0)
        if 100 <= second < 400:
            assert told == 1
        elif second < 100 or second > 412:
            assert told == 0


def test_what_is_kept_is_bounded():
    recent = RecentRefusals(Counter({("db", "no_role"): 1}), 0.0)
    for second in range(5000):
        recent.tick(float(second))
    assert len(recent._taken) <= 32
