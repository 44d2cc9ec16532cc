"""Locks: who is kept out, what ends, and what survives, with sessions of others that transfer all the while."""

import json
import os
import re
import signal
import sqlite3
import ssl
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.audited import wait_for_audit
from tests.counting import connect_answer
from tests.curl import curl
from tests.e2e.conftest import PORTGUARD
from tests.patience import PATIENCE_S
from tests.profiles import write_profile
from tests.traffic import Traffic
from tests.trusting import trusting
from tests.unharmed import echoes, kill_all, workers

POLICY = """
[[roles]]
name = "team"
members = ["alice", "carol"]
services = ["*"]
"""


@pytest.fixture
def gateway(start_gateway, echo):
    return start_gateway({"echo": echo}, policy=POLICY)


def portguard(gateway, *arguments, code=0):
    """Run a command on the gateway; return its standard output and error."""
    command = [*PORTGUARD, *arguments, "-c", str(gateway.folder / "portguard.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def lock(gateway, *whom, code=0):
    return portguard(gateway, "lock", *whom, "--reason", "laptop stolen, INC-7", code=code)


def locks(gateway):
    return json.loads(portguard(gateway, "lock", "--list", "--json")[0])["locks"]


def held(gateway, name="alice"):
    client = gateway.connect("echo", name)
    client.settimeout(PATIENCE_S)
    client.sendall(b"more")
    assert client.recv(10) == b"more"
    return client


def is_cut(client):
    try:
        return client.recv(10) == b"" and False
    except (ssl.SSLError, ConnectionResetError):
        return True


def is_locked_out(gateway, name="alice"):
    """By SNI, where the connection just ends, and by CONNECT."""
    with held_back(gateway, name) as client:
        assert is_cut(client)
    status, _, document = connect_answer(gateway, "echo", name)
    assert (status, document["reason"]) == (403, "locked")
    return document["message"]


def held_back(gateway, name):
    client = gateway.connect("echo", name)
    client.settimeout(PATIENCE_S)
    return client


def api(gateway, path, name="alice"):
    """What the gateway's own HTTP answers."""
    answer = curl(gateway, name, f"https://{gateway.name}:{{port}}{path}")
    return json.loads(answer.stdout)


def certificate(gateway, name="alice"):
    return x509.load_pem_x509_certificate(gateway.certificate(name)[0].read_bytes())


def another_certificate(gateway, name="alice"):
    """Have a second one issued to the same identity; return a context that uses it."""
    context = trusting(cafile=str(gateway.ca))
    issued = gateway.authority.issue_client(name, at=datetime.now(UTC))
    context.load_cert_chain(*issued.write(gateway.folder, f"{name}-again"))
    return context


def ledger_locked(gateway):
    """Keep the gateway from writing its ledger until the answer is closed."""
    connection = sqlite3.connect(gateway.folder / "state" / "ledger.db", isolation_level=None, timeout=PATIENCE_S)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def test_a_lock_cuts_within_a_second_and_keeps_out_and_others_lose_no_byte(gateway):
    with Traffic(gateway, "carol") as others, held(gateway) as first, held(gateway) as second:
        out, err = lock(gateway, "alice")
        assert (out, err) == ("locked: alice\nsessions closed: 2\n", "")
        assert is_cut(first)
        assert is_cut(second)
        assert is_locked_out(gateway) == "the identity is locked"
        others.moves()
        for path in ("/v1/whoami", "/v1/services", "/v1/services/echo"):
            document = api(gateway, path)
            assert (document["reason"], document["message"]) == ("locked", "the identity is locked")
    [act] = wait_for_audit(gateway, "admin.lock")
    assert (act["uid"], act["outcome"]) == (os.getuid(), "done")
    assert act["arguments"] == {"identity": "alice", "reason": "laptop stolen, INC-7"}
    closed = [line for line in wait_for_audit(gateway, "session.close", 6) if line["identity"] == "alice"]
    assert [line["reason"] for line in closed] == ["locked", "locked"]
    acted = datetime.fromisoformat(act["time"])
    assert all(datetime.fromisoformat(line["time"]) <= acted + timedelta(seconds=1) for line in closed)
    refused = [(line.get("service"), line["reason"]) for line in wait_for_audit(gateway, "session.refuse", 5)]
    assert refused == [("echo", "locked")] * 2 + [(None, "locked")] * 3
    assert portguard(gateway, "unlock", "spiffe://gateway.test/alice")[0] == "unlocked: alice\n"
    echoes(gateway)
    told = [(refusal["service"], refusal["reason"]) for refusal in api(gateway, "/v1/whoami")["refusals"]]
    assert told == [(None, "locked")] * 3 + [("echo", "locked")] * 4


def test_connect_says_that_it_was_a_lock_although_whoami_is_locked_too(gateway, tmp_path):
    command = [*PORTGUARD, "connect", "echo", "--stdio", "--profile", str(write_profile(gateway, "alice", tmp_path))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tunnel:
        tunnel.stdin.write(b"more")
        tunnel.stdin.flush()
        assert tunnel.stdout.read(4) == b"more"
        lock(gateway, "alice")
        said = tunnel.stderr.read().decode()
        assert re.sub(r"[0-9a-f]{32}", "ID", said) == (
            "portguard: echo: the gateway ended the session: locked: the identity is locked (session ID)\n"
        )
        assert tunnel.wait(PATIENCE_S) == 1


def test_a_lock_is_there_again_after_everything_was_killed(gateway, start_again):
    lock(gateway, "alice")
    kill_all(gateway)
    gateway = start_again(gateway)
    assert is_locked_out(gateway) == "the identity is locked"
    echoes(gateway, name="carol")
    assert [(each["identity"], each["saved"]) for each in locks(gateway)] == [("alice", True)]
    portguard(gateway, "unlock", "alice")
    kill_all(gateway)
    echoes(start_again(gateway))


@pytest.mark.parametrize("when_unavailable", ["refuse", "allow"])
def test_without_the_ledger_a_lock_acts_and_is_written_when_it_is_back(
    start_gateway, start_again, echo, when_unavailable
):
    configuration = f'[ledger]\nwhen_unavailable = "{when_unavailable}"\n'
    gateway = start_gateway({"echo": echo}, policy=POLICY, configuration=configuration)
    with held(gateway) as alice, held(gateway, "carol") as carol:
        other = ledger_locked(gateway)
        _, err = lock(gateway, "alice", code=1)
        assert err == (
            "portguard: alice: locked; in force until the gateway restarts, and not yet in the ledger: "
            "a file that another process has locked\n"
        )
        assert is_cut(alice)
        assert is_locked_out(gateway) == "the identity is locked"
        carol.sendall(b"more")
        assert carol.recv(10) == b"more"
        assert [(each["identity"], each["saved"]) for each in locks(gateway)] == [("alice", False)]
        other.close()
        gateway.program.wait_until(lambda: locks(gateway)[0]["saved"], "the lock was in the ledger")
    kill_all(gateway)
    is_locked_out(start_again(gateway))


def test_a_lock_ends_by_itself(gateway, start_again):
    lock(gateway, "alice", "--for", "1s")
    gateway.wait_for_log(r'lock\.expire lock=alice message="laptop stolen, INC-7"')
    echoes(gateway)
    assert locks(gateway) == []
    [expired] = wait_for_audit(gateway, "lock.expire")
    assert (expired["trust"], expired["identity"], expired["by"].split()[1]) == ("local", "alice", str(os.getuid()))
    lock(gateway, "alice", "--for", "1h")
    assert is_locked_out(gateway).startswith("the identity is locked until 20")
    assert gateway.program.stop() == 0
    gateway = start_again(gateway)
    assert is_locked_out(gateway).startswith("the identity is locked until 20")


@pytest.mark.parametrize("kind", ["fingerprint", "serial"])
def test_a_locked_certificate_leaves_the_identitys_others_alone(gateway, kind):
    context = another_certificate(gateway)
    locked = certificate(gateway)
    whom = f"SHA256:{locked.fingerprint(hashes.SHA256()).hex(':').upper()}"
    if kind == "serial":
        whom = f"local:{locked.serial_number:x}"
    with held(gateway) as client, gateway.connect_with(context, "echo") as other:
        out, _ = lock(gateway, "--certificate", whom)
        assert out.endswith("sessions closed: 1\n")
        assert is_cut(client)
        other.sendall(b"more")
        assert other.recv(10) == b"more"
    assert is_locked_out(gateway) == "the certificate is locked"
    with gateway.connect_with(context, "echo") as other:
        other.sendall(b"more")
        assert other.recv(10) == b"more"
    portguard(gateway, "unlock", "--certificate", whom)
    echoes(gateway)


def test_workers_that_come_later_know_the_locks(gateway):
    lock(gateway, "alice")
    before = workers(gateway)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    gateway.program.wait_until(
        lambda: len(now := workers(gateway)) == len(before) and not set(now) & set(before), "others had begun to serve"
    )
    for _ in before:  # each of them
        assert is_locked_out(gateway) == "the identity is locked"
    echoes(gateway, name="carol")


def test_locks_outlive_a_reload_and_come_before_the_policy(gateway):
    lock(gateway, "alice")
    path = gateway.folder / "policy.toml"
    path.write_text(path.read_text().replace('"alice", "carol"', '"carol"'))
    portguard(gateway, "reload")
    assert is_locked_out(gateway) == "the identity is locked"


def test_locks_outlive_a_new_version_and_reach_the_workers_that_it_leaves_behind(gateway):
    lock(gateway, "alice")
    before = workers(gateway)
    with held(gateway, "carol") as carol:
        portguard(gateway, "reexec")
        gateway.wait_for_log("gateway.take_over")
        gateway.program.wait_until(lambda: len(set(workers(gateway)) - set(before)) == 2, "its workers were there")
        assert is_locked_out(gateway) == "the identity is locked"
        carol.sendall(b"more")
        assert carol.recv(10) == b"more"
        assert lock(gateway, "carol")[0] == "locked: carol\nsessions closed: 1\n"
        assert is_cut(carol)
    is_locked_out(gateway, "carol")


def test_to_unlock_who_is_not_locked_is_an_error(gateway):
    assert portguard(gateway, "unlock", "alice", code=1) == ("", "portguard: alice: expected a lock, got none\n")
