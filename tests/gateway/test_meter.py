import pytest

from portguard.gateway.admission import Admission, Client
from portguard.gateway.meter import Meter
from portguard.gateway.slots import CONNECTED, RECEIVED, SENT
from portguard.limits.accounts import QuotaLine
from portguard.limits.ledger import Owner
from portguard.observe.metrics import OTHER, Histogram
from portguard.policy.quantities import Period
from portguard.reasons import Reason
from tests.slots import Slots

SECOND_NS = 10**9


class Gateway:
    """What the supervisor does, as far as it is counted."""

    def __init__(self, max_identities=2, capacity=4):
        self.slots = Slots(capacity, 0, 1, 2)
        self.admission = Admission(self.slots, max_pending=9, max_pending_per_address=9)
        self.meter = Meter(
            self.slots,
            self.admission.sessions,
            written=lambda trust, name: f"{trust}:{name}",
            max_identities=max_identities,
        )

    def admit(self, name="alice", service="db", role="team", worker=0):
        session = self.admission.admit(
            self.admission.begin(worker, None),
            session_id="ab" * 16,
            owner=Owner(role, "corp", name),
            service=service,
            client=Client((), "1f", "cd" * 32, None),
            upstreams=(),
            now_ns=0,
        )
        self.meter.admitted(session.slot, 0.002)
        return session.slot

    def connect(self, slot, seconds=0.01):
        self.slots[slot][CONNECTED] = int(seconds * SECOND_NS)

    def move(self, slot, received, sent):
        self.slots[slot][RECEIVED] += received
        self.slots[slot][SENT] += sent

    def open(self, *args, **keywords):
        slot = self.admit(*args, **keywords)
        self.connect(slot)
        return slot

    def end(self, slot, reason=Reason.CLIENT_CLOSED, now_ns=SECOND_NS):
        self.meter.ended(self.admission.end(slot, now_ns), reason)

    def read(self):
        return read(self.meter.take())


def read(moment):
    """The totals with what live sessions have moved, and how many there are."""
    for _ in moment.add_live():
        pass
    return moment.totals, moment.active


@pytest.fixture
def gateway():
    return Gateway()


def observed(histogram):
    return sum(histogram._counts), pytest.approx(histogram._sum)


def test_a_session_counts_as_opened_once_bytes_can_pass_and_once_only(gateway):
    slot = gateway.admit()
    totals, active = gateway.read()
    assert (totals.opened, totals.connects, active) == ({}, {}, {("db", "team"): 1})
    assert (totals.received, totals.sent) == ({}, {})
    gateway.connect(slot, 0.02)
    for _ in range(2):
        totals, active = gateway.read()
        assert totals.opened == {("corp:alice", "db"): 1}
        assert observed(totals.connects["db"]) == (1, 0.02)
        assert active == {("db", "team"): 1}
    gateway.end(slot)
    totals, active = gateway.read()
    assert totals.opened == {("corp:alice", "db"): 1}
    assert totals.closed == {("db", "client_closed"): 1}
    assert observed(totals.connects["db"]) == (1, 0.02)
    assert observed(totals.durations["db"]) == (1, 1.0)
    assert (active, totals.refused) == ({("db", "team"): 0}, {})


def test_a_session_that_begins_and_ends_between_two_scrapes_is_counted_whole(gateway):
    slot = gateway.open()
    gateway.move(slot, 10, 20)
    gateway.end(slot)
    totals, _ = gateway.read()
    key = "corp:alice", "db"
    assert (totals.opened[key], totals.received[key], totals.sent[key]) == (1, 10, 20)
    assert totals.closed == {("db", "client_closed"): 1}


def test_bytes_are_those_of_ended_and_of_live_sessions(gateway):
    first, second, other = gateway.open(), gateway.open(), gateway.open("bob", service="web")
    for slot, count in ((first, 1), (second, 10), (other, 100)):
        gateway.move(slot, count, 2 * count)
    for _ in range(2):
        totals, _ = gateway.read()
        assert totals.received == {("corp:alice", "db"): 11, ("corp:bob", "web"): 100}
        assert totals.sent == {("corp:alice", "db"): 22, ("corp:bob", "web"): 200}
    gateway.end(first)
    again = gateway.open()  # in the slot that became free
    assert again == first
    totals, _ = gateway.read()
    assert totals.received[("corp:alice", "db")] == 11
    gateway.move(again, 1000, 0)
    totals, _ = gateway.read()
    assert totals.received[("corp:alice", "db")] == 1011


def test_what_was_taken_stays_as_it_was(gateway):
    slot = gateway.open()
    gateway.move(slot, 5, 5)
    moment = gateway.meter.take()
    gateway.move(slot, 5, 5)
    gateway.end(slot)
    gateway.open("bob")
    gateway.meter.refused(None, Reason.HANDSHAKE_FAILED)
    totals, active = read(moment)
    assert totals.received == {("corp:alice", "db"): 5}
    assert (totals.closed, totals.refused, active) == ({}, {}, {("db", "team"): 1})


def test_series_of_bytes_begin_at_zero(gateway):
    gateway.open()
    totals, _ = gateway.read()
    assert dict(totals.received) == dict(totals.sent) == {("corp:alice", "db"): 0}


def test_nothing_is_lost_with_a_worker(gateway):
    lost, kept = gateway.open(worker=1), gateway.open(worker=2)
    gateway.move(lost, 7, 0)
    gateway.move(kept, 1, 0)
    dialling = gateway.admit("bob", worker=1)
    for account in gateway.admission.lose(1, SECOND_NS):
        gateway.meter.ended(account, Reason.WORKER_LOST)
    totals, active = gateway.read()
    assert totals.received == {("corp:alice", "db"): 8}
    assert totals.opened == {("corp:alice", "db"): 2}
    assert totals.closed == {("db", "worker_lost"): 1}
    assert totals.refused == {}
    assert active == {("db", "team"): 1}
    assert gateway.open("carol", worker=1) in {lost, dialling}
    assert ("corp:carol", "db") in gateway.read()[0].opened


def test_a_session_whose_service_is_not_reached_was_refused(gateway):
    gateway.end(gateway.admit(), Reason.UPSTREAM_UNREACHABLE)
    totals, _ = gateway.read()
    assert totals.refused == {("db", "upstream_unreachable"): 1}
    assert (totals.opened, totals.closed, totals.durations) == ({}, {}, {})


def test_a_client_that_goes_away_before_its_service_is_reached_was_not(gateway):
    gateway.end(gateway.admit(), Reason.CLIENT_RESET)
    assert gateway.read()[0].refused == {}
    gateway.end(gateway.open(), Reason.CLIENT_RESET)
    assert gateway.read()[0].closed == {("db", "client_reset"): 1}


def test_refusals_count_under_the_service_where_it_is_known(gateway):
    gateway.meter.refused(None, Reason.CERTIFICATE_MISSING)
    gateway.meter.refused("db", Reason.NO_ROLE)
    gateway.meter.refused("db", "no_role")  # as it comes from a worker
    assert gateway.read()[0].refused == {("", "certificate_missing"): 1, ("db", "no_role"): 2}


def test_handshakes_count_when_they_were_completed(gateway):
    gateway.meter.gone(None)
    gateway.meter.gone(0.5)
    gateway.admit()
    assert observed(gateway.read()[0].handshakes) == (2, 0.502)


def test_only_so_many_identities_have_a_label_and_they_keep_it(gateway):
    slots = [gateway.open(name) for name in ("alice", "bob", "carol")]
    gateway.read()
    for slot in slots:
        gateway.move(slot, 1, 0)
    expected = {("corp:alice", "db"): 1, ("corp:bob", "db"): 1, (OTHER, "db"): 1}
    assert gateway.read()[0].received == expected
    for slot in slots:
        gateway.end(slot)
    gateway.end(gateway.open("dora"))
    gateway.open("alice")
    totals, _ = gateway.read()
    assert totals.received == expected
    assert totals.opened == {("corp:alice", "db"): 2, ("corp:bob", "db"): 1, (OTHER, "db"): 2}


def test_no_identity_has_a_label_when_none_may():
    gateway = Gateway(max_identities=0)
    gateway.end(gateway.open())
    assert gateway.read()[0].opened == {(OTHER, "db"): 1}


def test_an_identity_that_is_refused_takes_no_label(gateway):
    for name in ("mallory", "trudy"):
        gateway.end(gateway.admit(name), Reason.UPSTREAM_TIMEOUT)
    gateway.open("alice")
    assert gateway.read()[0].opened == {("corp:alice", "db"): 1}


def test_an_upstream_is_as_the_last_attempt_found_it(gateway):
    gateway.meter.tried([["10.0.0.1:1", True], ["10.0.0.2:1", False]])
    gateway.meter.tried([["10.0.0.1:1", False]])
    assert gateway.meter.take().up == {"10.0.0.1:1": False, "10.0.0.2:1": False}


def test_a_value_on_a_bound_belongs_to_it():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram._counts == [2, 2, 1]


def test_many_sessions_are_added_some_at_a_time():
    gateway = Gateway(capacity=2500)
    for _ in range(2500):
        gateway.move(gateway.open(), 1, 0)
    moment = gateway.meter.take()
    sums = [moment.totals.received["corp:alice", "db"] for _ in moment.add_live()]
    assert sums == [1000, 2000]
    assert moment.totals.received["corp:alice", "db"] == moment.active["db", "team"] == 2500


def line(name="alice", period=Period.DAY, limit_bytes=100, used_bytes=30, trust="corp", role="team"):
    return QuotaLine(Owner(role, trust, name), period, limit_bytes, 0, used_bytes, 20, 0)


def quotas_of(gateway, *lines):
    moment = gateway.meter.take()
    assert list(moment.add_quotas(lines)) == []
    return moment.quotas


def test_quotas_are_shown_of_roles_and_of_identities_that_have_a_label(gateway):
    gateway.open("alice")
    quotas = quotas_of(
        gateway,
        line(),
        line(period=Period.MONTH, limit_bytes=1000, used_bytes=40),
        line(role="other", limit_bytes=7, used_bytes=6),
        line("nobody-has-let-bob-in"),
        line("", trust="", limit_bytes=500, used_bytes=90),
    )
    assert quotas.limits == {("team", "day"): 100, ("team", "month"): 1000, ("other", "day"): 7}
    assert quotas.used == {
        ("corp:alice", "team", "day"): 30,
        ("corp:alice", "team", "month"): 40,
        ("corp:alice", "other", "day"): 6,
    }
    assert (quotas.pooled_limits, quotas.pooled_used) == ({("team", "day"): 500}, {("team", "day"): 90})


def test_what_is_only_counted_is_no_quota(gateway):
    gateway.open("alice")
    quotas = quotas_of(gateway, line(limit_bytes=None), line("", trust="", limit_bytes=None))
    assert (quotas.limits, quotas.used, quotas.pooled_limits, quotas.pooled_used) == ({}, {}, {}, {})


@pytest.mark.parametrize("limit_bytes", [100, None])
def test_many_quotas_are_added_some_at_a_time(gateway, limit_bytes):
    many = (line(f"user{number}", limit_bytes=limit_bytes) for number in range(1000))
    assert len(list(gateway.meter.take().add_quotas(many))) == 5
