"""The part of `portguard doctor` that looks at a gateway on this host."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

from portguard.cli.control import control_client, understanding
from portguard.errors import ConfigurationError, PortguardError, Problem, Unreachable
from portguard.gateway.bundle import read_bundle
from portguard.gateway.configuration import Configuration
from portguard.gateway.confinement import Landlock, landlock
from portguard.gateway.diagnosis import diagnose_listening, diagnose_names, diagnose_services
from portguard.gateway.fleet_ledger import redis_settings
from portguard.gateway.host import host_problems, host_warnings
from portguard.gateway.listeners import listeners
from portguard.gateway.resolve import Names
from portguard.gateway.snapshot import Snapshot, build
from portguard.observe.findings import Finding, failed, ok, warning

_SERVING = "serving"


async def diagnose_gateway(configuration_path: str) -> AsyncIterator[Finding]:
    """Look at the files of a gateway, at the gateway if it runs, and at what is around it."""
    snapshot: Snapshot | None = None
    problems: list[Problem] = []
    try:
        bundle = read_bundle(configuration_path)
        problems += host_problems(bundle)
        snapshot = build(bundle)
    except ConfigurationError as error:
        problems += error.problems
    for problem in dict.fromkeys(problems):
        yield failed("configuration", str(problem))
    if snapshot is not None:
        for text in (*snapshot.warnings, *host_warnings(snapshot.configuration)):
            yield warning("configuration", text)
        if not problems:
            yield ok("configuration", f"{configuration_path} can be served")
    for finding in _gateway(configuration_path, snapshot):
        yield finding
    if snapshot is None:
        return
    for finding in await asyncio.to_thread(_ledger, snapshot.configuration):
        yield finding
    names = Names()
    async for finding in diagnose_names(snapshot, names):
        yield finding
    await names.close()
    async for finding in diagnose_services(snapshot):
        yield finding


def _gateway(configuration_path: str, snapshot: Snapshot | None) -> Iterator[Finding]:
    """Look at the gateway that runs; where none does, whether one could listen."""
    try:
        status = control_client(configuration_path).get("/v1/status")
        with understanding():
            verdict, serving, revision = str(status["verdict"]), status["state"] == _SERVING, str(status["policy"])
            # A gateway of the version before has not the field.
            told = status.get("confinement")
            confinement = Landlock(told["abi"], told["message"] or "") if told else None
    except ConfigurationError:
        return  # told already
    except Unreachable as error:
        yield warning("gateway", str(error), "`portguard serve` runs it")
        if snapshot is not None:
            everywhere = listeners(snapshot.configuration, snapshot.policy)
            yield from diagnose_listening([*(one.address for one in everywhere), snapshot.configuration.metrics.listen])
        yield _confinement(landlock())
        return
    except PortguardError as error:
        yield failed("gateway", str(error))
        return
    yield ok("gateway", verdict) if serving else failed("gateway", verdict, "`portguard status` tells more")
    if snapshot is not None and revision != snapshot.revision:
        yield warning("gateway", "it does not work by what its files say now", "`portguard reload` has it work by them")
    if confinement is not None:
        yield _confinement(confinement)


def _confinement(offered: Landlock) -> Finding:
    if offered.abi is not None:
        return ok("confinement", f"{offered} keeps workers from the host")
    text = f"workers are not kept from the host: {offered.missing}"
    return warning("confinement", text, "who takes one over reads what the gateway's user can read; see SECURITY.md")


def _ledger(configuration: Configuration) -> Sequence[Finding]:
    """Look at the Redis that a fleet shares; a ledger in a file is looked at with the configuration."""
    if configuration.ledger.url == "sqlite":
        return []
    try:
        settings = redis_settings(configuration)
    except ConfigurationError:
        return []  # told already
    # Only here: its package is an extra.
    from portguard.gateway.redis_diagnosis import diagnose_redis  # noqa: PLC0415

    return list(diagnose_redis(settings))
