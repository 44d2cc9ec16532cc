"""`portguard policy check` and `portguard policy explain`."""

import json
import os
from datetime import UTC, datetime, tzinfo
from difflib import get_close_matches
from pathlib import Path

import click
from click.core import ParameterSource

from portguard.cli.client_chain import identify
from portguard.cli.options import configuration_option, json_option
from portguard.cli.policy_rendering import Explained, explained_json, explained_lines
from portguard.cli.rendering import printable
from portguard.errors import ConfigurationError, Problem, Refused, UsageError
from portguard.gateway.bundle import read_policy_bundle
from portguard.gateway.configuration import Configuration, read_configuration
from portguard.gateway.snapshot import build_policy
from portguard.identity.names import Group, Identity, Malformed, parse_identity
from portguard.policy import checks
from portguard.policy.addresses import parse_address
from portguard.policy.assumed import assumed_namespace
from portguard.policy.decide import Policy, Request, decide
from portguard.policy.explain import explain as examine
from portguard.policy.kinds import check_instant, parse_own_group
from portguard.policy.model import Address
from portguard.policy.quantities import Unexpected
from portguard.policy.read import PolicyFile, policy_file_names, read_policy

_SINGULAR = {"services": "service", "roles": "role", "denies": "deny", "tests": "test"}


@click.group()
def policy() -> None:
    """Check a policy, and ask it why."""


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
            configuration, made = build_policy(read_policy_bundle(configuration_path))
            subject = configuration.gateway.policy
        elif given:
            made = _as_policy_of(configuration_path, path)
        else:
            files = _files(path)
            made = read_policy(files, assumed_namespace(files))
    except ConfigurationError as error:
        if not as_json:
            click.echo(printable(f"{subject}: not usable, {_counted(len(error.problems), 'problem')}"))
            raise
        problems = [
            {"file": problem.file, "key": problem.key, "expected": problem.expected, "found": problem.found}
            for problem in error.problems
        ]
        click.echo(json.dumps({"ok": False, "problems": problems, "warnings": []}, indent=2))
        context.exit(error.exit_code)
    warnings = list(checks.warnings(made))
    counts = {
        "services": len(made.services),
        "roles": len(made.roles),
        "denies": len(made.denies),
        "tests": len(made.tests),
    }
    if as_json:
        verdict = {"ok": True, "problems": [], "warnings": warnings, "trusts_checked": not alone}
        click.echo(json.dumps(verdict | counts, indent=2))
        return
    for warning in warnings:
        click.echo(f"portguard: warning: {printable(warning)}", err=True)
    if alone:
        click.echo("portguard: trusts are taken as the policy names them; with -c they are checked too", err=True)
    shown = ", ".join(_counted(count, _SINGULAR[noun]) for noun, count in counts.items())
    click.echo(printable(f"{subject}: ok, {shown}, {_counted(len(warnings), 'warning')}"))


@policy.command()
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
    at = _instant(at_text, made.zone)
    source = _source(source_text)
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
        click.echo(f"portguard: did you mean {printable(alike[0])}?", err=True)
    context.exit(0 if explained.allowed else Refused.exit_code)


def _identity_and_service(words: tuple[str, ...], *, with_certificate: bool) -> tuple[str | None, str]:
    match words:
        case (service,) if with_certificate:
            return None, service
        case (identity, service):
            return identity, service
        case _:
            found = _counted(len(words), "word")
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


def _instant(text: str | None, zone: tzinfo) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        at = datetime.fromisoformat(text)
        return check_instant(at if at.tzinfo is not None else at.replace(tzinfo=zone)).astimezone(UTC)
    except Unexpected as error:
        raise UsageError(f"--at: expected {error}, got {text}") from None
    except ValueError:
        raise UsageError(f"--at: expected a date and time such as 2026-03-02T09:00+01:00, got {text}") from None


def _source(text: str | None) -> Address | None:
    try:
        return parse_address(text) if text is not None else None
    except Unexpected as error:
        raise UsageError(f"--from: expected {error}, got {text}") from None


def _as_policy_of(configuration_path: str, path: str) -> Policy:
    """The policy at `path` in place of the configuration's own. Raises ConfigurationError."""
    problems: list[Problem] = []
    configuration_path = os.path.abspath(configuration_path)
    content = _content(configuration_path, problems)
    configuration = read_configuration(configuration_path, content, problems) if content is not None else None
    if configuration is None or problems:
        raise ConfigurationError(problems)
    occupied = [(address, "that of gateway.listen") for address in configuration.gateway.listen]
    return read_policy(
        _files(path),
        configuration.namespace,
        gateway_name=configuration.gateway.name,
        occupied=[*occupied, (configuration.metrics.listen, "that of metrics.listen")],
    )


def _files(path: str) -> list[PolicyFile]:
    """The file, or the files of the folder. Raises ConfigurationError."""
    problems: list[Problem] = []
    paths = [os.path.abspath(path)]
    if os.path.isdir(path):
        paths = [os.path.join(paths[0], name) for name in policy_file_names(os.listdir(path))]
        if not paths:
            problems.append(Problem(os.path.abspath(path), "", "at least one *.toml", "none"))
    files = [(each, content) for each in paths if (content := _content(each, problems)) is not None]
    if problems:
        raise ConfigurationError(problems)
    return files


def _content(path: str, problems: list[Problem]) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        problems.append(Problem(path, "", "a file that can be read", (error.strerror or type(error).__name__).lower()))
        return None


def _counted(count: int, noun: str) -> str:
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun.removesuffix('y')}ies" if noun.endswith("y") else f"{count} {noun}s"
