"""When a session may begin for its line's sake, and what is recorded of whom."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest

from portguard.control.access import Peer
from portguard.gateway import audit_trail
from portguard.gateway.audit_trail import AuditTrail, Loading
from portguard.gateway.bundle import read_bundle
from portguard.gateway.connection import _MOST_GROUPS_BYTES, _listed
from portguard.gateway.kept_policies import recorded_loads
from portguard.gateway.messages import TurnedAway
from portguard.gateway.snapshot import build
from portguard.identity.claim import Claim
from portguard.identity.names import Group
from portguard.limits.accounts import Warned
from portguard.limits.ledger import Owner
from portguard.policy.quantities import Period, Quota
from portguard.reasons import Reason
from tests.gateway_folder import GatewayFolder

SESSION = "ab" * 16
STRANGER = TurnedAway("cd" * 16, *[None] * 7, Reason.CERTIFICATE_MISSING, "none")
BOB = TurnedAway("ef" * 16, "local", "bob", ["ops"], "1f", "aa" * 32, "192.0.2.1", "db", Reason.NO_ROLE, "no role")


class Writer:
    """Keeps what it gets. Nothing is written until a test says so."""

    def __init__(self):
        self.entries = []
        self.failing = None
        self.withdrawable = True

    def append(self, event, fields, on_written=None):
        entry = SimpleNamespace(event=event, fields=fields, on_written=on_written, withdrawn=False)
        self.entries.append(entry)
        return entry

    def withdraw(self, entry):
        entry.withdrawn = self.withdrawable
        return entry.withdrawn

    def failing_s(self):
        return self.failing

    def wake(self):
        pass

    @property
    def events(self):
        return [entry.event for entry in self.entries if not entry.withdrawn]


@pytest.fixture
def writer():
    return Writer()


@pytest.fixture
async def trail(writer, monkeypatch):
    monkeypatch.setattr(audit_trail, "Writer", lambda recorder, deliver: writer)
    monkeypatch.setattr(audit_trail, "PATIENCE_S", 0.02)
    return lambda *, required=True: AuditTrail(None, required=required)


def opens(trail, session=SESSION):
    decided = asyncio.get_running_loop().create_future()
    request = SimpleNamespace(
        session=session,
        trust="local",
        name="alice",
        source="192.0.2.1",
        service="db",
        role="team",
        groups=["ops"],
        serial="1f",
        fingerprint="aa" * 32,
    )
    trail.opens(request, decided.set_result)
    return decided


def account():
    return SimpleNamespace(session=SimpleNamespace(id=SESSION), received=1, sent=2, duration_s=0.5)


async def test_a_session_may_begin_when_its_line_is_written_and_not_before(trail, writer):
    trail = trail()
    decided = opens(trail)
    assert not decided.done()
    writer.entries[0].on_written(True)
    assert await decided is True
    trail.closed(account(), Reason.CLIENT_CLOSED, "10.0.0.1:5432")
    assert writer.events == ["session.open", "session.close"]
    assert writer.entries[0].fields["groups"] == ["ops"]
    closed = writer.entries[1].fields
    assert (closed["identity"], closed["upstream"], closed["received"], closed["sent"]) == (
        "alice",
        "10.0.0.1:5432",
        1,
        2,
    )


async def test_a_line_that_may_not_be_on_the_disk_lets_nobody_in_and_is_closed(trail, writer):
    trail = trail()
    decided = opens(trail)
    writer.entries[0].on_written(False)
    assert await decided is False
    trail.closed(account(), Reason.AUDIT_UNAVAILABLE, None)
    assert writer.events == ["session.open", "session.close"]


async def test_a_line_that_takes_too_long_is_withdrawn_and_leaves_no_trace(trail, writer):
    trail = trail()
    assert await opens(trail) is False
    trail.closed(account(), Reason.AUDIT_UNAVAILABLE, None)
    assert writer.events == []


async def test_a_line_that_is_just_being_written_when_time_is_up_gets_an_end(trail, writer):
    trail = trail()
    writer.withdrawable = False
    assert await opens(trail) is False
    trail.closed(account(), Reason.AUDIT_UNAVAILABLE, None)
    assert writer.events == ["session.open", "session.close"]
    writer.entries[0].on_written(True)  # too late: nothing is decided twice


async def test_a_session_that_ends_before_its_line_is_written_is_not_decided(trail, writer):
    trail = trail()
    decided = opens(trail)
    trail.closed(account(), Reason.WORKER_LOST, None)
    writer.entries[0].on_written(True)
    await asyncio.sleep(0)
    assert not decided.done()
    assert writer.events == []


async def test_while_the_log_has_failed_for_long_sessions_are_refused_at_once(trail, writer):
    trail = trail()
    writer.failing = 5.0
    decided = opens(trail)
    assert decided.result() is False
    assert writer.entries == []


async def test_where_the_audit_is_not_required_nobody_waits(trail, writer):
    trail = trail(required=False)
    writer.failing = 5.0
    assert opens(trail).result() is True
    assert writer.events == ["session.open"]


# Sessions that go on otherwise.


def moves(trail, *, role="team", worker=0, session=SESSION, now_s=0.0, count=1):
    for _ in range(count):
        trail.moved(SimpleNamespace(id=session, worker=worker, owner=Owner(role, "local", "alice")), now_s)


def open_at_once(trail):
    opens(trail)
    return trail


def regrants(writer):
    return [entry.fields for entry in writer.entries if entry.event == "session.regrant"]


@pytest.fixture
def load(tmp_path):
    """`load(trail)`: another policy comes into force."""
    bundle = read_bundle(GatewayFolder(tmp_path).configuration)
    loading = Loading(bundle, build(bundle))
    return lambda trail: trail.loaded(loading, kept=True)


async def test_a_session_that_goes_on_in_another_role_is_recorded_in_that_one(trail, writer):
    trail = open_at_once(trail(required=False))
    moves(trail, role="others")
    trail.closed(account(), Reason.CLIENT_CLOSED, None)
    assert writer.events == ["session.open", "session.regrant", "session.close"]
    assert [entry.fields["role"] for entry in writer.entries] == ["team", "others", "others"]
    assert not regrants(writer)[0]["held_back"]


async def test_a_worker_that_moves_a_session_over_and_over_does_not_fill_the_disk(trail, writer):
    trail = open_at_once(trail(required=False))
    moves(trail, count=5000)
    moves(trail, role="others", now_s=1.0, count=5000)
    assert len(regrants(writer)) <= 25
    moves(trail, now_s=10.0)
    assert sum(1 + (fields["held_back"] or 0) for fields in regrants(writer)) == 10_001
    moves(trail, role="last", now_s=10.0, count=100)
    trail.closed(account(), Reason.CLIENT_CLOSED, None)
    assert writer.entries[-1].fields["role"] == "last"  # which is told although its move was held back


async def test_moves_that_are_held_back_and_followed_by_none_are_counted_in_a_line_of_their_own(trail, writer):
    trail = open_at_once(trail(required=False))
    trail.tick(0.0)
    moves(trail, worker=3, count=100)
    told = len(regrants(writer))
    trail.tick(61.0)
    assert writer.events[-1] == "session.regrant.flood"
    assert writer.entries[-1].fields == {"worker": 3, "held_back": 100 - told}


async def test_no_worker_s_moves_hide_those_of_another(trail, writer):
    trail = open_at_once(trail(required=False))
    moves(trail, worker=1, count=1000)
    told = len(regrants(writer))
    moves(trail, worker=2)
    assert len(regrants(writer)) == told + 1


async def test_with_each_policy_a_session_may_move_and_is_recorded(trail, writer, load):
    trail = open_at_once(trail(required=False))
    moves(trail, count=1000)
    told = len(regrants(writer))
    for _ in range(3):
        load(trail)
        moves(trail)
    assert len(regrants(writer)) == told + 3


async def test_hours_that_begin_and_end_move_a_session_and_each_is_recorded(trail, writer):
    trail = open_at_once(trail(required=False))
    moves(trail, count=1000)
    told = len(regrants(writer))
    for hour in (1, 2):
        moves(trail, now_s=hour * 3600.0)
    assert len(regrants(writer)) == told + 2
    assert not any(fields["held_back"] for fields in regrants(writer)[-2:])


async def test_every_session_that_a_policy_moves_is_recorded_however_many_they_are(trail, writer, load):
    trail = trail(required=False)
    for number in range(3000):
        opens(trail, f"{number:032x}")
    load(trail)
    for number in range(3000):
        moves(trail, session=f"{number:032x}")
    assert len(regrants(writer)) == 3000


async def test_nothing_is_remembered_of_a_session_that_has_ended(trail, writer):
    trail = open_at_once(trail(required=False))
    moves(trail)
    trail.closed(account(), Reason.CLIENT_CLOSED, None)
    moves(trail)
    assert trail._regranted == {}
    assert writer.events[-1] == "session.close"


# Refusals.


async def test_refusals_name_who_is_known_and_strangers_share_one_bound(trail, writer):
    trail = trail()
    for _ in range(30):
        trail.refused(STRANGER, 0.0)
        trail.refused_at_once("192.0.2.9", Reason.ADDRESS_LIMIT, 0.0)
    assert writer.events == ["handshake.fail"] * 20
    trail.refused(BOB, 0.0)
    last = writer.entries[-1]
    assert (last.event, last.fields["identity"], last.fields["reason"]) == ("session.refuse", "bob", "no_role")
    trail.tick(0.0)
    trail.tick(60.0)
    assert (writer.entries[-1].event, writer.entries[-1].fields) == ("handshake.fail.flood", {"held_back": 40})


async def test_neither_strangers_nor_sessions_have_the_refusal_of_an_invitation_held_back(trail, writer):
    trail = trail()
    for _ in range(30):
        trail.refused(STRANGER, 0.0)
        trail.refused(BOB, 0.0)
    used = msgspec.structs.replace(BOB, reason=Reason.INVITATION_USED)
    for _ in range(30):
        trail.invitation_refused(used, 0.0)
    assert writer.events.count("certificate.refuse") == 20
    last = writer.entries[-1]
    assert (last.fields["identity"], last.fields["reason"]) == ("bob", "invitation_used")
    trail.invitation_refused(msgspec.structs.replace(used, name="carol"), 0.0)
    assert writer.events[-1] == "certificate.refuse"
    trail.tick(0.0)
    trail.tick(60.0)
    [flood] = [entry.fields for entry in writer.entries if entry.event == "certificate.refuse.flood"]
    assert flood == {"trust": "local", "identity": "bob", "held_back": 10}


async def test_an_invitation_that_is_nobody_s_is_a_stranger_s(trail, writer):
    trail = trail()
    for _ in range(30):
        trail.refused(STRANGER, 0.0)
        trail.invitation_refused(STRANGER, 0.0)
    assert writer.events == ["handshake.fail"] * 20


async def test_what_a_stranger_claims_is_recorded_as_claimed(writer, trail):
    trail = trail()
    trail.refused(msgspec.structs.replace(STRANGER, claim=Claim("spiffe://x/alice", "CN=Other", "1f", "aa" * 32)), 0.0)
    trail.refused(STRANGER, 0.0)
    with_claim, without = (entry.fields for entry in writer.entries)
    assert {name: value for name, value in with_claim.items() if name.startswith("claimed_")} == {
        "claimed_subject": "spiffe://x/alice",
        "claimed_issuer": "CN=Other",
        "claimed_serial": "1f",
        "claimed_fingerprint": "aa" * 32,
    }
    assert with_claim["serial"] is with_claim["fingerprint"] is None
    assert not any(name.startswith("claimed_") for name in without)


def test_very_many_groups_are_cut_and_counted():
    groups = frozenset(Group("local", f"group-{number:04}-\n") for number in range(1000))
    names = _listed(groups)
    assert names[0] == "group-0000-\n"
    assert names[-1] == f"… and {1000 - len(names) + 1} more"
    assert len(names) < _MOST_GROUPS_BYTES / 14
    assert _listed(frozenset([Group("local", "b"), Group("local", "a")])) == ["a", "b"]


@pytest.mark.parametrize("people", [{}, {"by": "user:anna", "message": "CHG-1"}])
async def test_a_policy_that_comes_into_force_is_kept_and_recorded(trail, writer, tmp_path, people):
    bundle = read_bundle(GatewayFolder(tmp_path).configuration)
    snapshot = build(bundle)
    snapshot = replace(snapshot, configuration=_with_state(snapshot.configuration, tmp_path / "state"))
    loading = Loading(bundle, snapshot, **people)
    trail().loaded(loading, kept=loading.keep())
    (entry,) = writer.entries
    assert (entry.event, entry.fields["policy"], entry.fields["kept"]) == ("policy.load", snapshot.revision, True)
    (load,) = recorded_loads(str(tmp_path / "state"))
    assert load.revision == snapshot.revision
    assert (load.by, load.message) == (entry.fields["by"], entry.fields["message"])
    assert (load.by, load.message) == (people.get("by"), people.get("message"))


async def test_a_policy_that_cannot_be_kept_is_in_force_all_the_same_and_recorded_so(trail, writer, tmp_path):
    bundle = read_bundle(GatewayFolder(tmp_path).configuration)
    snapshot = build(bundle)
    (tmp_path / "state").write_text("a file")
    snapshot = replace(snapshot, configuration=_with_state(snapshot.configuration, tmp_path / "state"))
    loading = Loading(bundle, snapshot)
    trail().loaded(loading, kept=loading.keep())
    assert [entry.fields["kept"] for entry in writer.entries] == [False]


def _with_state(configuration, state):
    return replace(configuration, gateway=replace(configuration.gateway, state=str(state)))


@pytest.mark.parametrize(
    ("owner", "named"),
    [(Owner("team", "local", "alice"), {"trust": "local", "identity": "alice"}), (Owner("team", "", ""), {})],
)
async def test_a_quota_that_is_used_for_the_most_part_is_recorded_with_whose_it_is(trail, writer, owner, named):
    trail().quota_warning(Warned(owner, Quota(10_000_000, Period.DAY), 8_000_001))
    [entry] = writer.entries
    known = {key: value for key, value in entry.fields.items() if value is not None}
    assert entry.event == "quota.warning"
    assert known == {"role": "team", "quota": "10MB/day", "used": 8_000_001, **named}


async def test_attempts_to_write_that_failed_are_those_of_the_writer(trail, writer):
    writer.failures = 7
    assert trail().failures == 7


ANNA = Peer(1001, 1001, 4711, "anna")


async def test_an_act_is_recorded_with_who_did_what_and_how_it_ended(trail, writer):
    trail = trail()
    given = {"identity": "alice", "bytes": 5}
    trail.acted(ANNA, "POST", "/v1/quotas/grant", given, "done", now_s=0.0)
    trail.acted(ANNA, "POST", "/v1/reload", {}, "forbidden", now_s=0.0)
    assert writer.events == ["admin.quota.grant", "admin.reload"]
    told = [{name: value for name, value in entry.fields.items() if value is not None} for entry in writer.entries]
    assert told == [
        {"uid": 1001, "user": "anna", "arguments": given, "outcome": "done"},
        {"uid": 1001, "user": "anna", "outcome": "forbidden"},
    ]


async def test_acts_that_are_refused_over_and_over_do_not_fill_the_disk_and_none_that_is_done_is_missing(trail, writer):
    trail = trail()
    for outcome in ("forbidden", "done"):
        for _ in range(100):
            trail.acted(ANNA, "POST", "/v1/reload", {}, outcome, now_s=0.0)
    trail.acted(Peer(1002, 1002, 1, None), "POST", "/v1/reload", {}, "forbidden", now_s=0.0)
    outcomes = [(entry.fields["uid"], entry.fields["outcome"]) for entry in writer.entries]
    assert outcomes.count((1001, "done")) == 100
    assert 1 <= outcomes.count((1001, "forbidden")) <= 25
    assert outcomes.count((1002, "forbidden")) == 1
    trail.acted(ANNA, "POST", "/v1/reload", {}, "forbidden", now_s=10.0)
    assert writer.entries[-1].fields["held_back"] == 100 - outcomes.count((1001, "forbidden"))


async def test_refused_acts_that_nothing_follows_are_counted_in_a_line_of_their_own(trail, writer):
    trail = trail()
    trail.tick(0.0)
    for _ in range(30):
        trail.acted(ANNA, "POST", "/v1/reload", {}, "forbidden", now_s=0.0)
    recorded = len(writer.entries)
    trail.tick(61.0)
    assert writer.events[-1] == "admin.refuse.flood"
    assert writer.entries[-1].fields == {"uid": 1001, "user": "anna", "held_back": 30 - recorded}


# Certificates.


def issues(trail):
    decided = asyncio.get_running_loop().create_future()
    trail.issues("1f", {"identity": "alice"}, decided.set_result)
    return decided


async def test_a_certificate_may_leave_when_its_line_is_written_and_not_before(trail, writer):
    trail = trail()
    decided = issues(trail)
    assert not decided.done()
    assert trail.is_deciding
    writer.entries[0].on_written(True)
    assert await decided is True
    assert not trail.is_deciding
    assert (writer.entries[0].event, writer.entries[0].fields) == ("certificate.issue", {"identity": "alice"})


async def test_a_certificate_whose_line_takes_too_long_may_not(trail, writer):
    trail = trail()
    assert await issues(trail) is False
    assert writer.events == []
    writer.failing = 5.0
    assert issues(trail).result() is False
    assert len(writer.entries) == 1


async def test_where_the_audit_is_not_required_no_certificate_waits(trail, writer):
    trail = trail(required=False)
    assert issues(trail).result() is True
    assert writer.events == ["certificate.issue"]
