"""What a gateway must still be after whatever was done to it.

    with unharmed(gateway):
        ...  # the worst

It serves alice, it holds no more descriptors than before, its log has grown by a bounded number of lines beside those
of sessions, and none of them is a fault of its own or a piece of a traceback.
"""

import contextlib
import os
import re
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE_S

# As the log writes each line.
_EVENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (debug|info|warning|error) [a-z_.]+( |$)")

# Two workers and the supervisor each let 20 of a kind through, then five a second, and sum up once a second.
MOST_LINES = 400


def echoes(gateway: Any, service: str = "echo", name: str = "alice") -> None:
    """Check that the client `name` has bytes echoed, by server name."""
    with gateway.connect(service, name) as client:
        message = os.urandom(1000)
        client.sendall(message)
        received = b""
        while len(received) < len(message):
            data = client.recv(65536)
            assert data, "expected an echo, got the end"
            received += data
        assert received == message
        client.unwrap()


def processes(gateway: Any) -> list[int]:
    """The supervisor and its workers."""
    pid = gateway.program.process.pid
    return [pid, *workers(gateway)]


def workers(gateway: Any) -> list[int]:
    pid = gateway.program.process.pid
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def kill_all(gateway: Any) -> None:
    """Kill the supervisor and its workers at once; return when none is left.

    Workers die with their supervisor: a number may be nobody's, or another's, before its turn has come.
    """
    with contextlib.ExitStack() as opened:
        watches = [os.pidfd_open(pid) for pid in processes(gateway)]
        for watch in watches:
            opened.callback(os.close, watch)
        for watch in watches:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(watch, signal.SIGKILL)
        for watch in watches:
            assert select.select([watch], [], [], PATIENCE_S)[0], "expected the end of a process, got none"
        gateway.program.process.wait(PATIENCE_S)


def descriptors(gateway: Any) -> dict[int, int]:
    """How many descriptors each process has open."""
    return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in processes(gateway)}


def warm_up(gateway: Any) -> None:
    """Let every worker do all that it does only once, such as to open its event loop's own descriptors."""
    for _ in range(4):
        echoes(gateway)


@contextlib.contextmanager
def unharmed(gateway: Any, most_lines: int = MOST_LINES) -> Iterator[None]:
    """Check that what happens in the block leaves the gateway as it was."""
    before = descriptors(gateway)
    gateway = gateway.from_now()
    yield
    echoes(gateway)
    gateway.program.wait_until(
        lambda: all(after <= before.get(pid, -1) for pid, after in descriptors(gateway).items()),
        f"it held only the descriptors {before} again",
    )
    lines = gateway.log.splitlines()
    assert [line for line in lines if not _EVENT.match(line)] == []
    assert [line for line in lines if " gateway.fault" in line] == []
    # Sessions have two lines each, as many as the test makes; what strangers cause is bounded.
    assert sum(" session.open " not in line and " session.close " not in line for line in lines) <= most_lines
