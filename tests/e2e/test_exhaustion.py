"""A gateway that has no place left: it says so, keeps what it has, and goes on once there is room again."""

import contextlib
import os
import re
import resource
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.unharmed import echoes, unharmed, warm_up, workers


def held(gateway):
    """A session of alice's."""
    client = gateway.connect("echo")
    client.sendall(b"one")
    assert client.recv(10) == b"one"
    return client


def goes_on(client):
    client.sendall(b"two")
    return client.recv(10) == b"two"


def connect_answer(gateway):
    """What CONNECT answers, up to the end of what came first."""
    with gateway.connect_with(gateway.context("alice"), None) as client:
        client.sendall(b"CONNECT echo HTTP/1.1\r\nHost: echo\r\n\r\n")
        answer = client.recv(65536)
        if answer.startswith(b"HTTP/1.1 200 "):
            client.unwrap()
        return answer


def test_beyond_the_last_place_clients_are_refused_until_one_is_free(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, configuration="[capacity]\nmax_sessions = 4")
    warm_up(gateway)
    with unharmed(gateway), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(held(gateway)) for _ in range(4)]
        answer = connect_answer(gateway)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nPortguard-Reason: gateway_full\r\n" in answer
        with gateway.connect("echo") as refused, pytest.raises(ssl.SSLError):
            refused.recv(1)
        gateway.wait_for_log("session.refuse .*identity=alice .*service=echo reason=gateway_full", count=2)
        assert all(map(goes_on, clients))
        clients[0].unwrap()
        gateway.wait_for_log("session.close .*received=6 sent=6 ")
        gateway.program.wait_until(
            lambda: connect_answer(gateway).startswith(b"HTTP/1.1 200 "), "the place that was given back was taken"
        )
        for client in clients[1:]:
            assert goes_on(client)
            client.unwrap()


def limited(files, *argv):
    """A command that runs with that many open files at most."""
    return ["/bin/sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *argv]


def test_a_capacity_that_the_system_has_no_room_for_is_an_error_at_the_start(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, configuration="[capacity]\nmax_sessions = 1000")
    configuration = str(gateway.folder / "portguard.toml")
    gateway.program.stop()
    command = limited(3000, sys.executable, "-P", "-m", "portguard", "serve", "-c", configuration)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert re.search(
        r"portguard\.toml: capacity\.max_sessions: expected at most 700, .* limit of 3000 open files .*, got 1000\n",
        done.stderr,
    )
    assert "Traceback" not in done.stderr
    assert "gateway.listen" not in done.stderr


def test_the_limit_of_open_files_is_raised_to_what_the_system_allows(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for pid in (gateway.program.process.pid, *workers(gateway)):
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)


# Descriptors that run out.


@contextlib.contextmanager
def out_of_descriptors(*pids, free=0):
    """Leave each of these processes room for `free` descriptors more, for the length of the block."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
    for pid, (_, hard) in before.items():
        taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        room = [number for number in range(len(taken) + free + 1) if number not in taken]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (room[free], hard))
    yield
    for pid, limits in before.items():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def test_a_supervisor_without_a_descriptor_pauses_and_then_goes_on(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    warm_up(gateway)
    with unharmed(gateway), held(gateway) as client:
        with out_of_descriptors(gateway.program.process.pid):
            waiting = socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S)
            gateway.wait_for_log("gateway.accept_paused .*Too many open files", count=2)
            assert goes_on(client)
        # Who waited in the queue is served, and was not turned away.
        with waiting, gateway.context("alice").wrap_socket(waiting, server_hostname="echo.gw.localhost") as late:
            late.sendall(b"hello")
            assert late.recv(10) == b"hello"
            late.unwrap()
        assert goes_on(client)
        client.unwrap()
    assert len(re.findall("gateway.accept_paused", gateway.log)) < 10  # once a second, and no busy loop


def test_a_paused_supervisor_does_not_burn_the_processor(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    pid = gateway.program.process.pid
    with (
        out_of_descriptors(pid),
        socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S),
    ):
        gateway.wait_for_log("gateway.accept_paused ")
        before = _cpu_ticks(pid)
        gateway.wait_for_log("gateway.accept_paused ", count=3)
        assert _cpu_ticks(pid) - before < 0.5 * os.sysconf("SC_CLK_TCK")


def _cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_worker_without_a_descriptor_turns_new_clients_away_and_keeps_the_others(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    warm_up(gateway)
    with unharmed(gateway), held(gateway) as one, held(gateway) as two:
        with out_of_descriptors(*workers(gateway)):
            for _ in range(4):
                with pytest.raises(OSError, match=r"EOF|reset"):
                    gateway.connect("echo")
            gateway.wait_for_log("connection.refuse source=127.0.0.1 reason=gateway_full .*descriptor", count=4)
            assert goes_on(one)
            assert goes_on(two)
        for client in (one, two):
            assert goes_on(client)
            client.unwrap()


def test_a_worker_without_a_descriptor_for_the_service_says_that_it_is_full(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    warm_up(gateway)
    gateway.wait_for_log("session.close ", count=4)  # or their descriptors would become free too
    with unharmed(gateway):
        with out_of_descriptors(*workers(gateway), free=1):
            answer = connect_answer(gateway)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nPortguard-Reason: gateway_full\r\n" in answer
        gateway.wait_for_log("session.refuse .*service=echo reason=gateway_full")


def test_a_worker_that_cannot_be_replaced_for_want_of_descriptors_is_replaced_later(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    victims = workers(gateway)
    with out_of_descriptors(gateway.program.process.pid):
        for victim in victims:
            os.kill(victim, 9)
        gateway.wait_for_log("worker.start_failed .*Too many open files")
    gateway.program.wait_until(lambda: len(workers(gateway)) == len(victims), "the workers were replaced")
    echoes(gateway)
    assert "Traceback" not in re.sub('"(\\\\.|[^"\\\\])*"', "", gateway.log)
    assert gateway.program.stop() == 0
