"""`portguard reload`: have the gateway read its configuration, policy and certificates again."""

import json

import click

from portguard.cli.check_verdict import problems_as_json
from portguard.cli.control import control_client, understanding
from portguard.cli.options import configuration_option, json_option
from portguard.cli.rendering import printable

_LONGEST_S = 300.0  # a very large policy is read for a while


@click.command(short_help="Have the gateway work by what its files say now.")
@click.option("-m", "--message", metavar="TEXT", help='Why, for log, audit and status: "CHG-123".')
@configuration_option
@json_option
@problems_as_json
def reload(message: str | None, configuration_path: str, as_json: bool) -> None:
    """Have the gateway work by what its files say now: all of it, or nothing when anything in them is wrong.

    Live sessions go on; those that have lost their right end with the reason.
    """
    document = control_client(configuration_path, timeout_s=_LONGEST_S).post("/v1/reload", message=message)
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    with understanding():
        warnings = [str(warning) for warning in document["warnings"]]
        lines = ["nothing has changed"]
        if document["changed"]:
            lines = [f"in force: {document['revision']}", f"sessions closed: {int(document['closed'])}"]
        if document["needs_restart"]:
            lines.append(f"needs a restart: {', '.join(document['needs_restart'])}")
    for warning in warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
    for line in lines:
        click.echo(printable(line))
