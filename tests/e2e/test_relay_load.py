"""The relay under load: half-closed with data under way, against readers that stall, and with thousands of sessions."""

import asyncio
import contextlib
import json
import resource
import select
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from bench.load import Crowd, Doors
from bench.measure import Family
from tests.half_closing import HalfClosing, Plain, digest_of, digest_of_pattern, send_pattern
from tests.patience import PATIENCE_S
from tests.unharmed import echoes, unharmed, warm_up

_REPOSITORY = Path(__file__).parents[2]
_KIB, _MIB = 1024, 1024 * 1024
_BUSY = 256 * _KIB  # each way, of each of thousands of sessions: as much as the relay ever reads at once


@pytest.fixture(scope="module")
def upstreams():
    """The bench's services, in a process of their own."""
    command = [sys.executable, "-m", "bench.upstream"]
    with subprocess.Popen(command, cwd=_REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield {service: f"127.0.0.1:{port}" for service, port in json.loads(process.stdout.readline()).items()}
        process.stdin.close()


@pytest.fixture
def listening():
    """A service that the test itself plays."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield sock


@pytest.fixture
def gateway(start_gateway, upstreams, listening):
    services = {"echo": upstreams["echo"], "here": f"127.0.0.1:{listening.getsockname()[1]}"}
    gateway = start_gateway(services, configuration="[capacity]\nmax_sessions = 2100")
    warm_up(gateway)
    with unharmed(gateway, most_lines=10_000):  # two a session, which is as it should be
        yield gateway


def figures(text):
    """Tell whoever runs pytest with -s, or reads the output of a test that failed."""
    print(text)  # noqa: T201


async def joined(gateway, listening, way):
    """A client and the service's side of its session."""
    connect = HalfClosing.connect if way == "sni" else HalfClosing.tunnel
    client = await connect(gateway, "here")
    sock, _ = await asyncio.get_running_loop().sock_accept(listening)
    return contextlib.closing(client), contextlib.closing(Plain(sock))


_WAYS = pytest.mark.parametrize("way", ["sni", "connect"])


@_WAYS
async def test_what_the_service_sends_comes_whole_after_the_client_has_finished(gateway, listening, way):
    client, service = await joined(gateway, listening, way)
    with client as client, service as service:
        async with asyncio.timeout(PATIENCE_S):
            await client.send(b"question")
            await client.finish()
            assert [data async for data in service] == [b"question"]
            receiving = asyncio.create_task(digest_of(client))
            await send_pattern(service, 64 * _MIB)
            assert await receiving == digest_of_pattern(64 * _MIB)
    gateway.wait_for_log(f"session.close .*received=8 sent={64 * _MIB} .*reason=client_closed")


@_WAYS
async def test_what_the_client_sends_comes_whole_after_the_service_has_finished(gateway, listening, way):
    client, service = await joined(gateway, listening, way)
    with client as client, service as service:
        async with asyncio.timeout(PATIENCE_S):
            await service.send(b"ready")
            await service.finish()
            assert [data async for data in client] == [b"ready"]
            receiving = asyncio.create_task(digest_of(service))
            await send_pattern(client, 64 * _MIB)
            assert await receiving == digest_of_pattern(64 * _MIB)
    gateway.wait_for_log(f"session.close .*received={64 * _MIB} sent=5 .*reason=upstream_closed")


@_WAYS
async def test_both_directions_at_once_end_each_on_its_own(gateway, listening, way):
    client, service = await joined(gateway, listening, way)
    with client as client, service as service:
        async with asyncio.timeout(PATIENCE_S):
            up, down = asyncio.create_task(digest_of(service)), asyncio.create_task(digest_of(client))
            sending = asyncio.create_task(send_pattern(service, 64 * _MIB))
            await send_pattern(client, 16 * _MIB)  # ends while the other way is in the middle
            await sending
            assert await up == digest_of_pattern(16 * _MIB)
            assert await down == digest_of_pattern(64 * _MIB)
    gateway.wait_for_log(f"session.close .*received={16 * _MIB} sent={64 * _MIB} ")


async def test_a_client_that_ends_without_close_notify_has_its_service_see_a_reset(gateway, listening):
    client, service = await joined(gateway, listening, "sni")
    with client as client, service as service:
        async with asyncio.timeout(PATIENCE_S):
            await client.send(b"half an upload")
            client.sock.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectionResetError):
                [data async for data in service]
    gateway.wait_for_log("session.close .*received=14 sent=0 .*reason=client_truncated")


# Readers that stall.


def fill(socks):
    """Send on all until no socket has taken a byte for a while; how much went away."""
    piece = bytes(256 * _KIB)
    for sock in socks:
        sock.setblocking(False)
    sent = 0
    while ready := select.select([], socks, [], 1.0)[1]:
        for sock in ready:
            with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                sent += sock.send(piece)
    return sent


def drain(socks, amount):
    """Read that much from all of them together."""
    while amount > 0:
        ready, _, _ = select.select(socks, [], [], PATIENCE_S)
        assert ready, f"expected {amount} bytes more, got nothing"
        for sock in ready:
            with contextlib.suppress(ssl.SSLWantReadError):
                while amount > 0:
                    data = sock.recv(256 * _KIB)
                    assert data, f"expected {amount} bytes more, got the end"
                    amount -= len(data)
                    if isinstance(sock, ssl.SSLSocket) and sock.pending():
                        continue
                    break
    assert amount == 0


@pytest.mark.parametrize("stalled", ["client", "service"])
def test_memory_stays_flat_however_slow_one_side_is(gateway, listening, stalled):
    listening.setblocking(True)
    listening.settimeout(PATIENCE_S)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(gateway.connect("here")) for _ in range(8)]
        services = [stack.enter_context(listening.accept()[0]) for _ in clients]
        writers, readers = (services, clients) if stalled == "client" else (clients, services)
        family = Family(gateway.program.process.pid)
        before = family.memory().pss
        sent = fill(writers)
        after = family.memory().pss
        figures(
            f"{sent / _MIB:.1f} MiB went away towards stalled {stalled}s, memory {(after - before) / _KIB:+.0f} KiB"
        )
        assert sent > 16 * _MIB  # or nothing was tried
        assert after - before < 8 * _MIB
        echoes(gateway)
        for sock in readers:
            sock.setblocking(False)
        drain(readers, sent)


# Many sessions.


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 5000:
        pytest.skip(f"open files: expected a hard limit of at least 5000, got {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_two_thousand_sessions_are_open_at_once_and_none_is_lost(gateway, many_descriptors):
    count = 2000
    family = Family(gateway.program.process.pid)
    doors = Doors({"echo": ("127.0.0.1", gateway.port)}, gateway.context("alice"), gateway.name)
    with Crowd(doors) as crowd:
        crowd.grow(100)
        before = family.memory().pss
        crowd.grow(count - 100)
        fresh = (family.memory().pss - before) / (count - 100) / _KIB
        crowd.exchange(_BUSY)
        busy = (family.memory().pss - before) / count / _KIB
        crowd.exchange(100)
        echoes(gateway)
        figures(f"{count} sessions: {fresh:.1f} KiB each when fresh, {busy:.1f} KiB after {_BUSY // _KIB} KiB each way")
        # The goal is 30 KiB, which `make bench` holds; here certificates are larger, and others use the machine.
        assert fresh <= 36
        assert busy <= 200
    gateway.wait_for_log(
        rf"session.close .*received={_BUSY + 101} sent={_BUSY + 101} .*reason=client_closed", count=count
    )
