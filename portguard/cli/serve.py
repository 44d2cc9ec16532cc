"""`portguard serve`: run the gateway, or only check what it would run with."""

import json

import click

from portguard.cli.options import configuration_option, json_option
from portguard.cli.rendering import printable
from portguard.errors import ConfigurationError, UsageError


@click.command()
@configuration_option
@click.option("--check", is_flag=True, help="Only check the configuration, the policy and all certificates.")
@json_option
@click.pass_context
def serve(context: click.Context, configuration_path: str, check: bool, as_json: bool) -> None:
    """Run the gateway until it is told to end.

    With --check, nothing is started: everything that serving would read is read and checked. The exit code is 0 when
    the gateway would take it, 2 when not; warnings do not change it.
    """
    if check:
        _check(configuration_path, as_json=as_json)
        return
    if as_json:
        raise UsageError("serve: expected --json only together with --check, got it alone")
    # The event loop and all that hangs on it: not for --check, which runs on every commit of somebody's policy.
    from portguard.gateway.startup import serve as run  # noqa: PLC0415

    context.exit(run(configuration_path))


def _check(configuration_path: str, *, as_json: bool) -> None:
    """Print warnings, problems and the verdict. Raises ConfigurationError, with --json ends with its exit code."""
    from portguard.gateway.bundle import read_bundle  # noqa: PLC0415
    from portguard.gateway.snapshot import build  # noqa: PLC0415

    bundle = read_bundle(configuration_path)
    try:
        snapshot = build(bundle)
    except ConfigurationError as error:
        if not as_json:
            click.echo(
                printable(f"{bundle.configuration_path}: not usable, {_counted(len(error.problems), 'problem')}")
            )
            raise
        problems = [
            {"file": problem.file, "key": problem.key, "expected": problem.expected, "found": problem.found}
            for problem in error.problems
        ]
        click.echo(json.dumps({"ok": False, "problems": problems, "warnings": []}, indent=2))
        click.get_current_context().exit(error.exit_code)
    counts = {
        "services": len(snapshot.policy.services),
        "roles": len(snapshot.policy.roles),
        "trusts": len(snapshot.configuration.trusts),
    }
    if as_json:
        verdict = {"ok": True, "problems": [], "warnings": snapshot.warnings, "revision": snapshot.revision}
        click.echo(json.dumps(verdict | counts, indent=2))
        return
    for warning in snapshot.warnings:
        click.echo(f"portguard: warning: {printable(warning)}", err=True)
    shown = ", ".join(_counted(count, noun.removesuffix("s")) for noun, count in counts.items())
    click.echo(printable(f"{bundle.configuration_path}: ok, {shown}, {_counted(len(snapshot.warnings), 'warning')}"))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
