"""HAProxy, in front of a gateway as its balancer or behind it as a service."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CONFIGURATION = """
global
  stats socket {folder}/control mode 600
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
    configuration.write_text(_CONFIGURATION.format(folder=folder, sections=sections))
    return start([program, "-db", "-f", str(configuration)], cwd=folder)


def ask_haproxy(folder: Path, command: str) -> str:
    """Return what HAProxy answers to a command of its management guide, section 9.3."""
    with socket.socket(socket.AF_UNIX) as sock, sock.makefile("r") as answer:
        sock.connect(str(folder / "control"))
        sock.sendall(f"{command}\n".encode())
        return answer.read()
