"""`portguard lock` and `portguard unlock`: keep somebody out at once, and let them in again."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import click

from portguard.cli.control import control_client, understanding
from portguard.cli.options import configuration_option, json_option
from portguard.cli.rendering import note, printable
from portguard.cli.tables import table_lines
from portguard.errors import UsageError

_SHORT = timedelta(minutes=10)
_HEADER = ("LOCKED", "SINCE (UTC)", "UNTIL (UTC)", "BY", "REASON")

certificate_option = click.option(
    "--certificate",
    metavar="FINGERPRINT|TRUST:SERIAL",
    help="One certificate instead of an identity: by its SHA-256 in hex, or its whole serial number.",
)


@click.command(short_help="Lock out an identity or a certificate, at once.")
@click.argument("identity", metavar="[IDENTITY]", required=False)
@certificate_option
@click.option(
    "--reason", metavar="TEXT", help="Why, for operators and the audit; those who are locked out never see it."
)
@click.option("--for", "duration", metavar="DURATION", help='For how long: "30m", "2h", "7d"; else until unlocked.')
@click.option("--list", "listing", is_flag=True, help="Show the locks in force.")
@configuration_option
@json_option
def lock(
    identity: str | None,
    certificate: str | None,
    reason: str | None,
    duration: str | None,
    listing: bool,
    configuration_path: str,
    as_json: bool,
) -> None:
    """Lock out IDENTITY, or a certificate: at once, over restarts, and whatever the policy says.

    Live sessions end. To lock again changes the reason and how long it lasts.
    """
    if listing:
        if (identity, certificate, reason, duration) != (None,) * 4:
            raise UsageError("lock: expected nothing to lock beside --list")
        _list(configuration_path, as_json=as_json)
        return
    _check_whom("lock", identity, certificate)
    if reason is None:
        raise UsageError("lock: expected --reason, got none")
    about = {"identity": identity, "certificate": certificate, "reason": reason, "for": duration}
    document = control_client(configuration_path).post("/v1/lock", **about)
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    with understanding():
        row, ended = document["lock"], int(document["sessions"])
        until = f" until {_span(row['since'], row['until'])[1]} UTC" if row["until"] is not None else ""
        lines = [f"locked: {_who(row)}{until}", f"sessions closed: {ended}"]
    for line in lines:
        click.echo(printable(line))


@click.command(short_help="Take a lock away.")
@click.argument("identity", metavar="[IDENTITY]", required=False)
@certificate_option
@configuration_option
@json_option
def unlock(identity: str | None, certificate: str | None, configuration_path: str, as_json: bool) -> None:
    """Take the lock of IDENTITY, or of a certificate, away."""
    _check_whom("unlock", identity, certificate)
    document = control_client(configuration_path).post("/v1/unlock", identity=identity, certificate=certificate)
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    with understanding():
        line = f"unlocked: {_who(document['unlocked'])}"
    click.echo(printable(line))


def _check_whom(command: str, identity: str | None, certificate: str | None) -> None:
    if (identity is None) == (certificate is None):
        found = "none" if identity is None else "both"
        raise UsageError(f"{command}: expected one of IDENTITY and --certificate, got {found}")


def _list(configuration_path: str, *, as_json: bool) -> None:
    document = control_client(configuration_path).get("/v1/locks")
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    with understanding():
        rows = [_row(each) for each in document["locks"]]
        unsaved = sum(each["saved"] is not True for each in document["locks"])
    if not rows:
        note("nobody is locked out")
        return
    click.echo("\n".join(table_lines(_HEADER, rows, right=frozenset())))
    if unsaved:
        note(f"in force at this gateway, and not yet in the ledger: {unsaved}")


def _row(each: Mapping[str, Any]) -> tuple[str, ...]:
    since, until = _span(each["since"], each["until"])
    return _who(each), since, until, str(each["by"]), str(each["reason"])


def _who(each: Mapping[str, Any]) -> str:
    return str(each["identity"] if each["identity"] is not None else each["certificate"])


def _span(since: str, until: str | None) -> tuple[str, str]:
    """Both ends, with seconds where minutes do not tell them apart by much."""
    if until is None:
        return _instant(since), "unlocked"
    short = datetime.fromisoformat(until) - datetime.fromisoformat(since) < _SHORT
    return _instant(since, seconds=short), _instant(until, seconds=short)


def _instant(text: str, *, seconds: bool = False) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")
