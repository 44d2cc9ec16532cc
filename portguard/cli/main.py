"""The `portguard` command: finds the subcommand, and turns errors into messages and exit codes."""

import sys
from typing import NoReturn

import click

from portguard import __version__
from portguard.cli.groups import LazyGroup
from portguard.cli.rendering import printable
from portguard.errors import PortguardError

# command: where it lives. Loaded on first use, so that `portguard connect` does not pay for the gateway.
_COMMANDS = {
    "audit": "portguard.cli.audit:audit",
    "ca": "portguard.cli.authority:ca",
    "cert": "portguard.cli.cert:cert",
    "completion": "portguard.cli.completion:completion",
    "connect": "portguard.cli.connect:connect",
    "doctor": "portguard.cli.doctor:doctor",
    "drain": "portguard.cli.drain:drain",
    "enroll": "portguard.cli.enroll:enroll",
    "invite": "portguard.cli.invite:invite",
    "lock": "portguard.cli.lock:lock",
    "policy": "portguard.cli.policy:policy",
    "quickstart": "portguard.cli.quickstart:quickstart",
    "quota": "portguard.cli.quota:quota",
    "reexec": "portguard.cli.reexec:reexec",
    "reload": "portguard.cli.reload:reload",
    "resume": "portguard.cli.drain:resume",
    "serve": "portguard.cli.serve:serve",
    "services": "portguard.cli.standing:services",
    "sessions": "portguard.cli.sessions:sessions",
    "status": "portguard.cli.status:status",
    "top": "portguard.cli.top:top",
    "unlock": "portguard.cli.lock:unlock",
    "whoami": "portguard.cli.standing:whoami",
}


@click.command(cls=LazyGroup, modules=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="portguard")
def portguard() -> None:
    """One door to internal TCP ports: mutual TLS in, least privilege, everything counted."""


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 refused, 4 unreachable."""
    try:
        portguard(prog_name="portguard")
    except PortguardError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        # What the system refuses, such as a full disk: each command says more where it can expect it.
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)


def _fail(message: str, exit_code: int) -> NoReturn:
    for line in message.splitlines():
        click.echo(f"portguard: {printable(line)}", err=True)
    sys.exit(exit_code)
