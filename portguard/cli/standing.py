"""`portguard whoami` and `portguard services`: what the gateway tells its caller."""

import json
from collections.abc import Callable, Coroutine, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import click

from portguard.cli.as_client import credentials_of, run
from portguard.cli.options import json_option, profile_option
from portguard.cli.rendering import printable
from portguard.cli.standing_rendering import services_lines, whoami_lines
from portguard.client.gateway import Gateway
from portguard.errors import PortguardError


@click.command(short_help="Show who you are to the gateway.")
@profile_option
@json_option
def whoami(profile_name: str | None, as_json: bool) -> None:
    """Show who you are to the gateway, and why you were refused of late.

    Times are those of this machine; --json has them in UTC.
    """
    _show(profile_name, Gateway.whoami, whoami_lines, as_json=as_json)


@click.command(short_help="Show which services you may reach now.")
@profile_option
@json_option
def services(profile_name: str | None, as_json: bool) -> None:
    """Show which services you may reach now, and how much of each limit is left.

    Limits go with the role that lets you in, and all its services share them. Sizes are rounded; --json has bytes.
    """
    _show(profile_name, Gateway.services, services_lines, as_json=as_json)


def _show(
    profile_name: str | None,
    ask: Callable[[Gateway], Coroutine[None, None, dict[str, Any]]],
    render: Callable[[Mapping[str, Any], datetime], Iterator[str]],
    *,
    as_json: bool,
) -> None:
    document = run(ask(Gateway(credentials_of(profile_name))))
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    try:
        lines = list(render(document, datetime.now(UTC)))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
        raise PortguardError(
            "the gateway: expected an answer that this version understands, got another one (--json shows it)"
        ) from error
    click.echo("\n".join(map(printable, lines)))
