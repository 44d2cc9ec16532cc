"""What a scrape shows of parts that the test has made so."""

import asyncio
from types import SimpleNamespace

import pytest

from portguard.gateway.admission import Admission, Client
from portguard.gateway.draining import Drained
from portguard.gateway.meter import Loaded, Meter
from portguard.gateway.reloading import FailedReload
from portguard.gateway.scrape import scrape
from portguard.gateway.slots import CONNECTED, RECEIVED
from portguard.limits.accounts import Accounts
from portguard.limits.ledger import Owner
from portguard.policy.model import Limits
from portguard.policy.quantities import Period, Quota
from tests.slots import Slots

NOW_S = 1_795_000_000.0
ALICE = Owner("team", "corp", "alice")


class Gateway:
    """One session that is connected, of an identity with a quota; `watched` is what a scrape looks at."""

    def __init__(self):
        slots = Slots(1, 0)
        self.admission = Admission(slots, max_pending=9, max_pending_per_address=9)
        meter = Meter(slots, self.admission.sessions, written=lambda trust, name: name, max_identities=9)
        client = Client((), "1f", "cd" * 32, None)
        about = {"session_id": "ab" * 16, "owner": ALICE, "service": "db", "client": client, "upstreams": ()}
        session = self.admission.admit(self.admission.begin(0, None), **about, now_ns=0)
        meter.admitted(session.slot, 0.002)
        slots[session.slot][CONNECTED] = 1
        slots[session.slot][RECEIVED] = 7
        accounts = Accounts({"team": Limits(quota=(Quota(1000, Period.DAY),))}, None, NOW_S)
        accounts.use(accounts.account(ALICE), 400)
        self.ending_s = None
        self.watched = SimpleNamespace(
            meter=meter,
            workers=SimpleNamespace(serving={0: "a worker", 1: "another"}),
            drain=SimpleNamespace(drained=None),
            accounting=SimpleNamespace(accounts=accounts, health=SimpleNamespace(errors=3)),
            reloader=SimpleNamespace(failed=None),
            trail=SimpleNamespace(failures=4),
            loaded=lambda: Loaded(5, (), {"gateway": NOW_S}, {}, NOW_S - 60, "ab" * 32),
            ending_s=lambda: self.ending_s,
        )


@pytest.fixture
def gateway():
    return Gateway()


async def test_it_shows_what_was_counted_and_how_the_parts_are(gateway):
    reading = await scrape(gateway.watched)
    assert reading.totals.received == {("alice", "db"): 7}
    assert reading.active == {("db", "team"): 1}
    assert reading.quotas.limits == {("team", Period.DAY): 1000}
    assert (reading.workers, reading.draining, reading.last_load_successful) == (2, False, True)
    assert (reading.audit_failures, reading.ledger_errors) == (4, 3)
    assert (reading.sessions_limit, reading.certificates) == (5, {"gateway": NOW_S})


async def test_that_a_reload_failed_is_shown(gateway):
    gateway.watched.reloader.failed = FailedReload(NOW_S, "a wrong file")
    assert not (await scrape(gateway.watched)).last_load_successful


async def test_that_the_gateway_drains_is_shown_for_either_reason(gateway):
    gateway.watched.drain.drained = Drained(NOW_S, "uid 0 (root)")
    assert (await scrape(gateway.watched)).draining
    gateway.watched.drain.drained, gateway.ending_s = None, NOW_S
    assert (await scrape(gateway.watched)).draining


async def test_what_it_shows_is_of_the_moment_at_which_it_began(gateway, monkeypatch):
    monkeypatch.setattr("portguard.gateway.meter._SESSIONS_AT_A_TIME", 1)
    looking = asyncio.create_task(scrape(gateway.watched))
    await asyncio.sleep(0)  # up to where it lets others run
    gateway.watched.workers.serving.clear()
    gateway.ending_s = NOW_S
    reading = await looking
    assert (reading.workers, reading.draining) == (2, False)
