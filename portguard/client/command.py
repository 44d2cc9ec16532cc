"""A command that runs beside its tunnels: told where they are, given its signals, and waited for."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from portguard.client.local_ports import LocalPort
from portguard.client.signals import Signals
from portguard.errors import PortguardError, UsageError

NOT_FOUND, NOT_STARTED = 127, 126
"""Exit codes of a command that could not be started (POSIX.1-2017, Shell Command Language 2.8.2)."""


class CannotStart(PortguardError):
    """The command could not be started. `exit_code` is 127 when there is no such program, else 126."""

    def __init__(self, program: str, error: OSError):
        self.exit_code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_STARTED
        super().__init__(f"{program}: expected a program that can be started, got “{error.strerror}”")


def variables(ports: Sequence[LocalPort]) -> dict[str, str]:
    """Return the environment variables that tell a command where its tunnels are.

    Every service has PORTGUARD_ORDERS_DB_HOST and …_PORT. A single one has PORTGUARD_HOST, PORTGUARD_PORT, PGHOST and
    PGPORT as well.
    """
    found: dict[str, str] = {}
    for port in ports:
        prefix = "PORTGUARD_" + "".join(c if c.isalnum() else "_" for c in port.service).upper()
        found |= {f"{prefix}_HOST": port.reachable_host, f"{prefix}_PORT": str(port.port)}
    if len(ports) == 1:
        for prefix in ("PORTGUARD_", "PG"):
            found |= {f"{prefix}HOST": ports[0].reachable_host, f"{prefix}PORT": str(ports[0].port)}
    return found


def environment(ports: Sequence[LocalPort], inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the command: what was inherited, with `variables`."""
    # libpq dials PGHOSTADDR whatever PGHOST says: the command would go past its tunnel.
    passed_on = {name: value for name, value in inherited.items() if name != "PGHOSTADDR" or len(ports) > 1}
    return passed_on | variables(ports)


def arguments(words: Sequence[str], ports: Sequence[LocalPort]) -> list[str]:
    """Replace {host} and {port} in `words`; with several services they are {orders-db.host} and {orders-db.port}.

    Other braces stay as they are. Raises UsageError for a plain {host} or {port} that could mean several.
    """
    values: dict[str, str] = {}
    for port in ports:
        values |= {f"{{{port.service}.host}}": port.reachable_host, f"{{{port.service}.port}}": str(port.port)}
    if len(ports) == 1:
        values |= {"{host}": ports[0].reachable_host, "{port}": str(ports[0].port)}
    elif any("{host}" in word or "{port}" in word for word in words):
        raise UsageError(
            f"command: expected {{{ports[0].service}.host}} or {{{ports[0].service}.port}}, as there are several "
            f"services, got {{host}} or {{port}}"
        )
    replaced = []
    for word in words:
        for placeholder, value in values.items():
            word = word.replace(placeholder, value)  # noqa: PLW2901  # one after the other
        replaced.append(word)
    return replaced


async def run(words: Sequence[str], child_environment: Mapping[str, str], signals: Signals) -> int:
    """Run a command to its end, on this process's standard streams; return its exit code, 128 + N for signal N.

    Signals that come meanwhile are passed on to it. Raises CannotStart.
    """
    try:
        # asyncio's own subprocesses need another event loop on Windows.
        process = subprocess.Popen(words, env=child_environment)  # noqa: ASYNC220
    except OSError as error:
        raise CannotStart(words[0], error) from error
    passing_on = asyncio.create_task(_pass_on(signals, process), name="pass signals on")
    try:
        code = await asyncio.to_thread(process.wait)
    finally:
        passing_on.cancel()
    return code if code >= 0 else 128 - code


async def _pass_on(signals: Signals, process: subprocess.Popen[bytes]) -> None:
    while True:
        number = await signals.next()
        if not _sent_to_both(number):
            process.send_signal(number)


def _sent_to_both(number: int) -> bool:
    """Say whether the command got this signal already, from the terminal: it sends Ctrl-C to all in the foreground."""
    if os.name == "nt":
        return True
    if number not in (signal.SIGINT, signal.SIGQUIT):
        return False
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
