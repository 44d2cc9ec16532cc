"""What a gateway says of its workers' confinement, where the kernel knows how to, and where a filter forbids it."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from portguard.gateway.confinement import landlock
from tests.e2e import conftest
from tests.gateway_folder import CONFIGURATION, GatewayFolder
from tests.held import portguard
from tests.patience import PATIENCE_S
from tests.unharmed import echoes, workers

# As a container may do it: landlock_create_ruleset(2) fails with EPERM. A filter of seccomp(2) in classic BPF.
_FORBID = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
code = struct.pack("=" + "HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 444, 0x06, 0, 0, 0x50001, 0x06, 0, 0, 0x7FFF0000)
memory = ctypes.create_string_buffer(code)
program = struct.pack("@HP", 4, ctypes.addressof(memory))
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_FORBIDDEN = "a filter of system calls forbids Landlock (Operation not permitted)"


# Runs portguard, in less patient time, where another folder is /etc.
_ELSEWHERE = """
from portguard.cli.main import main
from portguard.gateway import supervisor, workers
supervisor._TICK_S = workers._SETTLED_S = 0.1
main()
"""


@pytest.fixture
def etc(tmp_path, monkeypatch, real_program):
    """A folder that gateways see as /etc, with the host's files by which names are resolved."""
    namespace = [real_program("unshare"), "--mount", "--propagation", "private"]
    if os.geteuid() != 0 or subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs to be root, with a mount namespace of its own")
    folder = tmp_path / "etc"
    folder.mkdir()
    for name in ("hosts", "nsswitch.conf", "passwd", "group", "ld.so.cache"):
        if Path("/etc", name).exists():
            shutil.copy(Path("/etc", name), folder)
    run = f'mount --bind {folder} /etc && exec "$@"'
    program = (*namespace, "sh", "-c", run, "sh", sys.executable, "-P", "-c", _ELSEWHERE)
    monkeypatch.setattr(conftest, "PORTGUARD", program)
    return folder


@pytest.fixture
def forbidden(monkeypatch):
    """Have gateways start in such a container."""
    monkeypatch.setattr(conftest, "PORTGUARD", (sys.executable, "-P", "-c", _FORBID, *conftest.PORTGUARD[1:]))


def kill_one(gateway):
    victim = workers(gateway)[0]
    os.kill(victim, signal.SIGKILL)
    gateway.wait_for_log(f"worker.exit .*pid={victim} status=-9")
    gateway.program.wait_until(lambda: len(set(workers(gateway)) - {victim}) == 2, "another worker came")


@pytest.mark.skipif(landlock().abi is None, reason=str(landlock()))
def test_it_is_said_once_that_workers_are_confined_and_by_what(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, gateway='confinement = "required"')
    assert f"  confined by   {landlock()}\n" in portguard(gateway, "status")
    kill_one(gateway)
    for _ in range(4):
        echoes(gateway)
    assert gateway.log.count("workers.confined") == 1


@pytest.mark.skipif(landlock().abi is None, reason=str(landlock()))
def test_what_takes_the_place_of_the_hosts_file_is_read_by_workers_that_take_theirs(etc, start_gateway, echo):
    port = echo.rpartition(":")[2]
    gateway = start_gateway({"echo": echo} | {name: f"{name}.example:{port}" for name in ("one", "two")})
    hosts, before = etc / "hosts", workers(gateway)
    with hosts.open("a") as file:
        file.write("127.0.0.1 one.example\n")
    for _ in range(4):
        echoes(gateway, "one")
    assert workers(gateway) == before
    (etc / "new").write_text(hosts.read_text() + "127.0.0.1 two.example\n")
    with gateway.connect("echo") as client:
        (etc / "new").rename(hosts)
        gateway.wait_for_log("worker.replace workers=2 ")
        gateway.wait_for_log("worker.retired")  # the one without a session
        for _ in range(4):
            echoes(gateway, "two")
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
        client.unwrap()
    gateway.wait_for_log("worker.retired", count=2)
    assert set(workers(gateway)).isdisjoint(before)


def test_where_that_is_forbidden_it_serves_all_the_same_and_says_so_once(forbidden, start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    # In this process there is no filter: status tells what the gateway found.
    assert f"  confined by   NONE: {_FORBIDDEN}\n" in portguard(gateway, "status")
    kill_one(gateway)
    for _ in range(4):
        echoes(gateway)
    assert gateway.log.count("workers.") == gateway.log.count(f'workers.unconfined message="{_FORBIDDEN}"') == 1


def test_where_that_is_forbidden_and_required_it_does_not_serve(forbidden, tmp_path):
    folder = GatewayFolder(tmp_path)
    folder.write("portguard.toml", CONFIGURATION.replace("[trusts", 'confinement = "required"\n[trusts', 1))
    done = subprocess.run(
        [*conftest.PORTGUARD, "serve", "-c", folder.configuration],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f'gateway.confinement: expected a host with Landlock, as it is "required", got {_FORBIDDEN}' in done.stderr
