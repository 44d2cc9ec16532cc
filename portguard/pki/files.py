"""Files that appear whole or not at all, and never in the place of another unless that was asked for.

Authorities write them, and clients, also where no authority can be: on Windows.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from portguard.pki.errors import PkiError

SECRET = 0o600
PUBLIC = 0o644

# Not through a symbolic link either: open(2), O_EXCL. Python lets no child inherit it (PEP 446).
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL

# What link(2) answers on file systems without hard links: FAT, as found on the stick that holds a root key.
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be written. `mode` is `SECRET` or `PUBLIC`; the umask may narrow it further."""

    path: Path
    data: bytes = field(repr=False)
    mode: int


def publish(files: Sequence[NewFile], *, overwrite: bool = False) -> None:
    """Write `files`, in their order, all or none.

    Each is written under a temporary name in its own directory, synced, and only then given its name, so that no
    reader and no power loss ever meets half of one. Without `overwrite`, a name that is taken is an error, even when
    another process takes it at the same moment. With `overwrite`, each file is replaced in one step.

    Raises PkiError; then no new file is left (files already replaced by `overwrite` stay replaced).
    """
    with contextlib.ExitStack() as staged:
        temporaries = [staged.enter_context(_staged(file)) for file in files]
        with contextlib.ExitStack() as undo:
            for file, temporary in zip(files, temporaries, strict=True):
                if overwrite:
                    with reported(file.path):
                        os.replace(temporary, file.path)
                else:
                    with reported(file.path):
                        _name_exclusively(temporary, file.path)
                    undo.callback(file.path.unlink, missing_ok=True)
            for directory in {file.path.parent for file in files}:
                sync_directory(directory)
            undo.pop_all()


def refuse_existing(paths: Sequence[Path]) -> None:
    """Raise PkiError when one of `paths` exists. A courtesy before long work; `publish` is what decides."""
    for path in paths:
        if os.path.lexists(path):
            raise _taken(path)


def make_directory(path: Path, mode: int) -> bool:
    """Make `path` with `mode`, less the umask, and its parents. True when it was not there. Raises PkiError."""
    with reported(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=mode)
        except FileExistsError as error:
            if path.is_dir():
                return False
            raise PkiError(path, "a directory, or room for one", "a file in its place or above it") from error
    sync_directory(path.parent)
    return True


def sync_directory(path: Path) -> None:
    """Make names given in `path` survive a power loss. Raises PkiError."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows, which cannot
        return
    with reported(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: Path, expected: str) -> bytes:
    """Return what is in `path`. Raises PkiError that says `expected`, such as "a CA certificate in PEM"."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise PkiError(path, expected, _because(error)) from error


@contextlib.contextmanager
def _staged(file: NewFile) -> Iterator[Path]:
    """The data of `file`, synced, under a name that nobody else has; the name is gone afterwards."""
    temporary = file.path.with_name(f".{secrets.token_hex(8)}.tmp")
    with reported(file.path):
        descriptor = os.open(temporary, _NEW, file.mode)
    try:
        with reported(file.path), open(descriptor, "wb") as stream:
            stream.write(file.data)
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _name_exclusively(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # The empty file reserves the name, the rename fills it in one step.
        os.close(os.open(path, _NEW, SECRET))
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink()
            raise


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, about `path`, into PkiError."""
    try:
        yield
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        raise PkiError(path, "a place that can be written", _because(error)) from error


def _taken(path: Path) -> PkiError:
    return PkiError(path, "no file of this name", "one that exists")


def _because(error: OSError) -> str:
    return f"“{error.strerror}”" if error.strerror else type(error).__name__
