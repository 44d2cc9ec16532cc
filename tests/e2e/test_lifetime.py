"""How sessions, workers and the gateway end: timeouts, signals, and processes that are killed."""

import asyncio
import contextlib
import os
import re
import select
import signal
import socket
import ssl
import time

import pytest

from tests.half_closing import HalfClosing
from tests.patience import PATIENCE_S
from tests.unharmed import echoes, processes, unharmed, warm_up, workers


@pytest.fixture(scope="module")
def silent():
    """A service that takes connections, and neither reads, writes nor closes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def held(gateway, service="echo"):
    """A session of alice's that has moved three bytes each way."""
    client = gateway.connect(service)
    client.sendall(b"one")
    assert client.recv(10) == b"one"
    return client


def goes_on(client):
    client.sendall(b"two")
    return client.recv(10) == b"two"


# What went to the client is counted a moment after it has got it, a moment that a killed worker may not have had.
_TWICE = "received=6 sent=[36]"


def ends(client):
    """How a session ends that the client does not end: "cut" is what it can tell from a good end."""
    client.settimeout(PATIENCE_S)
    try:
        return "cut" if client.recv(10) else "end"
    except (ssl.SSLError, ConnectionResetError):
        return "cut"


def wait_until_ended(pids):
    """Wait until none of these processes is there any more."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            watch = os.pidfd_open(pid)
            try:
                assert select.select([watch], [], [], PATIENCE_S)[0], f"process {pid}: expected its end, got none"
            finally:
                os.close(watch)


# Timeouts.


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, echo, silent):
    services = {
        "echo": echo,
        "restless": f'upstream = ["{echo}"]\nidle = "2s"',
        "brief": echo,
        "silent": silent,
    }
    policy = """
[[roles]]
name = "short"
members = ["alice"]
services = ["brief"]
session = "1s"
[[roles]]
name = "team"
members = ["alice"]
services = ["*"]"""
    return start_gateway_for_module(services, policy=policy, configuration='[timeouts]\nhalf_close = "1s"')


@pytest.fixture
def hasty(shared):
    return shared.from_now()


def test_a_session_that_is_silent_for_too_long_is_cut(hasty):
    warm_up(hasty)
    with unharmed(hasty), held(hasty) as other, held(hasty, "restless") as client:
        assert ends(client) == "cut"
        assert goes_on(other)
        other.unwrap()
    hasty.wait_for_log("session.close .*service=restless .*received=3 sent=3 .*reason=idle_timeout")


def test_a_session_that_is_never_silent_for_so_long_goes_on(hasty):
    with held(hasty, "restless") as client:
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            assert goes_on(client)
            select.select([client], [], [], 0.2)
        client.unwrap()
    hasty.wait_for_log("session.close .*service=restless .*reason=client_closed")


async def test_a_session_half_closed_for_too_long_is_cut(hasty):
    warm_up(hasty)
    with unharmed(hasty):
        client = await HalfClosing.connect(hasty, "silent")
        with contextlib.closing(client):
            async with asyncio.timeout(PATIENCE_S):
                await client.send(b"hello")
                await client.finish()
                with pytest.raises(ConnectionAbortedError):
                    await client.receive()
    hasty.wait_for_log("session.close .*service=silent .*received=5 sent=0 .*reason=half_close_timeout")


def test_a_session_of_limited_length_is_cut_however_busy_it_is(hasty):
    warm_up(hasty)
    with unharmed(hasty), held(hasty) as other, held(hasty, "brief") as client:
        until = time.monotonic() + PATIENCE_S
        with contextlib.suppress(OSError):
            while goes_on(client):
                assert time.monotonic() < until
        assert goes_on(other)
        other.unwrap()
    hasty.wait_for_log("session.close .*service=brief role=short .*reason=session_timeout")


# Signals.


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT], ids=lambda sign: sign.name)
def test_a_gateway_that_nobody_uses_ends_at_once(start_gateway, echo, sign):
    gateway = start_gateway({"echo": echo})
    echoes(gateway)
    family = processes(gateway)
    gateway.program.process.send_signal(sign)
    assert gateway.program.process.wait(timeout=PATIENCE_S) == 0
    wait_until_ended(family)
    assert re.search("gateway.drain sessions=\\d\n.*gateway.stop exit_code=0\n$", gateway.log, re.DOTALL)
    assert " error " not in gateway.log


def test_sessions_go_on_while_the_gateway_drains_and_nobody_new_comes_in(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    family = processes(gateway)
    with held(gateway) as one, held(gateway) as two:
        gateway.program.process.send_signal(signal.SIGTERM)
        gateway.wait_for_log("gateway.drain sessions=2")
        gateway.program.wait_until(lambda: not _accepts(gateway), "it accepted no more")
        assert goes_on(one)
        one.unwrap()
        gateway.wait_for_log("session.close .*received=6 sent=6 .*reason=client_closed")
        assert goes_on(two)
        two.unwrap()
    assert gateway.program.process.wait(timeout=PATIENCE_S) == 0
    wait_until_ended(family)


def _accepts(gateway):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", gateway.port)) == 0


def test_a_session_that_outlasts_the_drain_is_cut_and_the_exit_code_says_so(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, configuration='[timeouts]\ndrain = "1s"')
    family = processes(gateway)
    with held(gateway) as client:
        gateway.program.process.send_signal(signal.SIGTERM)
        assert ends(client) == "cut"
    assert gateway.program.process.wait(timeout=PATIENCE_S) == 1
    wait_until_ended(family)
    assert re.search("session.close .*received=3 sent=3 .*reason=gateway_stopped", gateway.log)
    assert "gateway.stop exit_code=1" in gateway.log


def test_a_second_signal_does_not_wait_for_the_drain(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, configuration='[timeouts]\ndrain = "off"')
    with held(gateway) as client:
        gateway.program.process.send_signal(signal.SIGTERM)
        gateway.wait_for_log("gateway.drain sessions=1")
        assert goes_on(client)
        gateway.program.process.send_signal(signal.SIGTERM)
        assert ends(client) == "cut"
    assert gateway.program.process.wait(timeout=PATIENCE_S) == 1
    assert re.search("session.close .*received=6 sent=6 .*reason=gateway_stopped", gateway.log)


def test_a_third_signal_does_not_wait_for_what_is_still_under_way(start_gateway, silent):
    gateway = start_gateway({"silent": silent}, configuration='[timeouts]\ndrain = "off"')
    family = processes(gateway)
    with gateway.connect("silent") as client:
        gateway.wait_for_log("session.open ")
        gateway.program.process.send_signal(signal.SIGTERM)
        gateway.wait_for_log("gateway.drain sessions=1")
        gateway.program.process.send_signal(signal.SIGTERM)
        gateway.wait_for_log("session.close .*reason=gateway_stopped")
        gateway.program.process.send_signal(signal.SIGTERM)
        assert gateway.program.process.wait(timeout=PATIENCE_S) == 1
        wait_until_ended(family)
        assert ends(client) == "cut"


def test_many_sessions_that_are_cut_together_are_all_told_of_once(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, configuration='[timeouts]\ndrain = "0s"')
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(held(gateway)) for _ in range(300)]
        gateway.program.process.send_signal(signal.SIGTERM)
        assert {ends(client) for client in clients} == {"cut"}
    assert gateway.program.process.wait(timeout=PATIENCE_S) == 1
    closes = re.findall("session.close session=([0-9a-f]+) .*reason=gateway_stopped", gateway.log)
    assert len(closes) == len(set(closes)) == 300
    assert "worker_lost" not in gateway.log


# Processes that are killed.


def test_a_worker_that_is_killed_takes_only_its_own_sessions_along(start_gateway, echo):
    # A busy machine finds all of the connections below still waiting for their handshakes.
    capacity = "[capacity]\npending_handshakes_per_address = 200"
    gateway = start_gateway({"echo": echo}, configuration=capacity)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(held(gateway)) for _ in range(6)]
        assert all(map(goes_on, clients))
        victim = workers(gateway)[0]
        os.kill(victim, signal.SIGKILL)
        # Nobody is refused meanwhile: the sockets that listen are the supervisor's.
        for _ in range(100):
            socket.create_connection(("127.0.0.1", gateway.port)).close()
        gateway.wait_for_log(f"session.close .*identity=alice .*{_TWICE} .*reason=worker_lost", count=3)
        for _ in range(5):
            echoes(gateway)
        gateway.wait_for_log(f"worker.exit .*pid={victim} status=-9")
        fates = [ends(client) if _is_over(client) else "on" for client in clients]
        assert sorted(fates) == ["cut"] * 3 + ["on"] * 3
        for client, fate in zip(clients, fates, strict=True):
            if fate == "on":
                assert goes_on(client)
                client.unwrap()
        gateway.program.wait_until(lambda: len(workers(gateway)) == 2, "another worker came")
        assert victim not in workers(gateway)
    warm_up(gateway)
    assert gateway.log.count("worker_lost") == 3
    assert "connection.refuse" not in gateway.log
    assert gateway.program.stop() == 0


def _is_over(client):
    """Whether the connection has ended; the gateway, which lost the process, cannot have sent anything."""
    return bool(select.select([client], [], [], 0.5)[0])


def test_without_any_worker_clients_wait_for_the_next_one(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    for victim in workers(gateway):
        os.kill(victim, signal.SIGKILL)
    gateway.wait_for_log("worker.exit ", count=2)
    for _ in range(5):
        echoes(gateway)
    assert gateway.program.stop() == 0


def test_a_worker_that_dies_while_the_gateway_drains_makes_the_exit_code_tell(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    with held(gateway) as client:
        gateway.program.process.send_signal(signal.SIGTERM)
        gateway.wait_for_log("gateway.drain sessions=1")
        assert goes_on(client)
        for victim in workers(gateway):
            os.kill(victim, signal.SIGKILL)
        assert ends(client) == "cut"
    assert gateway.program.process.wait(timeout=PATIENCE_S) == 1
    assert re.search(f"session.close .*{_TWICE} .*reason=worker_lost", gateway.log)


def test_workers_do_not_outlive_their_supervisor(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    orphans = workers(gateway)
    with held(gateway) as client:
        os.kill(gateway.program.process.pid, signal.SIGKILL)
        assert ends(client) == "cut"
        wait_until_ended(orphans)


def test_workers_leave_signals_to_their_supervisor(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    with held(gateway) as client:
        for worker in workers(gateway):
            for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(worker, sign)
        assert goes_on(client)
        client.unwrap()
    assert "worker.exit" not in gateway.log
    assert gateway.program.stop() == 0
