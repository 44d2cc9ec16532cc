"""What a look at something found, one thing at a time: for `portguard doctor`."""

from dataclasses import dataclass
from enum import StrEnum

ANY_SERVICE = "portguard-doctor"
"""A name below a gateway's that a wildcard answers for, and nothing else."""


class Level(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    WARNING = "warning"  # some clients or services have trouble, or soon will
    FAILED = "failed"  # it does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `text` may quote files, names and peers: escape it. `advice` is what to do."""

    level: Level
    subject: str  # what was looked at, in a word or three
    text: str
    advice: str = ""


def ok(subject: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(Level.OK, subject, text)


def warning(subject: str, text: str, advice: str = "") -> Finding:
    """It works, and somebody should look."""
    return Finding(Level.WARNING, subject, text, advice)


def failed(subject: str, text: str, advice: str = "") -> Finding:
    """It does not work."""
    return Finding(Level.FAILED, subject, text, advice)
