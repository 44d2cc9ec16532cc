"""`portguard doctor`: look at all that has to be right between a client and its services, and say what is not."""

import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import click

from portguard.cli.as_client import credentials_of, run
from portguard.cli.options import DEFAULT_CONFIGURATION, json_option, profile_option
from portguard.cli.rendering import counted, printable
from portguard.client.diagnosis import diagnose
from portguard.client.profile import profile_path
from portguard.errors import ConfigurationError, UsageError
from portguard.observe.findings import Finding, Level, failed

_MARKS = {Level.OK: "ok  ", Level.WARNING: "warn", Level.FAILED: "FAIL"}


@click.command(short_help="Look at all that has to be right, and say what is not.")
@profile_option
@click.option(
    "-c",
    "--config",
    "configuration_path",
    metavar="FILE",
    type=click.Path(readable=False),
    help=f"Look at the gateway of this configuration; else $PORTGUARD_CONFIG, else {DEFAULT_CONFIGURATION}.",
)
@json_option
@click.pass_context
def doctor(context: click.Context, profile_name: str | None, configuration_path: str | None, as_json: bool) -> None:
    """Look at all that has to be right between a client and its services, and say what is not.

    With --profile, from here to the gateway: certificate, names, connection, what the policy lets you reach. With
    --config, a gateway on this host: its files, whether it serves, its names, the Redis that a fleet shares, and
    whether its services can be reached from here. With neither, both that this machine has. Nothing is changed, and no
    session opened.

    Exits with 1 when something does not work; warnings leave 0.
    """
    looks = _looks(profile_name, configuration_path)
    findings: list[Finding] = []
    for look in looks:
        run(_take(look, findings, aloud=not as_json))
    failures, warnings = (sum(each.level is level for each in findings) for level in (Level.FAILED, Level.WARNING))
    if as_json:
        documents = [
            {"level": each.level, "subject": each.subject, "text": each.text, "advice": each.advice or None}
            for each in findings
        ]
        click.echo(json.dumps({"ok": not failures, "findings": documents}, indent=2))
    else:
        click.echo(f"{counted(failures, 'failure')}, {counted(warnings, 'warning')}")
    context.exit(1 if failures else 0)


def _looks(profile_name: str | None, configuration_path: str | None) -> list[AsyncIterator[Finding]]:
    """What to look at: what was asked for, else what is there. Raises UsageError when that is nothing."""
    if profile_name is not None or configuration_path is not None:
        profile = profile_name is not None
        configuration = configuration_path
    else:
        profile = bool(os.environ.get("PORTGUARD_PROFILE")) or profile_path(None, os.environ).exists()
        configuration = os.environ.get("PORTGUARD_CONFIG") or None
        if configuration is None and os.path.exists(DEFAULT_CONFIGURATION):
            configuration = DEFAULT_CONFIGURATION
    looks = [_client(profile_name)] if profile else []
    if configuration is not None:
        # Not for clients, which may be where no gateway can run.
        from portguard.cli.gateway_doctor import diagnose_gateway  # noqa: PLC0415

        looks.append(diagnose_gateway(configuration))
    if not looks:
        missing = f"neither {profile_path(None, os.environ)} nor {DEFAULT_CONFIGURATION}"
        raise UsageError(f"doctor: expected --profile or --config, or one of their usual files, got {missing}")
    return looks


async def _client(profile_name: str | None) -> AsyncIterator[Finding]:
    try:
        credentials = credentials_of(profile_name)
        async for finding in diagnose(credentials, datetime.now(UTC)):
            yield finding
    except ConfigurationError as error:
        for problem in error.problems:
            yield failed("profile", str(problem))


async def _take(look: AsyncIterator[Finding], findings: list[Finding], *, aloud: bool) -> None:
    async for finding in look:
        findings.append(finding)
        if aloud:
            _show(finding)


def _show(finding: Finding) -> None:
    click.echo(printable(f"{_MARKS[finding.level]}  {finding.subject}: {finding.text}"))
    if finding.advice:
        click.echo(printable(f"      {finding.advice}"))
