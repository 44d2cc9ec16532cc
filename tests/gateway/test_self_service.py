"""What the gateway tells its callers over HTTP, with a supervisor that the test plays."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from portguard.errors import Refused
from portguard.gateway.bundle import read_bundle
from portguard.gateway.http_request import ApiRequest
from portguard.gateway.http_response import RefusedRequest
from portguard.gateway.messages import (
    MOST_FORECAST,
    MOST_ROLES,
    ForecastWanted,
    ForeseenRefusal,
    PastRefusal,
    PastRefusalsWanted,
    QuotaStanding,
    RoleStanding,
    StandingWanted,
)
from portguard.gateway.self_service import Visitor, answer
from portguard.gateway.snapshot import build
from portguard.identity.names import Group, Identity
from portguard.identity.trust import Caller
from portguard.reasons import Reason
from tests.gateway_folder import GatewayFolder

NOT_AFTER = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
POLICY = """
timezone = "Europe/Zurich"

[services.orders-db]
upstream = ["10.0.3.7:5432"]
description = "orders, “primary”"
local_port = 5432

[services.metrics]
upstream = ["10.0.3.8:9090"]

[services.secret]
upstream = ["10.0.3.9:1"]

[[roles]]
name = "dba"
members = ["alice"]
services = ["orders-db"]
max_sessions = 10
connect_rate = "30/m"
bandwidth = "50MB/s"
quota = ["20GB/day"]
pooled_quota = ["5TB/month"]
session = "8h"
expires = 2090-01-31T01:00:00+01:00

[[roles]]
name = "watch"
members = ["alice", "bob"]
services = ["metrics"]
session = "off"

[[roles]]
name = "inside"
members = ["alice"]
services = ["secret"]
from = ["10.0.0.0/8"]
"""


class Supervisor:
    """Answers with what the test puts there, and remembers what it was asked."""

    def __init__(self):
        self.roles = {}
        self.foreseen = {}  # by service
        self.past = []
        self.asked = []
        self.silent = False

    async def standing(self, request):
        self.asked.append(request)
        if self.silent:
            raise Refused(Reason.LEDGER_UNAVAILABLE)
        assert len(request.roles) <= MOST_ROLES
        return [self.roles.get(role, RoleStanding(0, 0.0, [])) for role in request.roles]

    async def forecast(self, request):
        self.asked.append(request)
        if self.silent:
            raise Refused(Reason.LEDGER_UNAVAILABLE)
        assert len(request.sessions) <= MOST_FORECAST
        return [self.foreseen.get(service) for service, _ in request.sessions]

    async def past_refusals(self, request):
        self.asked.append(request)
        if self.silent:
            raise Refused(Reason.LEDGER_UNAVAILABLE)
        return self.past


@pytest.fixture
def supervisor():
    return Supervisor()


@pytest.fixture
def folder(tmp_path):
    folder = GatewayFolder(tmp_path)
    folder.write("policy.toml", POLICY)
    return folder


@pytest.fixture
def ask(folder, supervisor):
    snapshot = build(read_bundle(folder.configuration))

    async def ask(path, name="alice", method="GET", source="192.0.2.1", snapshot=snapshot):
        caller = Caller(
            Identity("local", name),
            frozenset({Group("local", "ops"), Group("local", "dba")}),
            0xAB,
            "cd" * 32,
            NOT_AFTER,
        )
        visitor = Visitor(7, caller, ip_address(source) if source is not None else None, snapshot)
        path, _, query = path.partition("?")
        return await answer(ApiRequest(method, path, query, (), b""), visitor, supervisor, granted)

    return ask


def granted(name):
    if name != "orders-db":
        raise Refused(Reason.SERVICE_NOT_GRANTED)
    return SimpleNamespace(name=name, local_port=5432, description="orders"), SimpleNamespace(role="dba")


def document(response):
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert body.isascii()
    return json.loads(body)


# Who am I.


async def test_whoami_tells_the_identity_its_certificate_and_its_refusals(ask, supervisor):
    supervisor.past = [
        PastRefusal(1_795_000_000.25, "orders-db", "max_sessions", "role dba allows 10", "ab" * 16),
        PastRefusal(1_795_000_000, None, "unknown_service", "there is no such service", "cd" * 16),
    ]
    assert document(await ask("/v1/whoami")) == {
        "identity": "alice",
        "trust": "local",
        "name": "alice",
        "groups": ["@local:dba", "@local:ops"],
        "certificate": {"serial": "ab", "fingerprint": "cd" * 32, "not_after": "2027-01-02T03:04:05Z"},
        "source": "192.0.2.1",
        "refusals": [
            {
                "time": "2026-11-18T11:06:40.250Z",
                "service": "orders-db",
                "reason": "max_sessions",
                "message": "role dba allows 10",
                "session": "ab" * 16,
            },
            {
                "time": "2026-11-18T11:06:40.000Z",
                "service": None,
                "reason": "unknown_service",
                "message": "there is no such service",
                "session": "cd" * 16,
            },
        ],
    }
    [asked] = supervisor.asked
    assert asked == PastRefusalsWanted(7, "local", "alice")


async def test_whoami_works_without_any_role_and_without_a_source(ask):
    answered = document(await ask("/v1/whoami?x=y", "nobody", source=None))
    assert (answered["identity"], answered["source"], answered["refusals"]) == ("nobody", None, [])


# Which services.


async def test_services_are_those_that_may_be_reached_with_the_limits_of_their_roles(ask, supervisor):
    ends_s = int(datetime(2026, 11, 25, tzinfo=UTC).timestamp())
    supervisor.roles["dba"] = RoleStanding(
        3,
        12.34567,
        [
            QuotaStanding("day", False, 20_000_000_000, 1_000, 5_000_000_000, ends_s),
            QuotaStanding("month", True, 5, 1, 9, ends_s),
        ],
    )
    supervisor.foreseen["orders-db"] = ForeseenRefusal(Reason.CONNECT_RATE, "role dba allows 30", 12.34567)
    no_limits = {"max_sessions": None, "connect_rate": None, "bandwidth_bytes_per_s": None, "quotas": []}
    assert document(await ask("/v1/services")) == {
        "timezone": "Europe/Zurich",
        "services": [
            {
                "name": "orders-db",
                "description": "orders, “primary”",
                "local_port": 5432,
                "role": "dba",
                "until": "2090-01-31T00:00:00Z",
                "session_s": 28800.0,
                "refusal": {"reason": "connect_rate", "message": "role dba allows 30", "retry_after_s": 12.346},
                "limits": {
                    "max_sessions": {"limit": 10, "open": 3},
                    "connect_rate": {"limit": "30/m", "retry_after_s": 12.346},
                    "bandwidth_bytes_per_s": 50_000_000,
                    "quotas": [
                        {
                            "period": "day",
                            "pooled": False,
                            "limit_bytes": 20_000_000_000,
                            "granted_bytes": 1_000,
                            "used_bytes": 5_000_000_000,
                            "left_bytes": 15_000_001_000,
                            "ends": "2026-11-25T00:00:00Z",
                        },
                        {
                            "period": "month",
                            "pooled": True,
                            "limit_bytes": 5,
                            "granted_bytes": 1,
                            "used_bytes": 9,
                            "left_bytes": 0,
                            "ends": "2026-11-25T00:00:00Z",
                        },
                    ],
                },
            },
            {
                "name": "metrics",
                "description": "",
                "local_port": None,
                "role": "watch",
                "until": None,
                "session_s": None,
                "refusal": None,
                "limits": no_limits,
            },
        ],
    }
    assert supervisor.asked == [
        StandingWanted(7, "local", "alice", ["dba", "watch"]),
        ForecastWanted(7, "local", "alice", "ab", "cd" * 32, [("orders-db", "dba"), ("metrics", "watch")]),
    ]


async def test_services_are_told_neither_to_whom_they_are_closed_nor_where_they_are(ask):
    for name, source, expected in [
        ("alice", "192.0.2.1", ["orders-db", "metrics"]),
        ("alice", "10.1.2.3", ["orders-db", "metrics", "secret"]),
        ("alice", None, ["orders-db", "metrics"]),
        ("bob", "10.1.2.3", ["metrics"]),
        ("nobody", "10.1.2.3", []),
    ]:
        response = await ask("/v1/services", name, source=source)
        assert [service["name"] for service in document(response)["services"]] == expected
        assert b"10.0.3" not in response
        assert b"nobody" not in response


async def test_a_session_without_a_length_of_its_own_has_the_general_one(folder, ask):
    folder.add("portguard.toml", '[timeouts]\nsession = "90m"\n')
    snapshot = build(read_bundle(folder.configuration))
    [_, metrics, secret] = document(await ask("/v1/services", source="10.1.2.3", snapshot=snapshot))["services"]
    assert (metrics["session_s"], secret["session_s"]) == (None, 5400.0)


async def test_a_great_many_services_and_roles_are_asked_for_and_written_piece_by_piece(folder, ask, supervisor):
    count = 1000
    services = "\n".join(f'[services.s{number}]\nupstream = ["10.0.0.1:{number + 1}"]' for number in range(count))
    roles = "\n".join(
        f'[[roles]]\nname = "r{number}"\nmembers = ["alice"]\nservices = ["s{number}"]' for number in range(count)
    )
    folder.write("policy.toml", f"{services}\n{roles}\n")
    snapshot = build(read_bundle(folder.configuration))
    supervisor.foreseen["s998"] = ForeseenRefusal(Reason.SERVICE_FULL, "m", None)
    supervisor.roles["r999"] = RoleStanding(0, 0.0, [QuotaStanding("day", False, 5, 0, 1, 0)])
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    answered = document(await ask("/v1/services", snapshot=snapshot))["services"]
    counting.cancel()
    assert [service["name"] for service in answered] == [f"s{number}" for number in range(count)]
    assert [service["role"] for service in answered] == [f"r{number}" for number in range(count)]
    assert [service["name"] for service in answered if service["limits"]["quotas"]] == ["s999"]
    assert [service["name"] for service in answered if service["refusal"]] == ["s998"]
    roles = [role for asked in supervisor.asked if isinstance(asked, StandingWanted) for role in asked.roles]
    assert roles == [f"r{number}" for number in range(count)]
    assert turns >= 2 * count // 100


# One service, and what there is not.


async def test_one_service_is_described_to_who_may_reach_it(ask, supervisor):
    assert document(await ask("/v1/services/orders-db")) == {
        "service": "orders-db",
        "local_port": 5432,
        "description": "orders",
        "refusal": None,
    }
    assert supervisor.asked == [ForecastWanted(7, "local", "alice", "ab", "cd" * 32, [("orders-db", "dba")])]
    with pytest.raises(Refused) as caught:
        await ask("/v1/services/secret")
    assert caught.value.reason is Reason.SERVICE_NOT_GRANTED


async def test_that_a_session_with_it_would_be_refused_now_is_part_of_the_answer(ask, supervisor):
    supervisor.foreseen["orders-db"] = ForeseenRefusal(Reason.DRAINING, "the gateway is draining", None)
    described = document(await ask("/v1/services/orders-db"))
    assert described["local_port"] == 5432
    assert described["refusal"] == {
        "reason": "draining",
        "message": "the gateway is draining",
        "retry_after_s": None,
    }


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/whoami/", "/v1/servicesx", "/v1/Whoami", "/v1/%77hoami", "//v1/whoami"]
)
async def test_an_unknown_path_is_not_found(ask, path):
    with pytest.raises(RefusedRequest, match="expected CONNECT SERVICE, or GET /v1/whoami, ") as caught:
        await ask(path)
    assert (caught.value.status, caught.value.allow, caught.value.content) == (404, None, True)


@pytest.mark.parametrize("path", ["/v1/whoami", "/v1/services", "/v1/services/orders-db"])
@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "get"])
async def test_another_method_is_not_allowed_and_head_gets_no_content(ask, supervisor, path, method):
    with pytest.raises(RefusedRequest, match=f"expected GET {path}, got {method}") as caught:
        await ask(path, method=method)
    assert (caught.value.status, caught.value.allow, caught.value.content) == (405, "GET", method != "HEAD")
    assert supervisor.asked == []


@pytest.mark.parametrize("path", ["/v1/whoami", "/v1/services", "/v1/services/orders-db"])
async def test_without_the_supervisors_answer_there_is_none(ask, supervisor, path):
    supervisor.silent = True
    with pytest.raises(Refused):
        await ask(path)


async def test_a_time_is_written_in_utc_whatever_zone_it_has(ask):
    [service, *_] = document(await ask("/v1/services"))["services"]
    assert datetime.fromisoformat(service["until"]).utcoffset() == timedelta(0)


# A new certificate.


async def test_a_certificate_is_asked_for_with_post_alone(ask, supervisor):
    for method in ("GET", "HEAD", "PUT"):
        with pytest.raises(RefusedRequest, match=f"expected POST /v1/renew, got {method}") as caught:
            await ask("/v1/renew", method=method)
        assert (caught.value.status, caught.value.allow, caught.value.content) == (405, "POST", method != "HEAD")
    with pytest.raises(RefusedRequest, match="certificates of trust local are not renewed here") as caught:
        await ask("/v1/renew", method="POST")
    assert caught.value.status == 404
    assert supervisor.asked == []


async def test_who_has_a_name_is_invited_to_nothing(ask, supervisor):
    with pytest.raises(RefusedRequest, match="got a certificate that has a name already") as caught:
        await ask("/v1/enroll", method="POST")
    assert caught.value.status == 403
    with pytest.raises(RefusedRequest, match="expected POST /v1/enroll, got GET"):
        await ask("/v1/enroll")
    assert supervisor.asked == []
