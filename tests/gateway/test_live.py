"""A live session that is looked at again: each verdict, until when it holds, and what goes on otherwise."""

import io
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.errors import Refused
from portguard.gateway.bundle import read_bundle
from portguard.gateway.live import Live
from portguard.gateway.snapshot import build
from portguard.observe import log
from portguard.policy.decide import Request, decide
from portguard.reasons import Reason
from tests.certificates import Authority
from tests.gateway_folder import GatewayFolder

POLICY = """
[services.orders-db]
upstream = ["10.0.3.7:5432"]
{service}
[[roles]]
name = "dba"
members = ["alice"]
services = ["*"]
{role}
"""
SECOND = """
[[roles]]
name = "second"
members = ["alice"]
services = ["*"]
"""


class Relay:
    def __init__(self):
        self.closed = []
        self.limited = []

    def close(self, reason):
        self.closed.append(reason)

    def limit(self, **timeouts):
        self.limited.append(timeouts)


class Stage:
    """A session of alice's, and configurations to look at it by."""

    def __init__(self, path):
        self.folder = GatewayFolder(path)
        self.at = datetime.now(UTC)
        self.holder = self.folder.authority.issue("alice", not_after=self.at + timedelta(days=20))
        self.regranted = []
        self.setup = self.configured()
        snapshot, chain = self.setup.snapshot, [self.holder.der, self.folder.authority.der]
        tls = SimpleNamespace(get_verified_chain=lambda: chain, get_unverified_chain=lambda: chain[:1])
        caller = snapshot.trusts.identify(chain, chain[:1], self.at)
        source = ip_address("192.0.2.1")
        self.live = Live(
            worker=SimpleNamespace(setup=self.setup, regrant=self.regranted.append, refuse_locked=lambda caller: None),
            slot=3,
            session="ab" * 16,
            tls=tls,
            caller=caller,
            source=source,
            service=snapshot.policy.services["orders-db"],
            grant=decide(snapshot.policy, Request(caller.identity, caller.groups, "orders-db", source, self.at)),
            upstream="10.0.3.7:5432",
            opened_ns=17,
        )
        self.live.relay = self.relay = Relay()

    def configured(self, policy=None, *, role="", service="", configuration=None):
        """What the gateway works by with these files."""
        text = POLICY.format(role=role, service=service) if policy is None else policy
        self.folder.write("policy.toml", text)
        if configuration is not None:
            self.folder.write("portguard.toml", configuration)
        return SimpleNamespace(snapshot=build(read_bundle(self.folder.configuration)))

    @property
    def configuration(self):
        return (self.folder.path / "portguard.toml").read_text()

    def goes_on(self, setup, at=None):
        """Look at it again; whether it goes on, and nobody has said otherwise."""
        before = len(self.relay.closed)
        answer = self.live.recheck(setup, at or self.at)
        assert answer == (len(self.relay.closed) == before)
        return answer


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


@pytest.fixture(autouse=True)
def lines(monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    log.configure(json_lines=False, level="info")
    return lambda: stderr.getvalue().splitlines()


def test_what_still_may_goes_on_and_nobody_is_told(stage, lines):
    assert stage.goes_on(stage.configured(service="zones = ['x']"))
    assert stage.regranted == []
    assert lines() == []
    assert "x" in stage.live.service.zones


DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (POLICY.replace('"alice"', '"bob"'), Reason.NO_ROLE),
        (POLICY.replace("*", "other") + "[services.other]\nupstream = ['10.0.0.1:1']", Reason.SERVICE_NOT_GRANTED),
        (POLICY.replace("{role}", 'from = ["10.0.0.0/8"]'), Reason.SOURCE_NOT_ALLOWED),
        (POLICY.replace("{role}", "expires = 2020-01-01T00:00:00Z"), Reason.GRANT_EXPIRED),
        (POLICY + "[[deny]]\nmembers = ['alice']\nservices = ['*']", Reason.DENIED),
        (POLICY.replace("orders-db", "elsewhere"), Reason.UNKNOWN_SERVICE),
        (POLICY.replace("10.0.3.7:5432", "10.0.3.8:5432"), Reason.POLICY_CHANGED),
        ("", Reason.UNKNOWN_SERVICE),
    ],
)
def test_what_may_no_more_ends_with_the_reason_and_the_log_has_why(stage, lines, policy, reason):
    assert not stage.goes_on(stage.configured(policy.replace("{role}", "").replace("{service}", "")))
    assert stage.relay.closed == [reason]
    assert stage.relay.limited == []
    assert stage.regranted == []
    (line,) = lines()
    assert f" session.recheck session={'ab' * 16} identity=alice service=orders-db reason={reason} message=" in line


def test_it_goes_on_where_its_upstream_is_one_of_several(stage):
    policy = POLICY.format(role="", service="").replace('["10', '["10.0.0.1:1", "10')
    assert stage.goes_on(stage.configured(policy))


# Its certificate.


def test_a_certificate_is_looked_at_again_at_the_time_it_is(stage):
    not_after = stage.holder.certificate.not_valid_after_utc
    assert stage.live.until_s == not_after.timestamp()
    assert stage.goes_on(stage.setup, not_after)
    assert not stage.goes_on(stage.setup, not_after + timedelta(seconds=1))
    assert stage.relay.closed == [Reason.CERTIFICATE_EXPIRED]


def test_an_authority_that_is_not_trusted_any_more_vouches_for_nobody(stage):
    stage.folder.write("ca.crt", Authority.root().pem)
    assert not stage.goes_on(stage.configured())
    assert stage.relay.closed == [Reason.CERTIFICATE_UNTRUSTED]


def test_a_certificate_that_is_revoked_ends_its_session_and_no_other(stage):
    root = stage.folder.authority
    table = stage.configuration.replace('ca = "ca.crt"', 'ca = "ca.crt"\ncrl = ["ca.crl"]')
    for serial, reasons in [
        (stage.holder.certificate.serial_number + 1, []),
        (stage.holder.certificate.serial_number, [Reason.CERTIFICATE_REVOKED]),
    ]:
        stage.folder.write("ca.crl", root.crl([serial]).public_bytes(Encoding.DER))
        stage.goes_on(stage.configured(configuration=table))
        assert stage.relay.closed == reasons


def test_who_is_somebody_else_by_now_ends(stage, lines):
    table = stage.configuration.replace("[trusts.local]", "[trusts.other]")
    assert not stage.goes_on(stage.configured(configuration=table))
    assert stage.relay.closed == [Reason.POLICY_CHANGED]
    assert stage.live.caller.identity.trust == "local"  # what is logged and counted stays who it was
    assert "identity=alice " in lines()[0]


def test_who_is_locked_out_ends(stage):
    def refuse(caller):
        assert caller.identity.name == "alice"
        raise Refused(Reason.LOCKED)

    stage.live.worker.refuse_locked = refuse
    assert not stage.goes_on(stage.setup)
    assert stage.relay.closed == [Reason.LOCKED]


# Until when.


def test_the_first_of_what_ends_says_when_to_look_again(stage):
    not_after = stage.holder.certificate.not_valid_after_utc
    for ends in (stage.at.replace(microsecond=0) + DAY, not_after + DAY):
        assert stage.goes_on(stage.configured(role=f"expires = {ends:%Y-%m-%dT%H:%M:%SZ}"))
        assert stage.live.until_s == min(ends, not_after).timestamp()
    assert stage.goes_on(stage.configured())
    assert stage.live.until_s == not_after.timestamp()


def test_a_list_that_goes_out_of_date_ends_a_session_only_when_something_else_has_it_looked_at(stage):
    ends = stage.at.replace(microsecond=0) + DAY
    stage.folder.write("ca.crl", stage.folder.authority.crl([], next_update=ends).public_bytes(Encoding.DER))
    table = stage.configuration.replace('ca = "ca.crt"', 'ca = "ca.crt"\ncrl = ["ca.crl"]')
    setup = stage.configured(configuration=table)
    assert stage.goes_on(setup)
    assert stage.live.until_s == stage.holder.certificate.not_valid_after_utc.timestamp() > ends.timestamp()
    assert not stage.goes_on(setup, ends + timedelta(seconds=1))
    assert stage.relay.closed == [Reason.CRL_EXPIRED]


def test_a_grant_ends_at_its_very_instant(stage):
    ends = stage.at.replace(microsecond=0) + DAY
    setup = stage.configured(role=f"expires = {ends:%Y-%m-%dT%H:%M:%SZ}")
    assert stage.goes_on(setup, ends - timedelta(microseconds=1))
    assert not stage.goes_on(setup, ends)
    assert stage.relay.closed == [Reason.GRANT_EXPIRED]


def test_hours_end_when_the_clock_turns(stage):
    tomorrow = (stage.at + DAY).replace(hour=12, minute=0, second=0, microsecond=0)
    setup = stage.configured(role=f'hours = ["{tomorrow:%a} 12:00-13:00"]')
    assert stage.goes_on(setup, tomorrow)
    assert stage.live.until_s == (tomorrow + timedelta(hours=1)).timestamp()
    assert stage.goes_on(setup, tomorrow + timedelta(minutes=59, seconds=59))
    assert not stage.goes_on(setup, tomorrow + timedelta(hours=1))
    assert stage.relay.closed == [Reason.OUTSIDE_HOURS]


def test_after_the_end_of_one_role_the_next_one_goes_on(stage):
    ends = stage.at.replace(microsecond=0) + DAY
    setup = stage.configured(POLICY.format(role=f"expires = {ends:%Y-%m-%dT%H:%M:%SZ}", service="") + SECOND)
    assert stage.goes_on(setup)
    assert stage.regranted == []
    assert stage.goes_on(setup, ends)
    assert stage.regranted == [stage.live]
    assert stage.live.grant.role == "second"
    assert stage.live.until_s == stage.holder.certificate.not_valid_after_utc.timestamp()


# Limits and timeouts.


@pytest.mark.parametrize(
    ("role", "regranted"),
    [
        ("", False),
        ("max_sessions = 3\nconnect_rate = '1/m'\nsession = '1h'", False),
        ("quota = ['1GB/day']", True),
        ("pooled_quota = ['1GB/day']", True),
        ("bandwidth = '1MB/s'", True),
    ],
)
def test_other_kinds_of_limits_are_another_grant_and_other_sizes_are_not(stage, role, regranted):
    assert stage.goes_on(stage.configured(role=role))
    assert stage.regranted == [stage.live] * regranted
    assert stage.goes_on(stage.configured(role=role.replace("'1", "'2")))
    assert stage.regranted == [stage.live] * regranted
    assert stage.goes_on(stage.configured())
    assert stage.regranted == [stage.live] * (2 * regranted)


def test_a_role_of_another_name_is_another_grant(stage):
    assert stage.goes_on(stage.configured(POLICY.format(role="", service="").replace("dba", "dbas")))
    assert stage.regranted == [stage.live]


def test_timeouts_are_those_of_now_with_the_services_and_the_roles_first(stage):
    table = stage.configuration + '\n[timeouts]\nidle = "2s"\nhalf_close = "3s"\nsession = "4s"\n'
    stage.goes_on(stage.configured(configuration=table))
    stage.goes_on(stage.configured(service='idle = "5s"', role='session = "6s"'))
    stage.goes_on(stage.configured(service='idle = "off"', role='session = "off"'))
    general = {"half_close_s": 3.0, "began_ns": 17}
    assert stage.relay.limited == [
        {"idle_s": 2.0, "session_s": 4.0, **general},
        {"idle_s": 5.0, "session_s": 6.0, **general},
        {"idle_s": None, "session_s": None, **general},
    ]
