"""Why sessions ended, asked of the gateway once for all that end together."""

import asyncio

import pytest

from portguard.client.endings import Endings
from portguard.client.refusal import RefusedByGateway
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
    return {
        "refusals": [
            {"session": session, "reason": "killed", "message": message} for session, message in messages.items()
        ]
    }


async def test_sessions_that_end_together_are_explained_by_one_answer():
    gateway = Gateway(refusals(aa="an operator\nended it", bb="so it is"))
    endings = Endings(gateway)
    whys = await asyncio.gather(*map(endings.why, ["aa", "bb", "cc"]))
    assert whys == ["killed: an operator ended it", "killed: so it is", None]
    assert gateway.asked == 1
    assert await endings.why("aa") == "killed: an operator ended it"
    assert gateway.asked == 2


async def test_without_a_session_id_nobody_is_asked():
    gateway = Gateway(refusals(aa="m"))
    assert await Endings(gateway).why(None) is None
    assert gateway.asked == 0


@pytest.mark.parametrize(
    "document",
    [
        Unreachable("gone"),
        RefusedByGateway("whoami", "ledger_unavailable", "no answer"),
        RefusedByGateway("whoami", "moon_phase", "it is full"),
        {},
        {"refusals": 5},
        {"refusals": [None, {}, {"session": 5, "message": "m"}, {"session": "aa", "message": 5, "reason": 5}]},
    ],
)
async def test_where_there_is_no_answer_there_is_no_reason(document):
    assert await Endings(Gateway(document)).why("aa") is None


@pytest.mark.parametrize("reason", ["locked", "certificate_revoked", "certificate_expired", "crl_expired"])
async def test_for_who_is_locked_out_altogether_that_is_the_reason(reason):
    gateway = Gateway(RefusedByGateway("whoami", reason, "so it is"))
    endings = Endings(gateway)
    assert await asyncio.gather(*map(endings.why, ["aa", "bb", None])) == [f"{reason}: so it is"] * 2 + [None]
    assert gateway.asked == 1


@pytest.mark.parametrize(
    ("refusal", "told"), [({"message": "m"}, "m"), ({"reason": "killed"}, "killed"), ({"reason": " "}, None)]
)
async def test_what_is_there_is_told(refusal, told):
    assert await Endings(Gateway({"refusals": [{"session": "aa", **refusal}]})).why("aa") == told


async def test_who_gives_up_waiting_takes_the_answer_from_nobody():
    endings = Endings(Gateway(refusals(aa="m", bb="n")))
    first, second = (asyncio.create_task(endings.why(session)) for session in ("aa", "bb"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "killed: n"
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
