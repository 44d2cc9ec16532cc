"""`portguard drain` and `portguard resume`: no new sessions for a while, or for good."""

import json

import click

from portguard.cli.control import control_client, understanding
from portguard.cli.options import configuration_option, json_option


@click.command()
@click.option("--exit", "ends", is_flag=True, help="End once the last session has, or timeouts.drain is over.")
@configuration_option
@json_option
def drain(ends: bool, configuration_path: str, as_json: bool) -> None:
    """Have the gateway take no new sessions. Live ones go on.

    Clients are told `draining` and /readyz turns red, so that a balancer looks elsewhere. `portguard resume` takes it
    back, but not after --exit, which is the same as SIGTERM.
    """
    document = control_client(configuration_path).post("/v1/drain", exit=ends)
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    with understanding():
        changed, sessions = document["changed"], int(document["sessions"])
    if not changed:
        click.echo("new sessions were refused already")
    click.echo(f"sessions left: {sessions}")


@click.command(short_help="Have the gateway take new sessions again.")
@configuration_option
@json_option
def resume(configuration_path: str, as_json: bool) -> None:
    """Have the gateway take new sessions again after `portguard drain`."""
    document = control_client(configuration_path).post("/v1/resume")
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    with understanding():
        changed = document["changed"]
    click.echo("new sessions are taken again" if changed else "new sessions were taken already")
