"""What identities see of their own standing, against the real limits: how much is left, and why they were refused."""

import json
import time
from types import SimpleNamespace

import pytest

from portguard.gateway import accounting as accounting_module
from portguard.gateway import standing as standing_module
from portguard.gateway.accounting import Accounting
from portguard.gateway.admission import Account, Client, Session
from portguard.gateway.messages import (
    MOST_FORECAST,
    MOST_ROLES,
    Forecast,
    ForecastWanted,
    ForeseenRefusal,
    LeaseWanted,
    PastRefusal,
    PastRefusals,
    PastRefusalsWanted,
    QuotaStanding,
    RoleStanding,
    Standing,
    StandingWanted,
    TurnedAway,
    decode,
    encode,
)
from portguard.gateway.standing import KEPT, RefusalBook, Standings
from portguard.identity.names import Identity
from portguard.limits.ledger import Owner
from portguard.policy.decide import Policy
from portguard.policy.model import Limits, Role
from portguard.policy.quantities import Period, Quota, Rate
from portguard.reasons import Reason
from tests.ledger_double import MemoryLedger
from tests.slots import Slots

NOW_S = 1_795_000_000.0
ALICE, BOB = Identity("local", "alice"), Identity("local", "bob")
NAMESAKE = Identity("corp", "alice")
DAY, HOUR, POOL = Quota(20_000, Period.DAY), Quota(5_000, Period.HOUR), Quota(100_000, Period.MONTH)
LIMITS = {
    "dba": Limits(max_sessions=3, connect_rate=Rate(2, 60), quota=(DAY, HOUR), pooled_quota=(POOL,)),
    "ops": Limits(),
}


def owner(identity, role="dba"):
    return Owner(role, identity.trust, identity.name)


class Desk:
    def __init__(self):
        self.now_s = NOW_S
        policy = Policy(roles=[Role(name, (), (), limits) for name, limits in LIMITS.items()])
        self.accounting = Accounting(
            policy,
            Slots(1, 0),
            MemoryLedger(),
            when_unavailable="refuse",
            send=lambda *_: None,
            on_misconduct=lambda *_: None,
            on_warned=lambda _: None,
        )
        self.sessions = {}
        self.standings = Standings(self.accounting, lambda owner: self.sessions.get(owner, 0), lambda: self.now_s)

    def use(self, identity, used_bytes, role="dba"):
        accounts = self.accounting.accounts
        for account in accounts.charged(owner(identity, role)):
            accounts.use(account, used_bytes)

    def stands(self, identity, *roles):
        answer = self.standings.answer(StandingWanted(7, identity.trust, identity.name, list(roles or ["dba"])))
        assert answer.connection == 7
        return decoded(answer).roles

    def turned_away(self, identity, reason=Reason.NO_ROLE, message="no role has it", service="db", session="ab" * 16):
        who = (identity.trust, identity.name) if identity is not None else (None, None)
        self.standings.refused(TurnedAway(session, *who, [], "1", "ab", "192.0.2.1", service, reason, message))

    def ended(self, identity, reason, session="cd" * 16):
        client = Client((), "1f", "cd" * 32, None)
        ended = Account(Session(session, 0, 0, owner(identity), "db", client, (), 0), 1, 2, 3.0, 0.1, None)
        self.standings.ended(ended, reason)

    def past(self, identity):
        answer = self.standings.answer(PastRefusalsWanted(7, identity.trust, identity.name))
        assert answer.connection == 7
        return decoded(answer).refusals


def decoded(message):
    """As it comes out of the channel."""
    return decode(encode(message))


@pytest.fixture
async def desk(monkeypatch):
    monkeypatch.setattr(accounting_module, "time", SimpleNamespace(time=lambda: NOW_S, monotonic=time.monotonic))
    return Desk()


# What is left.


async def test_an_identity_sees_its_sessions_quotas_and_those_of_its_pool(desk):
    desk.sessions[owner(ALICE)] = 2
    desk.use(ALICE, 4_000)
    desk.accounting.accounts.grant(owner(ALICE), [Period.DAY], 500, NOW_S)
    [standing] = desk.stands(ALICE)
    assert (standing.sessions, standing.connect_wait_s) == (2, 0.0)
    assert [quota._replace(end_s=0) for quota in standing.quotas] == [
        QuotaStanding("hour", False, 5_000, 0, 4_000, 0),
        QuotaStanding("day", False, 20_000, 500, 4_000, 0),
        QuotaStanding("month", True, 100_000, 0, 4_000, 0),
    ]
    assert all(quota.end_s > NOW_S for quota in standing.quotas)


async def test_what_others_use_shows_in_the_pool_alone(desk):
    desk.use(BOB, 4_000)
    desk.sessions[owner(BOB)] = 2
    desk.use(NAMESAKE, 1_000)
    desk.use(ALICE, 100, "ops")
    [standing] = desk.stands(ALICE)
    assert standing.sessions == 0
    assert [(quota.period, quota.used_bytes) for quota in standing.quotas] == [
        ("hour", 0),
        ("day", 0),
        ("month", 5_000),
    ]


async def test_the_connect_rate_tells_when_the_next_one_is_let_in_and_asking_counts_nothing(desk):
    for _ in range(2):
        desk.accounting.check(owner(ALICE))
        desk.stands(ALICE)
    assert desk.stands(ALICE)[0].connect_wait_s == pytest.approx(60, abs=0.0025)
    assert desk.stands(BOB)[0].connect_wait_s == 0.0


async def test_roles_are_answered_in_their_order_and_one_without_limits_has_none(desk):
    desk.sessions[owner(ALICE, "ops")] = 5
    assert desk.stands(ALICE, "ops", "unheard-of") == [RoleStanding(5, 0.0, []), RoleStanding(0, 0.0, [])]


async def test_to_ask_makes_no_account(desk):
    desk.stands(ALICE)
    assert desk.accounting.accounts.owners() == ()


async def test_a_pool_is_summed_up_once_a_second_however_often_it_is_asked_for(desk):
    def pooled(identity):
        return [quota.used_bytes for quota in desk.stands(identity)[0].quotas if quota.pooled]

    assert pooled(ALICE) == [0]
    desk.use(BOB, 10)
    desk.now_s += 0.9
    assert pooled(ALICE) == pooled(BOB) == [0]
    desk.now_s += 0.1
    assert pooled(ALICE) == [10]
    desk.use(BOB, 10)
    desk.now_s -= 3600  # a clock that is put back must not keep an old answer for an hour
    assert pooled(ALICE) == [20]


async def test_the_largest_answer_is_one_message(desk):
    most = 2**63 - 1
    quota = QuotaStanding("month", False, most, most, most, 2**34)
    assert encode(Standing(2**31, [RoleStanding(8000, 86_400.001, [quota] * 8)] * MOST_ROLES))
    assert encode(StandingWanted(2**31, "t" * 63, "é" * 1024, ["r" * 63] * MOST_ROLES))
    pairs = [("s" * 63, "r" * 63)] * MOST_FORECAST
    assert encode(ForecastWanted(2**31, "t" * 63, "é" * 1024, "f" * 40, "f" * 64, pairs))
    foreseen = ForeseenRefusal(Reason.QUOTA_EXHAUSTED, "\x01" * 400, 2_678_400.001)
    assert encode(Forecast(2**31, [foreseen] * MOST_FORECAST))
    for _ in range(KEPT):
        desk.turned_away(ALICE, message="\U0001f6aa" * 200, service="s" * 63)
    assert encode(PastRefusals(2**31, desk.past(ALICE)))


# What was refused.


async def test_an_identity_sees_its_last_refusals_the_latest_one_first(desk):
    for number in range(KEPT + 2):
        desk.now_s = NOW_S + number
        desk.turned_away(ALICE, session=f"{number:032x}")
    past = desk.past(ALICE)
    assert [int(refusal.session, 16) for refusal in past] == list(range(11, 1, -1))
    assert past[0] == PastRefusal(NOW_S + 11, "db", "no_role", "no role has it", f"{11:032x}")


@pytest.mark.parametrize("other", [BOB, NAMESAKE])
async def test_nobody_sees_what_others_were_refused(desk, other):
    desk.turned_away(ALICE)
    desk.ended(ALICE, Reason.KILLED)
    assert len(desk.past(ALICE)) == 2
    assert desk.past(other) == []


async def test_what_was_refused_to_nobody_known_is_told_to_nobody(desk):
    desk.turned_away(None)
    desk.standings.refused(
        TurnedAway("ab" * 16, None, "alice", [], "1", "ab", "192.0.2.1", "db", Reason.NO_ROLE, "no role has it")
    )
    assert desk.past(ALICE) == []
    assert desk.standings.book._by_identity == {}


@pytest.mark.parametrize(
    "reason",
    [
        Reason.KILLED,
        Reason.POLICY_CHANGED,
        Reason.WORKER_LOST,
        Reason.IDLE_TIMEOUT,
        Reason.HALF_CLOSE_TIMEOUT,
        Reason.SESSION_TIMEOUT,
        Reason.GATEWAY_STOPPED,
        Reason.CERTIFICATE_REVOKED,
        Reason.LOCKED,
        Reason.OUTSIDE_HOURS,
        Reason.LEDGER_UNAVAILABLE,
        Reason.UPSTREAM_UNREACHABLE,
    ],
)
async def test_a_session_that_the_gateway_ended_is_among_them(desk, reason):
    desk.ended(ALICE, reason)
    assert desk.past(ALICE) == [PastRefusal(NOW_S, "db", reason, reason.sentence, "cd" * 16)]


@pytest.mark.parametrize(
    "reason",
    [
        Reason.CLIENT_CLOSED,
        Reason.UPSTREAM_CLOSED,
        Reason.CLIENT_TRUNCATED,
        Reason.CLIENT_RESET,
        Reason.UPSTREAM_RESET,
    ],
)
async def test_a_session_that_ended_of_its_own_is_not(desk, reason):
    desk.ended(ALICE, reason)
    assert desk.past(ALICE) == []


async def test_a_session_that_used_up_a_quota_is_told_which_and_until_when(desk):
    desk.use(ALICE, 5_000)
    desk.ended(ALICE, Reason.QUOTA_EXHAUSTED)
    [refusal] = desk.past(ALICE)
    assert refusal.message == "hourly quota of 5 kB is used up; it renews at 12:00 UTC"


async def test_when_there_is_something_left_again_it_is_still_told_that_it_was_the_quota(desk):
    desk.ended(ALICE, Reason.QUOTA_EXHAUSTED)
    [refusal] = desk.past(ALICE)
    assert refusal.message == "the quota is used up"


async def test_when_what_is_left_is_in_another_s_use_it_is_still_told_that_it_was_the_quota(desk):
    session = Session("ef" * 16, 0, 0, owner(ALICE), "db", Client((), "1f", "cd" * 32, None), (), 0)
    desk.accounting.open(7, session)
    while desk.accounting.accounts.left(owner(ALICE)) > 0:
        desk.accounting.on_message(0, LeaseWanted(0, empty=False))
    desk.ended(ALICE, Reason.QUOTA_EXHAUSTED)
    [refusal] = desk.past(ALICE)
    assert refusal.message == "the quota is used up"


@pytest.mark.parametrize(
    "reason",
    [Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_TIMEOUT, Reason.UPSTREAM_UNRESOLVED, Reason.UPSTREAM_TLS],
)
async def test_where_a_service_is_remains_untold(desk, reason):
    desk.turned_away(ALICE, reason, "10.0.3.7:5432: Connection refused")
    [refusal] = desk.past(ALICE)
    assert refusal.message == reason.sentence


async def test_a_long_message_is_cut(desk):
    desk.turned_away(ALICE, message="\x01" * 200)
    [refusal] = desk.past(ALICE)
    assert refusal.message.endswith("\x01…")
    assert 900 < len(json.dumps(refusal.message)) <= 1000
    desk.turned_away(ALICE, message="x" * 200)
    assert desk.past(ALICE)[0].message == "x" * 200


# What the book keeps.


def refusal(message="m"):
    return PastRefusal(NOW_S, "db", "no_role", message, "ab" * 16)


def test_of_too_many_identities_those_are_forgotten_who_were_not_refused_for_the_longest_time():
    book = RefusalBook(most_identities=2)
    carol = Identity("local", "carol")
    for identity in (ALICE, BOB, ALICE, carol):
        book.of(BOB)  # to look does not count
        book.note(identity, refusal())
    assert [len(book.of(identity)) for identity in (ALICE, BOB, carol)] == [2, 0, 1]


def test_the_book_has_a_size_and_knows_it():
    book = RefusalBook(most_bytes=40_000)
    for number in range(200):
        for _ in range(KEPT + number % 5):
            book.note(Identity("local", f"user-{number}"), refusal("x" * (number * 7 % 500)))
        assert book._size_bytes == sum(past.size_bytes for past in book._by_identity.values()) <= 40_000
    assert 1 < len(book._by_identity) < 200
    assert len(book.of(Identity("local", "user-199"))) == KEPT
    kept = [each for past in book._by_identity.values() for each in past.refusals]
    per_name = sum(standing_module._ENTRY_BYTES + len(identity.name) for identity in book._by_identity)
    assert book._size_bytes >= per_name + sum(len(each.message) for each in kept)


def test_long_names_of_services_and_trusts_count_too():
    book = RefusalBook(most_bytes=40_000)
    for number in range(10):
        book.note(Identity("t" * 10_000, f"user-{number}"), refusal()._replace(service="s" * 5_000))
    assert len(book._by_identity) == 2


def test_an_identity_pushes_out_its_own_refusals_only():
    book = RefusalBook(most_bytes=10_000)
    book.note(BOB, refusal())
    for _ in range(1000):
        book.note(ALICE, refusal())
    assert len(book.of(BOB)) == 1
