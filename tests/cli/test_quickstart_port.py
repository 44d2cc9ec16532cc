"""At which port the quickstart lets its gateway listen, beside whatever else this machine runs."""

import socket
from collections.abc import Iterator

import pytest

from portguard.cli import quickstart
from portguard.cli.quickstart import _free_port
from tests.ports import reserved_port


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The usual port of the quickstart: one that is free for sure."""
    with reserved_port() as port:
        monkeypatch.setattr(quickstart, "_PORT", port)
        yield port


def listening_at(port: int) -> socket.socket:
    """Listen as the gateway does."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen()
    return sock


def test_the_usual_port_is_taken_where_it_is_free(usual: int) -> None:
    with _free_port() as port:
        assert port == usual
    with _free_port() as again, listening_at(again):
        assert again == usual


def test_a_port_that_somebody_has_becomes_a_free_one(usual: int) -> None:
    with listening_at(usual), _free_port() as port:
        assert port != usual
        listening_at(port).close()


def test_of_two_quickstarts_at_once_each_has_a_port_of_its_own(usual: int) -> None:
    # The gateway of the first does not listen yet.
    with _free_port() as first, _free_port() as second, _free_port() as third:
        assert first == usual
        assert len({first, second, third}) == 3
        for port in (first, second, third):
            listening_at(port).close()
