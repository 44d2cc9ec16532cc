import asyncio
import hashlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from portguard.client.forwarding import Broken, Forwarding
from portguard.client.gateway import Gateway
from portguard.client.local_ports import LocalPort
from portguard.errors import PortguardError
from portguard.policy.addresses import ListenAddress
from portguard.reasons import Reason
from tests.gateway_double import SESSION, Double, answer, count, echo, refusal
from tests.patience import PATIENCE_S

FREE = ListenAddress("127.0.0.1", 0)


class Reports(asyncio.Queue[str]):
    """What the user was told."""


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest_asyncio.fixture
async def forwarding(client: Gateway, reports: Reports) -> AsyncIterator[Forwarding]:
    forwarding = Forwarding(client, reports.put_nowait)
    yield forwarding
    await forwarding.close(0)


async def connect(port: LocalPort) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(port.reachable_host, port.port)


async def test_a_local_port_leads_to_the_service(gateway: Double, forwarding: Forwarding, serve: Callable) -> None:
    gateway.services["echo"] = await serve(echo)
    reader, writer = await connect(forwarding.listen("echo", FREE, fallback=False))
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    assert await gateway.ended.get() is Reason.CLIENT_CLOSED


async def test_the_services_first_bytes_arrive(gateway: Double, forwarding: Forwarding, serve: Callable) -> None:
    gateway.services["ssh"] = await serve(echo)
    gateway.early["ssh"] = b"SSH-2.0-early\r\n"
    reader, writer = await connect(forwarding.listen("ssh", FREE, fallback=False))
    assert await reader.readline() == b"SSH-2.0-early\r\n"
    writer.close()


async def test_the_end_of_the_input_goes_through_and_the_answer_comes_back(
    gateway: Double, forwarding: Forwarding, serve: Callable
) -> None:
    gateway.services["count"] = await serve(count)
    reader, writer = await connect(forwarding.listen("count", FREE, fallback=False))
    writer.write(b"x" * 3_000_000)
    writer.write_eof()
    assert await reader.read() == b"3000000"
    writer.close()


async def test_the_end_of_the_output_goes_through_and_the_input_goes_on(
    gateway: Double, forwarding: Forwarding, serve: Callable
) -> None:
    received: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def greet_and_listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"nothing more from me")
        writer.write_eof()
        received.set_result(hashlib.sha256(await reader.read()).hexdigest())
        writer.close()

    gateway.services["log"] = await serve(greet_and_listen)
    reader, writer = await connect(forwarding.listen("log", FREE, fallback=False))
    assert await reader.read() == b"nothing more from me"
    data = os.urandom(3_000_000)
    writer.write(data)
    writer.write_eof()
    assert await received == hashlib.sha256(data).hexdigest()
    writer.close()


async def test_a_refusal_breaks_the_local_connection_and_is_reported(
    gateway: Double, forwarding: Forwarding, reports: Reports, serve: Callable
) -> None:
    gateway.answers["web"] = refusal(403, "outside_hours")
    port = forwarding.listen("web", FREE, fallback=False)
    reader, writer = await connect(port)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert (await reports.get()).startswith("web: outside_hours: the role does not allow it at this hour (session ")
    del gateway.answers["web"]
    gateway.services["web"] = await serve(echo)
    reader, writer = await connect(port)
    writer.write(b"again")
    assert await reader.readexactly(5) == b"again", "expected the port to go on after a refusal"
    writer.close()


async def test_a_session_that_the_gateway_cuts_is_no_clean_end(
    gateway: Double, forwarding: Forwarding, reports: Reports, serve: Callable
) -> None:
    gateway.services["echo"] = await serve(echo)
    reader, writer = await connect(forwarding.listen("echo", FREE, fallback=False))
    writer.write(b"hello")
    await reader.readexactly(5)
    gateway.relays[0].close(Reason.KILLED)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert await reports.get() == f"echo: the gateway ended the session before it was finished (session {SESSION})"


async def test_a_session_that_the_gateway_cuts_is_reported_with_the_gateways_reason(
    gateway: Double, forwarding: Forwarding, reports: Reports, serve: Callable
) -> None:
    refusals = [{"session": SESSION, "reason": "killed", "message": "an operator ended the session"}]
    gateway.answers["/v1/whoami"] = answer(200, json.dumps({"refusals": refusals}).encode())
    gateway.services["echo"] = await serve(echo)
    reader, writer = await connect(forwarding.listen("echo", FREE, fallback=False))
    writer.write(b"hello")
    await reader.readexactly(5)
    gateway.relays[0].close(Reason.KILLED)
    assert await reports.get() == (
        f"echo: the gateway ended the session: killed: an operator ended the session (session {SESSION})"
    )
    writer.close()


async def test_a_session_of_who_is_locked_out_is_reported_with_the_refusal_of_the_question(
    gateway: Double, forwarding: Forwarding, reports: Reports, serve: Callable
) -> None:
    gateway.answers["/v1/whoami"] = refusal(403, "locked", "the identity is locked")
    gateway.services["echo"] = await serve(echo)
    reader, writer = await connect(forwarding.listen("echo", FREE, fallback=False))
    writer.write(b"hello")
    await reader.readexactly(5)
    gateway.relays[0].close(Reason.LOCKED)
    assert await reports.get() == (
        f"echo: the gateway ended the session: locked: the identity is locked (session {SESSION})"
    )
    writer.close()


async def test_a_program_that_is_killed_is_told_from_one_that_finished(
    gateway: Double, forwarding: Forwarding, reports: Reports, serve: Callable
) -> None:
    gateway.services["echo"] = await serve(echo)
    port = forwarding.listen("echo", FREE, fallback=False)
    loop = asyncio.get_running_loop()
    with socket.socket() as program:
        program.setblocking(False)
        await loop.sock_connect(program, (port.host, port.port))
        await loop.sock_sendall(program, b"hello")
        await loop.sock_recv(program, 5)
        program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert await gateway.ended.get() is Reason.CLIENT_TRUNCATED
    assert reports.empty(), "expected no line about what local programs do"


async def test_carrying_tells_its_caller_how_it_ended(
    gateway: Double, client: Gateway, forwarding: Forwarding, serve: Callable
) -> None:
    gateway.services["echo"] = await serve(echo)
    ours, theirs = socket.socketpair()
    with ours:
        carrying = asyncio.ensure_future(forwarding.carry(await client.connect("echo"), theirs))
        ours.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(ours, b"hello")
        await asyncio.get_running_loop().sock_recv(ours, 5)
        gateway.relays[0].close(Reason.KILLED)
        with pytest.raises(Broken) as caught:
            await carrying
    assert caught.value.by_gateway
    assert caught.value.exit_code == 1


async def test_a_port_that_is_taken_gives_way_to_a_free_one(forwarding: Forwarding) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        port = forwarding.listen("web", ListenAddress("127.0.0.1", taken), fallback=True)
    assert port.taken == taken
    assert port.port not in (0, taken)


async def test_a_privileged_port_gives_way_to_a_free_one(
    forwarding: Forwarding, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_bind = socket.socket.bind

    class Unprivileged(socket.socket):
        def bind(self, address: tuple[str, int]) -> None:
            if 0 < address[1] < 1024:
                raise PermissionError(13, "Permission denied")
            real_bind(self, address)

    monkeypatch.setattr(socket, "socket", Unprivileged)
    assert forwarding.listen("web", ListenAddress("127.0.0.1", 80), fallback=True).taken == 80
    with pytest.raises(PortguardError, match=r"^web: expected to listen at 127\.0\.0\.1:80, got “Permission denied”$"):
        forwarding.listen("web", ListenAddress("127.0.0.1", 80), fallback=False)


async def test_a_port_that_was_asked_for_gives_way_to_none(forwarding: Forwarding) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = ListenAddress("127.0.0.1", other.getsockname()[1])
        with pytest.raises(
            PortguardError, match=rf"^web: expected to listen at {taken}, got “Address already in use”$"
        ):
            forwarding.listen("web", taken, fallback=False)


async def test_an_address_that_is_not_ours_is_an_error_in_any_case(forwarding: Forwarding) -> None:
    with pytest.raises(PortguardError, match="expected to listen at"):
        forwarding.listen("web", ListenAddress("192.0.2.1", 0), fallback=True)


async def test_a_local_port_may_be_an_ipv6_one(gateway: Double, forwarding: Forwarding, serve: Callable) -> None:
    gateway.services["echo"] = await serve(echo)
    reader, writer = await connect(forwarding.listen("echo", ListenAddress("::1", 0), fallback=False))
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()


async def test_sessions_go_on_when_listening_stops(gateway: Double, forwarding: Forwarding, serve: Callable) -> None:
    gateway.services["echo"] = await serve(echo)
    port = forwarding.listen("echo", FREE, fallback=False)
    reader, writer = await connect(port)
    writer.write(b"hello")
    await reader.readexactly(5)
    forwarding.stop_listening()
    await asyncio.gather(*forwarding._listeners, return_exceptions=True)
    with pytest.raises(ConnectionRefusedError):
        await connect(port)
    writer.write(b"again")
    assert await reader.readexactly(5) == b"again"
    writer.close()
    await forwarding.finish(PATIENCE_S)


async def test_finishing_waits_for_what_moves_and_not_for_what_is_silent(
    gateway: Double, forwarding: Forwarding, serve: Callable
) -> None:
    gateway.services["echo"] = await serve(echo)
    reader, writer = await connect(forwarding.listen("echo", FREE, fallback=False))
    writer.write(b"hello")
    await reader.readexactly(5)
    await forwarding.finish(0.05)
    assert not gateway.relays[0].ended
    finishing = asyncio.ensure_future(forwarding.finish(PATIENCE_S))
    done, _ = await asyncio.wait({finishing}, timeout=0.2)
    assert not done, "expected a session that was busy a moment ago to be waited for"
    writer.close()
    await finishing
    assert not forwarding._tasks


async def test_closing_ends_every_session(gateway: Double, forwarding: Forwarding, serve: Callable) -> None:
    gateway.services["echo"] = await serve(echo)
    port = forwarding.listen("echo", FREE, fallback=False)
    pairs = [await connect(port) for _ in range(3)]
    for reader, writer in pairs:
        writer.write(b"hello")
        await reader.readexactly(5)
    await forwarding.close(1)
    for reader, writer in pairs:
        assert await reader.read() == b""
        writer.close()
    assert [await gateway.ended.get() for _ in pairs] == [Reason.CLIENT_TRUNCATED] * 3
