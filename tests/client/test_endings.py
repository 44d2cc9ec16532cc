"""Why sessions ended, asked of the gateway once for all that end together."""

import asyncio

import pytest

from portguard.client.endings import Endings
from portguard.errors import Unreachable


class Gateway:
    def __init__(self, document):
        self.document = document
        self.asked = 0

    async def whoami(self):
        self.asked += 1
        if isinstance(self.document, Exception):
            raise self.document
        return self.document


def refusals(**messages):
    return {"refusals": [{"session": session, "message": message} for session, message in messages.items()]}


async def test_sessions_that_end_together_are_explained_by_one_answer():
    gateway = Gateway(refusals(aa="quota\nis used up", bb="killed"))
    endings = Endings(gateway)
    whys = await asyncio.gather(*map(endings.why, ["aa", "bb", "cc"]))
    assert whys == ["quota is used up", "killed", None]
    assert gateway.asked == 1
    assert await endings.why("aa") == "quota is used up"
    assert gateway.asked == 2


async def test_without_a_session_id_nobody_is_asked():
    gateway = Gateway(refusals(aa="m"))
    assert await Endings(gateway).why(None) is None
    assert gateway.asked == 0


@pytest.mark.parametrize(
    "document",
    [
        Unreachable("gone"),
        {},
        {"refusals": 5},
        {"refusals": [None, {}, {"session": 5, "message": "m"}, {"session": "aa", "message": 5}]},
    ],
)
async def test_where_there_is_no_answer_there_is_no_reason(document):
    assert await Endings(Gateway(document)).why("aa") is None


async def test_who_gives_up_waiting_takes_the_answer_from_nobody():
    endings = Endings(Gateway(refusals(aa="m", bb="n")))
    first, second = (asyncio.create_task(endings.why(session)) for session in ("aa", "bb"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "n"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_close_ends_what_is_under_way():
    gateway = Gateway({})
    endings = Endings(gateway)
    waiting = asyncio.create_task(endings.why("aa"))
    await asyncio.sleep(0)
    await endings.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (gateway.asked, endings._tasks) == (0, set())
