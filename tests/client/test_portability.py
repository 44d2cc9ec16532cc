import subprocess
import sys

import pytest

from tests.patience import PATIENCE_S

# Modules that Windows, or macOS, does not have.
UNIX_ONLY = ("uvloop", "resource", "pwd", "grp", "fcntl", "termios")


def imports(module: str) -> subprocess.CompletedProcess[str]:
    program = f"""
import sys
for name in {UNIX_ONLY!r}:
    sys.modules[name] = None
import os, signal, socket
for owner, name in ((os, "memfd_create"), (os, "MFD_CLOEXEC"), (signal, "SIGHUP"), (socket, "AF_UNIX")):
    delattr(owner, name)
import {module}
"""
    command = [sys.executable, "-P", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)


@pytest.mark.parametrize(
    "module",
    [
        "portguard.cli.cert",
        "portguard.cli.connect",
        "portguard.cli.doctor",
        "portguard.cli.enroll",
        "portguard.cli.renew",
        "portguard.cli.standing",
    ],
)
def test_a_clients_command_needs_nothing_that_other_platforms_lack(module: str) -> None:
    done = imports(module)
    assert done.returncode == 0, done.stderr


def test_the_gateway_does() -> None:
    assert imports("portguard.gateway.supervisor").returncode != 0
