"""Files that nobody but their owner may read: keys, passphrases, invitations."""

import os
import stat
from pathlib import Path


class NotSecret(Exception):
    """Others may read the file, whose `mode` is told."""

    def __init__(self, mode: int):
        self.mode = mode
        super().__init__(f"mode {mode:04o}")


class NotOurs(Exception):
    """The file is another user's, or a pipe, which anybody may have filled."""


def read_secret(path: Path, most_bytes: int = -1, *, ours: bool = False) -> bytes:
    """Read at most so many bytes of a file that nobody else may read, as ssh does: the very file that was looked at.

    -1 is all of it. `ours`: one that somebody else has made will not do. *Fails closed*: raises NotSecret for one that
    others may read, and NotOurs; and OSError.
    """
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        if ours and hasattr(os, "getuid") and (status.st_uid != os.getuid() or not stat.S_ISREG(status.st_mode)):
            raise NotOurs
        expect_secret(status)
        return stream.read(most_bytes)


def expect_secret(status: os.stat_result) -> None:
    """Raise NotSecret by the status of a file that others may read. *Fails closed*."""
    if _others_may_read(status):
        raise NotSecret(stat.S_IMODE(status.st_mode))


def _others_may_read(status: os.stat_result) -> bool:
    """Whether a file is open to others. One that root owns and shares with a group of ours is as root wants it."""
    if not hasattr(os, "getuid") or not stat.S_ISREG(status.st_mode):  # Windows: modes mean nothing; or a pipe
        return False
    ours = status.st_uid == os.getuid()
    return bool(status.st_mode & (0o077 if ours else 0o007))
