"""What the system allows with descriptors: how many a process may have open."""

import resource

from portguard.errors import ConfigurationError, Problem
from portguard.gateway.admission import MOST_LINGERING
from portguard.gateway.configuration import Capacity

# Beside its sessions a process has descriptors for the channel, listeners, epoll, log and such.
_BESIDE = 64
_PER_SESSION = 2


def raise_descriptor_limit(capacity: Capacity, file: str) -> None:
    """Take all descriptors that the system gives. Raises ConfigurationError as `descriptor_problem` says."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if (problem := descriptor_problem(capacity, file)) is not None:
        raise ConfigurationError([problem])


def descriptor_problem(capacity: Capacity, file: str) -> Problem | None:
    """A problem of `file` when the capacity does not fit in what the system gives to a process that is started here.

    Any worker may come to carry all sessions, when the others have died.
    """
    beside = capacity.pending_handshakes + MOST_LINGERING + _BESIDE
    needed = capacity.max_sessions * _PER_SESSION + beside
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or needed <= hard:
        return None
    room = (hard - beside) // _PER_SESSION
    expected = f"at most {max(room, 0)}, which is what the limit of {hard} open files allows"
    return Problem(file, "capacity.max_sessions", expected, str(capacity.max_sessions))
