"""Secrets that lie in a file of one line: passphrases of keys, the password of a ledger."""

import os
from collections.abc import Callable
from pathlib import Path

LONGEST_BYTES = 4096


class NotOneLine(ValueError):
    """The file is not what it should be. The text completes "got …", and has nothing of what is in it."""


def read_secret_line(path: Path, look: Callable[[os.stat_result], None]) -> bytes:
    """Return the one line in a file, without its end, LF or CRLF, if it has one. It may be a pipe, read once.

    `look` is called with the status of the very file that is read, before it is; what it raises, this raises.
    *Fails closed*: raises NotOneLine for nothing, more than one line, and more than LONGEST_BYTES. Raises OSError.
    """
    with path.open("rb") as stream:
        look(os.fstat(stream.fileno()))
        content = stream.read(LONGEST_BYTES + 1)
    if len(content) > LONGEST_BYTES:
        raise NotOneLine(f"more than {LONGEST_BYTES} bytes")
    line = content.removesuffix(b"\n").removesuffix(b"\r")
    if not line:
        raise NotOneLine("nothing")
    if b"\n" in line or b"\r" in line:
        raise NotOneLine("several lines")
    return line
