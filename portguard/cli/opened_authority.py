"""The authority that a command works on: where it is, and the passphrase that opens its key."""

import os
import stat
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from portguard.cli.certificates import serial_digits, serial_number, serial_text
from portguard.cli.options import duration_option
from portguard.cli.rendering import note, printable
from portguard.errors import UsageError
from portguard.pki import files, keys
from portguard.pki.authority import Authority
from portguard.pki.errors import PkiError
from portguard.pki.keys import KeyType
from portguard.pki.store import Record
from portguard.secret_line import NotOneLine, read_secret_line

DEFAULT_AUTHORITY = "/var/lib/portguard/ca"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _authority_path(_context: click.Context, _parameter: click.Parameter, given: str | None) -> Path:
    return Path(given or os.environ.get("PORTGUARD_CA") or DEFAULT_AUTHORITY)


authority_option = click.option(
    "--ca",
    "directory",
    metavar="DIR",
    callback=_authority_path,
    help=f"The authority's directory; else $PORTGUARD_CA, else {DEFAULT_AUTHORITY}.",
)


def file_option(name: str, help_text: str) -> Callable[[_Command], _Command]:
    """An option that names a file, given to the command as a Path or None."""
    return click.option(name, type=click.Path(path_type=Path), metavar="FILE", help=help_text)


passphrase_option = file_option(
    "--passphrase-file", "Holds the passphrase of the authority's key; else a terminal is asked."
)


def key_type_option(help_text: str) -> Callable[[_Command], _Command]:
    """`--key-type`, given to the command as `key_type: KeyType | None`."""

    def parsed(_context: click.Context, _parameter: click.Parameter, given: str | None) -> KeyType | None:
        return None if given is None else KeyType(given)

    choice = click.Choice([key_type.value for key_type in KeyType])
    return click.option("--key-type", type=choice, callback=parsed, help=help_text)


def valid_for_option(default: timedelta) -> Callable[[_Command], _Command]:
    """`--valid-for`, given to the command as `valid_for`."""
    text = f'How long from now, such as "12h" or "{default.days}d" (the default).'
    return duration_option("--valid-for", text, default)


def opened(directory: Path) -> Authority:
    """Open the authority. Raises PkiError, with what to do where there is none."""
    try:
        return Authority.open(directory)
    except PkiError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        hint = "`portguard ca init` makes an authority, --ca or $PORTGUARD_CA names another"
        raise PkiError(error.subject, error.expected, f"{error.found}; {hint}") from error


def unlocked(directory: Path, passphrase_file: Path | None) -> Authority:
    """Open the authority and its key. Raises UsageError without a passphrase where one is needed, PkiError."""
    authority = opened(directory)
    passphrase = None
    if passphrase_file is not None:
        passphrase = read_passphrase(passphrase_file)
    elif authority.key_is_encrypted:
        passphrase = ask(f"Passphrase of {authority.key_path}", "--passphrase-file")
    authority.unlock(passphrase)
    return authority


def read_passphrase(path: Path) -> bytes:
    """Return the one line in the file, without its end. Raises UsageError. That others can read it is remarked on."""

    def look(status: os.stat_result) -> None:
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISREG(status.st_mode) and mode & stat.S_IROTH:
            note(f"warning: {path}: expected a file that only its owner can read, got mode {mode:04o}")

    try:
        return read_secret_line(path, look)
    except OSError as error:
        raise UsageError(f"{path}: expected a passphrase, got “{error.strerror}”") from error
    except NotOneLine as error:
        raise UsageError(f"{path}: expected one line with a passphrase, got {error}") from error


def read_root_passphrase(root_dir: Path, file: Path | None, other: bytes | None) -> bytes | None:
    """Return what opens the root's key. Raises UsageError, PkiError.

    None: it takes none, or `other`, which opens the authority's key, as with `ca init`.
    """
    if file is not None:
        return read_passphrase(file)
    path = root_dir / "root.key"
    if other is None and keys.is_encrypted(files.read(path, "the key of the root")):
        return ask(f"Passphrase of {path}", "--root-passphrase-file")
    return None


def issued_under(text: str, authority: Authority) -> Record:
    """Find the certificate whose serial is `text`, or begins so as no other's. Raises UsageError, PkiError."""
    serial = serial_number(text)
    if serial is None:
        raise UsageError(f"FILE|SERIAL: expected a file or a serial number in hex, got {text!r}")
    store, digits = authority.store, serial_digits(text)
    records = [record for record in [store.get(serial)] if record is not None]
    if not records and digits:
        records = [record for record in store.records() if serial_text(record.serial).startswith(digits)]
    if len(records) != 1:
        found = f"{len(records)} that begin so" if records else "none"
        expected = f"a certificate that the authority in {authority.directory} issued"
        raise PkiError(f"serial {serial_text(serial)}", expected, found)
    return records[0]


def ask(question: str, option: str, *, twice: bool = False) -> bytes:
    """Ask the terminal for a passphrase. Raises UsageError, which names `option`, where there is none to ask."""
    # Without a terminal, getpass would read standard input and echo it.
    if not sys.stdin.isatty():
        raise UsageError(f"{option}: expected a file, as there is no terminal to ask, got none")
    answer: str = click.prompt(printable(question), hide_input=True, confirmation_prompt=twice, err=True)
    return answer.encode()
