"""Services that nobody here wrote, for the modules that reach them through a gateway; each module has its own.

The fixtures are `postgresql`, `redis`, `sshd` and `ssh_keys`; conftest.py makes them known.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest

from tests.patience import PATIENCE_S

# Compiled into sshd: without this folder it does not start as root.
_PRIVILEGE_SEPARATION = Path("/run/sshd")


class PostgreSQL:
    """A server with trusting authentication, and a folder that it can write to."""

    def __init__(self, port, folder):
        self.port = port
        self.folder = folder

    def query(self, statement):
        """The rows, asked for without a gateway."""
        with psycopg.connect(f"host=127.0.0.1 port={self.port} user=postgres", autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else None


@pytest.fixture(scope="module")
def postgresql(start_for_module, free_port, real_program, unprivileged):
    # Not below pytest's own folder, which is closed to the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="portguard-postgresql-"))
    as_user = {}
    if unprivileged is not None:
        os.chown(folder, unprivileged.pw_uid, unprivileged.pw_gid)
        as_user = {"user": unprivileged.pw_uid, "group": unprivileged.pw_gid, "extra_groups": []}
    data, port = folder / "data", free_port()
    initdb = [real_program("initdb"), "--pgdata", str(data), "--username", "postgres", "--auth", "trust"]
    try:
        subprocess.run(
            [*initdb, "--no-sync", "--no-locale", "--encoding", "UTF8"],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=PATIENCE_S,
            **as_user,
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "ssl": "off",
            "fsync": "off",
            "max_wal_size": "2GB",  # no checkpoint while a test runs
            "shared_buffers": "32MB",
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        server = start_for_module([real_program("postgres"), "-D", str(data), *options], cwd=folder, **as_user)
        server.wait_until_it_says("database system is ready to accept connections")
        yield PostgreSQL(port, folder)
        server.stop(signal.SIGINT)  # it does not wait for clients then
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def redis(start_for_module, free_port, real_program):
    """The address of a Redis."""
    port = free_port()
    server = start_for_module([real_program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""])
    server.wait_until_it_listens(("127.0.0.1", port))
    return f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def ssh_keys(tmp_path_factory, real_program):
    """A folder with a host key and a user's key."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("host", "user"):
        subprocess.run(
            [real_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)],
            check=True,
            timeout=PATIENCE_S,
        )
    return folder


@pytest.fixture(scope="module")
def sshd(start_for_module, free_port, real_program, ssh_keys):
    """The address of an sshd that lets in whoever runs the tests, with the user's key and nothing else."""
    port = free_port()
    configuration = ssh_keys / "sshd_config"
    configuration.write_text(
        f"""
ListenAddress 127.0.0.1:{port}
HostKey {ssh_keys}/host
AuthorizedKeysFile {ssh_keys}/user.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""
    )
    if os.geteuid() == 0:
        # Left behind: other runs of these tests may be using it.
        _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
    server = start_for_module([real_program("sshd"), "-D", "-e", "-f", str(configuration)])
    server.wait_until_it_listens(("127.0.0.1", port))
    return f"127.0.0.1:{port}"
