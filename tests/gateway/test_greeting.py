"""What a service hears first, and what becomes of one that cannot be spoken to."""

import asyncio
import ssl

import pytest

from portguard.gateway.connecting import FailedAttempt
from portguard.gateway.ends import PlainEnd, TlsEnd
from portguard.gateway.greeting import greet
from portguard.policy.model import Upstream
from portguard.reasons import Reason
from portguard.tls.context import new_context
from portguard.tls.contexts import load_chain
from portguard.tls.upstream import upstream_context
from tests.certificates import Authority
from tests.patience import PATIENCE_S
from tests.peers import NAME, connected_sockets, pki

HEADER = b"PROXY UNKNOWN\r\n"
UPSTREAM = Upstream(NAME, 5432)


@pytest.fixture
def sockets():
    near, far = connected_sockets()
    with near, far:
        yield near, far


@pytest.fixture
def dialed(sockets):
    return sockets[0], UPSTREAM


def context(authority=None):
    return upstream_context((authority or pki().authority).pem.decode(), None, None)


def serve_tls(far, heard):
    """A service that hears so many bytes in the clear, and then speaks TLS."""

    def run():
        far.settimeout(PATIENCE_S)
        assert far.recv(heard) == HEADER[:heard]
        server = new_context(ssl.PROTOCOL_TLS_SERVER)
        load_chain(server, pki().server.pem, pki().server.key_pem)
        with server.wrap_socket(far, server_side=True) as tls:
            tls.sendall(b"bytes")
            return tls.recv(1)

    return asyncio.ensure_future(asyncio.to_thread(run))


async def failure(step):
    with pytest.raises(FailedAttempt) as caught:
        async with asyncio.timeout(PATIENCE_S):
            await step
    return caught.value.reason, caught.value.found


async def test_in_the_clear_and_without_a_header_nothing_is_said(dialed, sockets):
    end = await greet(*dialed, b"", None, None)
    assert type(end) is PlainEnd
    assert end.sock is dialed[0]
    with pytest.raises(BlockingIOError):
        sockets[1].recv(1)


async def test_the_header_comes_first(dialed, sockets):
    assert type(await greet(*dialed, HEADER, None, None)) is PlainEnd
    assert sockets[1].recv(100) == HEADER


@pytest.mark.parametrize(("host", "server_name"), [(NAME, None), ("db.internal", NAME)])
async def test_tls_comes_after_the_header_with_a_service_that_has_the_name(sockets, host, server_name):
    dialed = sockets[0], Upstream(host, 5432)
    serving = serve_tls(sockets[1], len(HEADER))
    async with asyncio.timeout(PATIENCE_S):
        end = await greet(*dialed, HEADER, context(), server_name)
        assert type(end) is TlsEnd
        with end.sock:
            end.finish()
            assert await serving == b""


async def test_a_service_that_does_not_verify_is_not_spoken_to(dialed, sockets):
    serving = serve_tls(sockets[1], 0)
    stranger = context(Authority.root("Stranger"))
    reason, detail = await failure(greet(*dialed, b"", stranger, None))
    assert reason is Reason.UPSTREAM_TLS
    assert detail.startswith("unable to get local issuer certificate")
    with pytest.raises(ssl.SSLError):
        await serving


async def test_a_service_of_another_name_is_not_spoken_to(dialed, sockets):
    serving = serve_tls(sockets[1], 0)
    reason, detail = await failure(greet(*dialed, b"", context(), "db.internal"))
    assert reason is Reason.UPSTREAM_TLS
    assert detail.startswith("Hostname mismatch")
    with pytest.raises(ssl.SSLError):
        await serving


@pytest.mark.parametrize(("tls", "reason"), [(False, Reason.UPSTREAM_UNREACHABLE), (True, Reason.UPSTREAM_TLS)])
async def test_a_service_that_has_gone_is_told_by_how_it_was_to_be_spoken_to(dialed, sockets, tls, reason):
    dialed[0].shutdown(1)
    found, detail = await failure(greet(*dialed, HEADER, context() if tls else None, None))
    assert (found, detail) == (reason, "Broken pipe")


async def test_a_service_that_goes_away_in_the_handshake_is_said_so(dialed, sockets):
    sockets[1].close()
    reason, detail = await failure(greet(*dialed, b"", context(), None))
    assert reason is Reason.UPSTREAM_TLS
    assert detail
