"""The lock of a directory, by which commands that change an authority take turns."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from portguard.pki.files import reported


@contextlib.contextmanager
def locked(directory: Path, *, taken: Exception | None = None) -> Iterator[int]:
    """Hold the lock of a directory, whose descriptor this yields; a crash ends it. Raises PkiError.

    Where somebody else holds it, this waits, or raises `taken` unless that is None.
    """
    with reported(directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if taken is None else fcntl.LOCK_NB))
        except BlockingIOError as error:
            assert taken is not None
            raise taken from error
        yield descriptor
    finally:
        os.close(descriptor)
