"""`portguard policy access` and `policy show`: for auditors, also about the past."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise

import click

from portguard.cli.configuration_file import configuration_at
from portguard.cli.instants import has_offset, instant
from portguard.cli.named_policies import NamedPolicy, kept_policy, policy_in_place
from portguard.cli.options import configuration_option, json_option
from portguard.cli.policy_access_rendering import (
    CSV_HEADER,
    Answered,
    answered_json,
    answered_lines,
    answered_rows,
    load_json,
    load_rows,
)
from portguard.cli.rendering import printable
from portguard.cli.spreadsheets import csv_lines
from portguard.cli.tables import table_lines
from portguard.errors import UsageError
from portguard.gateway.configuration import Configuration
from portguard.gateway.kept_policies import Load, in_force, kept_files, kept_revision, recorded_loads
from portguard.identity.names import Malformed, Namespace, parse_group, parse_identity
from portguard.policy.access import who_could
from portguard.policy.kinds import parse_own_group
from portguard.policy.ladder import Subject
from portguard.policy.quantities import Unexpected


@click.command(short_help="Say who could reach what.")
@click.option("--service", "services", metavar="NAME", multiple=True, help="Only this service. Can be given twice.")
@click.option("--identity", "name", metavar="IDENTITY", help="Only this one, by its name and patterns.")
@click.option("--group", "groups", metavar="GROUP", multiple=True, help="Whoever a certificate puts in it.")
@click.option("--at", "at_text", metavar="TIME", help="By the policy that was in force then, and at that hour.")
@click.option("--revision", metavar="REVISION", help="By a policy that was loaded once; its beginning is enough.")
@configuration_option
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print a row for each identity, service and role.")
def access(
    services: Sequence[str],
    name: str | None,
    groups: Sequence[str],
    at_text: str | None,
    revision: str | None,
    configuration_path: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Say who could reach what, by which role, from where, when and under which limits.

    Without --at and --revision it is the policy that the configuration names, with all roles that have not expired.
    With --at in the past it is the policy that was in force then, and only roles whose hours and expiry held.
    """
    if as_json and as_csv:
        raise UsageError("--csv: expected not to be given beside --json")
    now = datetime.now(UTC)
    named, at = _asked(revision, at_text, configuration_path, now)
    if unknown := sorted(set(services) - set(named.policy.services)):
        raise UsageError(f"--service: expected services of {named.title}, got {', '.join(unknown)}")
    somebody = _somebody(name, groups, named.namespace)
    rows = who_could(
        named.policy,
        services=frozenset(services) or None,
        somebody=somebody or None,
        at=at,
        since=now if at is None and revision is None else None,
    )
    answered = Answered(named, at, somebody, tuple(rows))
    if as_json:
        click.echo(json.dumps(answered_json(answered), indent=2))
        return
    lines = csv_lines(CSV_HEADER, answered_rows(answered)) if as_csv else answered_lines(answered)
    for line in lines:
        click.echo(printable(line))


@click.command(short_help="Print a policy that was loaded.")
@click.argument("revision", metavar="[REVISION]", required=False)
@click.option("--list", "as_list", is_flag=True, help="List all that were loaded, with when, by whom and why.")
@configuration_option
@json_option
def show(revision: str | None, as_list: bool, configuration_path: str, as_json: bool) -> None:
    """Print a policy that was loaded, as it was, and when it was in force.

    REVISION is as in the audit; its first digits are enough. Without it, it is the one that was loaded last.
    """
    configuration = configuration_at(configuration_path)
    loads = recorded_loads(configuration.gateway.state)
    spans = tuple(_spans(loads))
    if as_list:
        if revision is not None:
            raise UsageError("REVISION: expected none beside --list")
        if as_json:
            click.echo(json.dumps([load_json(load, end) for load, end in spans], indent=2))
            return
        header = ("REVISION", "FROM", "UNTIL", "BY", "MESSAGE")
        for line in table_lines(header, tuple(load_rows(spans)), right=frozenset()):
            click.echo(line)
        return
    chosen = _chosen(revision, loads, configuration)
    files = kept_files(configuration.gateway.state, chosen)
    times = [(load, end) for load, end in spans if load.revision == chosen]
    if as_json:
        document = {
            "revision": chosen,
            "loads": [load_json(load, end) for load, end in times],
            "files": [{"file": path, "text": content.decode(errors="backslashreplace")} for path, content in files],
        }
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"# revision {chosen}")
    for row in load_rows(times):
        click.echo(printable(f"# in force from {' '.join((row[1], 'until', row[2]))}{_people(row[3], row[4])}"))
    if not times:
        click.echo("# it is not recorded when it was in force")
    for path, content in files:
        click.echo(printable(f"# file {path}"))
        for text in content.decode(errors="backslashreplace").splitlines():
            click.echo(printable(text.expandtabs()))


def _people(by: str, message: str) -> str:
    return (f", loaded by {by}" if by else "") + (f": {message}" if message else "")


def _asked(
    revision: str | None, at_text: str | None, configuration_path: str, now: datetime
) -> tuple[NamedPolicy, datetime | None]:
    """The policy that is asked about, and the time."""
    if revision is not None:
        configuration = configuration_at(configuration_path)
        named = kept_policy(configuration, _revision(revision, configuration))
        return named, instant(at_text, named.policy.zone) if at_text is not None else None
    if at_text is None:
        return policy_in_place(configuration_path), None
    # What is on the disk today may be broken, and an auditor of the past not care.
    zone = UTC if has_offset(at_text) else policy_in_place(configuration_path).policy.zone
    at = instant(at_text, zone)
    if at >= now:
        return policy_in_place(configuration_path), at
    configuration = configuration_at(configuration_path)
    loads = recorded_loads(configuration.gateway.state)
    load = in_force(loads, at)
    if load is None:
        first = f"the first was loaded at {loads[0].at.isoformat()}" if loads else "no load is recorded"
        raise UsageError(
            f"--at: expected a time at which a policy was in force, got {at_text}; {first} "
            f"({configuration.gateway.state}). With --revision another policy can be asked"
        )
    return kept_policy(configuration, load.revision), at


def _somebody(name: str | None, groups: Sequence[str], namespace: Namespace) -> frozenset[Subject]:
    """All that is said of one caller; empty for everybody. Raises UsageError."""
    try:
        identity = parse_identity(name, namespace) if name is not None else None
    except Malformed as error:
        raise UsageError(f"--identity: {error}") from None
    found: set[Subject] = {identity} if identity is not None else set()
    for text in groups:
        try:
            if identity is not None:
                found.add(parse_own_group(text, identity, namespace))
            else:
                whole = text if text.startswith("@") or namespace.default is None else f"@{namespace.default}:{text}"
                found.add(parse_group(whole, namespace))
        except (Unexpected, Malformed) as error:
            expected = error if isinstance(error, Unexpected) else error.expected
            raise UsageError(f"--group: expected {expected}, got {text}") from None
    return frozenset(found)


def _chosen(revision: str | None, loads: Sequence[Load], configuration: Configuration) -> str:
    if revision is not None:
        return _revision(revision, configuration)
    if not loads:
        raise UsageError(f"REVISION: expected one, as no load is recorded in {configuration.gateway.state}")
    return loads[-1].revision


def _revision(text: str, configuration: Configuration) -> str:
    revision = kept_revision(configuration.gateway.state, text)
    if revision is None:
        raise UsageError(f"REVISION: expected at least 6 hexadecimal digits, got {text}")
    return revision


def _spans(loads: Sequence[Load]) -> Iterator[tuple[Load, datetime | None]]:
    """Each load with when the next one took its place; None: it is the last."""
    for load, following in pairwise([*loads, None]):
        if load is not None:
            yield load, following.at if following is not None else None
