"""The processes that workers are: started by this program, or by the one whose place it has taken."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Protocol

_EXIT_S = 5.0  # for the process of a worker that has closed its channel


class Process(Protocol):
    """A child process. The exit status is negative for a signal."""

    pid: int

    def kill(self) -> None:
        """Send SIGKILL."""

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status. Raises subprocess.TimeoutExpired."""


class Adopted:
    """A child that this process has from before it became another program, execve(2)."""

    def __init__(self, pid: int):
        self.pid = pid
        self._status: int | None = None

    def kill(self) -> None:
        """See Process."""
        if self._status is None:  # else the number may be another process's by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """See Process."""
        if self._status is None:
            descriptor = os.pidfd_open(self.pid)
            try:
                if not select.select([descriptor], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(["worker"], timeout or 0.0)
            finally:
                os.close(descriptor)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status


def start(arguments: Sequence[object], descriptors: Sequence[int]) -> "subprocess.Popen[bytes]":
    """Start a worker with these arguments, and with the descriptors that they name. Raises OSError."""
    command = [sys.executable, "-P", "-m", "portguard.gateway.worker", *map(str, arguments)]
    nothing = subprocess.DEVNULL
    # Of another session: on its terminal, which is standard error, a worker could type for the operator, ioctl_tty(2).
    return subprocess.Popen(command, pass_fds=descriptors, stdin=nothing, stdout=nothing, start_new_session=True)


def wait_or_kill(process: Process) -> int:
    """Return the exit status of a process that is ending; what does not end is made to."""
    try:
        return process.wait(_EXIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
