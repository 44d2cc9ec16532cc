"""Shared by all tests: where the real programs are, and that no test fails for being slow."""

import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
import pytest_asyncio
from hypothesis import settings

from portguard.gateway.ends import End
from tests.peers import Peer, connected
from tests.relayed import Connect

# By default an example that takes 200 ms fails, as any does on a machine that is busy with something else.
settings.register_profile("portguard", deadline=None)
settings.load_profile("portguard")

RealProgram = Callable[[str], str]


def search_path(environment: Mapping[str, str]) -> str:
    """PATH, and after it the folders where Debian keeps servers that are not in an ordinary user's PATH.

    Of several PostgreSQL versions the newest comes first.
    """
    servers = sorted(
        Path("/usr/lib/postgresql").glob("[0-9]*/bin"), key=lambda folder: float(folder.parent.name), reverse=True
    )
    return os.pathsep.join([environment.get("PATH", os.defpath), "/usr/sbin", "/sbin", *map(str, servers)])


def find_program(name: str, environment: Mapping[str, str]) -> str:
    """Return the path of the program `name`, or end the test.

    A missing program skips the test, with the reason. Where PORTGUARD_REQUIRE_REAL is 1, as in CI, it fails it:
    otherwise a machine that lacks everything would be as green as one that ran everything.
    """
    found = shutil.which(name, path=search_path(environment))
    return found or _missing(
        f"{name}: expected an installed program, found none in PATH or the server folders", environment
    )


def find_library(pattern: str, environment: Mapping[str, str]) -> str:
    """Return the path of a library that `pattern` finds below /usr/lib, or end the test as `find_program` does."""
    found = next(iter(sorted(Path("/usr/lib").glob(pattern))), None)
    return str(found) if found else _missing(f"{pattern}: expected it below /usr/lib, found nothing", environment)


def _missing(message: str, environment: Mapping[str, str]) -> NoReturn:
    if environment.get("PORTGUARD_REQUIRE_REAL") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session")
def real_program() -> RealProgram:
    """`real_program("nginx")` is the path of nginx; it skips the test when there is none (see `find_program`)."""
    return lambda name: find_program(name, os.environ)


@pytest.fixture(scope="session")
def real_library() -> RealProgram:
    """`real_library("*/x/libx.so")` is the path of a library; it skips the test when there is none."""
    return lambda pattern: find_library(pattern, os.environ)


@pytest_asyncio.fixture
async def connect() -> AsyncIterator[Connect]:
    """`connect("tls", "client")` as in tests.peers.connected, with both sockets closed afterwards."""
    sockets: list[socket.socket] = []

    def connect(*args: Any, **options: Any) -> tuple[End, Peer]:
        end, peer = connected(*args, **options)
        sockets.extend((end.sock, peer.sock))
        return end, peer

    yield connect
    for sock in sockets:
        sock.close()
