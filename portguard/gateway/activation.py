"""Listening sockets that systemd made and hands over at start: socket activation, sd_listen_fds(3).

A handed-over socket takes the place of the configured address that it listens on; an address that has none is bound as
always. FileDescriptorName= may say what a socket is for: `gateway`, `metrics`, or a service's name. Then its address
must be one that is configured for that. Any other name, such as the socket unit's own, says nothing.
"""

import os
import socket
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from portguard.errors import ConfigurationError, Problem
from portguard.policy.addresses import ListenAddress

GATEWAY, METRICS = "gateway", "metrics"

_FIRST = 3  # SD_LISTEN_FDS_START
_MOST = 4096  # far beyond what anybody listens on
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_SUBJECT = "socket activation"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A configured address, and what for: `GATEWAY`, `METRICS` or the name of a service."""

    name: str
    address: ListenAddress


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A socket that listens, non-blocking and close-on-exec, and the name that it came with."""

    descriptor: int  # its number when it came
    name: str
    sock: socket.socket
    address: ListenAddress

    def fits(self, wanted: Wanted, names: set[str]) -> bool:
        """Whether this is what is `wanted`. `names` are those that say what a socket is for."""
        if self.name not in names:
            return self.address == wanted.address
        # Port 0 stands for any, so only a name can tell that this one is meant.
        same = self.address.host == wanted.address.host and wanted.address.port in (0, self.address.port)
        return self.name == wanted.name and same


def receive(environment: MutableMapping[str, str], pid: int) -> tuple[HandedOver, ...]:
    """The sockets that `environment` says are for the process `pid`. They are the caller's to close.

    The variables are removed, so that no child process takes the descriptors for its own. Raises ConfigurationError
    for anything but TCP sockets that listen.
    """
    meant, count, names = (environment.pop(variable, None) for variable in _VARIABLES)
    if count is None or meant != str(pid):
        return ()  # meant for a process that we descend from
    if not (count.isascii() and count.isdigit() and int(count) <= _MOST):
        raise ConfigurationError([Problem(_SUBJECT, "LISTEN_FDS", f"a number of descriptors up to {_MOST}", count)])
    descriptors = range(_FIRST, _FIRST + int(count))
    given = names.split(":") if names else [""] * len(descriptors)
    if len(given) != len(descriptors):
        expected = f"as many names as LISTEN_FDS says, {len(descriptors)}"
        raise ConfigurationError([Problem(_SUBJECT, "LISTEN_FDNAMES", expected, str(len(given)))])
    received: list[HandedOver] = []
    problems: list[Problem] = []
    for descriptor, name in zip(descriptors, given, strict=True):
        try:
            received.append(_receive(descriptor, name))
        except _Unusable as error:
            problems.append(_problem(descriptor, name, error.expected, error.found))
    if problems:
        _close(received)
        raise ConfigurationError(problems)
    return tuple(received)


def assign(received: Iterable[HandedOver], wanted: Sequence[Wanted]) -> list[socket.socket | None]:
    """For each of `wanted`, in its order, the socket that was handed over for it; None where one is to be bound.

    Raises ConfigurationError for a socket that nobody wants, and closes all. *Fails closed*: where systemd listens and
    nobody accepts, clients would be kept waiting for ever.
    """
    received = list(received)
    names = {GATEWAY, METRICS, *(one.name for one in wanted)}
    assigned: list[socket.socket | None] = [None] * len(wanted)
    problems = []
    for one in received:
        for index, place in enumerate(wanted):
            if assigned[index] is None and one.fits(place, names):
                assigned[index] = one.sock
                break
        else:
            whose = f"is configured for {one.name}" if one.name in names else "the configuration listens on"
            problems.append(_problem(one.descriptor, one.name, f"an address that {whose}", str(one.address)))
    if problems:
        _close(received)
        raise ConfigurationError(problems)
    return assigned


class _Unusable(Exception):
    """A descriptor that is not what it should be; the words complete "expected …, got …"."""

    def __init__(self, expected: str, found: str):
        self.expected = expected
        self.found = found
        super().__init__(f"expected {expected}, got {found}")


def _receive(descriptor: int, name: str) -> HandedOver:
    try:
        os.set_inheritable(descriptor, False)  # or workers would keep it open
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise _Unusable("a socket", (error.strerror or "something else").lower()) from None
    try:
        _check(sock)
        sock.setblocking(False)
        host, port = sock.getsockname()[:2]
    except _Unusable:
        sock.close()
        raise
    return HandedOver(descriptor, name, sock, ListenAddress(str(ip_address(host)), port))


def _check(sock: socket.socket) -> None:
    """Raise _Unusable for a socket that clients cannot be accepted from as the configuration has it."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise _Unusable("a TCP socket", f"one of {_word(sock.family)}")
    if sock.type != socket.SOCK_STREAM or sock.proto != socket.IPPROTO_TCP:
        raise _Unusable("a TCP socket", f"one of {_word(sock.type)}")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise _Unusable("a socket that listens (Accept=no)", "one that does not")
    if sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        # It would take the clients of an IPv4 address that the configuration does not name.
        raise _Unusable("an IPv6 socket that takes IPv6 only (BindIPv6Only=ipv6-only)", "one that takes IPv4 too")


def _word(value: int) -> str:
    return value.name if isinstance(value, socket.AddressFamily | socket.SocketKind) else str(value)


def _problem(descriptor: int, name: str, expected: str, found: str) -> Problem:
    return Problem(_SUBJECT, f"descriptor {descriptor}" + (f" ({name})" if name else ""), expected, found)


def _close(received: Iterable[HandedOver]) -> None:
    for one in received:
        one.sock.close()
