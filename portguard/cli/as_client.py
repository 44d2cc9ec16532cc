"""What the commands of a gateway's clients share: the profile's credentials, and the loop they run in."""

import asyncio
import getpass
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

from portguard.cli.rendering import printable
from portguard.client.credentials import Credentials, read_credentials
from portguard.client.profile import profile_path, read_profile
from portguard.errors import UsageError

_T = TypeVar("_T")


def credentials_of(profile_name: str | None) -> Credentials:
    """Return the credentials of a profile, as `--profile` names it. Raises UsageError and ConfigurationError.

    The passphrase of an encrypted key is asked for on the terminal where the profile names no file for it.
    """
    return read_credentials(read_profile(profile_path(profile_name, os.environ)), _ask_passphrase)


def run(main: Coroutine[None, None, _T]) -> _T:
    """Run a command's coroutine to its end."""
    # The one loop that watches sockets of its caller on every platform.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(main)


def _ask_passphrase(path: Path) -> str:
    # Without a terminal, getpass would read standard input, which in a ProxyCommand is ssh's.
    if not _has_terminal():
        raise UsageError(
            f"{path}: expected key_passphrase_file in the profile, as the key is encrypted and there is no terminal to "
            "ask, got none"
        )
    return getpass.getpass(f"Passphrase of {printable(str(path))}: ")


def _has_terminal() -> bool:
    if os.name == "nt":
        return sys.stdin.isatty()
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
