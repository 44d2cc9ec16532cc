"""`portguard connect`: local ports, or standard input and output, that lead to services."""

import asyncio
import contextlib
import json
import os
from collections.abc import Sequence

import click

from portguard.cli.as_client import credentials_of, run
from portguard.cli.options import json_option, profile_option
from portguard.cli.rendering import note
from portguard.client import command as child
from portguard.client.credentials import Credentials
from portguard.client.forwarding import Broken, Forwarding
from portguard.client.gateway import Description, Gateway, Tunnel
from portguard.client.local_ports import LOOPBACK, LocalPort, assign, parse_service, parse_wish
from portguard.client.refusal import RefusedByGateway
from portguard.client.signals import STOP, Signals, Stopped
from portguard.client.stdio import StandardStreams
from portguard.errors import PortguardError, UsageError
from portguard.policy.addresses import ListenAddress
from portguard.reasons import Reason

_LINGER_S = 1.0  # for what was written to arrive when the user ends it
_END_S = 1.0  # for standard streams to end in order when a signal comes
_FINISH_S = 2.0  # without a byte, after which sessions that outlive their command are cut


class _WithCommand(click.Command):
    """A command of which what follows "--" is another command, and no argument of this one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            args, ctx.meta[_COMMAND] = args[:place], tuple(args[place + 1 :])
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if _COMMAND in ctx.meta or error.possibilities:
                raise
            raise click.UsageError(f"{error.message.removesuffix('.')} ({_WHERE_COMMANDS_GO})", ctx) from None

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND...]"]


_COMMAND = "portguard.connect.command"
_WHERE_COMMANDS_GO = "a command and its options go after --, as in: portguard connect SERVICE -- COMMAND"


@click.command(cls=_WithCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("services", metavar="SERVICE...", nargs=-1, required=True)
@click.option(
    "-L",
    "local",
    metavar="[SERVICE=][ADDR:]PORT",
    multiple=True,
    help="The local port, 0 for a free one. Once per service; without a name, in their order.",
)
@click.option("--stdio", is_flag=True, help="Join standard input and output to the service, as ssh's ProxyCommand.")
@profile_option
@json_option
@click.pass_context
def connect(
    context: click.Context,
    services: tuple[str, ...],
    local: tuple[str, ...],
    stdio: bool,
    profile_name: str | None,
    as_json: bool,
) -> None:
    """Open local ports that lead to services, until Ctrl-C.

    With a COMMAND, open a free port, run it, and end with its exit code. It finds the port in PGHOST and PGPORT, in
    PORTGUARD_HOST and PORTGUARD_PORT, and wherever {host} and {port} stand in its arguments.
    """
    command: tuple[str, ...] | None = context.meta.get(_COMMAND)
    names = _parse_services(services, command)
    _check_usage(names, local, stdio, as_json, command)
    addresses = assign(names, [parse_wish(text) for text in local])
    credentials = credentials_of(profile_name)
    if stdio:
        context.exit(run(_join_standard_streams(credentials, names[0])))
    wanted = {name: (address, False) for name, address in addresses.items()}
    for name, port in credentials.profile.local_ports.items():
        if name not in wanted and command is None:
            wanted[name] = (ListenAddress(LOOPBACK, port), True)
    if command is None:
        context.exit(run(_keep_open(credentials, names, wanted, as_json=as_json)))
    context.exit(run(_beside(credentials, names, wanted, command)))


def _parse_services(services: Sequence[str], command: tuple[str, ...] | None) -> tuple[str, ...]:
    try:
        return tuple(map(parse_service, services))
    except UsageError as error:
        if command is None and len(services) > 1:
            raise UsageError(f"{error} ({_WHERE_COMMANDS_GO})") from None
        raise


def _check_usage(
    names: tuple[str, ...], local: tuple[str, ...], stdio: bool, as_json: bool, command: tuple[str, ...] | None
) -> None:
    if len(set(names)) < len(names):
        raise UsageError(f"services: expected each once, got {', '.join(names)}")
    if command == ():
        raise UsageError("command: expected one after --, got nothing")
    if stdio and len(names) > 1:
        raise UsageError(f"--stdio: expected one service, got {len(names)}")
    for option, given in (("--stdio", stdio), ("--json", as_json)):
        if given and command is not None:
            raise UsageError(f"{option}: expected no command beside it, got one")
    if stdio and (local or as_json):
        raise UsageError(f"--stdio: expected no {'-L' if local else '--json'} beside it, got one")


Wanted = dict[str, tuple[ListenAddress, bool]]
"""By service: where to listen, and whether a free port will do in its place."""


async def _keep_open(credentials: Credentials, names: Sequence[str], wanted: Wanted, *, as_json: bool) -> int:
    """Open ports until a signal comes. That is how this is meant to end, so the exit code is 0."""
    gateway = Gateway(credentials)
    forwarding = Forwarding(gateway, note)
    try:
        with Signals(STOP) as signals:
            for description in await signals.unless(_described_without_command(gateway, names)):
                if description.local_port is not None:
                    wanted.setdefault(description.service, (ListenAddress(LOOPBACK, description.local_port), True))
            ports = _listen(forwarding, names, wanted)
            only_here = "reachable from this machine only; " if all(port.is_loopback for port in ports) else ""
            click.echo(f"connected to {gateway.address}; {only_here}Ctrl-C ends it", err=True)
            _print(ports, as_json=as_json)
            await signals.next()
            return 0
    except Stopped as stopped:
        return stopped.exit_code
    finally:
        await forwarding.close(_LINGER_S)


async def _beside(credentials: Credentials, names: Sequence[str], wanted: Wanted, words: Sequence[str]) -> int:
    """Open ports, run a command, and return its exit code once what it sent has arrived."""
    gateway = Gateway(credentials)
    forwarding = Forwarding(gateway, note)
    code = None
    try:
        with Signals(STOP) as signals:
            await signals.unless(_described(gateway, names))
            ports = _listen(forwarding, names, wanted)
            code = await child.run(child.arguments(words, ports), child.environment(ports, os.environ), signals)
            forwarding.stop_listening()
            await signals.unless(forwarding.finish(_FINISH_S))
            return code
    except Stopped as stopped:
        return stopped.exit_code if code is None else code
    finally:
        await forwarding.close(_LINGER_S)


async def _join_standard_streams(credentials: Credentials, name: str) -> int:
    gateway = Gateway(credentials)
    forwarding = Forwarding(gateway, note)
    try:
        with Signals(STOP) as signals:
            return await signals.unless(_carry_standard_streams(gateway, forwarding, name))
    except Stopped as stopped:
        return stopped.exit_code
    finally:
        await forwarding.close(_LINGER_S)


async def _carry_standard_streams(gateway: Gateway, forwarding: Forwarding, name: str) -> int:
    """Return when both sides have finished. When it is cancelled, the input ends, and `_END_S` later all else."""
    # A refused tunnel leaves the output open until the reason is printed: ssh ends its ProxyCommand when it closes.
    tunnel = await gateway.connect(name)
    streams = StandardStreams()
    carrying = asyncio.create_task(_carry(forwarding, tunnel, streams), name="carry standard streams")
    try:
        return await asyncio.shield(carrying)
    except asyncio.CancelledError:
        # ssh closes the pipes and sends a signal at the same moment: what it wrote, and that it ended, goes out first.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await streams.end_input()
                await asyncio.wait((carrying,))
        raise
    finally:
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)


async def _carry(forwarding: Forwarding, tunnel: Tunnel, streams: StandardStreams) -> int:
    code = 0
    try:
        await forwarding.carry(tunnel, streams.sock)
    except Broken as error:
        code = error.exit_code
        if error.by_gateway:
            note(str(error))
    try:
        await streams.written()
    except OSError as error:
        raise PortguardError(f"standard output: expected somebody to read it, got “{error.strerror}”") from error
    return code


async def _described(gateway: Gateway, names: Sequence[str]) -> list[Description]:
    """Ask the gateway about each service. Raises the first refusal, after the others were reported."""
    answers = await asyncio.gather(*(gateway.describe(name) for name in names), return_exceptions=True)
    described = []
    failures: list[BaseException] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            failures.append(answer)
        else:
            described.append(answer)
    for failure in failures[1:]:
        if str(failure) != str(failures[0]):
            note(str(failure))
    if failures:
        raise failures[0]
    return described


async def _described_without_command(gateway: Gateway, names: Sequence[str]) -> list[Description]:
    """As _described(). Who forgot the -- before a command has named its words as services: say so."""
    try:
        return await _described(gateway, names)
    except RefusedByGateway as refused:
        if refused.reason != Reason.UNKNOWN_SERVICE or refused.subject not in names[1:]:
            raise
        place = names.index(refused.subject)
        meant = " ".join([*names[:place], "--", *names[place:]])
        raise RefusedByGateway(
            refused.subject,
            refused.reason,
            f"{refused.message}; a command goes after --, as in: portguard connect {meant}",
            session=refused.session,
            retry_after_s=refused.retry_after_s,
        ) from refused


def _listen(forwarding: Forwarding, names: Sequence[str], wanted: Wanted) -> list[LocalPort]:
    ports = []
    for name in names:
        address, fallback = wanted.get(name, (ListenAddress(LOOPBACK, 0), False))
        port = forwarding.listen(name, address, fallback=fallback)
        ports.append(port)
        if not port.is_loopback:
            note(f"warning: {name}: whoever reaches {port} uses it with your certificate")
    return ports


def _print(ports: Sequence[LocalPort], *, as_json: bool) -> None:
    if as_json:
        fields = [{"service": port.service, "host": port.host, "port": port.port} for port in ports]
        click.echo(json.dumps(fields))
        return
    for port in ports:
        why = "" if port.taken is None else f" ({port.taken} is taken or privileged)"
        click.echo(f"{port.service}: {port}{why}")
