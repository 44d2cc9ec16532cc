"""What operators see of quotas, and what administrators change, against the real accounts."""

import asyncio
import json
from zoneinfo import ZoneInfo

import pytest

from portguard.control.access import Level, Peer
from portguard.control.routes import BadArgument, NotFound, Unavailable
from portguard.gateway import saving
from portguard.gateway.bundle import read_bundle
from portguard.gateway.quota_desk import QuotaDesk, Rules
from portguard.gateway.snapshot import build
from portguard.identity.names import Namespace
from portguard.limits.accounts import Accounts
from portguard.limits.ledger import Owner, UsageRow
from portguard.limits.periods import span_at
from portguard.policy.model import NO_LIMITS, Limits
from portguard.policy.quantities import Period, Quota
from tests.gateway_folder import GatewayFolder
from tests.ledger_double import MemoryLedger

ROOT = Peer(0, 0, 1, "root")
ZONE = ZoneInfo("Europe/Zurich")
NOW_S = 1_795_000_000.0  # 2026-11-18T15:06:40+01:00
DAY, MONTH = Quota(20_000, Period.DAY), Quota(200_000, Period.MONTH)
LIMITS = {
    "dba": Limits(quota=(DAY, MONTH), pooled_quota=(Quota(500_000, Period.MONTH),)),
    "ops": Limits(quota=(Quota(5_000, Period.DAY),)),
    "free": NO_LIMITS,
}
ALICE, BOB, CAROL = (
    Owner("dba", "local", "alice"),
    Owner("dba", "corp", "bob@example.com"),
    Owner("ops", "local", "alice"),
)
RULES = Rules(Namespace({"local": "spiffe", "corp": "email"}, "local", {"x.test": "local"}), frozenset(LIMITS), ZONE)


class Desk:
    def __init__(self, used, limits=LIMITS, *, prompt=True):
        """`used`: bytes of an owner in all periods; `prompt`: the ledger writes at once."""
        self.accounts = Accounts(limits, ZONE, NOW_S)
        self.accounts.load(
            UsageRow(owner, period, *span_at(period, NOW_S, ZONE), count, 0)
            for owner, count in used.items()
            for period in Period
        )
        self.changed = []
        self.fails = None  # why the ledger fails in the middle of a change
        self.ledger = MemoryLedger(prompt=prompt)
        self.ledger.start(lambda answers: [on_written(written) for on_written, written in answers])
        desk = QuotaDesk(self.accounts, lambda: RULES, self._on_changed, self.ledger, lambda: NOW_S)
        self.routes = {route.path: route for route in desk.routes}

    def _on_changed(self, role):
        self.changed.append(role)
        self.ledger.write(self.accounts.take_rows(NOW_S))
        if self.fails is not None:
            self.ledger.trouble, self.ledger.prompt = self.fails, True

    async def show(self, **given):
        answer = await self.routes["/v1/quotas"].handler(ROOT, given)
        return json.loads("".join([piece async for piece in answer.pieces]))

    async def reset(self, **given):
        return (await self.routes["/v1/quotas/reset"].handler(ROOT, given))["reset"]

    async def grant(self, **given):
        return (await self.routes["/v1/quotas/grant"].handler(ROOT, given))["granted"]

    def lines(self, owner):
        """Used and granted by period."""
        lines = self.accounts.lines(lambda each: each == owner, NOW_S)
        return {str(line.period): (line.used_bytes, line.granted_bytes) for line in lines}


@pytest.fixture
def desk():
    return Desk({ALICE: 3_000, BOB: 30_000, CAROL: 700})


def named(answer):
    return sorted((each["role"], each["identity"] or "", *each["periods"]) for each in answer)


def test_who_may_do_what(desk):
    assert {path: (route.method, route.level) for path, route in desk.routes.items()} == {
        "/v1/quotas": ("GET", Level.VIEWER),
        "/v1/quotas/reset": ("POST", Level.ADMIN),
        "/v1/quotas/grant": ("POST", Level.ADMIN),
    }


async def test_everything_is_shown(desk):
    document = await desk.show()
    assert (document["timezone"], document["more"], document["ledger"]) == ("Europe/Zurich", False, None)
    lines = {(line["role"], line["identity"], line["period"]): line for line in document["quotas"]}
    assert lines["dba", "alice", "day"] == {
        "role": "dba",
        "identity": "alice",
        "trust": "local",
        "name": "alice",
        "period": "day",
        "limit": 20_000,
        "granted": 0,
        "used": 3_000,
        "left": 17_000,
        "outstanding": 0,
        "ends": "2026-11-18T23:00:00Z",
    }
    over = lines["dba", "corp:bob@example.com", "day"]
    assert (over["limit"], over["used"], over["left"]) == (20_000, 30_000, 0)
    counted = lines["ops", "alice", "month"]
    assert (counted["limit"], counted["left"], counted["used"]) == (None, None, 700)
    pool = lines["dba", None, "month"]
    assert (pool["identity"], pool["trust"], pool["name"], pool["used"]) == (None, None, None, 33_000)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"identity": "alice"}, {("dba", "alice"), ("ops", "alice")}),
        ({"identity": "spiffe://x.test/alice", "role": "dba"}, {("dba", "alice")}),
        ({"identity": "corp:bob@EXAMPLE.com"}, {("dba", "corp:bob@example.com")}),
        ({"role": "dba"}, {("dba", "alice"), ("dba", "corp:bob@example.com"), ("dba", None)}),
        ({"identity": "corp:alice@example.com"}, set()),
        ({"role": "free"}, set()),
    ],
)
async def test_a_part_is_shown(desk, given, shown):
    assert {(line["role"], line["identity"]) for line in (await desk.show(**given))["quotas"]} == shown


async def test_a_limit_cuts_the_list_and_says_so(desk):
    everything = (await desk.show())["quotas"]
    part = await desk.show(limit="3")
    assert (part["quotas"], part["more"]) == (everything[:3], True)
    whole = await desk.show(limit=str(len(everything)))
    assert (whole["quotas"], whole["more"]) == (everything, False)


async def test_thousands_come_in_many_pieces_and_none_is_lost():
    desk = Desk({Owner("ops", "local", f"user{number}"): 1 for number in range(1_000)})
    answer = await desk.routes["/v1/quotas"].handler(ROOT, {})
    turns = []

    async def others():
        while True:
            turns.append(len(turns))
            await asyncio.sleep(0)

    others_run = asyncio.create_task(others())
    pieces = [piece async for piece in answer.pieces]
    others_run.cancel()
    assert len(turns) >= 4_000 / 200
    assert len(pieces) >= 4_000 / 200
    assert len(json.loads("".join(pieces))["quotas"]) == 4_000


async def test_what_changes_meanwhile_breaks_nothing(desk):
    desk = Desk({Owner("ops", "local", f"user{number}"): 1 for number in range(300)})
    answer = await desk.routes["/v1/quotas"].handler(ROOT, {})
    pieces = []
    async for piece in answer.pieces:
        pieces.append(piece)
        desk.accounts.grant(Owner("ops", "local", f"new{len(pieces)}"), [Period.DAY], 1, NOW_S)
    assert len(json.loads("".join(pieces))["quotas"]) >= 1_200


async def test_a_reset_forgets_what_was_used_where_there_is_a_quota(desk):
    assert named(await desk.reset(identity="alice", role="dba")) == [("dba", "alice", "day", "month")]
    assert desk.lines(ALICE) == {"hour": (3_000, 0), "day": (0, 0), "week": (3_000, 0), "month": (0, 0)}
    assert desk.lines(CAROL)["day"] == (700, 0)


async def test_a_reset_of_one_period_leaves_the_others(desk):
    assert named(await desk.reset(identity="alice", period="day")) == [("dba", "alice", "day"), ("ops", "alice", "day")]
    assert desk.lines(ALICE)["month"] == (3_000, 0)
    assert desk.lines(ALICE)["day"] == (0, 0)


async def test_roles_whose_sessions_may_go_on_are_told(desk):
    await desk.reset(identity="alice")
    assert desk.changed == ["dba", "ops"]
    await desk.grant(pool=True, role="dba", bytes=1)
    assert desk.changed == ["dba", "ops", "dba"]
    await desk.show()
    assert len(desk.changed) == 3


async def test_a_reset_of_all_leaves_pools(desk):
    assert named(await desk.reset(all=True)) == [
        ("dba", "alice", "day", "month"),
        ("dba", "corp:bob@example.com", "day", "month"),
        ("ops", "alice", "day"),
    ]
    assert desk.lines(ALICE.pool)["month"] == (33_000, 0)
    assert named(await desk.reset(pool=True, role="dba")) == [("dba", "", "month")]
    assert desk.lines(ALICE.pool)["month"] == (0, 0)


async def test_a_reset_of_all_of_a_role_leaves_the_others(desk):
    assert named(await desk.reset(all=True, role="ops")) == [("ops", "alice", "day")]
    assert desk.lines(ALICE)["day"] == (3_000, 0)


async def test_a_grant_gives_for_the_running_periods(desk):
    assert named(await desk.grant(identity="alice", role="dba", bytes=5)) == [("dba", "alice", "day", "month")]
    await desk.grant(identity="alice", role="dba", period="month", bytes=2)
    assert desk.lines(ALICE)["day"] == (3_000, 5)
    assert desk.lines(ALICE)["month"] == (3_000, 7)
    (line,) = [each for each in (await desk.show(identity="alice", role="dba"))["quotas"] if each["period"] == "day"]
    assert (line["granted"], line["left"]) == (5, 17_005)


async def test_a_pool_is_granted_too(desk):
    assert named(await desk.grant(pool=True, role="dba", bytes=5)) == [("dba", "", "month")]
    assert desk.lines(ALICE.pool)["month"] == (33_000, 5)


async def test_a_grant_can_come_before_the_first_session(desk):
    assert named(await desk.grant(identity="dave", role="ops", bytes=9)) == [("ops", "dave", "day")]
    assert desk.lines(Owner("ops", "local", "dave")) == {"day": (0, 9)}
    with pytest.raises(NotFound, match="got an unknown one; with a role it can be given some ahead"):
        await desk.grant(identity="erin", bytes=9)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, BadArgument, "identity, all, pool: expected exactly one of them"),
        ({"identity": "alice", "all": True}, BadArgument, "identity, all, pool: expected exactly one of them"),
        ({"all": True, "pool": True}, BadArgument, "identity, all, pool: expected exactly one of them"),
        ({"pool": True}, BadArgument, "role: expected the role whose pool is meant, got nothing"),
        ({"identity": "nope:x"}, BadArgument, 'identity: expected a trust before the first ":" '),
        ({"identity": "*"}, BadArgument, "identity: expected "),
        ({"identity": "@dba"}, BadArgument, "identity: expected an identity, not a group, got '@dba'"),
        ({"identity": "alice", "role": "dbas"}, NotFound, "role: expected one of the policy's, got 'dbas'"),
        ({"identity": "alice", "period": "year"}, BadArgument, "period: expected hour, day, week, month, got 'year'"),
        ({"identity": "alice", "period": "hour"}, NotFound, "alice: expected a quota per hour, got none"),
        (
            {"identity": "alice", "role": "ops", "period": "month"},
            NotFound,
            "alice: expected a quota per month, got none",
        ),
        ({"pool": True, "role": "ops"}, NotFound, "role ops: expected a pooled quota, got none"),
        ({"all": True, "role": "free"}, NotFound, "all of role free: expected a quota, got none"),
        ({"identity": "alice", "rol": "dba"}, BadArgument, "'rol': expected one of the arguments "),
        ({"identity": ["alice"]}, BadArgument, "identity: expected a string, got an array"),
    ],
)
async def test_what_cannot_be_done_changes_nothing(desk, given, error, message):
    before = {owner: desk.lines(owner) for owner in (ALICE, BOB, CAROL, ALICE.pool)}
    for act, more in ((desk.reset, {}), (desk.grant, {"bytes": 1})):
        with pytest.raises(error) as caught:
            await act(**given, **more)
        assert str(caught.value).startswith(message)
    assert {owner: desk.lines(owner) for owner in before} == before
    assert desk.changed == []


async def test_a_reset_of_somebody_unknown_is_an_error_even_with_a_role(desk):
    with pytest.raises(NotFound) as caught:
        await desk.reset(identity="dave", role="ops")
    assert str(caught.value) == "dave: expected an identity that has used something in role ops, got an unknown one"


@pytest.mark.parametrize("count", [None, 0, -1, 10**15 + 1, 1.5, "many", True])
async def test_a_grant_is_a_number_of_bytes(desk, count):
    with pytest.raises(BadArgument, match="bytes: expected an integer, 1 to 1000000000000000, got "):
        await desk.grant(identity="alice", bytes=count)
    assert desk.lines(ALICE)["day"] == (3_000, 0)


# What the ledger does with it.


async def test_what_is_done_is_in_the_ledger(desk):
    await desk.grant(identity="alice", role="dba", bytes=5)
    await desk.reset(identity="alice", role="dba")
    row = desk.ledger.rows[ALICE, Period.DAY]
    assert (row.used_bytes, row.granted_bytes) == (0, 5)


async def test_while_the_ledger_cannot_be_written_nothing_is_changed(desk):
    desk.ledger.trouble = "a full disk"
    assert (await desk.show())["ledger"] == "a full disk"
    for name, act, more in (("reset", desk.reset, {}), ("grant", desk.grant, {"bytes": 5})):
        with pytest.raises(Unavailable) as caught:
            await act(identity="alice", role="dba", **more)
        expected = f"quota {name}: expected a ledger that takes it, got a full disk; nothing was changed"
        assert str(caught.value) == expected
    assert desk.lines(ALICE)["day"] == (3_000, 0)
    assert desk.changed == []
    desk.ledger.trouble = None
    await desk.reset(identity="alice", role="dba")
    assert desk.lines(ALICE)["day"] == (0, 0)


@pytest.mark.parametrize("trouble", ["a full disk", None])
async def test_what_the_ledger_does_not_take_acts_here_and_is_said_to_act_only_here(trouble, monkeypatch):
    monkeypatch.setattr(saving, "_PATIENCE_S", 0.01)
    desk = Desk({ALICE: 3_000}, prompt=False)
    desk.fails = trouble
    with pytest.raises(Unavailable) as caught:
        await desk.grant(identity="alice", role="dba", bytes=5)
    why = trouble or "a ledger that does not answer"
    means = "in force at this gateway until it restarts, and not yet in the ledger"
    assert str(caught.value) == f"quota grant: {means}: {why}"
    assert desk.lines(ALICE)["day"] == (3_000, 5)
    desk.ledger.trouble = None
    desk.ledger.commit()
    assert desk.ledger.rows[ALICE, Period.DAY].granted_bytes == 5


async def test_a_role_that_the_policy_has_no_more_can_be_shown():
    desk = Desk({Owner("former", "local", "alice"): 5})
    assert {line["role"] for line in (await desk.show(role="former"))["quotas"]} == {"former"}


def test_the_rules_are_those_of_the_snapshot(tmp_path):
    folder = GatewayFolder(tmp_path)
    folder.write("policy.toml", 'timezone = "Asia/Kolkata"\n' + (tmp_path / "policy.toml").read_text())
    snapshot = build(read_bundle(folder.configuration))
    assert Rules.of(snapshot) == (snapshot.configuration.namespace, {"dba"}, ZoneInfo("Asia/Kolkata"))
