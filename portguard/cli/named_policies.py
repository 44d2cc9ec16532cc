"""Policies and addresses as a command line names them."""

import os
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

from portguard.errors import ConfigurationError, Problem, UsageError, because
from portguard.gateway.bundle import read_policy_bundle
from portguard.gateway.configuration import Configuration
from portguard.gateway.kept_policies import kept_files, kept_revision, recorded_loads
from portguard.gateway.snapshot import build_policy, policy_by
from portguard.identity.names import Namespace
from portguard.policy.addresses import parse_address
from portguard.policy.assumed import assumed_namespace
from portguard.policy.decide import Policy
from portguard.policy.model import Address
from portguard.policy.quantities import Unexpected
from portguard.policy.read import PolicyFile, policy_file_names, read_policy


@dataclass(frozen=True)
class NamedPolicy:
    """A policy, what people call it, and by what its names were read. `revision` None: it is not a kept one."""

    title: str
    policy: Policy
    namespace: Namespace
    revision: str | None = None


def policy_in_place(configuration_path: str) -> NamedPolicy:
    """The policy that the configuration names, as it is on the disk. Raises ConfigurationError."""
    configuration, policy = build_policy(read_policy_bundle(configuration_path))
    return NamedPolicy(configuration.gateway.policy, policy, configuration.namespace)


def policy_of(configuration: Configuration, path: str) -> NamedPolicy:
    """The policy at `path` in place of the configuration's own. Raises ConfigurationError."""
    return NamedPolicy(path, policy_by(configuration, files_at(path)), configuration.namespace)


def policies_alone(*paths: str) -> tuple[NamedPolicy, ...]:
    """The policies at `paths` without any configuration; a trust that one names exists for all of them.

    Raises ConfigurationError.
    """
    files = [files_at(path) for path in paths]
    namespace = assumed_namespace([each for some in files for each in some])
    return tuple(
        NamedPolicy(path, read_policy(some, namespace), namespace) for path, some in zip(paths, files, strict=True)
    )


def kept_policy(configuration: Configuration, revision: str) -> NamedPolicy:
    """A policy that was loaded once, its names read as they were then. Raises NotKept, ConfigurationError."""
    state = configuration.gateway.state
    load = next((load for load in reversed(recorded_loads(state)) if load.revision == revision), None)
    namespace = load.namespace if load is not None and load.namespace is not None else configuration.namespace
    name = load.gateway_name if load is not None and load.gateway_name is not None else configuration.gateway.name
    policy = read_policy(kept_files(state, revision), namespace, gateway_name=name)
    return NamedPolicy(f"revision {revision[:12]}", policy, namespace, revision)


def named_policy(text: str, configuration: Configuration) -> NamedPolicy:
    """The policy that is a file, a folder or the beginning of a kept revision. Raises NotKept, ConfigurationError."""
    if not os.path.exists(text):
        revision = kept_revision(configuration.gateway.state, text)
        if revision is not None:
            return kept_policy(configuration, revision)
    return policy_of(configuration, text)


def files_at(path: str) -> list[PolicyFile]:
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


def source_address(text: str | None) -> Address | None:
    """`--from`, an IPv4-mapped address as the IPv4 address that it is compared as. Raises UsageError."""
    try:
        address = parse_address(text) if text is not None else None
        return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
    except Unexpected as error:
        raise UsageError(f"--from: expected {error}, got {text}") from None


def _content(path: str, problems: list[Problem]) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        problems.append(Problem(path, "", "a file that can be read", because(error)))
        return None
