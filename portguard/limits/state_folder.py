"""A folder in which a gateway keeps what it must not forget: made for it alone, and kept from a second gateway."""

import fcntl
import os
from pathlib import Path

from portguard.errors import ConfigurationError, Problem, because


def make(folder: Path) -> None:
    """Make the folder, and what is missing above it, for the gateway alone. Raises ConfigurationError."""
    try:
        for path in (*reversed(folder.parents), folder):
            if not path.exists():
                path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        expected = "a folder that can be written (gateway.state)"
        raise ConfigurationError([Problem(str(folder), "", expected, because(error))]) from error


def locked(path: str) -> int:
    """Keep other gateways away for as long as the returned descriptor is open. Raises ConfigurationError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        found = "one that does" if isinstance(error, BlockingIOError) else because(error)
        expected = "a file that can be written, and no other gateway that uses it (gateway.state)"
        raise ConfigurationError([Problem(path, "", expected, found)]) from error
    return descriptor


def sync(folder: str) -> None:
    """Have names that were given in the folder survive a power loss. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
