"""`portguard serve`: run the gateway, or only check what it would run with."""

import gc

import click

from portguard.cli.check_verdict import tell_unusable, tell_usable
from portguard.cli.options import configuration_option, json_option
from portguard.errors import ConfigurationError, UsageError


@click.command()
@configuration_option
@click.option("--check", is_flag=True, help="Only check the configuration, the policy and all certificates.")
@json_option
@click.pass_context
def serve(context: click.Context, configuration_path: str, check: bool, as_json: bool) -> None:
    """Run the gateway until it is told to end.

    With --check, nothing is started: everything that serving would read is read and checked, and so is whether
    this host has the folders and open files that it needs. Nobody is contacted: `portguard doctor` does that. The exit
    code is 0 when the gateway would take it, 2 when not; warnings do not change it.
    """
    if check:
        _check(configuration_path, as_json=as_json)
        return
    if as_json:
        raise UsageError("serve: expected --json only together with --check, got it alone")
    # To look for garbage among what is only being loaded, and is none, takes a tenth of the start.
    gc.disable()
    # The event loop and all that hangs on it: not for --check, which runs on every commit of somebody's policy.
    from portguard.gateway.startup import serve as run  # noqa: PLC0415

    gc.enable()
    context.exit(run(configuration_path))


def _check(configuration_path: str, *, as_json: bool) -> None:
    """Print warnings, problems and the verdict. Raises ConfigurationError, with --json ends with its exit code."""
    from portguard.gateway.bundle import read_bundle  # noqa: PLC0415
    from portguard.gateway.host import host_problems, host_warnings  # noqa: PLC0415
    from portguard.gateway.snapshot import build  # noqa: PLC0415

    bundle = read_bundle(configuration_path)
    of_host = host_problems(bundle)
    try:
        snapshot = build(bundle)
        if of_host:
            raise ConfigurationError(of_host)
    except ConfigurationError as error:
        every = ConfigurationError(dict.fromkeys([*error.problems, *of_host]))
        tell_unusable(bundle.configuration_path, every, as_json=as_json)
    tell_usable(
        bundle.configuration_path,
        counts={
            "service": len(snapshot.policy.services),
            "role": len(snapshot.policy.roles),
            "trust": len(snapshot.configuration.trusts),
        },
        warnings=[*snapshot.warnings, *host_warnings(snapshot.configuration)],
        more={"revision": snapshot.revision},
        as_json=as_json,
    )
