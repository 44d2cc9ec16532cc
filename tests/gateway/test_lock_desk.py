"""What operators do with locks, with a ledger that does as the test says."""

import io
import json
from types import SimpleNamespace

import pytest

from portguard.control.access import Level, Peer
from portguard.control.routes import BadArgument, Conflict, NotFound, Unavailable
from portguard.errors import Refused
from portguard.gateway import lock_desk, saving
from portguard.gateway.lock_desk import LONGEST_REASON, LockDesk
from portguard.gateway.messages import Locked, Unlocked
from portguard.identity.names import Identity, Namespace
from portguard.instants import written_second
from portguard.limits.fleet import News
from portguard.limits.ledger import LockRow, LockTarget, Owner
from portguard.limits.locks import Locks
from portguard.observe import log
from tests.ledger_double import MemoryFleet, MemoryLedger

ROOT = Peer(0, 0, 1, "root")
NOW_S = 1_795_000_000
PRINT = "ab" * 32
ALICE = LockTarget("identity", "local", "alice")


def session(slot, name, fingerprint=PRINT, serial="1f", trust="local"):
    client = SimpleNamespace(fingerprint=fingerprint, serial=serial)
    return SimpleNamespace(slot=slot, owner=Owner("dba", trust, name), client=client)


class Desk:
    def __init__(self, *, ledger=None, sessions=()):
        self.ledger = ledger or MemoryLedger()
        self.ledger.start(lambda answers: [on_written(written) for on_written, written in answers])
        self.namespace = Namespace({"local": "spiffe", "corp": "email"}, "local", {"x.test": "local"})
        self.now_s = NOW_S + 0.25
        self.told, self.ended, self.expired = [], [], []
        self.locks = Locks(self.ledger.contents(NOW_S).locks)
        self.desk = LockDesk(
            self.locks,
            store=self.ledger,
            namespace=lambda: self.namespace,
            sessions={each.slot: each for each in sessions},
            tell=self.told.append,
            end=lambda session, reason: self.ended.append((session.slot, reason)),
            on_expired=self.expired.append,
            clock=lambda: self.now_s,
        )
        self.routes = {route.path: route for route in self.desk.routes}

    async def lock(self, **given):
        return await self.routes["/v1/lock"].handler(ROOT, {"reason": "INC-1"} | given)

    async def unlock(self, **given):
        return await self.routes["/v1/unlock"].handler(ROOT, given)

    async def listed(self):
        answer = await self.routes["/v1/locks"].handler(ROOT, {})
        return json.loads("".join([piece async for piece in answer.pieces]))["locks"]

    def lets_in(self, name, fingerprint=PRINT, serial="1f", trust="local"):
        try:
            self.locks.refuse(Identity(trust, name), fingerprint, serial, self.now_s)
        except Refused as refused:
            return refused.reason != "locked"
        return True


@pytest.fixture
async def desk():
    return Desk()


def test_who_may_do_what():
    routes = Desk().routes
    assert {path: (route.method, route.level) for path, route in routes.items()} == {
        "/v1/locks": ("GET", Level.VIEWER),
        "/v1/lock": ("POST", Level.OPERATOR),
        "/v1/unlock": ("POST", Level.ADMIN),
    }


async def test_a_lock_keeps_out_whom_it_names_and_nobody_else(desk):
    assert desk.lets_in("alice")
    answer = await desk.lock(identity="alice")
    assert answer == {
        "lock": {
            "identity": "alice",
            "certificate": None,
            "trust": "local",
            "name": "alice",
            "reason": "INC-1",
            "by": "uid 0 (root)",
            "since": written_second(NOW_S),
            "until": None,
            "saved": True,
        },
        "replaced": False,
        "sessions": 0,
    }
    assert not desk.lets_in("alice")
    assert desk.lets_in("bob")
    assert desk.lets_in("alice", trust="corp")
    assert desk.told == [Locked("identity", "local", "alice", None)]
    assert desk.ledger.contents(NOW_S).locks == (LockRow(ALICE, "INC-1", "uid 0 (root)", NOW_S, None),)
    assert await desk.listed() == [answer["lock"]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"identity": "spiffe://x.test/alice"}, Locked("identity", "local", "alice", None)),
        ({"identity": "corp:bob@EXAMPLE.com"}, Locked("identity", "corp", "bob@example.com", None)),
        ({"certificate": f"SHA256:{PRINT.upper()}"}, Locked("fingerprint", "", PRINT, None)),
        ({"certificate": "corp:1F"}, Locked("serial", "corp", "1f", None)),
        ({"identity": "alice", "for": "2h"}, Locked("identity", "local", "alice", NOW_S + 7201)),
        ({"identity": "alice", "for": "250ms"}, Locked("identity", "local", "alice", NOW_S + 1)),
    ],
)
async def test_workers_are_told_whom_and_until_when(desk, given, expected):
    await desk.lock(**given)
    assert desk.told == [expected]
    assert list(desk.desk.greeting()) == [expected]


@pytest.mark.parametrize(
    ("given", "ended"),
    [
        ({"identity": "alice"}, [1, 3]),
        ({"certificate": f"SHA256:{PRINT}"}, [1, 2]),
        ({"certificate": "local:1f"}, [1, 4]),
        ({"certificate": "corp:1f"}, [5]),
        ({"identity": "carol"}, []),
    ],
)
async def test_what_is_open_under_a_lock_ends_and_nothing_else(given, ended):
    desk = Desk(
        sessions=[
            session(1, "alice"),
            session(2, "bob", serial="2"),
            session(3, "alice", fingerprint="cd" * 32, serial="3"),
            session(4, "bob", fingerprint="ef" * 32),
            session(5, "alice", fingerprint="01" * 32, trust="corp"),
        ]
    )
    assert (await desk.lock(**given))["sessions"] == len(ended)
    assert desk.ended == [(slot, "locked") for slot in ended]


async def test_to_lock_again_changes_reason_and_end(desk):
    await desk.lock(identity="alice")
    answer = await desk.lock(identity="alice", reason="INC-2", **{"for": "1h"})
    assert answer["replaced"] is True
    assert [(each["reason"], each["until"]) for each in await desk.listed()] == [
        ("INC-2", written_second(NOW_S + 3601))
    ]
    assert [row.reason for row in desk.ledger.contents(NOW_S).locks] == ["INC-2"]


async def test_unlocking_lets_in_again_and_the_ledger_forgets(desk):
    await desk.lock(identity="alice")
    answer = await desk.unlock(identity="spiffe://x.test/alice")
    assert (answer["unlocked"]["identity"], answer["unlocked"]["reason"]) == ("alice", "INC-1")
    assert desk.lets_in("alice")
    assert desk.told[1:] == [Unlocked("identity", "local", "alice")]
    assert desk.ledger.contents(NOW_S).locks == ()
    assert await desk.listed() == []
    with pytest.raises(NotFound, match=r"^alice: expected a lock, got none$"):
        await desk.unlock(identity="alice")


async def test_locks_come_back_from_the_ledger(desk):
    await desk.lock(identity="alice")
    await desk.lock(certificate=f"SHA256:{'cd' * 32}", **{"for": "1h"})
    again = Desk(ledger=desk.ledger)
    assert not again.lets_in("alice")
    assert not again.lets_in("bob", "cd" * 32)
    assert again.lets_in("bob")
    assert [each["saved"] for each in await again.listed()] == [True, True]


async def test_a_lock_of_a_trust_that_is_gone_is_lifted_as_it_is_listed(desk):
    await desk.lock(identity="corp:bob@example.com")
    await desk.lock(certificate="corp:1f")
    desk.namespace = Namespace({"local": "spiffe"}, "local", {})
    for each in await desk.listed():
        await desk.unlock(identity=each["identity"], certificate=each["certificate"])
    assert await desk.listed() == []
    with pytest.raises(BadArgument, match=r"^identity: expected a trust before"):
        await desk.unlock(identity="corp:carol@example.com")


# The end.


async def test_a_lock_ends_by_itself(desk, monkeypatch):
    monkeypatch.setattr("sys.stderr", stderr := io.StringIO())
    log.configure(json_lines=False, level="info")
    await desk.lock(identity="alice", **{"for": "1h"})
    desk.now_s = NOW_S + 3600
    desk.desk.tick()
    assert not desk.lets_in("alice")
    assert (desk.expired, stderr.getvalue()) == ([], "")
    desk.now_s = NOW_S + 3601
    assert desk.lets_in("alice")
    assert await desk.listed() == []
    desk.desk.tick()
    assert [row.target for row in desk.expired] == [ALICE]
    assert "lock.expire" in stderr.getvalue()
    assert "lock=alice message=INC-1" in stderr.getvalue()
    assert desk.told[1:] == [Unlocked("identity", "local", "alice")]
    assert desk.ledger.contents(desk.now_s).locks == ()
    with pytest.raises(NotFound):
        await desk.unlock(identity="alice")


# The ledger fails.


async def test_without_the_ledger_a_lock_acts_and_its_caller_is_told_what_is_missing(desk):
    desk.ledger.trouble = "a full disk"
    with pytest.raises(Unavailable) as caught:
        await desk.lock(identity="alice")
    assert str(caught.value) == (
        "alice: locked; in force until the gateway restarts, and not yet in the ledger: a full disk"
    )
    assert not desk.lets_in("alice")
    assert desk.told == [Locked("identity", "local", "alice", None)]
    assert [each["saved"] for each in await desk.listed()] == [False]
    desk.desk.tick()
    assert [each["saved"] for each in await desk.listed()] == [False]
    desk.ledger.trouble = None
    desk.desk.tick()
    assert [each["saved"] for each in await desk.listed()] == [True]
    assert [row.target for row in desk.ledger.contents(NOW_S).locks] == [ALICE]


async def test_what_was_unlocked_without_the_ledger_is_written_when_it_is_back(desk):
    await desk.lock(identity="alice")
    desk.ledger.trouble = "a full disk"
    with pytest.raises(Unavailable, match=r"^alice: unlocked; in force until the gateway restarts"):
        await desk.unlock(identity="alice")
    assert desk.lets_in("alice")
    assert len(desk.ledger.contents(NOW_S).locks) == 1
    desk.ledger.trouble = None
    desk.desk.tick()
    assert desk.ledger.contents(NOW_S).locks == ()


async def test_a_ledger_that_does_not_answer_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(saving, "_PATIENCE_S", 0.01)
    desk = Desk(ledger=MemoryLedger(prompt=False))
    with pytest.raises(Unavailable, match=r"not yet in the ledger: a ledger that does not answer$"):
        await desk.lock(identity="alice")
    assert not desk.lets_in("alice")
    desk.ledger.commit()
    assert [each["saved"] for each in await desk.listed()] == [True]


async def test_an_answer_about_an_older_lock_says_nothing_of_the_newer(monkeypatch):
    monkeypatch.setattr(saving, "_PATIENCE_S", 0.01)
    desk = Desk(ledger=MemoryLedger(prompt=False))
    with pytest.raises(Unavailable):
        await desk.lock(identity="alice")
    older, desk.ledger._pending = desk.ledger._pending, []
    with pytest.raises(Unavailable):
        await desk.lock(identity="alice", reason="INC-2")
    for _, on_written in older:
        on_written(True)
    assert [each["saved"] for each in await desk.listed()] == [False]


async def test_while_the_ledger_fails_it_is_not_written_to_again_and_again(desk):
    desk.ledger.trouble = "a full disk"
    with pytest.raises(Unavailable):
        await desk.lock(identity="alice")
    before = desk.ledger.errors
    desk.desk.tick()
    assert desk.ledger.errors == before


async def test_a_lock_that_has_ended_before_it_could_be_written_is_not_written_any_more(desk):
    desk.ledger.trouble = "a full disk"
    with pytest.raises(Unavailable):
        await desk.lock(identity="alice", **{"for": "1h"})
    desk.now_s = NOW_S + 3601
    desk.desk.tick()
    assert desk.desk.state() == []


async def test_another_program_goes_on_with_what_the_ledger_does_not_have(desk):
    await desk.lock(identity="bob")
    desk.ledger.trouble = "a full disk"
    with pytest.raises(Unavailable):
        await desk.lock(identity="alice")
    with pytest.raises(Unavailable):
        await desk.unlock(identity="bob")
    state = json.loads(json.dumps(desk.desk.state()))
    ledger = MemoryLedger()
    ledger.rows = dict(desk.ledger.rows)
    after = Desk(ledger=ledger)
    assert (after.lets_in("alice"), after.lets_in("bob")) == (True, False)
    after.desk.restore(state)
    assert (after.lets_in("alice"), after.lets_in("bob")) == (False, True)
    assert [(each["identity"], each["saved"]) for each in await after.listed()] == [("alice", True)]
    assert [row.target for row in ledger.contents(NOW_S).locks] == [ALICE]
    assert after.desk.state() == []
    after.desk.tick()
    assert after.expired == []


# What is wrong.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "identity, certificate: expected exactly one of them"),
        ({"identity": "alice", "certificate": "local:1"}, "identity, certificate: expected exactly one of them"),
        ({"identity": "@oncall"}, "identity: expected an identity, not a group, got '@oncall'"),
        ({"identity": "ali*"}, "identity: expected a name without \"*\", got 'ali*'"),
        ({"certificate": "SHA256:12"}, "certificate: expected 64 hex digits"),
        ({"identity": "alice", "reason": " "}, "reason: expected 1 to 200 printable characters, got nothing"),
        ({"identity": "alice", "reason": None}, "reason: expected 1 to 200 printable characters, got nothing"),
        ({"identity": "alice", "reason": "x" * (LONGEST_REASON + 1)}, "reason: expected 1 to 200 printable"),
        ({"identity": "alice", "reason": "a\nb"}, "reason: expected 1 to 200 printable"),
        ({"identity": "alice", "reason": "\ud800"}, "reason: expected 1 to 200 printable"),
        ({"identity": "alice", "for": "soon"}, "for: expected a duration such as"),
        ({"identity": "alice", "for": "0s"}, "for: expected more than nothing"),
        ({"identity": "alice", "until": "2h"}, "'until': expected one of the arguments"),
    ],
)
async def test_what_is_wrong_is_refused_and_changes_nothing(desk, given, message):
    with pytest.raises(BadArgument) as caught:
        await desk.lock(**given)
    assert str(caught.value).startswith(message)
    assert (desk.told, await desk.listed()) == ([], [])


async def test_there_is_room_for_so_many_and_those_there_can_be_changed(desk, monkeypatch):
    monkeypatch.setattr(lock_desk, "MOST_LOCKS", 2)
    await desk.lock(identity="alice")
    await desk.lock(identity="bob")
    with pytest.raises(Conflict, match=r"^expected at most 2 locks, got as many already$"):
        await desk.lock(identity="carol")
    assert desk.lets_in("carol")
    assert (await desk.lock(identity="bob", reason="INC-2"))["replaced"] is True


async def test_many_locks_are_listed_whole(desk):
    for number in range(450):
        desk.now_s += 1
        await desk.lock(identity=f"user{number}")
    assert [each["name"] for each in await desk.listed()] == [f"user{number}" for number in range(450)]


# Locks of other gateways.

ELSEWHERE = LockRow(ALICE, "INC-2", "uid 7 (eve)", NOW_S, None)


@pytest.fixture
async def member():
    return Desk(ledger=MemoryFleet(), sessions=[session(0, "alice"), session(1, "bob")])


async def test_a_lock_that_was_set_elsewhere_acts_and_ends_what_is_open(member):
    member.ledger.tell(News(locks=[ELSEWHERE]))
    assert not member.lets_in("alice")
    assert member.lets_in("bob")
    assert member.told == [Locked("identity", "local", "alice", None)]
    assert member.ended == [(0, "locked")]
    [shown] = await member.listed()
    assert (shown["reason"], shown["by"], shown["saved"]) == ("INC-2", "uid 7 (eve)", True)


async def test_a_lock_that_was_lifted_elsewhere_acts_no_more(member):
    await member.lock(identity="alice")
    member.ledger.tell(News(locks=[ELSEWHERE._replace(until_s=0)]))
    assert member.lets_in("alice")
    assert member.told[-1] == Unlocked("identity", "local", "alice")
    told = len(member.told)
    member.ledger.tell(News(locks=[ELSEWHERE._replace(until_s=0)]))
    assert len(member.told) == told


async def test_a_lock_that_is_over_does_not_act_and_one_that_is_not_does(member):
    member.ledger.tell(News(locks=[ELSEWHERE._replace(until_s=NOW_S)]))
    assert member.lets_in("alice")
    member.ledger.tell(News(locks=[ELSEWHERE._replace(until_s=NOW_S + 1)]))
    assert not member.lets_in("alice")


async def test_what_is_older_than_what_was_heard_is_written_no_more(member):
    member.ledger.trouble = "away"
    with pytest.raises(Unavailable, match="locked; in force at this gateway, and not yet in the ledger: away"):
        await member.lock(identity="alice")
    member.ledger.tell(News(locks=[ELSEWHERE._replace(until_s=0)]))
    member.ledger.trouble = None
    member.desk.tick()
    assert member.lets_in("alice")
    assert (ALICE, None) not in member.ledger.rows
