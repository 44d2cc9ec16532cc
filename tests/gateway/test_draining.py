"""Draining by hand, and taking it back."""

import asyncio

import pytest

from portguard.control.access import Level, Peer
from portguard.control.routes import BadArgument, Conflict
from portguard.errors import Refused
from portguard.gateway.draining import DrainDesk, Drained
from portguard.reasons import Reason

ANNA, BERT = Peer(1001, 1001, 1, "anna"), Peer(1002, 1002, 1, "bert")


class Desk:
    def __init__(self):
        self.ending = False
        self.begun = 0
        self.now_s = 100.0
        self.desk = DrainDesk(
            is_ending=lambda: self.ending, begin_to_end=self.begin, sessions=lambda: 3, clock=lambda: self.now_s
        )
        self.routes = {route.path: route for route in self.desk.routes}

    def begin(self):
        self.begun += 1
        self.ending = True

    async def drain(self, peer=ANNA, **given):
        return await self.routes["/v1/drain"].handler(peer, given)

    async def resume(self, **given):
        return await self.routes["/v1/resume"].handler(BERT, given)


@pytest.fixture
def desk():
    return Desk()


def lets_in(desk):
    try:
        desk.desk.check()
    except Refused as refused:
        return refused.reason is not Reason.DRAINING
    return True


def test_operators_may(desk):
    assert {path: (route.method, route.level) for path, route in desk.routes.items()} == {
        "/v1/drain": ("POST", Level.OPERATOR),
        "/v1/resume": ("POST", Level.OPERATOR),
    }


async def test_nobody_is_let_in_from_then_on_until_it_is_taken_back(desk):
    assert lets_in(desk)
    assert await desk.drain() == {"draining": True, "exit": False, "changed": True, "sessions": 3}
    assert not lets_in(desk)
    assert desk.desk.drained == Drained(100.0, "uid 1001 (anna)")
    assert await desk.resume() == {"draining": False, "changed": True, "sessions": 3}
    assert lets_in(desk)
    assert (await desk.resume())["changed"] is False
    assert desk.begun == 0


async def test_who_drained_it_first_is_remembered(desk):
    await desk.drain()
    desk.now_s = 200.0
    assert (await desk.drain(BERT))["changed"] is False
    assert desk.desk.drained == Drained(100.0, "uid 1001 (anna)")


@pytest.mark.parametrize("drained", [False, True])
async def test_it_ends_when_it_is_to_and_that_is_not_taken_back(desk, drained):
    if drained:
        await desk.drain()
    assert await desk.drain(exit=True) == {"draining": True, "exit": True, "changed": True, "sessions": 3}
    assert desk.begun == 0  # before the answer is out
    await asyncio.sleep(0)
    assert desk.begun == 1
    with pytest.raises(Conflict, match=r"which cannot be taken back$"):
        await desk.resume()
    for ends in (False, True):
        with pytest.raises(Conflict, match=r"got one that drains to end$"):
            await desk.drain(exit=ends)
    assert desk.begun == 1


@pytest.mark.parametrize("given", [{"exit": "now"}, {"wait": True}])
async def test_what_is_wrong_drains_nothing(desk, given):
    with pytest.raises(BadArgument):
        await desk.drain(**given)
    assert lets_in(desk)


async def test_another_program_goes_on_with_it(desk):
    successor = Desk()
    successor.desk.restore(desk.desk.state())
    assert lets_in(successor)
    await desk.drain()
    successor.desk.restore(desk.desk.state())
    assert successor.desk.drained == desk.desk.drained
    assert not lets_in(successor)
