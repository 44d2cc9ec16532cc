"""ssh and scp reach a real sshd through `portguard connect --stdio` as their ProxyCommand."""

import hashlib
import os
import pwd
import re
import shlex
import subprocess
import sys

import pytest

from tests.patience import PATIENCE_S
from tests.profiles import write_profile

_PORTGUARD = (sys.executable, "-P", "-m", "portguard")
_BIG = 100 * 1000 * 1000
_SESSIONS = 12


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, sshd):
    return start_gateway_for_module({"shell": f'upstream = ["{sshd}"]\nlocal_port = 22'})


@pytest.fixture
def gateway(shared):
    return shared.from_now()


@pytest.fixture
def over_ssh(gateway, ssh_keys, real_program, tmp_path):
    """`over_ssh(name, program, *words)` runs ssh or scp as the client `name`; "shell" is the host."""

    def run(name, program, *words):
        profile = write_profile(gateway, name, tmp_path)
        proxy = shlex.join([*_PORTGUARD, "connect", "--stdio", "shell", "--profile", str(profile)])
        known_hosts = tmp_path / "known_hosts"
        known_hosts.write_text(f"shell {ssh_keys.joinpath('host.pub').read_text()}")
        configuration = tmp_path / "ssh_config"
        configuration.write_text(
            f"""
Host shell
  User {pwd.getpwuid(os.geteuid()).pw_name}
  ProxyCommand {proxy}
  IdentityFile {ssh_keys}/user
  IdentitiesOnly yes
  IdentityAgent none
  BatchMode yes
  UserKnownHostsFile {known_hosts}
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  Ciphers aes128-gcm@openssh.com
"""
        )
        return subprocess.run(
            [real_program(program), "-F", str(configuration), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    return run


def test_a_command_runs_on_the_other_side(gateway, over_ssh):
    done = over_ssh("alice", "ssh", "shell", "echo hello; echo oops >&2; exit 7")
    assert done.stdout == "hello\n"
    assert done.stderr == "oops\n"
    assert done.returncode == 7
    gateway.wait_for_log("session.open .*identity=alice .*service=shell ")
    gateway.wait_for_log("session.close .*service=shell ")


@pytest.mark.parametrize("program", ["ssh", "scp"])
def test_a_client_without_a_role_reads_the_reason(gateway, over_ssh, tmp_path, program):
    target = tmp_path / "target"
    words = ["shell", f"touch {target}"] if program == "ssh" else ["/etc/hostname", f"shell:{target}"]
    done = over_ssh("bob", program, *words)
    assert done.returncode == 255
    assert "no_role" in done.stderr
    assert done.stdout == ""
    assert not target.exists()
    gateway.wait_for_log("session.refuse .*identity=bob .*service=shell reason=no_role")


def test_standard_input_closes_through_the_tunnel(gateway, over_ssh):
    # `cat` ends only when the end of its input has come through; then its last words come back.
    done = over_ssh("alice", "ssh", "shell", "cat; echo the end")
    assert (done.returncode, done.stdout) == (0, "the end\n")


def _digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_scp_carries_100_mb_unchanged_each_way(gateway, over_ssh, tmp_path):
    original, there, back = tmp_path / "original", tmp_path / "there", tmp_path / "back"
    original.write_bytes(os.urandom(_BIG))
    up = over_ssh("alice", "scp", str(original), f"shell:{there}")
    assert up.stderr == ""
    assert up.returncode == 0
    digest = _digest(original)
    assert _digest(there) == digest
    # Else the way back could be a file that was there already.
    original.unlink()
    down = over_ssh("alice", "scp", f"shell:{there}", str(back))
    assert down.stderr == ""
    assert down.returncode == 0
    assert _digest(back) == digest
    # The transport of ssh puts something on top.
    gateway.wait_for_log(r"session.close .*service=shell .*received=10\d{7} ")
    gateway.wait_for_log(r"session.close .*service=shell .* sent=10\d{7} ")


def test_ssh_that_ends_ends_its_session_in_order(gateway, over_ssh):
    # ssh closes the pipes of its ProxyCommand and sends it SIGHUP at the same moment; either may arrive first.
    for _ in range(_SESSIONS):
        assert over_ssh("alice", "ssh", "shell", "echo hello").stdout == "hello\n"
    gateway.wait_for_log("session.close .*service=shell ", count=_SESSIONS)
    reasons = [re.search(r"session\.close .* reason=(\w+)", line) for line in gateway.log.splitlines()]
    assert "client_truncated" not in {found[1] for found in reasons if found}
