"""`portguard sessions`: which sessions are live, and ending some of them."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from portguard.cli.ages import written_age
from portguard.cli.control import control_client, print_large, understanding
from portguard.cli.groups import CommandGroup
from portguard.cli.options import configuration_option, json_option
from portguard.cli.rendering import note
from portguard.cli.tables import table_lines
from portguard.control.client import ControlClient, NotDone
from portguard.errors import PortguardError, UsageError
from portguard.policy.quantities import written_size

SHOWN_DIGITS = 12
"""Of a session's id: enough to name one among a million."""

_SORTS = ("age", "bytes", "idle", "identity")
_RIGHT = frozenset({5, 6, 7, 8})
_NOBODY = "not_found"

identity_option = click.option("--identity", metavar="IDENTITY", help='As in a policy: "alice".')
service_option = click.option("--service", metavar="SERVICE", help="Only to this service.")
role_option = click.option("--role", metavar="ROLE", help="Only in this role.")


@click.group(cls=CommandGroup)
def sessions() -> None:
    """Show live sessions, and end some."""


@sessions.command("list")
@identity_option
@service_option
@role_option
@click.option("--sort", type=click.Choice(_SORTS), default="age", show_default=True, help="The largest first.")
@click.option("-n", "--limit", metavar="N", type=click.IntRange(min=1), help="At most so many.")
@configuration_option
@json_option
def list_sessions(
    identity: str | None,
    service: str | None,
    role: str | None,
    sort: str,
    limit: int | None,
    configuration_path: str,
    as_json: bool,
) -> None:
    """List live sessions. Ids are cut short, as `sessions kill` takes them; sizes are rounded. --json has all."""
    document = control_client(configuration_path).get(
        "/v1/sessions", identity=identity, service=service, role=role, sort=sort, limit=limit
    )
    if as_json:
        print_large(document)
        return
    with understanding():
        rows = [_row(each) for each in document["sessions"]]
        total = int(document["total"])
    if not rows:
        fits = "" if identity is service is role is None else " that fits"
        note(f"no session is live{fits}")
        return
    header = ("SESSION", "IDENTITY", "SERVICE", "ROLE", "SOURCE", "AGE", "IDLE", "RECEIVED", "SENT")
    click.echo("\n".join(table_lines(header, rows, right=_RIGHT)))
    if (more := total - len(rows)) > 0:
        click.echo(f"and {more} more", err=True)


@sessions.command(short_help="End sessions at once.")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@identity_option
@service_option
@role_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@configuration_option
@json_option
def kill(
    ids: Sequence[str],
    identity: str | None,
    service: str | None,
    role: str | None,
    yes: bool,
    configuration_path: str,
    as_json: bool,
) -> None:
    """End sessions at once, with the reason `killed`: by ID, or all that fit. It keeps nobody from coming back.

    An ID may be its first 8 digits or more, as long as no other begins so.
    """
    wanted = {"identity": identity, "service": service, "role": role}
    client = control_client(configuration_path)
    if ids:
        if any(wanted.values()):
            raise UsageError("sessions kill: expected either IDs or --identity, --service and --role, got both")
        _kill_each(client, ids, as_json=as_json)
        return
    if not any(wanted.values()):
        raise UsageError("sessions kill: expected an ID, --identity, --service or --role, got none")
    if not yes:
        _ask(client, wanted)
    _tell([client.post("/v1/sessions/kill", **wanted)], as_json=as_json)


def _ask(client: ControlClient, wanted: Mapping[str, str | None]) -> None:
    if not sys.stdin.isatty():
        raise UsageError("sessions kill: expected --yes, as there is no terminal to ask on")
    document = client.get("/v1/sessions", **wanted, limit=1)
    with understanding():
        count = int(document["total"])
    if count and not click.confirm(f"End {count} session{'s' * (count != 1)}?", err=True):
        raise PortguardError("nothing was done")


def _kill_each(client: ControlClient, ids: Sequence[str], *, as_json: bool) -> None:
    """One after the other: a session that has just ended by itself must not keep the others alive."""
    answers, missing = [], []
    for each in ids:
        try:
            answers.append(client.post("/v1/sessions/kill", session=each.lower()))
        except NotDone as error:
            if error.code != _NOBODY:
                raise
            missing.append(each)
    _tell(answers, as_json=as_json)
    if missing:
        raise PortguardError(f"expected live sessions, got none called {', '.join(missing)}")


def _tell(answers: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    with understanding():
        killed = sum(answer["killed"] for answer in answers)
        ids = [str(session) for answer in answers for session in answer["sessions"]]
    if as_json:
        click.echo(json.dumps({"killed": killed, "sessions": ids}, indent=2))
    else:
        click.echo(f"sessions ended: {killed}")


def _row(session: Mapping[str, Any]) -> Sequence[str]:
    return (
        str(session["session"])[:SHOWN_DIGITS],
        str(session["identity"]),
        str(session["service"]),
        str(session["role"]),
        str(session["source"] or ""),
        written_age(session["age"]),
        written_age(session["idle"]),
        written_size(session["received"]),
        written_size(session["sent"]),
    )
