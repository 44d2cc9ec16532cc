"""Who takes part in the bench."""

from collections.abc import Mapping

import pytest

from bench import __main__ as command
from bench.peers import Peer, Setting, Unavailable


class _Installed(Peer):
    name = "installed"

    def version(self) -> str:
        return "installed 1"

    def configure(self, setting: Setting) -> list[str]:
        raise NotImplementedError


class _Missing(_Installed):
    name = "missing"

    def version(self) -> str:
        raise Unavailable("missing: not installed")


@pytest.fixture(autouse=True)
def _two_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PEERS", (_Installed(), _Missing()))


def _names(found: Mapping[Peer, str]) -> list[str]:
    return [peer.name for peer in found]


def test_without_a_choice_a_missing_peer_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    troubles: list[str] = []
    assert _names(command._installed(None, troubles)) == ["installed"]
    assert troubles == []
    assert "missing: not installed" in capsys.readouterr().err


def test_a_missing_peer_that_was_chosen_is_trouble() -> None:
    troubles: list[str] = []
    assert _names(command._installed(["missing"], troubles)) == []
    assert troubles == ["missing: not installed"]
