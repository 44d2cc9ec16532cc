"""How the gateway ends, step by step, with workers that are there for as long as the test says."""

import asyncio

import pytest

from portguard.gateway import ending as ending_module
from portguard.gateway.ending import Ending
from portguard.gateway.messages import Stop
from portguard.reasons import Reason
from tests.patience import PATIENCE_S
from tests.peers import until


class Gateway:
    """What an ending acts on, and in which order it did."""

    def __init__(self, *, drain_s=None, workers=2, sessions=1):
        self.happened = []
        self.left = workers
        self.sessions = dict.fromkeys(range(sessions), "a session")
        self.ending = Ending(
            acceptor=self, workers=self, sessions=self.sessions, drain_s=lambda: drain_s, on_begun=self.begun
        )

    def begun(self):
        self.happened.append("begun")

    # The acceptor.

    def close(self):
        self.happened.append("close")

    # The workers.

    def __len__(self):
        return self.left

    def drain(self):
        self.happened.append("drain")

    def tell(self, message):
        self.happened.append(message)

    # What happens to them.

    def lose_worker(self, *, sessions=0):
        self.left -= 1
        self.ending.on_worker_gone(sessions)

    @property
    def code(self):
        """The exit code; None while the gateway is not over."""
        return self.ending.over.result() if self.ending.over.done() else None


DRAINED = ["close", "drain", "begun"]
CUT = Stop(Reason.GATEWAY_STOPPED)


async def test_it_serves_until_it_is_told_to_end_whatever_happens_to_workers():
    gateway = Gateway(workers=1)
    gateway.lose_worker(sessions=1)
    assert (gateway.ending.begun, gateway.ending.since_s, gateway.code) == (False, None, None)
    gateway.ending.begin()
    assert gateway.code == 0  # what was lost before was not lost to the end


async def test_it_ends_well_with_the_last_worker():
    gateway = Gateway()
    gateway.ending.begin()
    assert gateway.happened == DRAINED
    assert gateway.ending.begun
    gateway.lose_worker()
    assert gateway.code is None
    gateway.lose_worker()
    assert gateway.code == 0
    assert not gateway.ending.cutting


async def test_it_begins_once():
    gateway = Gateway()
    gateway.ending.begin()
    since_s = gateway.ending.since_s
    gateway.ending.begin()
    assert gateway.happened == DRAINED
    assert gateway.ending.since_s == since_s


async def test_a_session_that_is_lost_while_it_drains_is_told_by_the_exit_code():
    gateway = Gateway()
    gateway.ending.begin()
    gateway.lose_worker(sessions=1)
    gateway.lose_worker()
    assert gateway.code == 1


async def test_each_signal_is_a_step():
    gateway = Gateway()
    gateway.ending.on_signal()
    assert (gateway.happened, gateway.ending.cutting) == (DRAINED, False)
    gateway.ending.on_signal()
    assert (gateway.happened, gateway.ending.cutting) == ([*DRAINED, CUT], True)
    assert gateway.code is None  # workers end the sessions, and say what these moved
    gateway.ending.on_signal()
    assert gateway.code == 1
    gateway.ending.on_signal()
    assert gateway.happened == [*DRAINED, CUT]


async def test_cutting_nobody_is_a_good_end():
    gateway = Gateway(sessions=0)
    gateway.ending.on_signal()
    gateway.ending.on_signal()
    gateway.lose_worker()
    gateway.lose_worker()
    assert gateway.code == 0


async def test_what_was_cut_stays_cut_though_no_session_is_left():
    gateway = Gateway()
    gateway.ending.begin()
    gateway.ending.cut()
    gateway.sessions.clear()
    gateway.ending.cut()
    gateway.lose_worker()
    gateway.lose_worker()
    assert gateway.code == 1


async def test_sessions_are_cut_when_their_time_to_drain_is_over():
    gateway = Gateway(drain_s=0.0)
    gateway.ending.begin()
    await until(lambda: gateway.happened == [*DRAINED, CUT])


@pytest.mark.parametrize("drain_s", [3600.0, None])
async def test_sessions_are_not_cut_before_their_time_to_drain_is_over(drain_s):
    gateway = Gateway(drain_s=drain_s)
    gateway.ending.begin()
    for _ in range(20):
        await asyncio.sleep(0)
    assert gateway.happened == DRAINED


async def test_workers_that_do_not_end_are_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(ending_module, "_STOP_S", 0.0)
    gateway = Gateway()
    gateway.ending.begin()
    gateway.ending.cut()
    async with asyncio.timeout(PATIENCE_S):
        assert await gateway.ending.over == 1
