"""Real programs in processes of their own: started, waited for, and always ended.

Every test in this folder carries the mark `e2e` without saying so.
"""

import contextlib
import os
import pwd
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_PATIENCE_S = 20.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@dataclass(frozen=True)
class Running:
    """A program that runs. Its standard output and error are in the file `output`."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def said(self) -> str:
        return self.output.read_text(errors="backslashreplace")

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Return once `ready()` is true; fail the test, with what the program said, when it ends or takes too long."""
        deadline = time.monotonic() + _PATIENCE_S
        ended = os.pidfd_open(self.process.pid)
        try:
            while not ready():
                if select.select([ended], [], [], 0.02)[0]:
                    pytest.fail(f"{self.process.args!r} ended before {what}; it said:\n{self.said}", pytrace=False)
                if time.monotonic() > deadline:
                    pytest.fail(f"{self.process.args!r}: no {what} in time; it said:\n{self.said}", pytrace=False)
        finally:
            os.close(ended)

    def wait_until_it_says(self, text: str) -> None:
        self.wait_until(lambda: text in self.said, f"it said {text!r}")

    def wait_until_it_listens(self, address: tuple[str, int] | str) -> None:
        """`address` is host and port, or the path of a unix socket."""
        self.wait_until(lambda: _accepts(address), f"it accepted at {address}")

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """Send `sign`, and SIGKILL to the whole process group when that is not enough; the exit status."""
        try:
            self.process.send_signal(sign)
            self.process.wait(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            pass  # it gets SIGKILL below
        finally:
            # The group may outlive its leader: nginx and PostgreSQL leave workers behind when the parent is killed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait(timeout=_PATIENCE_S)


Start = Callable[..., Running]


def _accepts(address: tuple[str, int] | str) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(argv, **popen)` runs a program in a process group of its own; it ends with the test, whatever happens."""
    running: list[Running] = []

    def run(argv: Sequence[str], **popen: object) -> Running:
        output = tmp_path / f"{len(running)}-{Path(argv[0]).name}.out"
        with output.open("wb") as sink:
            process = subprocess.Popen(  # type: ignore[call-overload]  # popen's keywords pass through
                argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True, **popen
            )
        running.append(Running(process, output))
        return running[-1]

    yield run
    for program in reversed(running):
        program.stop()


@pytest.fixture
def free_port() -> Callable[[], int]:
    """`free_port()` is a TCP port that was free on 127.0.0.1 a moment ago, for programs that cannot bind port 0."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return find


@pytest.fixture
def unprivileged() -> pwd.struct_passwd | None:
    """Whom to run a program as that refuses to run as root (PostgreSQL); None when the tests do not run as root.

    pytest's temporary folders are 0700: give that user a folder of its own outside them.
    """
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None
