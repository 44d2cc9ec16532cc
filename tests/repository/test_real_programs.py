"""The promise of CI: a real program that is missing is a failure there, and a skip with its reason elsewhere."""

from collections.abc import Callable
from pathlib import Path

import pytest

RealProgram = Callable[[str], str]


def test_a_program_in_path_is_found(real_program: RealProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "frobnicate"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PORTGUARD_REQUIRE_REAL", "1")
    assert real_program("frobnicate") == str(program)


def test_a_missing_program_skips_the_test(real_program: RealProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORTGUARD_REQUIRE_REAL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="frobnicate: expected an installed program"):
        real_program("frobnicate")


def test_a_missing_program_fails_where_real_ones_are_required(
    real_program: RealProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORTGUARD_REQUIRE_REAL", "1")
    with pytest.raises(pytest.fail.Exception, match="frobnicate: expected an installed program"):
        real_program("frobnicate")
