import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from portguard.gateway.background import BackgroundGateway, GatewayEnded
from portguard.pki.starter import StarterFolder, StarterService
from portguard.policy.addresses import HostPort


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    with StarterFolder.claim(tmp_path / "gateway") as folder:
        folder.issue(at=datetime.now(UTC))
        folder.write((StarterService("web", HostPort("127.0.0.1", 1), 80),), port=1)
        text = folder.configuration.read_text().replace("127.0.0.1:1", "127.0.0.1:0")
        folder.configuration.write_text(text)
        return folder.configuration


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Callable]:
    started: list[BackgroundGateway] = []

    async def start(configuration: Path) -> BackgroundGateway:
        started.append(await BackgroundGateway.start(configuration))
        return started[-1]

    yield start
    for gateway in started:
        await gateway.stop()


async def test_a_gateway_serves_until_it_is_stopped(configuration: Path, start: Callable) -> None:
    gateway = await start(configuration)
    await gateway.ready()
    lines: list[str] = []
    gateway.listen(lines.append)
    assert await gateway.stop() == 0
    assert [line.split()[2] for line in lines] == ["gateway.drain", "gateway.stop"]


async def test_a_gateway_that_cannot_start_is_told_with_its_words(configuration: Path, start: Callable) -> None:
    configuration.with_name("policy.toml").write_text("[services.web]\n")
    gateway = await start(configuration)
    with pytest.raises(GatewayEnded, match=r"^gateway: expected it to serve, got exit code 2\n/.*upstream") as caught:
        await gateway.ready()
    assert caught.value.exit_code == 2


async def test_a_gateway_that_ends_by_itself_is_told(configuration: Path, start: Callable) -> None:
    gateway = await start(configuration)
    await gateway.ready()
    ended = asyncio.ensure_future(gateway.ended())
    os.kill(gateway._process.pid, signal.SIGTERM)
    with pytest.raises(GatewayEnded, match="got exit code 0") as caught:
        await ended
    assert caught.value.exit_code == 1, "expected no success: nobody asked it to end"


async def test_who_stops_waiting_for_its_end_still_gets_its_log(configuration: Path, start: Callable) -> None:
    gateway = await start(configuration)
    await gateway.ready()
    waiting = asyncio.ensure_future(gateway.ended())
    await asyncio.sleep(0)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    lines: list[str] = []
    gateway.listen(lines.append)
    await gateway.stop()
    assert any("gateway.stop" in line for line in lines)


async def test_ctrl_c_at_its_parent_is_not_for_the_gateway(configuration: Path, start: Callable) -> None:
    gateway = await start(configuration)
    assert os.getpgid(gateway._process.pid) != os.getpgrp()


async def test_stopping_twice_is_no_error(configuration: Path, start: Callable) -> None:
    gateway = await start(configuration)
    await gateway.ready()
    assert await gateway.stop() == 0
    assert await gateway.stop() == 0
