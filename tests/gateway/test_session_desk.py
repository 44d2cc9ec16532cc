"""What operators see of sessions, and how they end them, against the real admission and slot table."""

import asyncio
import json

import pytest

from portguard.control.access import Level, Peer
from portguard.control.routes import BadArgument, NotFound
from portguard.gateway.admission import Admission, Client
from portguard.gateway.session_desk import Clock, SessionDesk
from portguard.gateway.slots import ACTIVITY, CONNECTED, RECEIVED, SENT, UPSTREAM
from portguard.identity.names import Namespace
from portguard.limits.ledger import Owner
from portguard.reasons import Reason
from tests.slots import Slots

ROOT = Peer(0, 0, 1, "root")
NAMESPACE = Namespace({"local": "spiffe", "corp": "email"}, "local", {"x.test": "local"})
SECOND_NS = 1_000_000_000
NOW_S = 1_795_000_000.0  # 2026-11-18T11:06:40Z
NOW_NS = 5_000 * SECOND_NS


class Desk:
    def __init__(self, capacity=10):
        self.slots = Slots(capacity, 3)
        self.admission = Admission(self.slots, max_pending=10, max_pending_per_address=10)
        self.ended = []
        desk = SessionDesk(
            self.admission.sessions,
            self.slots,
            lambda: NAMESPACE,
            lambda session, reason: self.ended.append((session.id, reason)),
            Clock(lambda: NOW_NS, lambda: NOW_S),
        )
        self.routes = {route.path: route for route in desk.routes}

    def open(self, session, name="alice", service="db", role="dba", *, trust="local", age_s=0, idle_s=0, moved=(0, 0)):
        opened = self.admission.admit(
            self.admission.begin(3, None),
            session_id=session * 16,
            owner=Owner(role, trust, name),
            service=service,
            client=Client(("ops",), "1f", "cd" * 32, "192.0.2.1"),
            upstreams=("db-1:5432", "db-2:5432"),
            now_ns=NOW_NS - age_s * SECOND_NS,
        )
        cells = self.slots[opened.slot]
        cells[ACTIVITY] = NOW_NS - idle_s * SECOND_NS
        cells[RECEIVED], cells[SENT] = moved
        cells[CONNECTED], cells[UPSTREAM] = 5, 2
        return opened

    async def list(self, **given):
        answer = await self.routes["/v1/sessions"].handler(ROOT, given)
        return json.loads("".join([piece async for piece in answer.pieces]))

    async def ids(self, **given):
        return [line["session"][:2] for line in (await self.list(**given))["sessions"]]

    async def kill(self, **given):
        return await self.routes["/v1/sessions/kill"].handler(ROOT, given)


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def full(desk):
    desk.open("aa", "alice", "db", "dba", age_s=10, idle_s=9, moved=(5, 5))
    desk.open("bb", "bob", "db", "ops", age_s=30, idle_s=1, moved=(1, 0))
    desk.open("cc", "alice", "web", "ops", age_s=20, idle_s=5, moved=(0, 700))
    desk.open("dd", "alice@example.com", "db", "dba", trust="corp", age_s=1)
    return desk


def test_viewers_look_and_operators_end(desk):
    assert {path: (route.method, route.level) for path, route in desk.routes.items()} == {
        "/v1/sessions": ("GET", Level.VIEWER),
        "/v1/sessions/kill": ("POST", Level.OPERATOR),
    }


async def test_a_session_is_told_in_full(desk):
    desk.open("ab", age_s=65, idle_s=2, moved=(10, 20))
    assert await desk.list() == {
        "total": 1,
        "more": False,
        "sessions": [
            {
                "session": "ab" * 16,
                "identity": "alice",
                "trust": "local",
                "name": "alice",
                "groups": ["ops"],
                "serial": "1f",
                "fingerprint": "cd" * 32,
                "source": "192.0.2.1",
                "service": "db",
                "role": "dba",
                "upstream": "db-2:5432",
                "connected": True,
                "worker": 3,
                "opened": "2026-11-18T11:05:35Z",
                "age": 65.0,
                "idle": 2.0,
                "received": 10,
                "sent": 20,
            }
        ],
    }


async def test_a_session_that_is_still_connecting_has_no_upstream(desk):
    cells = desk.slots[desk.open("ab").slot]
    cells[CONNECTED] = cells[UPSTREAM] = 0
    [line] = (await desk.list())["sessions"]
    assert (line["upstream"], line["connected"]) == (None, False)


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (None, ["bb", "cc", "aa", "dd"]),
        ("age", ["bb", "cc", "aa", "dd"]),
        ("bytes", ["cc", "aa", "bb", "dd"]),
        ("idle", ["aa", "cc", "bb", "dd"]),
        ("identity", ["aa", "cc", "bb", "dd"]),
    ],
)
async def test_the_order_is_that_which_was_asked_for(full, sort, order):
    assert await full.ids(sort=sort) == order


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"identity": "alice"}, ["cc", "aa"]),
        ({"identity": "corp:alice@example.com"}, ["dd"]),
        ({"identity": "carol"}, []),
        ({"service": "db"}, ["bb", "aa", "dd"]),
        ({"role": "ops"}, ["bb", "cc"]),
        ({"identity": "alice", "service": "db"}, ["aa"]),
        ({"service": "web", "role": "dba"}, []),
        ({"session": "cc" * 16}, ["cc"]),
    ],
)
async def test_only_those_are_shown_that_were_asked_for(full, given, expected):
    assert await full.ids(**given) == expected
    assert (await full.list(**given))["total"] == len(expected)


async def test_with_a_limit_it_says_how_many_there_are(full):
    document = await full.list(limit=3)
    assert ([line["session"][:2] for line in document["sessions"]], document["total"], document["more"]) == (
        ["bb", "cc", "aa"],
        4,
        True,
    )
    assert (await full.list(limit=4))["more"] is False


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sort": "size"}, "sort: expected age, bytes, idle, identity, got 'size'"),
        ({"identity": "nobody:alice"}, "identity: expected a trust before"),
        ({"session": "zz" * 16}, "session: expected an id, or at least 8 of its digits, got 'zz"),
        ({"session": "ab"}, "session: expected an id, or at least 8 of its digits, got 'ab'"),
        ({"limit": 0}, "limit: expected an integer, 1 to 10000000, got 0"),
        ({"user": "x"}, "'user': expected one of the arguments"),
    ],
)
async def test_what_is_wrong_is_named(full, given, message):
    with pytest.raises(BadArgument) as caught:
        await full.list(**given)
    assert str(caught.value).startswith(message)


async def test_ten_thousand_are_told_in_pieces_with_others_running_in_between():
    desk = Desk(10_000)
    for number in range(10_000):
        desk.open(f"{number:02x}"[-2:], str(number), age_s=1)
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(others())
    answer = await desk.routes["/v1/sessions"].handler(ROOT, {})
    pieces = [piece async for piece in answer.pieces]
    running.cancel()
    assert len(json.loads("".join(pieces))["sessions"]) == 10_000
    assert max(map(len, pieces)) < 200_000
    assert turns >= 90


async def test_sessions_that_end_while_the_answer_is_made_are_told_as_they_were(full):
    answer = await full.routes["/v1/sessions"].handler(ROOT, {})
    for slot in list(full.admission.sessions):
        full.admission.end(slot, NOW_NS)
    full.open("ee", "carol", moved=(9, 9))
    told = json.loads("".join([piece async for piece in answer.pieces]))
    assert [(line["session"][:2], line["received"] + line["sent"]) for line in told["sessions"]] == [
        ("bb", 1),
        ("cc", 700),
        ("aa", 10),
        ("dd", 0),
    ]


@pytest.mark.parametrize(
    ("given", "killed"),
    [
        ({"session": "cc" * 16}, ["cc"]),
        ({"session": "cc" * 4}, ["cc"]),
        ({"identity": "alice"}, ["aa", "cc"]),
        ({"service": "db"}, ["aa", "bb", "dd"]),
        ({"role": "ops"}, ["bb", "cc"]),
        ({"identity": "alice", "service": "web"}, ["cc"]),
        ({"identity": "corp:alice@example.com", "role": "dba"}, ["dd"]),
    ],
)
async def test_exactly_those_are_ended_that_are_meant(full, given, killed):
    answer = await full.kill(**given)
    assert full.ended == [(each * 16, Reason.KILLED) for each in killed]
    assert answer == {"killed": len(killed), "sessions": [each * 16 for each in killed]}


@pytest.mark.parametrize("given", [{}, {"session": "", "identity": None}])
async def test_that_nobody_says_which_ends_none(full, given):
    with pytest.raises(BadArgument, match=r"^session, identity, service, role: expected at least one of them$"):
        await full.kill(**given)
    assert full.ended == []


@pytest.mark.parametrize("given", [{"session": "ee" * 16}, {"identity": "carol"}, {"identity": "bob", "role": "dba"}])
async def test_that_none_fits_is_an_error(full, given):
    with pytest.raises(NotFound):
        await full.kill(**given)
    assert full.ended == []


async def test_a_beginning_that_several_ids_have_ends_none(full):
    full.admission.sessions.clear()
    for last in "12":
        session = full.open("ab")
        object.__setattr__(session, "id", "ab" * 15 + "0" + last)
    with pytest.raises(BadArgument, match=r"^session: expected the id of one session, got the beginning of 2 ids$"):
        await full.kill(session="abababab")
    assert full.ended == []


async def test_the_answer_names_only_so_many():
    desk = Desk(1500)
    for _ in range(1500):
        desk.open("ab")
    answer = await desk.kill(service="db")
    assert (answer["killed"], len(answer["sessions"]), len(desk.ended)) == (1500, 1000, 1500)
