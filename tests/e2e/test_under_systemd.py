"""portguard.service and portguard.socket, unchanged, under a systemd that runs them: what they promise holds there."""

import compileall
import pwd
import re
import shutil
import ssl
import sys
import sysconfig
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from portguard.pki.authority import Authority
from tests.patience import PATIENCE_S
from tests.systemd_machine import Machine, booted
from tests.trusting import trusting

_REPOSITORY = Path(__file__).parents[2]
_NAME = "bastion.example.com"  # as in systemd/portguard.toml
_SERVICE = "portguard.service"
_PASSPHRASE = "portguard.gateway-key-passphrase"
_HOWTO = (_REPOSITORY / "docs/howto/run-under-systemd.md").read_text()

# What `make install` makes of this environment, where tests/e2e/test_install.py needs an index to install from.
_PROGRAM = """#!/bin/sh
here=/usr/local/lib/portguard
export PYTHONPATH=$here/program:$here/libraries LD_LIBRARY_PATH=$here/python/lib
exec $here/python/bin/{python} -P -m portguard "$@"
"""
_ECHO = "[Service]\nExecStart=cat\nStandardInput=socket\nStandardOutput=socket\n"
_POLICY = """
[services.tcp]
upstream = ["127.0.0.1:7"]
[services.unix]
upstream = ["unix:/run/echo"]
[[roles]]
name = "team"
members = ["alice"]
services = ["*"]
"""


@dataclass(frozen=True)
class Gateway:
    """The gateway that the machine's portguard.service is."""

    machine: Machine
    context: ssl.SSLContext

    @property
    def pid(self) -> int:
        """The supervisor, by its number on the machine."""
        return int(self.machine.shows(_SERVICE, "MainPID"))

    def connect(self, service: str = "tcp") -> ssl.SSLSocket:
        sock = self.machine.connect("127.0.0.1", 8443)
        try:
            return self.context.wrap_socket(sock, server_hostname=f"{service}.{_NAME}", suppress_ragged_eofs=False)
        except BaseException:
            sock.close()
            raise

    def has_echoed(self, service: str) -> None:
        with self.connect(service) as client:
            echoes(client)
            client.unwrap()

    def write_policy(self, text: str) -> None:
        (self.machine.root / "etc/portguard/policy.toml").write_text(text)


def echoes(client: ssl.SSLSocket) -> None:
    client.sendall(b"hello")
    assert client.recv(100) == b"hello"


def lay_out(tree: Path, folder: Path) -> None:
    """Put into `tree` what `make install` does, the certificates, and what the how-to says to edit."""
    for name in ("portguard.service", "portguard.socket"):
        _copy(_REPOSITORY / "systemd" / name, tree / "usr/local/lib/systemd/system" / name)
    _copy(_REPOSITORY / "systemd/portguard.sysusers", tree / "usr/local/lib/sysusers.d/portguard.conf")
    _copy(_REPOSITORY / "systemd/portguard.toml", tree / "etc/portguard/portguard.toml")
    package = tree / "usr/local/lib/portguard/program/portguard"
    shutil.copytree(_REPOSITORY / "portguard", package)
    compileall.compile_dir(package, quiet=1)  # as pip does; the gateway cannot write there
    program = tree / "usr/local/bin/portguard"
    program.parent.mkdir()
    program.write_text(_PROGRAM.format(python=f"python{sys.version_info.major}.{sys.version_info.minor}"))

    now = datetime.now(UTC)
    authority = Authority.create(folder / "ca", trust_domain=_NAME, at=now - timedelta(minutes=1))
    authority.issue_client("alice", at=now).write(folder, "alice")
    authority.issue_gateway([_NAME, f"*.{_NAME}"], at=now).write(folder, "gateway")
    _copy(folder / "ca/ca.crt", tree / "etc/portguard/tls/ca.crt")
    _copy(folder / "gateway.crt", tree / "etc/portguard/tls/gateway.crt")
    (tree / "etc/portguard/policy.toml").write_text(_POLICY)
    units = tree / "etc/systemd/system"
    units.mkdir(parents=True)
    (units / "echo@.service").write_text(_ECHO)
    (units / "echo.socket").write_text("[Socket]\nListenStream=127.0.0.1:7\nListenStream=/run/echo\nAccept=yes\n")
    (units / f"{_SERVICE}.d").mkdir()
    (units / f"{_SERVICE}.d/sooner.conf").write_text("[Service]\nRestartSec=50ms\n")

    for path in (tree, *tree.rglob("*")):  # whatever this process has for a umask
        path.chmod(0o755 if path.is_dir() or path == program else 0o644)
    key = load_pem_private_key((folder / "gateway.key").read_bytes(), None)
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"six random words"))
    (tree / "root").mkdir(mode=0o700)
    (tree / "root/gateway.key").write_bytes(encrypted)
    credential = tree / "etc/credstore" / _PASSPHRASE
    credential.parent.mkdir(mode=0o700)
    credential.write_text("six random words\n")
    credential.chmod(0o600)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, real_program):
    folder = tmp_path_factory.mktemp("machine")
    tree = folder / "tree"
    lay_out(tree, folder)
    context = trusting(cafile=str(folder / "ca/ca.crt"))
    context.load_cert_chain(folder / "alice.crt", folder / "alice.key")
    binds = {
        Path(sys.base_prefix): "usr/local/lib/portguard/python",
        Path(sysconfig.get_path("purelib")): "usr/local/lib/portguard/libraries",
    }
    for path in binds:
        if path.stat().st_mode & 0o005 != 0o005:
            pytest.skip(f"{path}: expected a folder that the account of the gateway can read, got one that it cannot")
    with booted(folder, tree, binds, real_program) as machine:
        machine.run("systemd-sysusers")
        machine.run("install", "-g", "portguard", "-m", "640", "/root/gateway.key", "/etc/portguard/tls/")
        machine.run("systemctl", "start", "echo.socket", _SERVICE)
        yield Gateway(machine, context)


@pytest.fixture
def machine(gateway):
    """The machine, with the gateway serving by itself."""
    gateway.machine.run("systemctl", "start", _SERVICE)
    return gateway.machine


def test_start_returns_once_it_serves(machine, gateway):
    assert re.fullmatch(r"serving, \d+ sessions, (\d+) of \1 workers", machine.shows(_SERVICE, "StatusText"))
    for service in ("tcp", "unix"):
        gateway.has_echoed(service)


def test_all_its_processes_have_no_right_but_those_of_an_account(machine, gateway):
    group = machine.shows(_SERVICE, "ControlGroup")
    pids = (machine.root / f"sys/fs/cgroup{group}/cgroup.procs").read_text().split()
    assert len(pids) > 1
    for pid in pids:  # by their numbers here, as this process asks
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert "0" not in status["Uid"].split()
        assert {status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_members_of_its_group_operate_it_and_others_do_not(machine, gateway):
    nobody = pwd.getpwnam("nobody")
    account = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--init-groups"]
    assert "expected a socket that you may connect to" in machine.run(*account, "portguard", "status", status=4)
    groups = machine.root / "etc/group"
    groups.write_text(re.sub("^(portguard:.*:)$", r"\1nobody", groups.read_text(), flags=re.MULTILINE))
    assert machine.run(*account, "portguard", "status").startswith("SERVING\n")


def test_the_passphrase_of_its_key_is_a_credential_and_can_be_lent_to_a_check(machine, gateway):
    [words] = re.findall(r"^\$ sudo (CREDENTIALS_DIRECTORY=\S+ portguard .*)$", _HOWTO, re.MULTILINE)
    lent, *command = words.split()
    assert "expected a private key without a passphrase" in machine.run(*command, status=2)
    assert "ok, 2 services" in machine.run("env", lent, *command)


def test_reload_returns_once_it_is_in_force(machine, gateway):
    gateway.write_policy(_POLICY + '[services.new]\nupstream = ["unix:/run/echo"]\n')
    machine.run("systemctl", "reload", _SERVICE)
    gateway.has_echoed("new")


def test_reload_fails_when_something_is_wrong_and_nothing_changes(machine, gateway):
    gateway.write_policy("wrong\n")
    try:
        machine.run("systemctl", "reload", _SERVICE, status=1)
    finally:
        gateway.write_policy(_POLICY)
    assert "/etc/portguard/policy.toml: expected TOML" in machine.log
    assert machine.shows(_SERVICE, "ActiveState") == "active"
    gateway.has_echoed("tcp")


def test_another_version_takes_over_and_systemd_knows_it(machine, gateway):
    pid = gateway.pid
    with gateway.connect() as client:
        echoes(client)
        assert "has taken over" in machine.run("portguard", "reexec")
        gateway.has_echoed("tcp")
        # It waits for what systemd believes to be a reload.
        machine.run("systemctl", "reload", _SERVICE)
        assert (gateway.pid, machine.shows(_SERVICE, "ActiveState")) == (pid, "active")
        echoes(client)
        client.unwrap()


def test_stop_waits_for_sessions(machine, gateway):
    with gateway.connect() as client:
        echoes(client)
        with machine.start("systemctl", "stop", _SERVICE) as stop:
            machine.wait_until(lambda: "draining" in machine.shows(_SERVICE, "StatusText"), "a drain")
            echoes(client)
            assert stop.poll() is None
            client.unwrap()
            said, _ = stop.communicate(timeout=PATIENCE_S)
    assert (stop.returncode, said) == (0, "")
    assert machine.shows(_SERVICE, "Result") == "success"
    with pytest.raises(ConnectionRefusedError):
        machine.connect("127.0.0.1", 8443)


def test_systemd_listens_and_clients_wait_while_it_starts_and_when_it_was_killed(gateway):
    machine = gateway.machine
    machine.run("systemctl", "stop", _SERVICE)
    machine.run("systemctl", "start", "portguard.socket")
    gateway.has_echoed("tcp")
    machine.run("systemctl", "start", _SERVICE)
    pid = gateway.pid
    machine.run("kill", "-KILL", str(pid))
    gateway.has_echoed("tcp")
    machine.run("systemctl", "start", _SERVICE)
    assert (gateway.pid == pid, machine.shows(_SERVICE, "NRestarts")) == (False, "1")
    [words] = re.findall(r"^\$ sudo (systemctl stop .* .*)$", _HOWTO, re.MULTILINE)
    machine.run(*words.split())
    with pytest.raises(ConnectionRefusedError):
        machine.connect("127.0.0.1", 8443)
