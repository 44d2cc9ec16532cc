"""How commands reach a gateway that runs: over its control socket."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from portguard.cli.configuration_file import configuration_at
from portguard.control.client import ANSWER_S, ControlClient
from portguard.errors import PortguardError

# Where a problem leaves open which socket is meant.
_NEEDED = {"", "gateway", "gateway.control"}


def control_client(configuration_path: str, *, timeout_s: float = ANSWER_S) -> ControlClient:
    """Return the client for the gateway that the configuration is of; it may take so long to answer.

    Raises ConfigurationError.

    Of the file nothing but `gateway.control` counts: with a slip elsewhere in it, which the gateway that runs has not
    read, one must still be able to look and to act.
    """
    configuration = configuration_at(configuration_path, needed=_NEEDED)
    return ControlClient(Path(configuration.gateway.control), timeout_s=timeout_s)


def print_large(document: object) -> None:
    """Print an answer that may tell of ten thousand sessions as JSON.

    It looks as json.dumps(indent=2) would have it, which Python writes without the help of C.
    """
    click.echo(msgspec.json.format(json.dumps(document), indent=2))


@contextlib.contextmanager
def understanding() -> Iterator[None]:
    """Take an answer apart, and do nothing else. Raises PortguardError when it has not what is looked for in it."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
        raise PortguardError(
            "the gateway: expected an answer that this version understands, got another one"
        ) from error
