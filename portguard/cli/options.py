"""Options that several commands share."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

from portguard.errors import UsageError
from portguard.policy.quantities import Unexpected, parse_duration

DEFAULT_CONFIGURATION = "/etc/portguard/portguard.toml"

_T = TypeVar("_T")
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _configuration_path(_context: click.Context, _parameter: click.Parameter, given: str | None) -> str:
    # An empty $PORTGUARD_CONFIG is what `PORTGUARD_CONFIG= portguard …` and a blank line of a unit file leave.
    return given or os.environ.get("PORTGUARD_CONFIG") or DEFAULT_CONFIGURATION


def configuration_option(command: _Command) -> _Command:
    """`-c/--config FILE`, given to the command as `configuration_path: str`; the file need not exist."""
    return click.option(
        "-c",
        "--config",
        "configuration_path",
        metavar="FILE",
        # Shells complete it. What is wrong with the file is told by who reads it.
        type=click.Path(readable=False),
        callback=_configuration_path,
        help=f"The gateway's configuration; else $PORTGUARD_CONFIG, else {DEFAULT_CONFIGURATION}.",
    )(command)


profile_option = click.option(
    "--profile",
    "profile_name",
    metavar="NAME|FILE",
    help='The gateway and certificate to use; else $PORTGUARD_PROFILE, else "default".',
)
"""`--profile`, given to the command as `profile_name: str | None`; client.profile finds the file."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
"""`--json`, given to the command as `as_json: bool`."""


def expect_one_form(*, pem: bool, as_json: bool) -> None:
    """Raise UsageError for `--pem` and `--json` at once."""
    if pem and as_json:
        raise UsageError("--pem: expected not to be given beside --json")


def parsed_by(
    parse: Callable[[str], _T], default: _T | None = None
) -> Callable[[click.Context, click.Parameter, str | None], _T | None]:
    """The callback of an option that `parse` reads, which raises Unexpected; without the option, `default`."""

    def parsed(_context: click.Context, _parameter: click.Parameter, given: str | None) -> _T | None:
        try:
            return default if given is None else parse(given)
        except Unexpected as error:
            raise click.BadParameter(f"expected {error}, got {given!r}") from error

    return parsed


def duration_option(name: str, help_text: str, default: timedelta | None = None) -> Callable[[_Command], _Command]:
    """`NAME DURATION`, such as "12h", given to the command as a timedelta; without it, `default`."""
    callback = parsed_by(lambda given: timedelta(seconds=parse_duration(given)), default)
    return click.option(name, callback=callback, metavar="DURATION", help=help_text)
