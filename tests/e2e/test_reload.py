"""Reload: what changes, what goes on, and what ends, with sessions that transfer all the while."""

import json
import os
import ssl
import subprocess

import pytest

from tests.e2e.conftest import PORTGUARD
from tests.echo import echo_service
from tests.unharmed import echoes

_PATIENCE_S = 20

POLICY = """
[[roles]]
name = "team"
members = ["alice", "carol"]
services = ["*"]
"""


@pytest.fixture
def echo():
    with echo_service() as address:
        yield address


@pytest.fixture
def gateway(start_gateway, echo):
    return start_gateway({"echo": echo}, policy=POLICY)


def reload(gateway, *more, code=0):
    """Run `portguard reload`; return its standard output and error."""
    command = [*PORTGUARD, "reload", *more, "-c", str(gateway.folder / "portguard.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=8, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def change(gateway, file, old, new):
    path = gateway.folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def held(gateway, name="alice"):
    client = gateway.connect("echo", name)
    assert goes_on(client)
    return client


def goes_on(client):
    client.sendall(b"more")
    return client.recv(10) == b"more"


def is_cut(client):
    client.settimeout(_PATIENCE_S)
    try:
        return client.recv(10) == b"" and False
    except (ssl.SSLEOFError, ConnectionResetError):
        return True


def test_who_lost_the_right_is_cut_with_the_reason_and_others_go_on(gateway):
    with held(gateway, "alice") as alice, held(gateway, "carol") as carol:
        change(gateway, "policy.toml", '"alice", "carol"', '"carol"')
        out, err = reload(gateway, "--message", "CHG-123")
        assert err == ""
        assert "sessions closed: 1\n" in out
        assert is_cut(alice)
        assert goes_on(carol)
        gateway.wait_for_log(r"session\.close .*identity=alice .*reason=no_role")
        carol.unwrap()
    with pytest.raises(ssl.SSLError), gateway.connect("echo", "alice") as client:
        client.recv(1)
    echoes(gateway, name="carol")
    lines = [json.loads(line) for line in (gateway.folder / "state/audit/audit.jsonl").read_text().splitlines()]
    [load] = [line for line in lines if line["event"] == "policy.load" and line.get("message")]
    assert load["message"] == "CHG-123"
    assert load["by"].startswith(f"uid {os.getuid()}")
