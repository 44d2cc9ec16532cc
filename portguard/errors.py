"""The tree of errors.

    PortguardError              exit code 1: it failed
    ├── UsageError              2: the command was called wrongly
    ├── ConfigurationError      2: files are wrong; carries every problem found, not the first
    ├── Refused                 3: policy or a limit said no; carries the reason
    └── Unreachable             4: the gateway or its control socket does not answer

Whoever raises one says what was expected and what was found. Text for people is made at the edge (`cli`), which
escapes it; what a certificate or a client sent may stand in a message unescaped.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from portguard.reasons import Reason


class PortguardError(Exception):
    """Anything that portguard reports to its user as one message, without a traceback."""

    exit_code = 1


class UsageError(PortguardError):
    """The command was called in a way that cannot work."""

    exit_code = 2


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong in a file.

    `file` is its path as the user knows it; `key` is dotted (`services.orders-db.upstream[0]`), or empty when the
    file as a whole is meant; `expected` and `found` complete "expected …, got …".
    """

    file: str
    key: str
    expected: str
    found: str

    def __str__(self) -> str:
        """`policy.toml: services.orders-db.local_port: expected 1 to 65535, got 0`."""
        subject = f"{self.file}: {self.key}" if self.key else self.file
        return f"{subject}: expected {self.expected}, got {self.found}"


class ConfigurationError(PortguardError):
    """Files cannot be used. `problems` holds everything found, in all files, in a stable order."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(map(str, self.problems)))


def because(error: OSError) -> str:
    """What the system has found, for people, in words that complete "expected …, got …"."""
    return (error.strerror or type(error).__name__).lower()


class Refused(PortguardError):
    """Access was refused. `reason` is the stable word; `retry_after_s` is when to come back, None when unknown."""

    exit_code = 3

    def __init__(self, reason: Reason, message: str = "", *, retry_after_s: float | None = None):
        self.reason = reason
        self.message = message or reason.sentence
        self.retry_after_s = retry_after_s
        super().__init__(f"{reason}: {self.message}")


class Unreachable(PortguardError):
    """The gateway, or the control socket, does not answer."""

    exit_code = 4
