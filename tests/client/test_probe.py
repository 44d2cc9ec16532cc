import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from portguard.client import probe
from portguard.client.forwarding import Broken, Forwarding
from portguard.client.gateway import Gateway
from portguard.reasons import Reason
from tests.gateway_double import Double, echo


@pytest_asyncio.fixture
async def forwarding(client: Gateway) -> AsyncIterator[Forwarding]:
    forwarding = Forwarding(client, print)
    yield forwarding
    await forwarding.close(0)


@pytest.fixture
def converse(gateway: Double, client: Gateway, forwarding: Forwarding, serve: Callable) -> Callable:
    async def converse(handler: Callable, question: bytes | None = None) -> probe.Exchange:
        gateway.services["it"] = await serve(handler)
        return await probe.converse(forwarding, await client.connect("it"), question)

    return converse


async def test_a_question_is_answered(converse: Callable) -> None:
    async def postgresql(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(8) == bytes.fromhex("0000000804d2162f")
        writer.write(b"N")
        await reader.read()
        writer.close()

    exchange = await converse(postgresql, probe.POSTGRESQL)
    assert exchange == probe.Exchange(8, b"N")
    assert not exchange.is_http


async def test_who_speaks_first_is_listened_to(converse: Callable) -> None:
    said: list[bytes] = []

    async def ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9\r\n")
        said.append(await reader.read())
        writer.close()

    assert await converse(ssh) == probe.Exchange(0, b"SSH-2.0-OpenSSH_9\r\n")
    assert said == [b""], "expected nothing to be said to a service that has greeted"


async def test_who_is_silent_is_asked_as_a_web_server(converse: Callable) -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"GET / HTTP/1.0\r\n"
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello")
        writer.close()

    exchange = await converse(web)
    assert exchange == probe.Exchange(len(probe.HTTP), b"HTTP/1.0 200 OK\r\n\r\nhello")
    assert exchange.is_http


async def test_of_a_long_answer_the_beginning_is_enough(converse: Callable) -> None:
    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        except ConnectionError:
            writer.close()

    exchange = await converse(endless)
    assert len(exchange.received) >= 65536


async def test_a_service_that_never_answers_is_left(converse: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_ANSWER_S", 0.1)
    monkeypatch.setattr(probe, "_END_S", 0.1)
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await ended.wait()  # it does not finish either
        writer.close()

    assert (await converse(silent, b"?")).received == b""
    ended.set()


async def test_a_session_that_the_gateway_cuts_is_told(gateway: Double, converse: Callable) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        gateway.relays[0].close(Reason.KILLED)
        writer.close()

    with pytest.raises(Broken, match="the gateway ended the session"):
        await converse(cut, b"hello")


async def test_a_session_is_opened_by_name_too(gateway: Double, client: Gateway) -> None:
    """The double has no name of a service in its certificate, and the client looks for that."""
    with pytest.raises(Exception, match=r"expected a certificate for it\.gateway\.test, got one for another name"):
        await client.connect_by_name("it")
    assert gateway.requests == []


async def test_what_is_asked_of_an_echo_comes_back(converse: Callable) -> None:
    assert (await converse(echo, b"hello")).received == b"hello"
