"""The control socket of a gateway that runs, asked by curl."""

import json
import os
import stat
import subprocess

import pytest

from tests.echo import echo_service


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
