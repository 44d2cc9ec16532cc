"""Shared by the tests of the client: a gateway's stand-in, and services behind it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from portguard.client.credentials import Credentials, read_credentials
from portguard.client.gateway import Gateway
from portguard.client.profile import read_profile
from tests.gateway_double import Double, double


def nobody(path: Path) -> str:
    raise AssertionError(f"asked for the passphrase of {path}")


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Double]:
    async with double(tmp_path) as running:
        yield running


@pytest.fixture
def credentials(gateway: Double, tmp_path: Path) -> Credentials:
    return read_credentials(read_profile(gateway.write_profile(tmp_path / "alice.toml")), nobody)


@pytest.fixture
def client(credentials: Credentials) -> Gateway:
    return Gateway(credentials)


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Callable]:
    """`await serve(handler)` runs a service on 127.0.0.1 and answers its port."""
    servers: list[asyncio.Server] = []

    async def start(handler: Handler) -> int:
        servers.append(await asyncio.start_server(handler, "127.0.0.1", 0))
        port: int = servers[-1].sockets[0].getsockname()[1]
        return port

    yield start
    for server in servers:
        server.close()
