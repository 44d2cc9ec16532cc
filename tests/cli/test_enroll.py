"""`portguard enroll` through the program's own entry point, where no gateway is needed to see what it does."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from portguard.pki.errors import PkiError
from tests.cli.conftest import Portguard, failed
from tests.ports import reserved_port


def _invited(portguard: Portguard, port: int, *more: str) -> None:
    assert portguard("invite", "alice", "--gateway", f"127.0.0.1:{port}", *more).code == 0


def test_who_does_not_reach_the_gateway_keeps_the_key_for_the_next_attempt(made: Portguard, tmp_path: Path) -> None:
    with reserved_port() as port:
        _invited(made, port)
        for _ in range(2):
            done = made("enroll", "alice.invitation", "--out", "new/home")
            failed(done, 4, "expected a connection, got “Connection refused”")
            assert "portguard: the key is in new/home/alice.key: run this again to go on with it\n" in done.err
    assert [path.name for path in (tmp_path / "new" / "home").iterdir()] == ["alice.key"]
    assert (tmp_path / "new" / "home").stat().st_mode & 0o777 == 0o700


def test_who_cannot_write_what_came_is_told_where_the_key_is(
    made: Portguard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the natural thing is another folder, where the invitation would count as stolen."""

    async def full(*_: object, **__: object) -> None:
        raise PkiError("new/ca.crt", "a place that can be written", "no space")

    _invited(made, 1)
    monkeypatch.setattr("portguard.cli.enroll.enrolment.enroll", full)
    done = made("enroll", "alice.invitation", "--out", "new")
    failed(done, 1, "new/ca.crt: expected a place that can be written")
    assert "portguard: the key is in new/alice.key: run this again to go on with it\n" in done.err
    assert (tmp_path / "new" / "alice.key").exists()


def test_an_invitation_that_has_ended_is_not_tried(
    made: Portguard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _invited(made, 1)
    later = datetime.now(UTC) + timedelta(days=4)
    monkeypatch.setattr("portguard.cli.enroll.datetime", SimpleNamespace(now=lambda _: later))
    failed(made("enroll", "alice.invitation", "--out", "new"), 3, "certificate_expired: the invitation was good until")
    assert not (tmp_path / "new").exists()


def test_what_is_no_invitation_is_told_of(made: Portguard, tmp_path: Path) -> None:
    failed(made("enroll", "alice.invitation"), 2, "alice.invitation: expected an invitation that can be read")
    _invited(made, 1)
    (tmp_path / "alice.invitation").chmod(0o644)
    failed(made("enroll", "alice.invitation"), 2, "expected a file that only its owner can read, got mode 0644")
