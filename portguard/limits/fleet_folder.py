"""What a gateway of a fleet keeps for itself, in `state/fleet`: its id, and the last locks that it knew.

The locks are there for a start at which the shared ledger cannot be asked: they hold all the same.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path

from portguard.errors import ConfigurationError, Problem, because
from portguard.limits import state_folder
from portguard.limits.fleet import StampedLock, read_lock, written_lock

_ID = re.compile(r"[0-9a-f]{16}\n?", re.ASCII)
_BOOT_ID = "/proc/sys/kernel/random/boot_id"  # proc_sys_kernel(5)


class FleetFolder:
    """The folder at `path`, made if missing, for this process alone.

    Raises ConfigurationError, when made, for a place that cannot be used, and for files that portguard has not written.
    *Fails closed*: locks that cannot be read are an error, never none.
    """

    def __init__(self, path: str):
        self.path = path
        state_folder.make(Path(path))
        self._lock = state_folder.locked(f"{path}/lock")
        try:
            self.gateway = self._read_id()
            self.locks = self._read_locks()
        except BaseException:
            self.close()
            raise

    @property
    def holder(self) -> str:
        """What tells this gateway from one elsewhere that has got a copy of this folder, and so has the same id."""
        status = os.stat(f"{self.path}/id")
        boot = ""
        with contextlib.suppress(OSError):
            boot = Path(_BOOT_ID).read_text()
        text = "\n".join((boot, socket.gethostname(), self.path, str(status.st_dev), str(status.st_ino)))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def keep(self, locks: Iterable[StampedLock]) -> None:
        """Write the locks, on to the disk, in place of those that are there. Raises OSError."""
        content = json.dumps({"version": 1, "locks": [written_lock(lock) for lock in locks]})
        self._write("locks.json", content)

    def close(self) -> None:
        """Let another process have it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _read_id(self) -> str:
        path = Path(self.path, "id")
        try:
            if not path.exists():
                self._write("id", f"{secrets.token_hex(8)}\n")
            text = path.read_text("ascii", "replace")
        except OSError as error:
            raise _unusable(path, "the id of this gateway (gateway.state)", because(error)) from error
        if _ID.fullmatch(text) is None:
            raise _unusable(path, "16 hex digits, the id of this gateway (gateway.state)", f"{text[:40]!a}")
        return text.strip()

    def _read_locks(self) -> tuple[StampedLock, ...]:
        path = Path(self.path, "locks.json")
        expected = "the locks as portguard writes them (gateway.state)"
        try:
            content = json.loads(path.read_bytes())
            if content["version"] != 1:
                raise _unusable(path, "locks of version 1", f"version {content['version']!a:.40}")
            return tuple(read_lock(target, rest) for target, rest in content["locks"])
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise _unusable(path, expected, because(error)) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _unusable(path, expected, f"something else ({type(error).__name__})") from error

    def _write(self, name: str, content: str) -> None:
        temporary = f"{self.path}/{name}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, f"{self.path}/{name}")
        # Otherwise a power loss may take the name back to what was there before.
        state_folder.sync(self.path)


def _unusable(path: Path, expected: str, found: str) -> ConfigurationError:
    return ConfigurationError([Problem(str(path), "", expected, found)])
