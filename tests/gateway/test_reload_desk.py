"""Who asks for a reload, and what reason they may give."""

from types import SimpleNamespace

import pytest

from portguard.control.access import Level, Peer
from portguard.control.routes import BadArgument, Conflict
from portguard.gateway.reload_desk import LONGEST_MESSAGE, ReloadDesk
from portguard.gateway.reloading import Reloaded

ANNA = Peer(1001, 1001, 7, "anna")


class Desk:
    def __init__(self):
        self.asked, self.ending = [], False
        desk = ReloadDesk(SimpleNamespace(reload=self._reload), lambda: self.ending)
        [self.route] = desk.routes

    async def _reload(self, *, by, message):
        self.asked.append((by, message))
        return Reloaded("ab" * 32, True, 3, (), ())

    async def reload(self, **given):
        return await self.route.handler(ANNA, given)


@pytest.fixture
def desk():
    return Desk()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, None),
        ({"message": None}, None),
        ({"message": " "}, None),
        ({"message": "CHG-123: bob has left\n"}, "CHG-123: bob has left"),
        ({"message": "é" * LONGEST_MESSAGE}, "é" * LONGEST_MESSAGE),
    ],
)
async def test_the_reason_of_a_reload_goes_with_who_asked_for_it(desk, given, message):
    assert (await desk.reload(**given))["closed"] == 3
    assert desk.asked == [("uid 1001 (anna)", message)]
    assert desk.route.level is Level.OPERATOR


@pytest.mark.parametrize("message", ["x" * (LONGEST_MESSAGE + 1), "a\nb", "\x1b[2J", "\u202e", 7])
async def test_a_reason_that_could_look_like_something_else_reloads_nothing(desk, message):
    with pytest.raises(BadArgument, match=r"^message: expected "):
        await desk.reload(message=message)
    assert desk.asked == []


async def test_a_gateway_that_drains_to_end_is_not_reloaded(desk):
    desk.ending = True
    with pytest.raises(Conflict):
        await desk.reload()
    assert desk.asked == []
