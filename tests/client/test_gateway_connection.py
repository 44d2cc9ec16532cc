import asyncio
import json
import math
import socket
import struct
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.client.credentials import Credentials, read_credentials
from portguard.client.gateway import Description, Gateway
from portguard.client.profile import read_profile
from portguard.client.refusal import RefusedByGateway
from portguard.errors import Unreachable
from tests import certificates
from tests.gateway_double import NAME, SESSION, Double, answer, double, echo, refusal
from tests.ports import reserved_port


def nobody(path: Path) -> str:
    raise AssertionError(f"asked for the passphrase of {path}")


def read(path: Path) -> Gateway:
    return Gateway(read_credentials(read_profile(path), nobody))


def moved(profile: Path, old: str, new: str) -> Gateway:
    profile.write_text(profile.read_text().replace(old, new))
    return read(profile)


# What the gateway answers.


async def test_a_service_that_may_be_reached_is_described(gateway: Double, client: Gateway) -> None:
    gateway.local_ports["orders-db"] = 5432
    assert await client.describe("orders-db") == Description("orders-db", 5432)
    assert await client.describe("web") == Description("web", None)
    assert gateway.requests == ["GET /v1/services/orders-db", "GET /v1/services/web"]


@pytest.mark.parametrize("port", [0, 65536, True, "5432", None])
async def test_a_port_that_is_none_counts_as_none(gateway: Double, client: Gateway, port: object) -> None:
    gateway.answers["web"] = answer(200, json.dumps({"local_port": port}).encode())
    assert (await client.describe("web")).local_port is None


async def test_a_tunnel_opens_with_the_services_first_bytes(gateway: Double, client: Gateway, serve: Callable) -> None:
    gateway.services["ssh"] = await serve(echo)
    gateway.early["ssh"] = b"SSH-2.0-early"
    tunnel = await client.connect("ssh")
    assert tunnel.early == b"SSH-2.0-early"
    assert tunnel.end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert tunnel.end.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert tunnel.session == SESSION
    assert gateway.requests == ["CONNECT ssh"]
    tunnel.end.sock.close()


@pytest.mark.parametrize("asked", ["connect", "describe"])
async def test_a_refusal_carries_the_gateways_words(gateway: Double, client: Gateway, asked: str) -> None:
    gateway.answers["orders-db"] = refusal(429, "max_sessions", "10 of 10 sessions", {"Retry-After": "5"})
    with pytest.raises(RefusedByGateway) as caught:
        await getattr(client, asked)("orders-db")
    assert (caught.value.reason, caught.value.session, caught.value.retry_after_s) == ("max_sessions", SESSION, 5)
    assert caught.value.exit_code == 3
    assert str(caught.value) == (f"orders-db: max_sessions: 10 of 10 sessions (session {SESSION}, try again in 5 s)")


@pytest.mark.parametrize(
    ("wait_s", "told"),
    [
        (17_999.2, " (try again in 5 h)"),
        (0, " (try again in 1 s)"),
        (None, ""),
        (-1, ""),
        (True, ""),
        ("5", ""),
        (1e300, ""),
        (math.nan, ""),
    ],
)
async def test_a_refusal_that_a_description_foresees_is_one(
    gateway: Double, client: Gateway, wait_s: object, told: str
) -> None:
    gateway.foreseen["web"] = {"reason": "quota_exhausted", "message": "it is\nused up", "retry_after_s": wait_s}
    with pytest.raises(RefusedByGateway) as caught:
        await client.describe("web")
    assert str(caught.value) == f"web: quota_exhausted: it is used up{told}"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("refusal", [None, {}, {"reason": ""}, {"reason": 5}, "quota_exhausted", 5])
async def test_a_refusal_without_a_reason_is_none(gateway: Double, client: Gateway, refusal: object) -> None:
    gateway.answers["web"] = answer(200, json.dumps({"local_port": 80, "refusal": refusal}).encode())
    assert await client.describe("web") == Description("web", 80)


async def test_a_reason_of_a_newer_gateway_is_passed_on(gateway: Double, client: Gateway) -> None:
    gateway.answers["web"] = refusal(403, "moon_phase")
    with pytest.raises(RefusedByGateway, match=r"^web: moon_phase: the gateway refused it"):
        await client.connect("web")


async def test_a_reason_without_a_message_gets_our_sentence(gateway: Double, client: Gateway) -> None:
    gateway.answers["web"] = refusal(403, "no_role")
    with pytest.raises(RefusedByGateway, match=r"^web: no_role: no role has this identity as a member"):
        await client.connect("web")


async def test_a_message_stays_one_line(gateway: Double, client: Gateway) -> None:
    gateway.answers["web"] = refusal(403, "denied", "no\nportguard: all is well\x0b")
    with pytest.raises(RefusedByGateway) as caught:
        await client.connect("web")
    assert caught.value.message == "no portguard: all is well"


@pytest.mark.parametrize(
    ("retry_after_s", "told"),
    [
        ("119", "119 s"),
        ("120", "2 min"),
        ("121", "3 min"),
        ("7199", "120 min"),
        ("84600", "24 h"),
        ("172800", "2 days"),
        ("2678400", "31 days"),
        ("99999999", None),
    ],
)
async def test_a_long_wait_is_told_as_people_do(
    gateway: Double, client: Gateway, retry_after_s: str, told: str | None
) -> None:
    gateway.answers["web"] = refusal(429, "quota_exhausted", "", {"Retry-After": retry_after_s})
    with pytest.raises(RefusedByGateway) as caught:
        await client.connect("web")
    more = "" if told is None else f", try again in {told}"
    assert str(caught.value) == f"web: quota_exhausted: the quota is used up (session {SESSION}{more})"


async def test_a_retry_after_that_is_a_date_is_left_out(gateway: Double, client: Gateway) -> None:
    gateway.answers["web"] = refusal(429, "connect_rate", "", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})
    with pytest.raises(RefusedByGateway) as caught:
        await client.connect("web")
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize(
    "body", [b"<html>", b"", b"[1]", b'{"reason": 5}', b'{"reason": ""}', b"\xff", b"[" * 60000], ids=range(7)
)
async def test_an_answer_of_something_else_is_not_taken_for_a_refusal(
    gateway: Double, client: Gateway, body: bytes
) -> None:
    gateway.answers["web"] = answer(403, body)
    with pytest.raises(Unreachable, match=r"expected an answer of portguard, got HTTP status 403"):
        await client.connect("web")


async def test_of_an_endless_answer_the_beginning_is_read(gateway: Double, client: Gateway) -> None:
    gateway.answers["web"] = answer(403, b"x" * 4_000_000)
    with pytest.raises(Unreachable, match=r"HTTP status 403"):
        await client.connect("web")


@pytest.mark.parametrize(
    ("bytes_", "found"),
    [
        (b"", "a close instead"),
        (b"HTTP/1.1 200 O", "a close instead"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "illegal status line"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, ""),
        (b"HTTP/1.1 403 No\r\nContent-Length: 10\r\n\r\n{", ""),
    ],
    ids=["nothing", "half", "no HTTP", "huge", "short body"],
)
async def test_a_broken_answer_is_unreachable(gateway: Double, client: Gateway, bytes_: bytes, found: str) -> None:
    gateway.answers["web"] = bytes_
    with pytest.raises(Unreachable, match=f"^gateway 127.0.0.1:{gateway.port}: expected .*{found}"):
        await client.connect("web")


async def test_an_informational_answer_is_not_the_answer(gateway: Double, client: Gateway) -> None:
    gateway.answers["web"] = b"HTTP/1.1 103 Early Hints\r\n\r\n" + refusal(403, "denied")
    with pytest.raises(RefusedByGateway, match=r"denied"):
        await client.connect("web")


# Whether it is the gateway, and there at all.


async def test_nobody_at_the_port_is_unreachable(gateway: Double, tmp_path: Path) -> None:
    with reserved_port() as port:
        client = moved(gateway.write_profile(tmp_path / "p.toml"), str(gateway.port), str(port))
        with pytest.raises(Unreachable) as caught:
            await client.describe("web")
    assert str(caught.value) == (
        f"gateway 127.0.0.1:{port}: expected a connection, got “Connection refused” (tried 127.0.0.1)"
    )
    assert caught.value.exit_code == 4


async def test_a_name_that_does_not_resolve_is_unreachable(gateway: Double, tmp_path: Path) -> None:
    client = moved(gateway.write_profile(tmp_path / "p.toml"), "127.0.0.1:", "gateway.invalid:")
    with pytest.raises(Unreachable, match=r"^gateway gateway.invalid:\d+: expected a name that resolves, got “"):
        await client.describe("web")


async def test_a_gateway_under_another_name_is_refused(gateway: Double, tmp_path: Path) -> None:
    client = moved(gateway.write_profile(tmp_path / "p.toml"), f'"{NAME}"', '"other.test"')
    with pytest.raises(Unreachable, match=r"expected a certificate for other.test, got one for another name"):
        await client.connect("web")
    assert gateway.requests == []


async def test_a_gateway_at_another_address_is_refused(gateway: Double, tmp_path: Path) -> None:
    client = moved(gateway.write_profile(tmp_path / "p.toml"), f'"{NAME}"', '"127.0.0.1"')
    with pytest.raises(Unreachable, match=r"expected a certificate for 127.0.0.1, got one for another name"):
        await client.connect("web")


async def test_a_gateway_goes_by_its_address_when_its_certificate_has_it(tmp_path: Path) -> None:
    async with double(tmp_path, (NAME, "127.0.0.1")) as gateway:
        client = moved(gateway.write_profile(tmp_path / "p.toml"), f'server_name = "{NAME}"', "")
        assert await client.describe("web") == Description("web", None)


async def test_a_gateway_of_another_authority_is_refused(gateway: Double, tmp_path: Path) -> None:
    other = tmp_path / "other.crt"
    other.write_bytes(certificates.Authority.root().pem)
    client = moved(gateway.write_profile(tmp_path / "p.toml"), f"{tmp_path}/ca/ca.crt", str(other))
    with pytest.raises(Unreachable, match=r"of the authority in .*other.crt, got one of another authority"):
        await client.connect("web")
    assert gateway.requests == []


@pytest.mark.parametrize(
    ("days", "usage", "message"),
    [
        ((-2, -1), certificates.SERVER_AUTH, "valid now, by this machine's clock, got one that has expired"),
        ((1, 2), certificates.SERVER_AUTH, "valid now, by this machine's clock, got one that is not valid yet"),
        ((-1, 1), certificates.CLIENT_AUTH, "a certificate for servers, got one for another purpose"),
    ],
)
async def test_a_gateway_with_a_bad_certificate_is_refused(
    gateway: Double, tmp_path: Path, days: tuple[int, int], usage: object, message: str
) -> None:
    root = certificates.Authority.root()
    now = certificates.now()
    bad = root.issue(
        NAME,
        sans=[certificates.dns(NAME)],
        usages=[usage],
        not_before=now + timedelta(days=days[0]),
        not_after=now + timedelta(days=days[1]),
    )
    gateway.contexts = type(gateway.contexts)(
        certificate_pem=bad.pem, key_pem=bad.key_pem, anchors_pem=root.pem.decode(), alpn_of=lambda _: ()
    )
    (tmp_path / "root.crt").write_bytes(root.pem)
    client = moved(gateway.write_profile(tmp_path / "p.toml"), f"{tmp_path}/ca/ca.crt", f"{tmp_path}/root.crt")
    with pytest.raises(Unreachable, match=message):
        await client.connect("web")


async def test_a_plain_server_is_told_from_a_gateway(gateway: Double, tmp_path: Path, serve: Callable) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100_000)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    port = await serve(plain)
    client = moved(gateway.write_profile(tmp_path / "p.toml"), str(gateway.port), str(port))
    with pytest.raises(Unreachable, match=r"expected TLS 1.3, got wrong version number"):
        await client.connect("web")


@pytest.mark.parametrize("how", ["close", "reset", "close in the middle"])
async def test_a_server_that_closes_in_the_handshake_is_unreachable(
    gateway: Double, tmp_path: Path, serve: Callable, how: str
) -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if how == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == "close in the middle":
            await reader.read(100_000)
        writer.close()

    port = await serve(closing)
    client = moved(gateway.write_profile(tmp_path / "p.toml"), str(gateway.port), str(port))
    with pytest.raises(Unreachable) as caught:
        await client.connect("web")
    assert str(caught.value) == (
        f"gateway 127.0.0.1:{port}: it ended the connection during the TLS handshake; usual causes are too many "
        "connections at once from this address, and no valid certificate"
    )


# Whether the gateway takes the client.


def presenting(gateway: Double, tmp_path: Path, holder: certificates.Holder) -> Gateway:
    gateway.write_profile(tmp_path / "p.toml", stem="bad")
    (tmp_path / "bad.crt").write_bytes(holder.pem)
    (tmp_path / "bad.key").write_bytes(holder.key_pem)
    return read(tmp_path / "p.toml")


@pytest.mark.parametrize(
    ("days", "usages", "trusted", "reason", "alert"),
    [
        ((-2, -1), [certificates.CLIENT_AUTH], True, "certificate_expired", "certificate expired"),
        ((1, 2), [certificates.CLIENT_AUTH], True, "certificate_not_yet_valid", "bad certificate"),
        ((-1, 1), [certificates.SERVER_AUTH], True, "certificate_usage", "unsupported certificate"),
        ((-1, 1), [certificates.CLIENT_AUTH], False, "certificate_untrusted", "unknown ca"),
    ],
)
async def test_a_certificate_that_the_gateway_does_not_take_is_explained(
    gateway: Double,
    tmp_path: Path,
    days: tuple[int, int],
    usages: list[object],
    trusted: bool,
    reason: str,
    alert: str,
) -> None:
    root = certificates.Authority.root()
    issued = gateway.authority.issue_gateway([NAME], at=certificates.now())
    gateway.contexts = type(gateway.contexts)(
        certificate_pem=issued.certificate_pem,
        key_pem=issued.key_pem,
        anchors_pem=(root if trusted else certificates.Authority.root()).pem.decode(),
        alpn_of=lambda _: (),
    )
    now = certificates.now()
    first, last = now + timedelta(days=days[0]), now + timedelta(days=days[1])
    client = presenting(gateway, tmp_path, root.issue(usages=usages, not_before=first, not_after=last))
    with pytest.raises(RefusedByGateway) as caught:
        await client.connect("web")
    assert caught.value.reason == reason
    assert str(caught.value) == (
        f"{tmp_path}/bad.crt: {reason}: the gateway did not accept the certificate (alert: {alert}); it is valid from "
        f"{first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC"
    )


async def test_an_alert_is_read_also_when_the_request_could_not_be_sent(
    gateway: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("portguard.client.gateway.send", broken)
    client = presenting(gateway, tmp_path, certificates.Authority.root().issue())
    with pytest.raises(RefusedByGateway, match="unknown ca"):
        await client.connect("web")


async def test_a_gateway_that_hangs_up_after_the_handshake_gets_a_hint(
    gateway: Double, client: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang_up(sock: socket.socket, _: object) -> str:
        sock.close()
        raise ConnectionAbortedError

    monkeypatch.setattr("tests.gateway_double._head", hang_up)
    with pytest.raises(Unreachable, match=r"it closes when it does not accept the certificate"):
        await client.connect("web")


def test_the_anchor_is_the_one_of_the_profile(credentials: Credentials, gateway: Double) -> None:
    [anchor] = credentials.context().get_ca_certs(binary_form=True)
    assert anchor == gateway.authority.anchor.public_bytes(Encoding.DER)
