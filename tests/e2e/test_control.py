"""The control socket of a gateway that runs, asked by curl."""

import json
import os
import ssl
import stat
import subprocess

import pytest

from tests.e2e.conftest import PORTGUARD
from tests.echo import echo_service

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


def curl(gateway, target, *options):
    """Status and JSON."""
    command = ["curl", "--silent", "--show-error", "--max-time", "30", "--unix-socket", gateway.folder / "control.sock"]
    command += ["--write-out", "\n%{http_code}", *options, f"http://portguard{target}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    body, _, status = ended.stdout.rpartition("\n")
    return int(status), json.loads(body)


def test_curl_is_told_the_state(start_gateway, echo, real_program):
    real_program("curl")
    gateway = start_gateway({"echo": echo})
    with gateway.connect("echo") as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        status, document = curl(gateway, "/v1/status")
        assert (status, document["state"], document["problems"]) == (200, "serving", [])
        assert (document["workers"], document["sessions"]) == (2, 1)
        assert document["pid"] == gateway.program.process.pid
        assert len(document["policy"]) == 64
        gateway.program.process.terminate()
        gateway.wait_for_log("gateway.drain")
        status, document = curl(gateway, "/v1/status")
        assert (status, document["state"], document["sessions"]) == (200, "draining", 1)
        assert document["problems"] == ["draining: no new sessions are taken"]
    assert gateway.program.process.wait(30) == 0
    assert not (gateway.folder / "control.sock").exists()


def test_what_is_wrong_is_refused(start_gateway, echo, real_program):
    real_program("curl")
    gateway = start_gateway({"echo": echo})
    assert curl(gateway, "/v1/status?x=1") == (
        400,
        {"error": {"code": "bad_argument", "message": "'x': expected no arguments"}},
    )
    assert curl(gateway, "/v1/nothing", "--request", "POST")[0] == 404
    assert curl(gateway, "/v1/status", "--header", "Origin: http://portguard")[0] == 403


def command(gateway, *arguments, code=0):
    """Run a command of portguard's against the gateway; return its standard output."""
    argv = [*PORTGUARD, *arguments, "-c", str(gateway.folder / "portguard.toml")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def live(gateway, *arguments):
    return json.loads(command(gateway, "sessions", "list", "--json", *arguments))["sessions"]


def says(client, text):
    client.sendall(text)
    return client.recv(100) == text


def is_cut(client):
    client.settimeout(20)
    with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
        client.recv(1)
    return True


def audited(gateway, event, count=1):
    path = gateway.folder / "state/audit/audit.jsonl"

    def found():
        lines = map(json.loads, path.read_text().splitlines())
        return [line for line in lines if line["event"] == event]

    gateway.program.wait_until(lambda: len(found()) >= count, f"{event} in the audit")
    return found()


def test_sessions_are_listed_and_exactly_those_are_ended_that_are_meant(start_gateway, echo):
    gateway = start_gateway({"echo": echo, "other": echo}, policy=POLICY)
    with (
        gateway.connect("echo", "alice") as killed,
        gateway.connect("other", "alice") as kept,
        gateway.connect("echo", "carol") as also_kept,
    ):
        for client, text in ((killed, b"12345"), (kept, b"123"), (also_kept, b"1")):
            assert says(client, text)
        lines = live(gateway, "--sort", "bytes")
        assert [(each["identity"], each["service"]) for each in lines] == [
            ("alice", "echo"),
            ("alice", "other"),
            ("carol", "echo"),
        ]
        first = lines[0]
        assert (first["received"], first["upstream"], first["source"]) == (5, echo, "127.0.0.1")
        assert [each["session"] for each in live(gateway, "--identity", "carol")] == [lines[2]["session"]]
        out = command(gateway, "sessions", "kill", "--identity", "alice", "--service", "echo", "--yes")
        assert out == "sessions ended: 1\n"
        assert is_cut(killed)
        gateway.wait_for_log(r"session\.close .*identity=alice service=echo .*reason=killed")
        assert says(kept, b"more")
        assert command(gateway, "sessions", "kill", lines[2]["session"][:12]) == "sessions ended: 1\n"
        assert is_cut(also_kept)
        assert says(kept, b"still")
        gateway.program.wait_until(lambda: len(live(gateway)) == 1, "one session left")
        command(gateway, "sessions", "kill", "--identity", "carol", "--yes", code=1)
    acts = audited(gateway, "admin.sessions.kill", 3)
    assert [(act["uid"], act["arguments"], act["outcome"]) for act in acts] == [
        (os.getuid(), {"identity": "alice", "service": "echo"}, "done"),
        (os.getuid(), {"session": lines[2]["session"][:12]}, "done"),
        (os.getuid(), {"identity": "carol"}, "not_found"),
    ]
    closed = [line["reason"] for line in audited(gateway, "session.close", 2)]
    assert closed.count("killed") == 2


def test_without_its_group_the_socket_is_the_owners_alone(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, configuration='[control]\ngroup = "no-such-group"\n')
    gateway.wait_for_log(r"control\.restricted .*got no-such-group")
    found = os.stat(gateway.folder / "control.sock")
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, os.getuid())


def test_a_gateway_that_was_killed_leaves_no_obstacle(start_gateway, start, echo):
    gateway = start_gateway({"echo": echo})
    command = gateway.program.process.args
    gateway.program.process.kill()
    gateway.program.process.wait(30)
    assert (gateway.folder / "control.sock").exists()
    again = start(command)
    again.wait_until_it_says("gateway.ready")


def test_a_path_that_cannot_be_is_an_error_before_clients_are_served(start_gateway, start, echo):
    gateway = start_gateway({"echo": echo})
    gateway.program.stop()
    path = gateway.folder / "portguard.toml"
    path.write_text(path.read_text().replace('"control.sock"', '"no/such/control.sock"'))
    ended = subprocess.run(gateway.program.process.args, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.endswith(
        f"portguard: {path}: gateway.control: expected a path where a socket can be made, "
        f"got {gateway.folder}/no/such/control.sock: no such folder\n"
    )
    assert "gateway.listen" not in ended.stderr
