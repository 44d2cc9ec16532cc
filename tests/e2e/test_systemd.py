"""What systemd sees of the gateway, and what the gateway makes of the sockets that systemd hands it."""

import os
import signal
import socket
import sys
import threading
import time
import urllib.request

import pytest

from tests.patience import PATIENCE_S
from tests.unharmed import echoes, workers

# What systemd does between fork() and exec(): the first socket is descriptor 3, and the variables name this process.
_HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": sys.argv[2]}
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """The socket that a service manager would listen on, in the environment of what starts from now on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def hear(manager, wanted):
    """The messages up to the first one with the line `wanted`."""
    messages = []
    while not messages or wanted not in messages[-1].split("\n"):
        messages.append(manager.recv(4096).decode())
    return messages


def environment_of(pid):
    with open(f"/proc/{pid}/environ", "rb") as file:
        return {entry.partition(b"=")[0].decode() for entry in file.read().split(b"\0")}


def test_systemd_is_told_when_it_serves_and_when_it_ends(manager, start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    [*before, ready] = hear(manager, "READY=1")
    assert ready == "READY=1\nSTATUS=serving, 0 sessions, 2 of 2 workers"
    assert all(message.startswith("STATUS=") for message in before)
    with gateway.connect("echo") as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        hear(manager, "STATUS=serving, 1 sessions, 2 of 2 workers")
        gateway.program.process.send_signal(signal.SIGTERM)
        [*between, last] = hear(manager, "STOPPING=1")
        assert last == "STOPPING=1\nSTATUS=draining, 1 sessions left"
        assert "READY=1" not in "\n".join(between)
        assert hear(manager, "EXTEND_TIMEOUT_USEC=60000000")
        client.unwrap()
    assert gateway.program.process.wait(PATIENCE_S) == 0


def test_what_is_meant_for_another_process_is_not_answered_and_workers_cannot_speak(
    manager, start_gateway, echo, monkeypatch
):
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    gateway = start_gateway({"echo": echo})
    for pid in workers(gateway):
        assert environment_of(pid).isdisjoint({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})
    gateway.program.stop()
    assert "WATCHDOG=1" not in hear(manager, "STOPPING=1")


def test_keep_alives_stop_while_no_worker_works(manager, start_gateway, echo, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    gateway = start_gateway({"echo": echo})
    hear(manager, "READY=1")
    hear(manager, "WATCHDOG=1")
    one, two = workers(gateway)
    os.kill(one, signal.SIGSTOP)
    for _ in range(7):  # one worker is enough, for longer than a missing beat is forgiven
        hear(manager, "WATCHDOG=1")
    os.kill(two, signal.SIGSTOP)
    manager.settimeout(4.0)  # twice the interval: systemd would have acted
    with pytest.raises(TimeoutError):
        hear(manager, "nothing more")
    manager.settimeout(PATIENCE_S)
    for pid in (one, two):
        os.kill(pid, signal.SIGCONT)
    hear(manager, "WATCHDOG=1")
    echoes(gateway)


@pytest.fixture
def start_again(start, start_gateway, echo):
    """`start_again(sock, name)`: a gateway that was handed `sock` under that name; it can be called again."""
    gateway = start_gateway({"echo": echo})
    gateway.program.stop()

    def run(sock, name="gateway"):
        program = start(
            [
                *(sys.executable, "-c", _HAND_OVER, str(sock.fileno()), name),
                *(sys.executable, "-P", "-m", "portguard", "serve", "-c", str(gateway.folder / "portguard.toml")),
            ],
            pass_fds=(sock.fileno(),),
        )
        gateway.program, gateway.port = program, sock.getsockname()[1]
        return gateway

    return run


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0), backlog=512) as sock:
        yield sock


def test_a_socket_that_is_handed_over_is_served_and_kept_from_the_workers(start_again, listening):
    gateway = start_again(listening)
    gateway.program.wait_until_it_says("gateway.ready")
    assert f"gateway.listen address=127.0.0.1:{gateway.port}\n" in gateway.log
    echoes(gateway)
    for pid in workers(gateway):
        assert environment_of(pid).isdisjoint({"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"})
        inherited = {os.readlink(entry) for entry in os.scandir(f"/proc/{pid}/fd") if os.path.islink(entry)}
        assert f"socket:[{os.fstat(listening.fileno()).st_ino}]" not in inherited


def test_a_socket_for_metrics_is_handed_over_by_name(start_again, listening):
    start_again(listening, "metrics").program.wait_until_it_says("gateway.ready")
    with urllib.request.urlopen(f"http://127.0.0.1:{listening.getsockname()[1]}/readyz", timeout=PATIENCE_S) as answer:
        assert answer.read() == b"ready\n"


def test_a_socket_that_nothing_is_configured_for_ends_it(start_again, listening):
    program = start_again(listening, "portguard.socket").program
    assert program.process.wait(PATIENCE_S) == 2
    assert program.said.splitlines()[-1] == (
        "portguard: socket activation: descriptor 3 (portguard.socket): expected an address that the configuration "
        f"listens on, got 127.0.0.1:{listening.getsockname()[1]}"
    )


class _Clients(threading.Thread):
    """Clients, one after the other, of whom each has bytes echoed."""

    def __init__(self, gateway):
        super().__init__(name="clients")
        self.gateway = gateway
        self.context = gateway.context("alice")
        self.served = 0
        self.errors = []
        self.over = threading.Event()

    def run(self):
        while not self.over.is_set():
            try:
                with self.gateway.connect_with(self.context, "echo") as client:
                    client.sendall(b"hello")
                    assert client.recv(100) == b"hello"
                    client.unwrap()
            except Exception as error:  # noqa: BLE001  # whatever it is, the test shows it
                self.errors.append(error)
            else:
                self.served += 1

    def wait_until_served(self, count):
        deadline = time.monotonic() + PATIENCE_S
        while self.served < count and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.served >= count


def test_a_restart_refuses_no_connection(start_again, listening):
    gateway = start_again(listening)
    gateway.program.wait_until_it_says("gateway.ready")
    clients = [_Clients(gateway) for _ in range(4)]
    for thread in clients:
        thread.start()
    try:
        for _ in range(3):
            for thread in clients:
                thread.wait_until_served(thread.served + 10)
            assert gateway.program.stop() == 0
            gateway = start_again(listening)
        for thread in clients:
            thread.wait_until_served(thread.served + 10)
    finally:
        for thread in clients:
            thread.over.set()
        for thread in clients:
            thread.join(PATIENCE_S)
    assert [error for thread in clients for error in thread.errors] == []


def test_systemd_socket_activate_starts_it(start, start_gateway, echo, real_program, free_port):
    gateway = start_gateway({"echo": echo})
    gateway.program.stop()
    gateway.port = free_port()
    command = [sys.executable, "-P", "-m", "portguard", "serve", "-c", str(gateway.folder / "portguard.toml")]
    activate = [real_program("systemd-socket-activate"), "--fdname=gateway", f"--listen=127.0.0.1:{gateway.port}"]
    gateway.program = start([*activate, *command])
    gateway.program.wait_until_it_says("Listening on")
    echoes(gateway)
    gateway.program.wait_until_it_says(f"gateway.listen address=127.0.0.1:{gateway.port}\n")
    assert gateway.program.stop() == 0
