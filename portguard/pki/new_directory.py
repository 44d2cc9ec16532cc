"""The directory of an authority in the making: for one command alone, and as it was before where that fails."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from portguard.pki import files
from portguard.pki.ca_certificates import ROOTS
from portguard.pki.directory_lock import locked
from portguard.pki.errors import PkiError


@contextlib.contextmanager
def claimed(directory: Path, *, must_be_empty: bool) -> Iterator[contextlib.ExitStack]:
    """Make `directory` (0700) and keep others that do the same out; yields what is undone when the block raises.

    Does not wait for others, so two that cross each other cannot hang. Raises PkiError.
    """
    made = files.make_directory(directory, 0o700)
    taken = PkiError(directory, "no other authority in the making", "one that another command makes")
    # Undone while the lock is still held: later, it could take away the files of the next one.
    with locked(directory, taken=taken) as descriptor, contextlib.ExitStack() as undo:
        if made:
            undo.callback(_remove_if_empty, directory)
        if must_be_empty:
            _refuse_used(directory)
            with files.reported(directory):
                os.fchmod(descriptor, 0o700)
        yield undo
        undo.pop_all()


def _refuse_used(directory: Path) -> None:
    with files.reported(directory):
        entries = sorted(set(os.listdir(directory)) - {"lost+found"})
    if ROOTS in entries:
        raise PkiError(directory, "no authority yet", "one that exists")
    if entries:
        # Also what an interrupted `ca init` can leave; whoever looks can tell which it is.
        raise PkiError(directory, "a new or empty directory", f"{len(entries)} entries, such as {entries[0]!r}")


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()
