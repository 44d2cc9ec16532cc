"""What `portguard doctor` finds between a client and its services, before a gateway's stand-in."""

import dataclasses
import json
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.client.credentials import Credentials, read_credentials
from portguard.client.diagnosis import diagnose
from portguard.client.profile import read_profile
from portguard.observe.findings import Finding
from portguard.policy.addresses import HostPort
from portguard.tls.contexts import ServerContexts
from tests.gateway_double import NAME, Double, answer, double, refusal

WHOAMI: dict[str, Any] = {"identity": "alice", "refusals": []}
SERVICE = {"name": "orders-db", "local_port": None, "refusal": None}

Names = dict[str, list[str]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """The names that resolve, and to which addresses; addresses resolve to themselves."""
    table: Names = {}
    resolve = socket.getaddrinfo

    def lookup(host: str, port: int | None, *args: Any, **options: Any) -> Any:
        if host not in table and not host[0].isdigit():
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [info for address in table.get(host, [host]) for info in resolve(address, port, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return table


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Double]:
    async with double(tmp_path, (NAME, f"*.{NAME}")) as running:
        says(running, whoami=WHOAMI, services=[SERVICE])
        yield running


def says(gateway: Double, **documents: Any) -> None:
    for name, document in documents.items():
        body = json.dumps({"services": document} if name == "services" else document).encode()
        # The stand-in answers "services" for the list and for one service alike.
        gateway.answers[f"/v1/{name}"] = gateway.answers[name] = answer(200, body)


def credentials_of(gateway: Double, more: str = "") -> Credentials:
    profile = read_profile(gateway.write_profile(gateway.folder / "alice.toml", more))

    def nobody(path: Path) -> str:
        raise AssertionError(f"asked for the passphrase of {path}")

    return read_credentials(profile, nobody)


def by_name(credentials: Credentials, name: str = NAME) -> Credentials:
    """The same, for who reaches the gateway by a name."""
    address = HostPort(name, credentials.profile.gateway.port)
    return dataclasses.replace(credentials, profile=dataclasses.replace(credentials.profile, gateway=address))


async def found(credentials: Credentials, later: timedelta = timedelta()) -> list[Finding]:
    return [finding async for finding in diagnose(credentials, datetime.now(UTC) + later)]


def troubles(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(each.level, each.subject, each.text) for each in findings if each.level != "ok"]


async def test_where_all_is_right_nothing_is_found_wrong(gateway: Double, names: Names) -> None:
    names[NAME] = names[f"portguard-doctor.{NAME}"] = ["127.0.0.1"]
    findings = await found(by_name(credentials_of(gateway)))
    assert troubles(findings) == []
    assert [each.subject for each in findings] == [
        "certificate",
        "authority",
        "name",
        "gateway",
        "gateway",
        "wildcard",
        "identity",
        "services",
    ]
    assert [each.text for each in findings[2:4]] == [
        f"{NAME} is 127.0.0.1",
        "127.0.0.1 answers, and proves to be the gateway",
    ]
    assert findings[-1].text == "orders-db"


async def test_a_gateway_reached_by_its_address_needs_no_names(gateway: Double, names: Names) -> None:
    findings = await found(credentials_of(gateway))
    assert troubles(findings) == []
    assert {"name", "wildcard"}.isdisjoint(each.subject for each in findings)


async def test_another_name_than_the_gateways_own_needs_no_wildcard(gateway: Double, names: Names) -> None:
    names["bastion.internal"] = ["127.0.0.1"]
    findings = await found(by_name(credentials_of(gateway), "bastion.internal"))
    assert troubles(findings) == []
    assert "wildcard" not in [each.subject for each in findings]


async def test_a_name_that_does_not_resolve_ends_the_look(gateway: Double, names: Names) -> None:
    findings = await found(by_name(credentials_of(gateway)))
    assert troubles(findings) == [("failed", "name", f"{NAME} does not resolve: Name or service not known")]
    assert findings[-1].subject == "name"
    assert gateway.requests == []


async def test_a_wildcard_that_leads_elsewhere_or_nowhere_is_warned_of(gateway: Double, names: Names) -> None:
    names[NAME] = ["127.0.0.1"]
    credentials = by_name(credentials_of(gateway))
    more = "clients that name services by SNI do not get there"
    assert troubles(await found(credentials)) == [("warning", "wildcard", f"*.{NAME} does not resolve: {more}")]
    names[f"portguard-doctor.{NAME}"] = ["127.0.0.9"]
    assert troubles(await found(credentials)) == [("warning", "wildcard", f"*.{NAME} leads to 127.0.0.9: {more}")]


async def test_an_address_where_nobody_answers_is_a_warning_beside_one_that_does(gateway: Double, names: Names) -> None:
    names[NAME] = names[f"portguard-doctor.{NAME}"] = ["127.0.0.9", "127.0.0.1"]
    [(level, subject, text)] = troubles(await found(by_name(credentials_of(gateway))))
    assert (level, subject) == ("warning", "gateway")
    assert text.startswith("at 127.0.0.9: ")
    assert "refused" in text


async def test_a_gateway_that_does_not_answer_is_a_failure(gateway: Double, names: Names) -> None:
    names[NAME] = ["127.0.0.9"]
    findings = await found(by_name(credentials_of(gateway)))
    [(level, subject, _)] = troubles(findings)
    assert (level, subject) == ("failed", "gateway")
    assert findings[-1].subject == "gateway"


async def test_a_refused_certificate_is_told_with_the_gateways_reason(gateway: Double) -> None:
    gateway.answers["/v1/whoami"] = refusal(403, "locked", "locked out by root")
    findings = await found(credentials_of(gateway))
    [(level, subject, text)] = troubles(findings)
    assert (level, subject) == ("failed", "gateway")
    assert "locked: locked out by root" in text
    assert findings[-1].advice == "ask who runs the gateway"


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("crl_expired", "tell who runs the gateway: it needs a new revocation list"),
        ("certificate_revoked", "ask who runs the gateway; a new one would have to be issued"),
        ("one_of_tomorrow", ""),
    ],
)
async def test_a_refusal_comes_with_what_to_do(gateway: Double, reason: str, advice: str) -> None:
    gateway.answers["/v1/whoami"] = refusal(403, reason, "no")
    assert (await found(credentials_of(gateway)))[-1].advice == advice


async def test_a_gateway_without_a_wildcard_in_its_certificate_is_warned_of(tmp_path: Path) -> None:
    async with double(tmp_path) as gateway:
        says(gateway, whoami=WHOAMI, services=[SERVICE])
        [(level, subject, text)] = troubles(await found(credentials_of(gateway)))
    assert (level, subject) == ("warning", "wildcard")
    assert text.startswith(f"its certificate is not for *.{NAME}")


@pytest.mark.parametrize(
    ("valid_for", "later", "level", "text"),
    [
        (timedelta(days=30), timedelta(days=22), "ok", "is valid until"),
        (timedelta(days=30), timedelta(days=25), "warning", "is valid until"),
        (timedelta(days=1), timedelta(hours=18), "ok", "is valid until"),
        (timedelta(days=1), timedelta(hours=20), "warning", "is valid until"),
        (timedelta(days=1), timedelta(hours=25), "failed", "ended on"),
    ],
)
async def test_a_certificate_that_ends_is_told_in_time(
    gateway: Double, valid_for: timedelta, later: timedelta, level: str, text: str
) -> None:
    gateway.authority.issue_client("alice", at=datetime.now(UTC), valid_for=valid_for).write(gateway.folder, "alice")
    first = (await found(credentials_of(gateway), later))[0]
    assert (first.subject, first.level) == ("certificate", level)
    assert text in first.text
    assert ("`portguard cert renew`" in first.advice) is (level == "warning")  # that needs one that is still valid


async def test_authorities_and_the_gateways_certificate_are_looked_at_likewise(gateway: Double) -> None:
    findings = await found(credentials_of(gateway), timedelta(days=360))
    assert ("warning", "gateway") in [(each.level, each.subject) for each in findings]
    findings = await found(credentials_of(gateway), timedelta(days=3651))
    ended = [each.subject for each in findings if each.level == "failed"]
    assert ended == ["certificate", "authority", "gateway"]


async def test_a_clock_that_is_behind_is_thought_of(gateway: Double) -> None:
    first = (await found(credentials_of(gateway), -timedelta(days=1)))[0]
    assert (first.level, first.advice) == ("failed", "check this machine's clock")


async def test_who_may_go_nowhere_is_told_so_and_what_was_refused_last(gateway: Double) -> None:
    past = {"reason": "no_role", "service": "orders-db", "time": "2026-11-24T08:12:44Z"}
    says(gateway, whoami=WHOAMI | {"refusals": [past, past | {"reason": "locked"}]}, services=[])
    assert troubles(await found(credentials_of(gateway))) == [
        ("warning", "refusals", "the last was no_role of orders-db at 2026-11-24T08:12:44Z"),
        ("failed", "services", "no role lets you in anywhere now"),
    ]


async def test_a_service_that_would_refuse_now_is_warned_of(gateway: Double) -> None:
    refusal = {"reason": "draining", "message": "it takes no new sessions", "retry_after_s": None}
    says(gateway, services=[SERVICE, SERVICE | {"name": "web", "refusal": refusal}])
    text = "a session would be refused now, with draining: it takes no new sessions"
    assert troubles(await found(credentials_of(gateway))) == [("warning", "web", text)]


async def test_a_local_port_that_is_taken_is_warned_of(gateway: Double) -> None:
    says(gateway, services=[SERVICE | {"local_port": gateway.port}])
    [(level, subject, text)] = troubles(await found(credentials_of(gateway)))
    assert (level, subject) == ("warning", "orders-db")
    assert text == f"port {gateway.port} of 127.0.0.1 cannot be had: Address already in use"


async def test_the_port_that_the_profile_wants_counts(gateway: Double) -> None:
    assert troubles(await found(credentials_of(gateway))) == []
    wanted = credentials_of(gateway, f"[services.orders-db]\nlocal_port = {gateway.port}\n")
    [(_, _, text)] = troubles(await found(wanted))
    assert text.startswith(f"port {gateway.port} of 127.0.0.1 cannot be had")


async def test_a_gateway_whose_certificate_has_a_part_that_cannot_be_read_is_no_traceback(gateway: Double) -> None:
    """TLS takes it: a policy is nothing that it looks at."""
    issued = gateway.authority.issue_gateway([NAME, f"*.{NAME}"], at=datetime.now(UTC))
    good = x509.load_der_x509_certificate(issued.record.der)
    builder = x509.CertificateBuilder(
        good.issuer,
        good.subject,
        good.public_key(),
        good.serial_number,
        good.not_valid_before_utc,
        good.not_valid_after_utc,
        [
            *good.extensions,
            x509.Extension(
                x509.OID_CERTIFICATE_POLICIES,
                False,
                x509.UnrecognizedExtension(x509.OID_CERTIFICATE_POLICIES, b"\x30\x03\x02\x01"),
            ),
        ],
    )
    bad = builder.sign(gateway.authority.signer().key, hashes.SHA256())
    gateway.contexts = ServerContexts(
        certificate_pem=bad.public_bytes(Encoding.PEM),
        key_pem=issued.key_pem,
        anchors_pem=gateway.authority.certificate_pem.decode(),
        alpn_of=lambda _: (),
    )
    findings = await found(credentials_of(gateway))
    assert ("warning", "gateway", "its certificate has a part that cannot be read") in troubles(findings)
    assert findings[-1].subject == "services"


@pytest.mark.parametrize(
    ("whoami", "services"),
    [({"identity": 1, "refusals": "x"}, "x"), ({"refusals": [1]}, [1, {"name": None, "local_port": "x"}])],
)
async def test_an_answer_of_another_kind_is_no_traceback(gateway: Double, whoami: Any, services: Any) -> None:
    says(gateway, whoami=whoami, services=services)
    assert (await found(credentials_of(gateway)))[-1].subject == "services"
