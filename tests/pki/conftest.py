"""An authority to issue from, and openssl to judge what it issued."""

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from portguard.pki.authority import Authority
from tests.patience import PATIENCE_S

NOW = datetime(2026, 7, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", trust_domain="bastion.example.com", at=NOW)


@pytest.fixture
def openssl(real_program: Callable[[str], str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `openssl` with arguments; what it said is in `stdout` and `stderr`, and `returncode` is not checked."""
    program = real_program("openssl")

    def run(*arguments: object, typed: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            input=typed,
            timeout=PATIENCE_S,
        )

    return run
