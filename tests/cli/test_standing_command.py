"""`portguard whoami` and `portguard services` as people run them, before a gateway's stand-in."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from datetime import UTC, datetime, timedelta

import pytest

from portguard.cli.standing_rendering import services_lines, whoami_lines
from tests.gateway_double import answer, double, refusal

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
WHOAMI = {
    "identity": "alice",
    "trust": "local",
    "name": "alice",
    "groups": ["@local:dba"],
    "certificate": {"serial": "ab", "fingerprint": "cd" * 32, "not_after": "2027-01-02T09:00:00Z"},
    "source": "192.0.2.1",
    "refusals": [
        {
            "time": "2026-11-24T08:12:44.031Z",
            "service": "orders-db",
            "reason": "quota_exhausted",
            "message": "daily quota of 20 GB is used up; it renews at 00:00 Europe/Zurich",
            "session": "ab" * 16,
        }
    ],
}
SERVICE = {
    "name": "orders-db",
    "description": "orders, primary " + "and much more " * 9,
    "local_port": 5432,
    "role": "dba",
    "until": "2027-01-31T00:00:00Z",
    "session_s": 28800.0,
    "refusal": None,
    "limits": {
        "max_sessions": {"limit": 10, "open": 3},
        "connect_rate": {"limit": "30/m", "retry_after_s": 11.2},
        "bandwidth_bytes_per_s": 50_000_000,
        "quotas": [
            {
                "period": "day",
                "pooled": False,
                "limit_bytes": 20_000_000_000,
                "granted_bytes": 10**9,
                "used_bytes": 7_700_000_000,
                "left_bytes": 13_300_000_000,
                "ends": "2026-11-24T23:00:00Z",
            },
            {
                "period": "month",
                "pooled": True,
                "limit_bytes": 5 * 10**12,
                "granted_bytes": 0,
                "used_bytes": 5 * 10**12,
                "left_bytes": 0,
                "ends": "2026-11-30T23:00:00Z",
            },
        ],
    },
}
NO_LIMITS = {"max_sessions": None, "connect_rate": None, "bandwidth_bytes_per_s": None, "quotas": []}
FREE = {
    "name": "web",
    "description": "",
    "local_port": None,
    "role": "ops",
    "until": None,
    "session_s": None,
    "refusal": None,
    "limits": NO_LIMITS,
}
SERVICES = {"timezone": "Europe/Zurich", "services": [SERVICE, FREE]}


def test_services_are_shown_with_the_limits_of_their_roles_in_the_policys_zone():
    lines = list(services_lines(SERVICES, NOW))
    assert lines == [
        "SERVICE    PORT  ROLE  DESCRIPTION",
        "orders-db  5432  dba   orders, primary and much more and much more and much…",
        "web         any  ops",
        "",
        "As dba, with times in Europe/Zurich:",
        "  until                  2027-01-31 01:00",
        "  a session              at most 8h",
        "  sessions               3 of 10 open",
        "  connections            30 a minute, the next one in 12 s",
        "  bandwidth              50 MB/s in each direction",
        "  daily quota            13.3 GB of 20 GB + 1 GB left; renews at 00:00",
        "  monthly quota, shared  5 TB used up; renews at 2026-12-01 00:00",
        "",
        "As ops: no limits.",
    ]
    assert max(map(len, lines)) <= 80


def test_a_connection_that_may_come_now_is_said_to():
    limits = {**NO_LIMITS, "connect_rate": {"limit": "5/d", "retry_after_s": 0.0}}
    lines = list(services_lines({"timezone": "UTC", "services": [{**FREE, "limits": limits}]}, NOW))
    assert lines[-1] == "  connections  5 a day, the next one now"


QUOTA = {
    "reason": "quota_exhausted",
    "message": "daily quota of 20 GB is used up; it renews at 00:00 Europe/Zurich",
    "retry_after_s": 53_999.5,
}
DRAINING = {
    "reason": "draining",
    "message": "the gateway is draining and takes no new sessions",
    "retry_after_s": None,
}


def test_a_service_that_would_refuse_a_session_now_is_shown_with_the_reason():
    many = [FREE | {"name": f"web-{number}", "refusal": QUOTA | {"retry_after_s": number}} for number in range(9)]
    refused = [FREE | {"name": "orders-db", "refusal": DRAINING}, *many, FREE]
    lines = list(services_lines(SERVICES | {"services": refused}, NOW))
    assert lines[12:-2] == [
        "",
        "A new session would be refused now:",
        "  draining",
        "    orders-db: the gateway is draining and takes no new sessions",
        "  quota_exhausted",
        "    web-0, web-1, web-2, web-3, web-4, web-5, web-6, web-7, web-8: daily quota",
        "    of 20 GB is used up; it renews at 00:00 Europe/Zurich (try again in 8 s)",
    ]


@pytest.mark.parametrize("services", [SERVICES["services"], [{k: v for k, v in FREE.items() if k != "refusal"}]])
def test_a_service_that_refuses_nobody_is_shown_as_before(services):
    # A gateway of before says nothing about it at all.
    assert not any("refused" in line for line in services_lines(SERVICES | {"services": services}, NOW))


def test_who_may_reach_nothing_is_told_so():
    [line] = services_lines({"timezone": "UTC", "services": []}, NOW)
    assert line.startswith("No service may be reached now")


def test_whoami_fits_a_terminal_and_says_why_one_was_refused():
    lines = list(whoami_lines(WHOAMI, NOW))
    assert lines[0] == "identity     alice"
    assert "39 days left" in lines[3]
    assert lines[-3].endswith("  quota_exhausted")
    assert lines[-2] == "    orders-db: daily quota of 20 GB is used up; it renews at 00:00 Europe/Zurich"
    assert lines[-1] == f"    session {'ab' * 16}"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (timedelta(hours=23), "less than a day left"),
        (timedelta(days=1), "1 day left"),
        (-timedelta(1), "which is over"),
    ],
)
def test_how_long_the_certificate_holds_is_said_in_days(left, words):
    certificate = WHOAMI["certificate"] | {"not_after": (NOW + left).isoformat()}
    lines = list(whoami_lines(WHOAMI | {"certificate": certificate, "refusals": []}, NOW))
    assert lines[3].endswith(words)
    assert lines[-1] == "Nothing was refused of late."


@pytest.fixture
async def gateway(tmp_path):
    async with double(tmp_path) as gateway:
        gateway.write_profile(tmp_path / "alice.toml")
        yield gateway


async def portguard(gateway, *arguments):
    """Exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "portguard", *arguments),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        env=os.environ | {"PORTGUARD_PROFILE": str(gateway.folder / "alice.toml")},
    )
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


@pytest.mark.parametrize(("command", "document"), [("whoami", WHOAMI), ("services", SERVICES)])
async def test_json_is_the_gateways_document(gateway, command, document):
    gateway.answers[f"/v1/{command}"] = gateway.answers["/v1/services"] = answer(200, json.dumps(document).encode())
    code, output, errors = await portguard(gateway, command, "--json")
    assert (code, json.loads(output), errors) == (0, document, "")
    assert gateway.requests == [f"GET /v1/{command}"]


async def test_what_the_gateway_sends_cannot_steer_the_terminal(gateway):
    document = WHOAMI | {"groups": ["\x1b[31m"], "identity": "a\nb\u202e"}
    gateway.answers["/v1/whoami"] = answer(200, json.dumps(document).encode())
    code, output, _ = await portguard(gateway, "whoami")
    assert code == 0
    assert "\x1b" not in output
    assert "\u202e" not in output
    assert output.startswith("identity     a b\\u202e\n")


@pytest.mark.parametrize("command", ["whoami", "services"])
@pytest.mark.parametrize(
    ("answered", "code", "words"),
    [
        (refusal(403, "certificate_revoked", "the client certificate is revoked"), 3, "certificate_revoked"),
        (answer(200, b'{"services": 5, "identity": 5}'), 1, "expected an answer that this version understands"),
        (answer(200, b"<html>"), 4, "expected an answer of portguard"),
        (answer(500, b"<html>"), 4, "got HTTP status 500"),
    ],
    ids=range(4),
)
async def test_what_goes_wrong_is_said_in_one_line(gateway, command, answered, code, words):
    gateway.answers[f"/v1/{command}"] = answered
    returned, output, errors = await portguard(gateway, command)
    assert (returned, output) == (code, "")
    assert words in errors
    assert errors.count("\n") == 1


async def test_a_gateway_that_is_not_there_is_unreachable(gateway):
    profile = gateway.folder / "alice.toml"
    profile.write_text(profile.read_text().replace(f":{gateway.port}", ":1"))
    code, _, errors = await portguard(gateway, "whoami")
    assert code == 4
    assert "expected a connection" in errors


async def test_a_list_of_thousands_of_services_is_read_whole(gateway):
    many = [FREE | {"name": f"s{number}", "description": "x" * 500} for number in range(3000)]
    gateway.answers["/v1/services"] = answer(200, json.dumps(SERVICES | {"services": many}).encode())
    code, output, errors = await portguard(gateway, "services", "--json")
    assert (code, errors) == (0, "")
    assert len(json.loads(output)["services"]) == 3000
