"""Profiles: which gateway, and with which certificate. One TOML file each, with paths relative to its folder.

    gateway = "bastion.example.com:8443"
    ca = "ca.crt"
    certificate = "alice.crt"
    key = "alice.key"
    # key_passphrase_file = "alice.passphrase"
    # server_name = "bastion.example.com"   # where the gateway is reached by another name or by its address

    [services.orders-db]
    local_port = 15432                      # in place of the service's own

Those in `~/.config/portguard/` go by their names.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from portguard.errors import ConfigurationError, Problem, UsageError
from portguard.policy.addresses import HostPort, parse_address, parse_host_name
from portguard.policy.quantities import Unexpected
from portguard.policy.toml import HOST_PORT, PATH, PORT, Table, parse, text_kind

DEFAULT_PROFILE = "default"

_SUFFIX = ".toml"
_MOST_NEIGHBOURS = 200
_LARGEST_NEIGHBOUR_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Profile:
    """One profile. Paths are absolute or relative to the working directory, as `path` is."""

    path: Path
    gateway: HostPort
    server_name: str
    """The DNS name or IP address that the gateway's certificate has to carry."""
    ca: Path
    certificate: Path
    key: Path
    key_passphrase_file: Path | None
    local_ports: Mapping[str, int]
    """By service, where the user wants another than the service's own."""


def profile_path(given: str | None, environment: Mapping[str, str]) -> Path:
    """Return where a profile is: `given` by the user, else $PORTGUARD_PROFILE, else "default".

    What has a slash in it or ends in ".toml" is a file, all else a name. Raises UsageError for a name that cannot be.
    """
    text = given or environment.get("PORTGUARD_PROFILE") or DEFAULT_PROFILE
    separators = {os.sep, os.altsep or os.sep, "/"}
    if text.endswith(_SUFFIX) or any(separator in text for separator in separators):
        return Path(os.path.expanduser(text))
    if text.startswith((".", "~")) or "\0" in text:
        raise UsageError(f"profile: expected a name or a file such as ./team.toml, got {text!r}")
    return profiles_folder(environment) / f"{text}{_SUFFIX}"


def profiles_folder(environment: Mapping[str, str]) -> Path:
    """Return the folder of named profiles. A relative $XDG_CONFIG_HOME is ignored (XDG Base Directory spec)."""
    configured = environment.get("XDG_CONFIG_HOME", "")
    base = Path(configured) if os.path.isabs(configured) else Path(os.path.expanduser("~")) / ".config"
    return base / "portguard"


def read_profile(path: Path) -> Profile:
    """Read the profile at `path`. Raises ConfigurationError with all problems; the files it names are not read."""
    problems: list[Problem] = []
    try:
        content = path.read_bytes()
    except OSError as error:
        found = f"“{error.strerror}”{_neighbours(path)}"
        if path.name == f"{DEFAULT_PROFILE}{_SUFFIX}" and isinstance(error, FileNotFoundError):  # nobody has named one
            found += "; --profile or $PORTGUARD_PROFILE names another"
        raise ConfigurationError([Problem(str(path), "", "a profile that can be read", found)]) from error
    root = parse(str(path), content, problems)
    gateway = root.get("gateway", HOST_PORT)
    profile = Profile(
        path=path,
        gateway=gateway,
        server_name=root.get("server_name", SERVER_NAME, default=gateway.host),
        ca=_path(root, "ca"),
        certificate=_path(root, "certificate"),
        key=_path(root, "key"),
        key_passphrase_file=_path(root, "key_passphrase_file") if "key_passphrase_file" in root else None,
        local_ports=_local_ports(root),
    )
    # Named even where the file has none, so that "did you mean" knows it.
    root.get("key_passphrase_file", PATH, default=None)
    root.finish()
    if problems:
        raise ConfigurationError(problems)
    return profile


def parse_server_name(text: str) -> str:
    """The DNS name or IP address that a gateway's certificate has to carry. Raises Unexpected."""
    try:
        return str(parse_address(text))
    except Unexpected:
        return parse_host_name(text)


SERVER_NAME = text_kind(parse_server_name, 'a host name such as "bastion.example.com"', "")


def _path(root: Table, key: str) -> Path:
    return Path(root.file).parent / os.path.expanduser(root.get(key, PATH))


def _local_ports(root: Table) -> dict[str, int]:
    ports = {}
    for name, table in root.tables_by_name("services").items():
        port = table.get("local_port", PORT)
        try:
            ports[parse_host_name(name)] = port
        except Unexpected:
            root.report("services", "names of services such as orders-db", name)
    return ports


def _neighbours(path: Path) -> str:
    """Name the profiles that are there, for whoever mistyped one."""
    try:
        files = sorted(entry for entry in path.parent.iterdir() if entry.suffix == _SUFFIX)
    except OSError:
        return ""
    names = [file.stem for file in files[:_MOST_NEIGHBOURS] if _looks_like_a_profile(file)]
    return f" (there are {', '.join(names[:10])})" if names else ""


def _looks_like_a_profile(path: Path) -> bool:
    """Whether a file says which gateway. A folder may be full of TOML that has nothing to do with portguard."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            document = tomllib.loads(file.read(_LARGEST_NEIGHBOUR_BYTES).decode())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document.get("gateway"), str)
