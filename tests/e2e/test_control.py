"""The control socket of a gateway that runs, asked by curl."""

import json
import os
import re
import signal
import ssl
import stat
import subprocess
import urllib.error
import urllib.request

import pytest

from tests.audited import wait_for_audit
from tests.e2e.conftest import PORTGUARD
from tests.patience import PATIENCE_S

POLICY = """
[[roles]]
name = "team"
members = ["alice", "carol"]
services = ["*"]
"""


def curl(gateway, target, *options):
    """Status and JSON."""
    command = ["curl", "--silent", "--show-error", "--unix-socket", gateway.folder / "control.sock"]
    command += ["--write-out", "\n%{http_code}", *options, f"http://portguard{target}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    body, _, status = ended.stdout.rpartition("\n")
    return int(status), json.loads(body)


def test_curl_is_told_the_state(start_gateway, echo, real_program):
    real_program("curl")
    gateway = start_gateway({"echo": echo})
    with gateway.connect("echo") as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        status, document = curl(gateway, "/v1/status")
        assert (status, document["verdict"], document["state"], document["problems"]) == (200, "SERVING", "serving", [])
        assert [worker["serving"] for worker in document["workers"]] == [True, True]
        assert document["sessions"] == 1
        assert document["pid"] == gateway.program.process.pid
        assert len(document["policy"]) == 64
        gateway.program.process.terminate()
        gateway.wait_for_log("gateway.drain")
        status, document = curl(gateway, "/v1/status")
        assert (status, document["state"], document["sessions"]) == (200, "draining", 1)
        assert [problem["code"] for problem in document["problems"]] == ["draining"]
        assert re.fullmatch(
            r"DRAINING since ([0-9-]+ )?[0-9:]{5}: the gateway is ending, 1 session left", document["verdict"]
        )
    assert gateway.program.process.wait(PATIENCE_S) == 0
    assert not (gateway.folder / "control.sock").exists()


def test_who_is_given_a_level_and_is_not_there_is_warned_of_at_the_start(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, configuration='[control]\noperators = ["user:nobodyx"]\n')
    gateway.wait_for_log(r"configuration\.warning .*control\.operators\[0\]: expected a user of this host, got nobodyx")


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
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def live(gateway, *arguments):
    return json.loads(command(gateway, "sessions", "list", "--json", *arguments))["sessions"]


def says(client, text):
    client.sendall(text)
    return client.recv(100) == text


def is_cut(client):
    client.settimeout(PATIENCE_S)
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        client.recv(1)
    return True


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
    acts = wait_for_audit(gateway, "admin.sessions.kill", 3)
    assert [(act["uid"], act["arguments"], act["outcome"]) for act in acts] == [
        (os.getuid(), {"identity": "alice", "service": "echo"}, "done"),
        (os.getuid(), {"session": lines[2]["session"][:12]}, "done"),
        (os.getuid(), {"identity": "carol"}, "not_found"),
    ]
    closed = [line["reason"] for line in wait_for_audit(gateway, "session.close", 2)]
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
    gateway.program.process.wait(PATIENCE_S)
    assert (gateway.folder / "control.sock").exists()
    again = start(command)
    again.wait_until_it_says("gateway.ready")


def test_a_path_that_cannot_be_is_an_error_before_clients_are_served(start_gateway, start, echo):
    gateway = start_gateway({"echo": echo})
    gateway.program.stop()
    path = gateway.folder / "portguard.toml"
    path.write_text(path.read_text().replace('"control.sock"', '"no/such/control.sock"'))
    ended = subprocess.run(
        gateway.program.process.args, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert ended.returncode == 2
    assert ended.stderr.endswith(
        f"portguard: {path}: gateway.control: expected a path where a socket can be made, "
        f"got {gateway.folder}/no/such/control.sock: no such folder\n"
    )
    assert "gateway.listen" not in ended.stderr


# The state of the gateway, and draining by hand.


def status(gateway, code=0):
    """The verdict, and the whole as JSON."""
    verdict = command(gateway, "status", code=code).splitlines()[0]
    return verdict, json.loads(command(gateway, "status", "--json", code=code))


def readyz(gateway):
    """The status code, and what it says."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{gateway.metrics_port}/readyz", timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric(gateway, name):
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.metrics_port}/metrics", timeout=PATIENCE_S) as answer:
        return re.findall(rf"^portguard_{name} (\S+)", answer.read().decode(), re.MULTILINE)


def test_a_person_is_told_first_that_all_is_well(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, policy=POLICY)
    with gateway.connect("echo") as client:
        assert says(client, b"hello")
        lines = command(gateway, "status").splitlines()
        assert lines[:2] == ["SERVING", ""]
        assert "sessions        1 of " in lines[2]
        assert lines[3] == "workers         2 of 2"
        assert re.fullmatch(r"  worker 0      pid \d+, (0 connections|1 connection), up \d+s", lines[4])
        assert lines[6].startswith("  confined by   ")
        assert re.fullmatch(r"expires first   [a-z:]+, [0-9 :-]+ \(in \d+d\d\dh\)", lines[8])


def test_refusals_of_late_are_told_by_reason(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, policy=POLICY)
    for name, times in (("bob", 3), (None, 1)):
        for _ in range(times):
            with pytest.raises((ssl.SSLError, ConnectionResetError)), gateway.connect("echo", name) as client:
                client.recv(1)
    gateway.wait_for_log("reason=certificate_missing")

    def counted():
        return status(gateway)[1]["refusals"]["reasons"] == [
            {"reason": "no_role", "count": 3},
            {"reason": "certificate_missing", "count": 1},
        ]

    gateway.program.wait_until(counted, "the reasons")
    assert "refused, 5 min  no_role 3, certificate_missing 1\n" in command(gateway, "status")


def test_a_reload_that_failed_is_told_until_one_succeeds(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, policy=POLICY)
    path = gateway.folder / "policy.toml"
    good = path.read_text()
    path.write_text(good + "nonsense = 1\n")
    command(gateway, "reload", code=2)
    verdict, document = status(gateway, code=1)
    assert re.match(r"DEGRADED since [0-9-]* ?[0-9:]{5}: the last reload failed, .*policy.toml.*nonsense", verdict)
    assert (document["state"], document["problems"][0]["code"]) == ("degraded", "reload_failed")
    assert readyz(gateway) == (200, "ready\n")
    path.write_text(good + "\n")
    command(gateway, "reload", "--message", "CHG-7")
    verdict, document = status(gateway)
    assert (verdict, document["loaded"]["message"]) == ("SERVING", "CHG-7")
    assert document["loaded"]["by"].startswith(f"uid {os.getuid()}")


def test_a_worker_that_is_missing_is_told(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, policy=POLICY)
    _, document = status(gateway)
    os.kill(document["workers"][0]["pid"], signal.SIGKILL)

    def restarted():
        return status(gateway)[1]["worker_restarts"] == 1 and len(status(gateway)[1]["workers"]) == 2

    gateway.wait_for_log("worker.exit")
    gateway.program.wait_until(lambda: curl(gateway, "/v1/status")[1]["state"] == "serving", "another worker")
    gateway.program.wait_until(restarted, "the count")


def test_a_gateway_that_is_drained_by_hand_says_why_and_can_be_resumed(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, policy=POLICY)
    with gateway.connect("echo") as live:
        assert says(live, b"before")
        assert command(gateway, "drain") == "sessions left: 1\n"
        assert command(gateway, "drain") == "new sessions were refused already\nsessions left: 1\n"
        verdict, document = status(gateway, code=1)
        assert re.match(r"DRAINING since .*: new sessions are refused, by uid \d+.*, 1 session left$", verdict)
        assert document["state"] == "draining"
        assert readyz(gateway) == (503, "not ready\ndraining: an operator has new sessions refused\n")
        assert metric(gateway, "draining") == ["1.0"]
        with pytest.raises((ssl.SSLError, ConnectionResetError)), gateway.connect("echo") as refused:
            refused.recv(1)
        with gateway.connect_with(gateway.context("alice"), None) as asking:
            asking.sendall(b"CONNECT echo:443 HTTP/1.1\r\nHost: echo:443\r\n\r\n")
            answer = asking.recv(4096)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"draining"' in answer
        assert says(live, b"still")
        command(gateway, "reload")
        assert command(gateway, "resume") == "new sessions are taken again\n"
        assert command(gateway, "resume") == "new sessions were taken already\n"
        assert status(gateway)[0] == "SERVING"
        assert readyz(gateway)[0] == 200
        assert metric(gateway, "draining") == ["0.0"]
        with gateway.connect("echo") as client:
            assert says(client, b"again")
    assert [act["outcome"] for act in wait_for_audit(gateway, "admin.drain", 2)] == ["done", "done"]
    assert len(wait_for_audit(gateway, "admin.resume", 2)) == 2


def test_a_gateway_that_is_drained_to_end_ends_with_its_last_session(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, policy=POLICY)
    with gateway.connect("echo") as live:
        assert says(live, b"before")
        command(gateway, "drain")
        assert command(gateway, "drain", "--exit") == "sessions left: 1\n"
        gateway.wait_for_log("gateway.drain", 2)
        command(gateway, "resume", code=1)
        command(gateway, "drain", code=1)
        assert status(gateway, code=1)[1]["state"] == "draining"
        with pytest.raises(ConnectionRefusedError):
            gateway.connect("echo").close()
        assert says(live, b"still")
        live.unwrap()
    assert gateway.program.process.wait(PATIENCE_S) == 0


def test_without_sessions_it_ends_at_once_and_the_answer_still_comes(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, policy=POLICY)
    assert command(gateway, "drain", "--exit") == "sessions left: 0\n"
    assert gateway.program.process.wait(PATIENCE_S) == 0
    command(gateway, "status", code=4)
