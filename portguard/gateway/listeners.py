"""The sockets that clients connect to: the gateway's own, and those of services with a port of their own.

They are bound here, unless systemd has handed them over (`activation`).
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

from portguard.errors import ConfigurationError, Problem
from portguard.gateway.activation import GATEWAY, METRICS, HandedOver, Wanted, assign
from portguard.gateway.configuration import Configuration
from portguard.policy.addresses import ListenAddress
from portguard.policy.decide import Policy
from portguard.policy.model import Service

# Connections that wait while the supervisor is busy; the kernel bounds it by net.core.somaxconn.
_BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class Listener:
    """One address to listen on. `service` is None where clients name theirs, by SNI or CONNECT."""

    address: ListenAddress
    service: Service | None


def listeners(configuration: Configuration, policy: Policy) -> tuple[Listener, ...]:
    """All listeners, in an order that supervisor and workers share, since they speak of them by number."""
    own = [Listener(address, None) for address in configuration.gateway.listen]
    of_services = [
        Listener(address, service) for _, service in sorted(policy.services.items()) for address in service.listen
    ]
    return (*own, *of_services)


def listen(
    configuration: Configuration, policy: Policy, handed_over: Iterable[HandedOver]
) -> tuple[list[tuple[Listener, socket.socket]], socket.socket]:
    """All `listeners` in their order, each with its socket, and the socket of `[metrics]`.

    They do not block. Raises ConfigurationError, which tells of every address that cannot be listened on.
    """
    everywhere = listeners(configuration, policy)
    wanted = [Wanted(GATEWAY if one.service is None else one.service.name, one.address) for one in everywhere]
    at = configuration.metrics.listen
    *given, metrics = assign(handed_over, [*wanted, Wanted(METRICS, at)])
    with Binding(configuration.path) as binding:
        bound = [
            (listener, binding.bind(listener) if sock is None else sock)
            for listener, sock in zip(everywhere, given, strict=True)
        ]
        return bound, binding.bind_metrics(at) if metrics is None else metrics


class Binding:
    """A block in which non-blocking sockets are made that listen. `file` is the configuration's.

    Raises ConfigurationError at its end, with all that could not be made, and nothing left open. Until then the place
    of such a one is held by a socket that is closed.
    """

    def __init__(self, file: str):
        self._file = file
        self._made: list[socket.socket] = []
        self._problems: list[Problem] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._problems or kind is not None:
            for sock in self._made:
                sock.close()
        if self._problems and kind is None:
            raise ConfigurationError(self._problems)

    def bind(self, listener: Listener) -> socket.socket:
        """For clients."""
        origin = listener.service.origin if listener.service is not None else None
        if origin is not None:
            return self._bind(listener.address, origin.file, f"{origin.key}.listen")
        return self._bind(listener.address, self._file, "gateway.listen")

    def bind_metrics(self, address: ListenAddress) -> socket.socket:
        """For who scrapes."""
        return self._bind(address, self._file, "metrics.listen")

    def _bind(self, address: ListenAddress, file: str, key: str) -> socket.socket:
        sock = _socket(address)
        self._made.append(sock)
        try:
            sock.bind((address.host, address.port))
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            expected = "an address that can be listened on"
            self._problems.append(Problem(file, key, expected, f"{address}: {error.strerror}"))
        return sock


def _socket(address: ListenAddress) -> socket.socket:
    ipv6 = ip_address(address.host).version == 6
    sock = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ipv6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def written_address(sock: socket.socket) -> str:
    """Where the socket listens, `127.0.0.1:8443` or `[::]:8443`."""
    host, port = sock.getsockname()[:2]
    return str(ListenAddress(host, port))
