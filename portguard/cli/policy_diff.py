"""`portguard policy diff`: what a new policy changes."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from click.core import ParameterSource

from portguard.cli.check_verdict import problems_as_json
from portguard.cli.configuration_file import configuration_at
from portguard.cli.instants import since_instant
from portguard.cli.named_policies import NamedPolicy, named_policy, policies_alone, policy_in_place
from portguard.cli.options import configuration_option, json_option
from portguard.cli.policy_diff_rendering import (
    CSV_HEADER,
    Compared,
    Replayed,
    compared_json,
    compared_lines,
    compared_rows,
)
from portguard.cli.rendering import printable
from portguard.cli.running_policy import running_policy
from portguard.cli.spreadsheets import csv_lines
from portguard.errors import UsageError
from portguard.gateway.kept_policies import is_like_revision
from portguard.observe.audit.replaying import OPENED, REFUSED, Replayable
from portguard.observe.audit.selecting import Selection, every
from portguard.policy.checks import described
from portguard.policy.decide import Refusal
from portguard.policy.diff import differences
from portguard.policy.replay import Live, Outcome, prospects, replayed


@click.command(short_help="Say what a new policy changes.")
@click.argument("new", metavar="NEW")
@click.option("--against", metavar="FILE_OR_REVISION", help="Compare with this policy; else that of the configuration.")
@click.option(
    "--audit", "audit_path", metavar="FILE", type=click.Path(path_type=Path), help="Replay this audit on NEW."
)
@click.option("--live", is_flag=True, help="Compare with what the running gateway works by, and tell of its sessions.")
@click.option("--since", metavar="TIME", help='With --audit: from this time on, "2026-11-23T07:00:00Z" or "30d".')
@configuration_option
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print a row for each identity and service.")
@click.pass_context
@problems_as_json
def diff(
    context: click.Context,
    new: str,
    against: str | None,
    audit_path: Path | None,
    live: bool,
    since: str | None,
    configuration_path: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Say what NEW changes: who gains or loses access to what, and which roles and services are others.

    With --live also which sessions of the running gateway would end, go on by other limits, or stay as they are.

    NEW and FILE_OR_REVISION are a policy file, a folder of them, or the beginning of the revision of a policy that was
    loaded. Two files or folders are compared without any configuration, unless -c is given.

    The exit code is 0 when there is no difference, 1 when there is one, 2 when a policy or the audit cannot be used.
    """
    if as_json and as_csv:
        raise UsageError("--csv: expected not to be given beside --json")
    if live and against is not None:
        raise UsageError("--live: expected not to be given beside --against")
    if since is not None and audit_path is None:
        raise UsageError("--since: expected --audit beside it")
    now = datetime.now(UTC)
    from_on = since_instant(since, now) if since is not None else None
    given = context.get_parameter_source("configuration_path") is ParameterSource.COMMANDLINE
    sessions: tuple[Live, ...] = ()
    if live:
        before, sessions = running_policy(configuration_path)
        after = named_policy(new, configuration_at(configuration_path))
    else:
        before, after = _both(new, against, configuration_path, given=given)
    replayable = Replayable() if audit_path is not None else None
    outcomes: tuple[Replayed, ...] = ()
    if audit_path is not None and replayable is not None:
        selection = Selection(events=(OPENED, REFUSED), since=from_on)
        past = replayable.requests(every(audit_path, selection))
        outcomes = tuple(_together(replayed(past, after.policy)))
    found = differences(before.policy, after.policy, since=now)
    future = tuple(prospects(sessions, before.policy, after.policy, now)) if live else None
    compared = Compared(before, after, found, replayable, outcomes, future)
    if as_json:
        click.echo(json.dumps(compared_json(compared), indent=2))
    else:
        lines = csv_lines(CSV_HEADER, compared_rows(compared)) if as_csv else compared_lines(compared)
        for line in lines:
            click.echo(printable(line))
    context.exit(1 if compared.differ else 0)


def _both(new: str, against: str | None, configuration_path: str, *, given: bool) -> tuple[NamedPolicy, NamedPolicy]:
    alone = against is not None and all(os.path.exists(each) or not is_like_revision(each) for each in (against, new))
    if against is not None and alone and not given:
        before, after = policies_alone(against, new)
        return before, after
    configuration = configuration_at(configuration_path)
    before = named_policy(against, configuration) if against is not None else policy_in_place(configuration_path)
    return before, named_policy(new, configuration)


def _together(outcomes: Iterator[Outcome]) -> list[Replayed]:
    """Outcomes that are alike as one, the most frequent first."""
    counts: dict[tuple[object, ...], int] = {}
    latest: dict[tuple[object, ...], Replayed] = {}
    for outcome in outcomes:
        past, verdict = outcome.past, outcome.verdict
        refused = isinstance(verdict, Refusal)
        before = f"role {past.role}" if past.role is not None else str(past.reason)
        key = (past.identity, past.service, before, described(verdict))
        counts[key] = counts.get(key, 0) + 1
        last = max(past.at, latest[key].last) if key in latest else past.at
        reason = str(verdict.reason) if isinstance(verdict, Refusal) else None
        latest[key] = Replayed(
            past.identity, past.service, before, described(verdict), refused, reason, counts[key], last
        )
    return sorted(latest.values(), key=lambda row: (-row.count, row.identity, row.service, row.before, row.after))
