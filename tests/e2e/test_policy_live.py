"""`policy diff --live`: what a new policy would mean for the sessions of the gateway that runs."""

import json
import subprocess

from tests.e2e.conftest import PORTGUARD
from tests.patience import PATIENCE_S

POLICY = """
[[roles]]
name = "team"
members = ["alice", "carol", "dave"]
services = ["*"]
"""
NEW = """
[services.echo]
upstream = ["{echo}"]

[[roles]]
name = "team"
members = ["carol"]
services = ["*"]

[[roles]]
name = "guests"
members = ["dave"]
services = ["*"]
"""


def diff(gateway, *arguments, code):
    command = [*PORTGUARD, "policy", "diff", *arguments, "-c", str(gateway.folder / "portguard.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_live_sessions_end_change_or_stay(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, policy=POLICY)
    new = gateway.folder / "new.toml"
    new.write_text(NEW.format(echo=echo))
    # What is on the disk and not in force is not what is compared with.
    policy = gateway.folder / "policy.toml"
    in_force = policy.read_text()
    policy.write_text("nonsense")
    with gateway.connect("echo", "alice"), gateway.connect("echo", "carol"), gateway.connect("echo", "dave"):
        gateway.wait_for_log("session.open ", count=3)
        told = diff(gateway, str(new), "--live", code=1).stdout
        assert "live sessions that would end: 1\n" in told
        assert "alice to echo: role team -> no_role\n" in told
        assert "live sessions that would go on by other limits: 1\n" in told
        assert "dave to echo: role team -> role guests\n" in told
        assert "live sessions that would stay as they are: 1\n" in told
        rows = json.loads(diff(gateway, str(new), "--live", "--json", code=1).stdout)["live"]
        assert sorted((row["identity"], row["becomes"], row["reason"]) for row in rows) == [
            ("alice", "ends", "no_role"),
            ("carol", "stays", None),
            ("dave", "changes", None),
        ]
        new.write_text(in_force)
        assert "no difference\n" in diff(gateway, str(new), "--live", code=0).stdout
    assert gateway.program.stop() == 0


def test_without_a_gateway_that_runs_it_says_so(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, policy=POLICY)
    assert gateway.program.stop() == 0
    told = diff(gateway, str(gateway.folder / "policy.toml"), "--live", code=4).stderr
    assert "control.sock" in told
