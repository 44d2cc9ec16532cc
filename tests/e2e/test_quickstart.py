"""`portguard quickstart` from nothing: what it shows, what it prints to paste, what it keeps."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from portguard.pki.starter import StarterFolder, StarterService
from portguard.policy.addresses import HostPort
from tests.patience import PATIENCE_S
from tests.ports import reserved_host, reserved_port

_PORTGUARD = (sys.executable, "-P", "-m", "portguard")
REVOKE = "the end of all this: the certificate of alice is revoked, the next quickstart makes another"


@pytest.fixture(scope="module", autouse=True)
def without_the_usual_port() -> Iterator[None]:
    """As where another quickstart has it: whoever runs these tests may have something at 8443, or just begin it."""
    with socket.socket(socket.AF_UNIX) as claim:
        with contextlib.suppress(OSError):  # another one has it indeed
            claim.bind("\0portguard quickstart 8443")
        yield


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the quickstart to its end."""
    command = [*_PORTGUARD, "quickstart", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


def once(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("--once", "--dir", str(folder), *arguments)


def prepare(folder: Path) -> None:
    """Leave what a first run leaves."""
    with StarterFolder.claim(folder) as starter:
        starter.issue(at=datetime.now(UTC))
        # Of the built-in service nothing but its port matters, and a free one is found when this is taken.
        starter.write((StarterService("web", HostPort("127.0.0.1", 1), 8080),), port=8443)


def printed_lines(said: str) -> dict[str, str]:
    """The commands to paste, by what they show."""
    return dict(re.findall(r"^  # (.+)\n  (.+)$", said, re.MULTILINE))


def paste(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line as another terminal would, from another folder."""
    command = ["bash", "-c", line]
    return subprocess.run(
        command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose name needs quoting."""
    return tmp_path / "it's a quickstart"


@pytest.fixture
def running(start: Callable, folder: Path) -> Callable:
    """`running(*arguments)` starts a quickstart that stays up, and waits until it says so."""

    def launch(*arguments: str):
        program = start([*_PORTGUARD, "quickstart", "--dir", str(folder), *arguments])
        program.wait_until_it_says("Ctrl-C ends it")
        return program

    return launch


@pytest.fixture
def upstream() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """`upstream(serve)` is the port of a service on 127.0.0.1 that calls `serve(sock)` for each connection."""
    running: list[tuple[socket.socket, threading.Thread]] = []

    def run_service(serve: Callable[[socket.socket], None]) -> int:
        server = socket.create_server(("127.0.0.1", 0))

        def accept() -> None:
            while True:
                try:
                    sock, _ = server.accept()
                except OSError:
                    return
                sock.settimeout(PATIENCE_S)
                with sock, contextlib.suppress(OSError):
                    serve(sock)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        running.append((server, thread))
        port: int = server.getsockname()[1]
        return port

    yield run_service
    for server, thread in running:
        server.shutdown(socket.SHUT_RDWR)
        # It must not accept by a number that is another socket's by then.
        thread.join()
        server.close()


def greet(sock: socket.socket) -> None:
    sock.sendall(b"220 ready\r\n")
    sock.recv(100)


def test_from_nothing_alice_gets_through_and_bob_does_not(folder: Path) -> None:
    done = once(folder)
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"{folder} (made authority, gateway, alice, bob)" in done.stdout
    assert re.search(r"alice by CONNECT +\d+ bytes sent, \d{3} received: HTTP/1.1 200 OK\n", done.stdout)
    assert re.search(r"alice by name +\d+ bytes sent, \d{3} received: HTTP/1.1 200 OK\n", done.stdout)
    assert re.search(r"bob +refused: no_role, no role has this identity as a member\n", done.stdout)


def test_a_second_run_uses_what_the_first_one_made(folder: Path) -> None:
    first = once(folder)
    keys = {path: path.read_bytes() for path in folder.rglob("*.key")}
    second = once(folder)
    assert (first.returncode, second.returncode) == (0, 0)
    assert f"{folder} (found)" in second.stdout
    assert {path: path.read_bytes() for path in folder.rglob("*.key")} == keys


def test_every_line_to_paste_works(running: Callable, real_program: Callable) -> None:
    for program in ("bash", "curl", "openssl"):
        real_program(program)
    quickstart = running()
    lines = printed_lines(quickstart.said)
    assert len(lines) == 8
    for shows in (
        "the service by its name, with any TLS client",
        "the same by hand",
        "by CONNECT, which answers with a status",
        "programs without TLS",
    ):
        done = paste(lines.pop(shows))
        assert 'Hello from the service "web"' in done.stdout, f"{shows}: {done.stderr}"
        assert done.returncode == 0
    curl = paste(lines.pop("bob is refused: 403"))
    assert curl.returncode != 0
    assert "portguard-reason: no_role" in curl.stderr.lower()
    assert "Hello" not in curl.stdout
    connect = paste(lines.pop("bob is told why"))
    assert connect.returncode == 3
    assert "web: no_role: " in connect.stderr
    explain = paste(lines.pop("why, entry by entry"))
    assert "no_role" in explain.stdout
    revoke = paste(lines.pop(REVOKE))
    assert revoke.stdout.startswith("revoked      client alice, serial ")
    assert lines == {}
    quickstart.wait_until_it_says("session.refuse")


def children_of(quickstart) -> list[str]:
    return Path(f"/proc/{quickstart.process.pid}/task/{quickstart.process.pid}/children").read_text().split()


def test_it_stays_until_it_is_told_to_end(running: Callable) -> None:
    quickstart = running()
    [gateway] = children_of(quickstart)
    assert quickstart.stop(signal.SIGINT) == 0
    assert "Traceback" not in quickstart.said
    # Not the port, which may be another quickstart's by now.
    assert not Path(f"/proc/{gateway}").exists()


def test_it_ends_with_its_gateway(running: Callable) -> None:
    quickstart = running()
    for child in children_of(quickstart):
        os.kill(int(child), signal.SIGKILL)
    assert quickstart.process.wait(timeout=PATIENCE_S) == 1
    assert "portguard: gateway: expected it to serve, got exit code -9" in quickstart.said


def test_a_service_of_ones_own_is_reached(running: Callable, upstream: Callable) -> None:
    quickstart = running("--service", f"mail=127.0.0.1:{upstream(greet)}")
    assert re.search(r"alice by name +0 bytes sent, 11 received: 220 ready\n", quickstart.said)
    lines = printed_lines(quickstart.said)
    assert paste("echo QUIT | " + lines.pop("any TLS client, by the service's name")).stdout == "220 ready\n"
    assert paste(f"{lines.pop('a local port for programs without TLS')} -- true").returncode == 0
    assert paste(lines.pop("bob is refused")).returncode == 3
    assert list(lines) == [REVOKE]


def test_the_line_that_revokes_ends_alice_at_once_and_the_next_run_makes_her_anew(
    running: Callable, folder: Path
) -> None:
    quickstart = running()
    lines = printed_lines(quickstart.said)
    connect = lines["programs without TLS"].partition(" -- ")[0] + " -- true"
    assert paste(connect).returncode == 0
    assert paste(lines[REVOKE]).returncode == 0
    quickstart.wait_until_it_says("gateway.reload by=watch")
    refused = paste(connect)
    assert refused.returncode == 3
    assert "certificate_revoked" in refused.stderr
    quickstart.stop(signal.SIGINT)
    again = once(folder)
    assert f"{folder} (made alice)" in again.stdout
    assert again.returncode == 0


def close_at_once(sock: socket.socket) -> None:
    sock.recv(100)


def reset(sock: socket.socket) -> None:
    sock.recv(4)  # what is left unread makes it a reset


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (close_at_once, r"connected; it said nothing to an HTTP request \(43 bytes sent\)"),
        (reset, "connected; it broke the connection off at an HTTP request"),
    ],
)
def test_a_service_without_an_answer_for_web_clients_is_reached_all_the_same(
    folder: Path, upstream: Callable, serve: Callable, words: str
) -> None:
    done = once(folder, "--service", f"cache=127.0.0.1:{upstream(serve)}")
    assert re.search(rf"alice by CONNECT +{words}\n", done.stdout)
    assert re.search(rf"alice by name +{words}\n", done.stdout)
    assert (done.returncode, done.stderr) == (0, "")


def test_several_services_are_reached(folder: Path, upstream: Callable) -> None:
    ports = [upstream(greet), upstream(greet)]
    done = once(folder, "--service", f"mail=127.0.0.1:{ports[0]}", "--service", f"news=127.0.0.1:{ports[1]}")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("220 ready") == 4


def test_a_service_that_is_down_is_told_and_no_success(folder: Path) -> None:
    with reserved_port() as port:
        done = once(folder, "--service", f"mail=127.0.0.1:{port}")
    assert done.returncode == 1
    assert re.search(r"alice by CONNECT +FAILED: mail: upstream_unreachable: ", done.stdout)
    assert re.search(r"alice by name +FAILED: mail: the gateway ended the session", done.stdout)
    assert re.search(r"bob +refused: no_role", done.stdout)


def test_a_policy_that_was_changed_is_used_as_it_is(folder: Path, free_port: Callable[[], int]) -> None:
    prepare(folder)
    policy = folder / "policy.toml"
    port = free_port()
    changed = policy.read_text().replace('members = ["alice"]', 'members = ["alice", "carol"]')
    changed = changed.replace("127.0.0.1:1", f"127.0.0.1:{port}")
    policy.write_text(changed)
    done = once(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "policy.toml is as you changed it" in done.stdout
    assert f"service    web, at 127.0.0.1:{port}\n" in done.stdout
    assert policy.read_text() == changed


def test_a_policy_that_lets_bob_in_is_no_success(folder: Path, free_port: Callable[[], int]) -> None:
    prepare(folder)
    policy = folder / "policy.toml"
    without_tests = policy.read_text().partition("# Tests")[0]
    changed = without_tests.replace('members = ["alice"]', 'members = ["alice", "bob"]')
    policy.write_text(changed.replace("127.0.0.1:1", f"127.0.0.1:{free_port()}"))
    done = once(folder)
    assert done.returncode == 1
    assert re.search(r"bob +FAILED: expected a refusal, got a session", done.stdout)


def test_a_broken_policy_is_told_before_anything_starts(folder: Path) -> None:
    prepare(folder)
    (folder / "policy.toml").write_text("[services.web]\n")
    done = once(folder)
    assert done.returncode == 2
    assert f"{folder}/policy.toml: services.web.upstream: expected an array, got nothing" in done.stderr


def test_a_changed_policy_without_the_service_is_told(folder: Path) -> None:
    prepare(folder)
    policy = folder / "policy.toml"
    policy.write_text(policy.read_text() + "\n")
    done = once(folder, "--service", "mail=127.0.0.1:25")
    assert done.returncode == 2
    assert done.stderr.endswith(
        "/policy.toml: services.mail.upstream: expected 127.0.0.1:25, or the policy as the quickstart writes it "
        "(remove the file), got no such service\n"
    )


def test_a_changed_policy_whose_port_is_taken_is_told(folder: Path) -> None:
    prepare(folder)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        policy = folder / "policy.toml"
        policy.write_text(policy.read_text().replace("127.0.0.1:1", f"127.0.0.1:{port}"))
        done = once(folder)
    assert done.returncode == 2
    assert done.stderr.endswith(f", got 127.0.0.1:{port}\n")


def test_a_configuration_without_a_fixed_port_is_told(folder: Path) -> None:
    prepare(folder)
    configuration = folder / "portguard.toml"
    configuration.write_text(re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:0", configuration.read_text()))
    done = once(folder)
    assert done.returncode == 2
    assert "gateway.listen: expected a port that the quickstart can name, 1 to 65535, got 0" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--service", "web"], "--service: expected "),
        (["--service", "We b=127.0.0.1:80"], "--service: expected NAME=HOST:PORT with "),
        (["--service", "web=127.0.0.1"], "--service: expected a host and a port"),
        (["--service", "a=h:1", "--service", "a=h:2"], "--service: expected each name once, got a, a"),
    ],
)
def test_what_cannot_be_is_told(folder: Path, arguments: list[str], message: str) -> None:
    done = once(folder, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"portguard: {message}")
    assert not folder.exists()


def test_a_folder_of_somebody_elses_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    assert once(folder).returncode == 2
    assert os.listdir(folder) == ["thesis.tex"]


@pytest.fixture
def postgresql(start: Callable, real_program: Callable, unprivileged) -> Iterator[str]:
    """A PostgreSQL at its usual port, by which the quickstart knows it, and which trusts everybody; its host."""
    with tempfile.TemporaryDirectory(prefix="portguard-postgresql-") as folder, reserved_host(5432) as host:
        user = {}
        if unprivileged is not None:
            os.chown(folder, unprivileged.pw_uid, unprivileged.pw_gid)
            user = {"user": unprivileged.pw_uid, "group": unprivileged.pw_gid, "extra_groups": []}
        initdb = [real_program("initdb"), "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run(initdb, cwd=folder, check=True, capture_output=True, timeout=PATIENCE_S, **user)
        settings = f"listen_addresses={host} port=5432 unix_socket_directories= ssl=off fsync=off shared_buffers=32MB"
        options = [word for setting in settings.split() for word in ("-c", setting)]
        server = start([real_program("postgres"), "-D", f"{folder}/data", *options], cwd=folder, **user)
        server.wait_until_it_says("ready to accept connections")
        yield host
        server.stop(signal.SIGINT)


def test_postgresql_is_recognised_and_its_lines_work(
    running: Callable, postgresql: str, real_program: Callable
) -> None:
    real_program("psql")
    quickstart = running("--service", f"orders-db={postgresql}:5432")
    assert re.search(r"alice by name +8 bytes sent, 1 received: N\n", quickstart.said)
    lines = printed_lines(quickstart.said)
    # psql 17 knows sslnegotiation; libpq 18 comes with psycopg.
    [_, conninfo] = shlex.split(lines["psql 17 and newer, by itself"])
    with psycopg.connect(conninfo) as connection:
        assert connection.execute("select 6 * 7").fetchone() == (42,)
    done = paste(f"{lines['any psql']} -Atc 'select 6 * 7'")
    assert done.stdout == "42\n", done.stderr
    assert paste(lines["bob is refused"]).returncode == 3
