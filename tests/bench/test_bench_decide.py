"""The cost of a decision is measured of the verdicts that each case is about, and held against its bound."""

import json
import math
import sys

import pytest

from bench import decide as command


def test_every_case_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["decide", "--json"])
    monkeypatch.setattr(command, "BOUND_US", math.inf)  # a test holds no time: others use this machine
    command.main()
    decisions = json.loads(capsys.readouterr().out)["decisions"]
    assert len(decisions) == 10
    assert all(0 < figure["median_us"] <= figure["p99_us"] for figure in decisions.values())


@pytest.mark.parametrize(("median_us", "fails"), [(20.0, False), (20.1, True)])
def test_a_median_above_the_bound_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], median_us: float, fails: bool
) -> None:
    monkeypatch.setattr(sys, "argv", ["decide"])
    for policy in ("_plain", "_globs", "_everywhere"):
        monkeypatch.setattr(command, policy, str)
    monkeypatch.setattr(command, "_measured", lambda _case: {"median_us": median_us, "p99_us": 30.0})
    if fails:
        with pytest.raises(SystemExit, match="a median is above 20 µs"):
            command.main()
    else:
        command.main()
    assert f"granted by the last role {median_us:.1f} 30.0" in " ".join(capsys.readouterr().out.split())
