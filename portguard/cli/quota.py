"""`portguard quota`: what is used and left, and what an administrator changes about it."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, tzinfo
from functools import lru_cache
from typing import Any, TypeVar

import click

from portguard.cli.control import control_client, print_large, understanding
from portguard.cli.groups import CommandGroup
from portguard.cli.options import configuration_option, json_option
from portguard.cli.rendering import note, printable
from portguard.cli.tables import table_lines
from portguard.cli.zones import zone_here
from portguard.errors import UsageError
from portguard.policy.quantities import Period, Unexpected, parse_size, written_size

_PERIODS = {str(period): number for number, period in enumerate(Period)}
_SHOWN_CHANGES = 20
_RIGHT = frozenset({3, 4, 5})

_Command = TypeVar("_Command", bound=Callable[..., None])

role_option = click.option("--role", metavar="ROLE", help="Only in this role.")
period_option = click.option(
    "--period", type=click.Choice([str(period) for period in Period]), help="Only this quota; else all that there are."
)
all_option = click.option("--all", "everybody", is_flag=True, help="All identities that have used something.")
pool_option = click.option("--pool", is_flag=True, help="The quota that the whole role shares; needs --role.")


def whose_options(command: _Command) -> _Command:
    """`--all`, `--pool`, `--role` and `--period`, given to the command by the names that `_whose` has for them."""
    return all_option(pool_option(role_option(period_option(command))))


@click.group(cls=CommandGroup)
def quota() -> None:
    """Show what is used and left of quotas, and change it."""


@quota.command()
@click.argument("identity", metavar="[IDENTITY]", required=False)
@role_option
@configuration_option
@json_option
def show(identity: str | None, role: str | None, configuration_path: str, as_json: bool) -> None:
    """Show what is used and left in the running periods.

    Periods without a quota are shown with what was used in them. Sizes are rounded; --json has bytes.
    """
    document = control_client(configuration_path).get("/v1/quotas", identity=identity, role=role)
    if as_json:
        print_large(document)
        return
    with understanding():
        zone = zone_here(document["timezone"])
        quotas = sorted(document["quotas"], key=_order)
        rows = [_row(each, zone) for each in quotas]
    if trouble := document.get("ledger"):  # a gateway of the version before has not the field
        # In a fleet, others may have used more since.
        note(f"this is what the gateway knows, as the ledger cannot be used: {trouble}")
    if not rows:
        who = "no identity has used anything yet" if identity is None else f"{identity} has used nothing yet"
        note(f"{who}{f' in role {role}' if role is not None else ''}")
        return
    header = ("ROLE", "IDENTITY", "PERIOD", "USED", "LEFT", "LIMIT", f"ENDS ({zone})")
    click.echo("\n".join(table_lines(header, rows, right=_RIGHT)))


@quota.command(short_help="Forget what was used in the running periods.")
@click.argument("identity", metavar="[IDENTITY]", required=False)
@whose_options
@configuration_option
@json_option
def reset(identity: str | None, configuration_path: str, as_json: bool, **options: Any) -> None:
    """Forget what was used in the running periods: of IDENTITY, of --all, or of the --pool of a role."""
    whose = _whose("reset", identity, **options)
    document = control_client(configuration_path).post("/v1/quotas/reset", **whose)
    _tell("reset", document, "reset", as_json=as_json)


@quota.command(short_help="Give somebody more than the quota in the running period.")
@click.argument("words", metavar="[IDENTITY] SIZE", nargs=-1, required=True)
@whose_options
@configuration_option
@json_option
def grant(words: tuple[str, ...], configuration_path: str, as_json: bool, **options: Any) -> None:
    """Give SIZE, such as 5GB, beyond the quota until the running period ends: to IDENTITY, to --all or to a --pool.

    With --role, an identity can be given some before it has ever connected.
    """
    *names, size = words
    if len(names) > 1:
        raise UsageError(f"quota grant: expected one IDENTITY and SIZE, got {len(words)} words")
    whose = _whose("grant", names[0] if names else None, **options)
    try:
        extra_bytes = parse_size(size)
    except Unexpected as error:
        raise UsageError(f"SIZE: expected {error}, got {size!r}") from None
    document = control_client(configuration_path).post("/v1/quotas/grant", **whose, bytes=extra_bytes)
    _tell(f"granted {written_size(extra_bytes)}", document, "granted", as_json=as_json)


def _whose(
    command: str, identity: str | None, *, everybody: bool, pool: bool, role: str | None, period: str | None
) -> Mapping[str, str | bool | None]:
    """Whose quotas to change, as the gateway is told it.

    Raises UsageError unless that is exactly one of an identity, all identities, and the pool of a role.
    """
    given = [*(["IDENTITY"] if identity is not None else []), *(["--all"] * everybody), *(["--pool"] * pool)]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise UsageError(f"quota {command}: expected one of IDENTITY, --all and --pool, got {found}")
    if pool and role is None:
        raise UsageError(f"quota {command}: expected --role beside --pool, got none")
    return {"identity": identity, "all": everybody, "pool": pool, "role": role, "period": period}


def _tell(done: str, document: Mapping[str, Any], key: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    with understanding():
        lines = [f"{done}: {_who(each)} in role {each['role']}, per {' and '.join(each['periods'])}"
                 for each in document[key]]  # fmt: skip
    for line in lines[:_SHOWN_CHANGES]:
        click.echo(printable(line))
    if (more := len(lines) - _SHOWN_CHANGES) > 0:
        click.echo(f"and {more} more (--json prints all)")


def _row(line: Mapping[str, Any], zone: tzinfo) -> Sequence[str]:
    limit = "none" if line["limit"] is None else written_size(line["limit"])
    if line["granted"]:
        limit += f" + {written_size(line['granted'])}"
    left = "" if line["left"] is None else written_size(line["left"])
    ends = _instant(line["ends"], zone)
    return (str(line["role"]), _who(line), str(line["period"]), written_size(line["used"]), left, limit, ends)


@lru_cache  # thousands of lines end at a few instants
def _instant(text: str, zone: tzinfo) -> str:
    return datetime.fromisoformat(text).astimezone(zone).strftime("%Y-%m-%d %H:%M")


def _who(line: Mapping[str, Any]) -> str:
    return str(line["identity"]) if line["identity"] is not None else "(the whole role)"


def _order(line: Mapping[str, Any]) -> tuple[str, bool, str, int]:
    """By role, its pool first, and the shortest period first."""
    return line["role"], line["identity"] is not None, line["identity"] or "", _PERIODS[line["period"]]
