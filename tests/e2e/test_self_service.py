"""What a real gateway tells its callers, by curl and by the commands: limits after transfers, and refusals."""

import contextlib
import json
import os
import ssl
import subprocess

import pytest

from tests.audited import wait_for_audit
from tests.counting import steady_zone
from tests.curl import curl
from tests.e2e.conftest import PORTGUARD
from tests.patience import PATIENCE_S
from tests.profiles import write_profile

POLICY = """
[[roles]]
name = "team"
members = ["alice", "carol"]
services = ["echo"]
max_sessions = 1
connect_rate = "3/d"
quota = ["10kB/day"]
"""


@pytest.fixture
def gateway(start_gateway, echo, real_program):
    real_program("curl")
    policy = f'timezone = "{steady_zone()}"\n{POLICY}'
    return start_gateway({"echo": echo, "closed": echo}, policy=policy)


def get(gateway, name, path):
    return json.loads(curl(gateway, name, f"https://gw.localhost:{{port}}/v1/{path}").stdout)


def reasons(gateway, name):
    return [(refusal["service"], refusal["reason"]) for refusal in get(gateway, name, "whoami")["refusals"]]


def is_refused(gateway, service, name):
    with contextlib.suppress(OSError, ssl.SSLError), gateway.connect(service, name) as client:
        assert client.recv(1) == b""


def show(gateway, tmp_path, name, command):
    profile = write_profile(gateway, name, tmp_path)
    return subprocess.run(
        [*PORTGUARD, command], env=os.environ | {"PORTGUARD_PROFILE": str(profile)}, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def test_what_is_left_and_why_one_was_refused_is_told_to_whom_it_concerns(gateway, tmp_path):
    is_refused(gateway, "echo", "bob")
    is_refused(gateway, "closed", "alice")
    with gateway.connect("echo") as client:
        client.sendall(b"x" * 1000)
        received = b""
        while len(received) < 1000:
            received += client.recv(1000)
        [service] = get(gateway, "alice", "services")["services"]
        limits = service["limits"]
        assert limits["max_sessions"] == {"limit": 1, "open": 1}
        assert limits["connect_rate"] == {"limit": "3/d", "retry_after_s": 0.0}
        [quota] = limits["quotas"]
        assert (quota["period"], quota["used_bytes"], quota["left_bytes"]) == ("day", 2000, 8000)
        is_refused(gateway, "echo", "alice")
        client.unwrap()
    wait_for_audit(gateway, "session.close")
    with gateway.connect("echo") as client, contextlib.suppress(OSError, ssl.SSLError):
        client.sendall(b"x" * 5000)
        while client.recv(65536):
            pass
    wait_for_audit(gateway, "session.close", 2)
    is_refused(gateway, "echo", "alice")
    assert reasons(gateway, "alice") == [
        ("echo", "quota_exhausted"),
        ("echo", "quota_exhausted"),
        ("echo", "max_sessions"),
        ("closed", "service_not_granted"),
    ]
    assert reasons(gateway, "bob") == [("echo", "no_role")]
    assert reasons(gateway, "carol") == []
    [quota] = get(gateway, "alice", "services")["services"][0]["limits"]["quotas"]
    assert quota["left_bytes"] == 0
    shown = show(gateway, tmp_path, "alice", "whoami")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "echo: daily quota of 10 kB is used up; it renews at" in shown.stdout
    shown = show(gateway, tmp_path, "alice", "services")
    assert "daily quota  10 kB used up; renews at 00:00" in shown.stdout
    assert show(gateway, tmp_path, "bob", "services").stdout.startswith("No service may be reached now")


def test_a_refusal_by_the_connect_rate_is_told_too(gateway):
    for count in (1, 2, 3):
        with gateway.connect("echo", "carol") as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            client.unwrap()
        wait_for_audit(gateway, "session.close", count)  # or the next one could be too many at once
    is_refused(gateway, "echo", "carol")
    assert reasons(gateway, "carol") == [("echo", "connect_rate")]
    [service] = get(gateway, "carol", "services")["services"]
    assert 86_000 < service["limits"]["connect_rate"]["retry_after_s"] <= 86_401


def test_other_methods_pages_and_paths_are_refused(gateway):
    def status(*options, path="whoami"):
        url = f"https://gw.localhost:{{port}}/v1/{path}"
        return curl(gateway, "alice", url, *options, "--output", "-", "--write-out", "%{stderr}%{http_code}").stderr

    assert status() == "200"
    assert status("--request", "DELETE") == status("--head") == "405"
    assert status("--header", "Origin: https://evil.example") == "403"
    assert status(path="nope") == "404"


# `portguard connect` asks before it says that it is connected.


def portguard(gateway, tmp_path, *arguments, name="alice"):
    profile = write_profile(gateway, name, tmp_path)
    return subprocess.run(
        [*PORTGUARD, *arguments], env=os.environ | {"PORTGUARD_PROFILE": str(profile)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def operate(gateway, *arguments):
    command = [*PORTGUARD, *arguments, "-c", str(gateway.folder / "portguard.toml")]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)


def is_told_before_anything_runs(gateway, tmp_path, told):
    refused = portguard(gateway, tmp_path, "connect", "echo", "--", "touch", str(tmp_path / "ran"))
    assert (refused.returncode, refused.stdout) == (3, "")
    assert refused.stderr.startswith(f"portguard: echo: {told}")
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "ran").exists()
    assert told.partition(": ")[0] in portguard(gateway, tmp_path, "services").stdout
    return refused.stderr


def gets_through(gateway, tmp_path):
    ran = portguard(gateway, tmp_path, "connect", "echo", "--", "true")
    assert (ran.returncode, ran.stderr) == (0, "")


def test_connect_does_not_begin_what_a_limit_would_refuse(gateway, tmp_path):
    gets_through(gateway, tmp_path)
    with gateway.connect("echo") as client:
        client.sendall(b"x" * 1000)
        assert client.recv(1) == b"x"
        is_told_before_anything_runs(gateway, tmp_path, "max_sessions: role team allows 1 session at once")
        client.sendall(b"x" * 9000)
        with contextlib.suppress(OSError, ssl.SSLError):
            while client.recv(65536):
                pass
    wait_for_audit(gateway, "session.close")
    said = is_told_before_anything_runs(
        gateway, tmp_path, "quota_exhausted: daily quota of 10 kB is used up; it renews"
    )
    assert "(try again in " in said
    operate(gateway, "quota", "reset", "alice")
    gets_through(gateway, tmp_path)
    assert reasons(gateway, "alice") == [("echo", "quota_exhausted")]


def test_connect_does_not_begin_while_the_gateway_drains(gateway, tmp_path):
    operate(gateway, "drain")
    is_told_before_anything_runs(gateway, tmp_path, "draining: the gateway is draining and takes no new sessions")
    operate(gateway, "resume")
    gets_through(gateway, tmp_path)


def test_connect_that_is_used_up_says_so_and_to_ask_uses_nothing_up(start_gateway, echo, tmp_path):
    role = '[[roles]]\nname = "team"\nmembers = ["alice"]\nservices = ["*"]\nconnect_rate = "1/d"'
    gateway = start_gateway({"echo": echo}, policy=role)
    for _ in range(3):
        gets_through(gateway, tmp_path)
    with gateway.connect("echo") as client:
        client.unwrap()
    gateway.wait_for_log(r"session\.close ")
    is_told_before_anything_runs(gateway, tmp_path, "connect_rate: role team allows 1 connection a day")


def test_doctor_says_what_is_wrong_for_a_client_and_around_a_gateway(gateway, tmp_path):
    def failures(name, *arguments):
        ran = portguard(gateway, tmp_path, "doctor", "--json", *arguments, name=name)
        document = json.loads(ran.stdout)
        failed = [(each["subject"], each["text"]) for each in document["findings"] if each["level"] == "failed"]
        assert (ran.returncode, ran.stderr, document["ok"]) == (1 if failed else 0, "", not failed)
        return failed

    assert failures("alice") == []
    assert failures("bob") == [("services", "no role lets you in anywhere now")]
    configuration = str(gateway.folder / "portguard.toml")
    assert failures("alice", "-c", configuration) == []
    gateway.folder.joinpath("policy.toml").write_text('[services.db]\nupstream = ["unix:/nonexistent/sock"]\n')
    [(subject, text)] = failures("alice", "-c", configuration)
    assert (subject, text) == ("db", "unix:/nonexistent/sock: No such file or directory")
    # To look is no session, and refuses nobody anything.
    assert reasons(gateway, "alice") == reasons(gateway, "bob") == []
    assert "session.open" not in gateway.log
