"""Profiles of `portguard connect` for the clients of a gateway that a test started."""

from pathlib import Path
from typing import Any


def write_profile(gateway: Any, name: str, folder: Path) -> Path:
    """Write a profile for the client `name`; return its path."""
    certificate, key = gateway.certificate(name)
    profile = folder / f"{name}.toml"
    profile.write_text(
        f"""
gateway = "127.0.0.1:{gateway.port}"
server_name = "gw.localhost"
ca = "{gateway.ca}"
certificate = "{certificate}"
key = "{key}"
"""
    )
    return profile
