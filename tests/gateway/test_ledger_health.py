"""When a ledger that fails is one that is not there, and what becomes of sessions then."""

import pytest

from portguard.gateway.condition import Failing
from portguard.gateway.ledger_health import PATIENCE_S, LedgerHealth
from tests.ledger_double import MemoryLedger


@pytest.fixture
def ledger():
    return MemoryLedger()


def test_a_ledger_that_works_is_there(ledger):
    health = LedgerHealth(ledger, "refuse")
    assert (health.unavailable, health.failing, health.errors) == (False, None, 0)


def test_for_a_moment_nobody_notices(ledger):
    health = LedgerHealth(ledger, "refuse")
    ledger.trouble, ledger.failing_for_s, ledger.errors = "a full disk", PATIENCE_S, 3
    assert (health.unavailable, health.failing, health.errors) == (False, Failing(PATIENCE_S, "a full disk"), 3)
    ledger.failing_for_s += 0.1
    assert health.unavailable


def test_what_it_means_for_sessions_can_change(ledger):
    health = LedgerHealth(ledger, "refuse")
    assert health.refuses
    health.configure("allow")
    assert not health.refuses
