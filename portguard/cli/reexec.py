"""`portguard reexec`: have the version that is installed now take over, while sessions go on."""

import json
import time
from typing import Any

import click

from portguard.cli.check_verdict import problems_as_json
from portguard.cli.control import control_client, understanding
from portguard.cli.options import configuration_option, json_option
from portguard.cli.rendering import printable
from portguard.control.client import ControlClient
from portguard.errors import PortguardError, Unreachable

_TRIAL_S = 300.0  # it starts a worker, by a policy that may be very large
_TAKE_OVER_S = 60.0
_LOOK_EVERY_S = 0.2


@click.command(short_help="Have the version that is installed now take over.")
@configuration_option
@json_option
@problems_as_json
def reexec(configuration_path: str, as_json: bool) -> None:
    """Have the version of portguard that is installed now take over from the one that runs, in place.

    It is tried first: one that cannot serve changes nothing. Live sessions go on in the processes that carry them.
    """
    before = control_client(configuration_path).get("/v1/status")
    control_client(configuration_path, timeout_s=_TRIAL_S).post("/v1/reexec")
    after = _wait_for_successor(control_client(configuration_path), before)
    with understanding():
        version, sessions = str(after["version"]), int(after["sessions"])
    if as_json:
        click.echo(json.dumps({"version": version, "sessions": sessions}, indent=2))
    else:
        click.echo(f"version {printable(version)} has taken over; sessions: {sessions}")


def _wait_for_successor(client: ControlClient, before: dict[str, Any]) -> dict[str, Any]:
    deadline_s = time.monotonic() + _TAKE_OVER_S
    while True:
        try:
            status = client.get("/v1/status")
        except Unreachable:
            status = before  # it is between the two
        if status["generation"] != before["generation"]:
            return status
        if time.monotonic() > deadline_s:
            raise PortguardError(f"expected the new version to serve within {_TAKE_OVER_S:.0f} s, got no sign of it")
        time.sleep(_LOOK_EVERY_S)
