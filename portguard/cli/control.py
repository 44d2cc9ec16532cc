"""How commands reach a gateway that runs: over its control socket."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from portguard.control.client import ANSWER_S, ControlClient
from portguard.errors import ConfigurationError, PortguardError, Problem
from portguard.gateway.configuration import read_configuration

# Where a problem leaves open which socket is meant.
_NEEDED = {"", "gateway", "gateway.control"}


def control_client(configuration_path: str, *, timeout_s: float = ANSWER_S) -> ControlClient:
    """Return the client for the gateway that the configuration is of; it may take so long to answer.

    Raises ConfigurationError.

    Of the file nothing but `gateway.control` counts: with a slip elsewhere in it, which the gateway that runs has not
    read, one must still be able to look and to act.
    """
    path = str(Path(configuration_path).absolute())
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        found = (error.strerror or str(error)).lower()
        raise ConfigurationError([Problem(path, "", "a file that can be read (the configuration)", found)]) from error
    problems: list[Problem] = []
    configuration = read_configuration(path, content, problems)
    if any(problem.key in _NEEDED for problem in problems):
        raise ConfigurationError(problems)
    return ControlClient(Path(configuration.gateway.control), timeout_s=timeout_s)


@contextlib.contextmanager
def understanding() -> Iterator[None]:
    """Take an answer apart, and do nothing else. Raises PortguardError when it has not what is looked for in it."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
        raise PortguardError(
            "the gateway: expected an answer that this version understands, got another one"
        ) from error
