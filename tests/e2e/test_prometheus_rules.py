"""The rules and alerts that operators load do what they say, and ask for nothing that the gateway does not have."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "prometheus"
METRICS = set(
    re.findall(r"^\| `(portguard_\w+)` \|", (REPOSITORY / "docs/reference/metrics.md").read_text(), re.MULTILINE)
)


def promtool(real_program, *arguments):
    done = subprocess.run(
        [real_program("promtool"), *arguments],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    return done.returncode, done.stdout + done.stderr


def test_rules_and_alerts_pass_their_tests(real_program):
    code, said = promtool(real_program, "test", "rules", "tests.yml")
    assert code == 0, said


def test_a_rule_that_is_wrong_fails_them(real_program, tmp_path):
    for name in ("rules.yml", "alerts.yml", "tests.yml"):
        (tmp_path / name).write_text(
            (FOLDER / name).read_text().replace("portguard_workers == 0", "portguard_workers == 1")
        )
    code, said = promtool(real_program, "test", "rules", str(tmp_path / "tests.yml"))
    assert code == 1
    assert "PortguardNoWorkers" in said


@pytest.mark.parametrize("name", ["rules.yml", "alerts.yml"])
def test_prometheus_would_load_them(real_program, name):
    code, said = promtool(real_program, "check", "rules", name)
    assert code == 0, said


def test_every_rule_is_tested():
    tests = (FOLDER / "tests.yml").read_text()
    for name in re.findall(r"- record: (\S+)", (FOLDER / "rules.yml").read_text()):
        assert f"- expr: {name}\n" in tests
    for name in re.findall(r"- alert: (\S+)", (FOLDER / "alerts.yml").read_text()):
        assert f"alertname: {name}, exp_alerts: []" in tests
        assert f"alertname: {name}\n        exp_alerts:\n" in tests


@pytest.mark.parametrize("path", ["prometheus/rules.yml", "prometheus/alerts.yml", "grafana/portguard.json"])
def test_what_is_asked_for_exists(path):
    # Names of recorded rules have colons.
    named = re.findall(r"(?<![:\w/])portguard_\w+(?![:\w])", (REPOSITORY / path).read_text())
    bases = {name if name in METRICS else re.sub("_bucket$", "", name) for name in named}
    assert bases
    assert bases - METRICS == set()
