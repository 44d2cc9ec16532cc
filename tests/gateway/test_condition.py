"""What a tired person is told first, and since when."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from portguard.gateway.condition import Condition, State, Trouble, Troubles

NOW_S = 1_795_000_000.0  # 2026-11-18T11:06:40Z
NOW = datetime.fromtimestamp(NOW_S, UTC)


def trouble(code, state, detail="why", since_s=None):
    return Trouble(code, state, detail, f"problem {code}", since_s)


AUDIT = trouble("audit_unavailable", State.REFUSING, "no space left on device: /var/lib/portguard/audit.jsonl")
MISSING = trouble("workers_missing", State.DEGRADED, "1 of 2 workers serve")
DRAIN = trouble("draining", State.DRAINING, "new sessions are refused, by uid 0 (root)")


@pytest.mark.parametrize(
    ("troubles", "sessions", "verdict"),
    [
        ([], 3, "SERVING"),
        ([MISSING], 3, "DEGRADED since 10:06: 1 of 2 workers serve"),
        (
            [AUDIT],
            3,
            "REFUSING ALL since 10:06: audit_unavailable (no space left on device: /var/lib/portguard/audit.jsonl)",
        ),
        ([AUDIT, MISSING], 3, "REFUSING ALL since 10:06: audit_unavailable "
         "(no space left on device: /var/lib/portguard/audit.jsonl); and 1 more"),
        ([DRAIN], 1, "DRAINING since 10:06: new sessions are refused, by uid 0 (root), 1 session left"),
        ([DRAIN], 0, "DRAINING since 10:06: new sessions are refused, by uid 0 (root), 0 sessions left"),
    ],
)  # fmt: skip
def test_the_verdict_is_one_line(troubles, sessions, verdict):
    condition = Condition(tuple((each, NOW_S - 3600) for each in troubles), sessions)
    assert condition.verdict(NOW) == verdict


def test_times_are_those_of_the_wall_and_have_a_date_when_that_is_not_today():
    zurich = NOW.astimezone(timezone(timedelta(hours=1)))
    assert Condition(((MISSING, NOW_S - 60),), 0).verdict(zurich).startswith("DEGRADED since 12:05:")
    assert Condition(((MISSING, NOW_S - 86_400),), 0).verdict(zurich).startswith("DEGRADED since 2026-11-17 12:06:")


@pytest.mark.parametrize(
    ("troubles", "state", "not_ready"),
    [
        ([], State.SERVING, []),
        ([MISSING], State.DEGRADED, []),
        ([AUDIT, MISSING], State.REFUSING, ["problem audit_unavailable"]),
        ([DRAIN, AUDIT], State.DRAINING, ["problem draining", "problem audit_unavailable"]),
    ],
)
def test_only_what_keeps_everybody_out_makes_it_not_ready(troubles, state, not_ready):
    condition = Condition(tuple((each, NOW_S) for each in troubles), 0)
    assert (condition.state, condition.not_ready) == (state, not_ready)
    assert condition.since_s == (NOW_S if troubles else None)


class Looked:
    def __init__(self):
        self.found = []
        self.now_s = NOW_S
        self.troubles = Troubles(lambda: self.found, lambda: self.now_s)

    def at(self, seconds, *found):
        self.now_s, self.found = NOW_S + seconds, found
        return [(each.code, since_s - NOW_S) for each, since_s in self.troubles.now()]


def test_a_trouble_has_lasted_since_it_was_first_seen():
    looked = Looked()
    assert looked.at(0, MISSING) == [("workers_missing", 0)]
    assert looked.at(5, MISSING) == [("workers_missing", 0)]
    assert looked.at(9, MISSING, AUDIT) == [("audit_unavailable", 9), ("workers_missing", 0)]
    assert looked.at(10) == []
    assert looked.at(12, MISSING) == [("workers_missing", 12)]


def test_a_trouble_that_knows_better_is_believed():
    looked = Looked()
    assert looked.at(5, trouble("audit_unavailable", State.REFUSING, since_s=NOW_S + 2)) == [("audit_unavailable", 2)]


def test_the_weightiest_is_told_first_and_else_the_order_is_kept():
    other = trouble("reload_failed", State.DEGRADED)
    assert [code for code, _ in Looked().at(0, MISSING, other, AUDIT, DRAIN)] == [
        "draining",
        "audit_unavailable",
        "workers_missing",
        "reload_failed",
    ]
