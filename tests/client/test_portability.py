import subprocess
import sys

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
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_connect_needs_nothing_that_other_platforms_lack() -> None:
    done = imports("portguard.cli.connect")
    assert done.returncode == 0, done.stderr


def test_the_gateway_does() -> None:
    assert imports("portguard.gateway.supervisor").returncode != 0
