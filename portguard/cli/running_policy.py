"""What a gateway that runs works by, and the sessions that it carries, over its control socket."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from portguard.cli.configuration_file import configuration_at
from portguard.cli.control import control_client
from portguard.cli.named_policies import NamedPolicy
from portguard.errors import Unreachable
from portguard.identity.names import Group, Identity
from portguard.policy.addresses import parse_address
from portguard.policy.read import read_policy
from portguard.policy.replay import Live


def running_policy(configuration_path: str) -> tuple[NamedPolicy, tuple[Live, ...]]:
    """The policy in force, its names read by the configuration on the disk, and the live sessions.

    Raises Unreachable, ConfigurationError, or another PortguardError.
    """
    configuration, client = configuration_at(configuration_path), control_client(configuration_path)
    document, sessions = client.get("/v1/policy"), client.get("/v1/sessions")
    try:
        revision = str(document["revision"])
        files = [(str(each["path"]), str(each["text"]).encode()) for each in document["files"]]
        live = tuple(_live(each) for each in sessions["sessions"])
    except (LookupError, TypeError, ValueError) as error:
        raise Unreachable(f"{configuration.gateway.control}: expected an answer of portguard's, got another") from error
    policy = read_policy(files, configuration.namespace, gateway_name=configuration.gateway.name)
    return NamedPolicy(f"in force, revision {revision[:12]}", policy, configuration.namespace, revision), live


def _live(session: Mapping[str, Any]) -> Live:
    trust, source = str(session["trust"]), session["source"]
    return Live(
        str(session["session"]),
        Identity(trust, str(session["name"])),
        frozenset(Group(trust, str(group)) for group in session["groups"]),
        str(session["service"]),
        parse_address(source) if source is not None else None,
        datetime.fromisoformat(session["opened"]),
        str(session["role"]),
    )
