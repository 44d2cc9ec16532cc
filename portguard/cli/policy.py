"""`portguard policy check` and `explain`; the other commands of the group have modules of their own."""

import json
import os
from datetime import datetime
from difflib import get_close_matches

import click
from click.core import ParameterSource

from portguard.cli.check_verdict import tell_unusable, tell_usable
from portguard.cli.client_chain import identify
from portguard.cli.configuration_file import configuration_at
from portguard.cli.groups import CommandGroup
from portguard.cli.instants import instant
from portguard.cli.named_policies import policies_alone, policy_in_place, policy_of, source_address
from portguard.cli.options import configuration_option, json_option
from portguard.cli.policy_access import access, show
from portguard.cli.policy_diff import diff
from portguard.cli.policy_rendering import Explained, explained_json, explained_lines
from portguard.cli.rendering import counted, note, printable
from portguard.errors import ConfigurationError, Refused, UsageError
from portguard.gateway.bundle import read_policy_bundle
from portguard.gateway.configuration import Configuration
from portguard.gateway.snapshot import build_policy
from portguard.identity.names import Group, Identity, Malformed, parse_identity
from portguard.policy import checks
from portguard.policy.decide import Request, decide
from portguard.policy.explain import explain as examine
from portguard.policy.kinds import parse_own_group
from portguard.policy.quantities import Unexpected


@click.group(cls=CommandGroup)
def policy() -> None:
    """Check a policy, ask it why, and compare it with another."""


for _command in (access, diff, show):
    policy.add_command(_command)


@policy.command()
@click.argument("path", metavar="[FILE_OR_FOLDER]", required=False)
@configuration_option
@json_option
@click.pass_context
def check(context: click.Context, path: str | None, configuration_path: str, as_json: bool) -> None:
    """Read a policy, run its tests and warn of what is odd.

    Without FILE_OR_FOLDER it is the policy of the configuration. FILE_OR_FOLDER alone is checked without any
    configuration, trusts then being taken as it names them; with -c it is checked as that configuration's policy.

    The exit code is 0 when the policy can be used, 2 when not; warnings do not change it.
    """
    given = context.get_parameter_source("configuration_path") is ParameterSource.COMMANDLINE
    alone = path is not None and not given
    subject = os.path.abspath(path) if path is not None else os.path.abspath(configuration_path)
    try:
        if path is None:
            in_place = policy_in_place(configuration_path)
            subject, made = in_place.title, in_place.policy
        elif given:
            made = policy_of(configuration_at(configuration_path), path).policy
        else:
            made = policies_alone(path)[0].policy
    except ConfigurationError as error:
        tell_unusable(subject, error, as_json=as_json)
    tell_usable(
        subject,
        counts={
            "service": len(made.services),
            "role": len(made.roles),
            "deny": len(made.denies),
            "test": len(made.tests),
        },
        warnings=list(checks.warnings(made)),
        notes=["trusts are taken as the policy names them; with -c they are checked too"] if alone else [],
        more={"trusts_checked": not alone},
        as_json=as_json,
    )


@policy.command(short_help="Say why an identity may reach a service or not.")
@click.argument("words", metavar="[IDENTITY] SERVICE", nargs=-1, required=True)
@click.option("--cert", "certificate_path", metavar="FILE", help="Take identity and groups from a client certificate.")
@click.option("--group", "groups", metavar="GROUP", multiple=True, help="A group that the certificate has.")
@click.option("--at", "at_text", metavar="TIME", help="ISO 8601; without an offset in the policy's zone. Else now.")
@click.option("--from", "source_text", metavar="ADDRESS", help="The client's address; else it is unknown.")
@configuration_option
@json_option
@click.pass_context
def explain(
    context: click.Context,
    words: tuple[str, ...],
    certificate_path: str | None,
    groups: tuple[str, ...],
    at_text: str | None,
    source_text: str | None,
    configuration_path: str,
    as_json: bool,
) -> None:
    """Say why IDENTITY may reach SERVICE or not: entry by entry, with the conditions that held or failed.

    With --cert, IDENTITY can be left out. The exit code is 0 when allowed, 3 when refused.
    """
    configuration, made = build_policy(read_policy_bundle(configuration_path))
    at = instant(at_text, made.zone)
    source = source_address(source_text)
    name, service_text = _identity_and_service(words, with_certificate=certificate_path is not None)
    try:
        identity, held = _caller(name, groups, certificate_path, configuration, at)
    except Refused as refused:
        if not as_json:
            click.echo(printable(f"refused before the policy is asked: {refused.reason}, {refused.message}"))
        else:
            verdict = {"allowed": False, "reason": refused.reason, "role": None, "message": refused.message}
            click.echo(json.dumps(verdict | {"entries": []}, indent=2))
        context.exit(refused.exit_code)

    service = made.resolve_service(service_text) or made.resolve_name(service_text)
    request = Request(identity, held, service.name if service is not None else service_text, source, at)
    explained = Explained(
        request, tuple(examine(made, request)), decide(made, request), made, configuration.namespace.default
    )
    if as_json:
        click.echo(json.dumps(explained_json(explained), indent=2))
    else:
        for line in explained_lines(explained):
            click.echo(printable(line))
    if service is None and (alike := get_close_matches(service_text, made.services, n=1)):
        note(f"did you mean {alike[0]}?")
    context.exit(0 if explained.allowed else Refused.exit_code)


def _identity_and_service(words: tuple[str, ...], *, with_certificate: bool) -> tuple[str | None, str]:
    match words:
        case (service,) if with_certificate:
            return None, service
        case (identity, service):
            return identity, service
        case _:
            found = counted(len(words), "word")
            raise UsageError(f"explain: expected IDENTITY and SERVICE, or --cert and SERVICE, got {found}")


def _caller(
    name: str | None, groups: tuple[str, ...], certificate_path: str | None, configuration: Configuration, at: datetime
) -> tuple[Identity, frozenset[Group]]:
    """Who is asked about, with groups. Raises UsageError, ConfigurationError, Refused."""
    namespace = configuration.namespace
    try:
        identity = parse_identity(name, namespace) if name is not None else None
    except Malformed as error:
        raise UsageError(f"IDENTITY: {error}") from None
    if certificate_path is not None:
        if groups:
            raise UsageError("--group: expected none beside --cert, which tells the groups")
        caller = identify(certificate_path, configuration, at)
        if identity not in {None, caller.identity}:
            found = caller.identity.written(namespace.default)
            raise UsageError(f"{certificate_path}: expected a certificate of {name}, got one of {found}")
        return caller.identity, caller.groups
    if identity is None:
        raise UsageError("IDENTITY: expected one, or --cert")
    try:
        return identity, frozenset(parse_own_group(group, identity, namespace) for group in groups)
    except Unexpected as error:
        raise UsageError(f"--group: expected {error}, got {', '.join(groups)}") from None
