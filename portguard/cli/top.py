"""`portguard top`: live sessions and what they move, by identity and service."""

import json
import time
from collections.abc import Callable
from functools import partial
from textwrap import wrap

import click

from portguard.cli.control import control_client, understanding
from portguard.cli.live_terminal import LiveTerminal, live_terminal, on_terminal
from portguard.cli.options import configuration_option, json_option
from portguard.cli.rendering import printable
from portguard.cli.tables import fitted
from portguard.cli.top_screen import HEADINGS, Rates, Sample
from portguard.control.client import ControlClient
from portguard.errors import Unreachable

_EVERY_S = 1.0
_ANSWER_S = 5.0  # longer, and it is better to say that there is none
_QUIT = "qQ"
_COLUMNS = 80  # where there is no terminal


@click.command(short_help="Show sessions and rates, every second.")
@click.option("--identity", metavar="IDENTITY", help='As in a policy: "alice".')
@click.option("--service", metavar="SERVICE", help="Only to this service.")
@configuration_option
@json_option
def top(identity: str | None, service: str | None, configuration_path: str, as_json: bool) -> None:
    """Show sessions and rates by identity and service, the busiest first, every second. q or Ctrl-C ends it.

    Without a terminal, and with --json, it prints what one second was like, and ends.
    """
    client = control_client(configuration_path, timeout_s=_ANSWER_S)
    look = partial(_sample, client, identity, service)
    before = look()  # what is wrong from the start is an error as of any command
    if as_json or not on_terminal():
        time.sleep(_EVERY_S)
        rates = Rates.between(before, look())
        click.echo(json.dumps(rates.document(), indent=2) if as_json else "\n".join(rates.lines(_COLUMNS, None)))
        return
    try:
        with live_terminal() as terminal:
            _watch(terminal, before, look)
    except KeyboardInterrupt:
        return


def _watch(terminal: LiveTerminal, before: Sample, look: Callable[[], Sample]) -> None:
    columns, rows = terminal.size()
    terminal.draw(Rates.between(before, before).lines(columns, rows), bold=HEADINGS)
    while not terminal.pressed_within(_EVERY_S, _QUIT):
        columns, rows = terminal.size()
        try:
            after = look()
        except Unreachable as error:  # it may be restarting: go on looking
            lines = ["NO ANSWER", *wrap(printable(str(error)), columns), "q quits"]
            terminal.draw([fitted(line, columns) for line in lines[:rows]], bold=frozenset({0}))
            continue
        terminal.draw(Rates.between(before, after).lines(columns, rows), bold=HEADINGS)
        before = after


def _sample(client: ControlClient, identity: str | None, service: str | None) -> Sample:
    """Raises PortguardError."""
    status = client.get("/v1/status")
    listed = client.get("/v1/sessions", identity=identity, service=service)
    with understanding():
        return Sample.of(time.monotonic(), status, listed)
