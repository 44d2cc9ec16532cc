"""HAProxy, before a gateway as its balancer or behind it as a service."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

_CONFIGURATION = """
defaults
  mode tcp
  timeout connect 20s
  timeout client 60s
  timeout server 60s
{sections}
"""


def start_haproxy(start: Callable[..., Any], program: str, folder: Path, sections: str) -> Any:
    """Run the HAProxy `program` with `sections` after its defaults (mode tcp), and its files in the new `folder`."""
    folder.mkdir()
    configuration = folder / "haproxy.cfg"
    configuration.write_text(_CONFIGURATION.format(sections=sections))
    return start([program, "-db", "-f", str(configuration)], cwd=folder)
