"""The sockets that clients connect to: the gateway's own, and those of services with a port of their own.

They are bound here, unless systemd has handed them over (`activation`).
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

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

    They do not block. Raises ConfigurationError.
    """
    everywhere = listeners(configuration, policy)
    wanted = [Wanted(GATEWAY if one.service is None else one.service.name, one.address) for one in everywhere]
    at = configuration.metrics.listen
    *given, metrics = assign(handed_over, [*wanted, Wanted(METRICS, at)])
    bound = [
        (listener, bind(listener, configuration.path) if sock is None else sock)
        for listener, sock in zip(everywhere, given, strict=True)
    ]
    return bound, bind_address(at, configuration.path, "metrics.listen") if metrics is None else metrics


def bind(listener: Listener, file: str) -> socket.socket:
    """Return a non-blocking socket that listens there. Raises ConfigurationError naming `file` when it cannot."""
    origin = listener.service.origin if listener.service is not None else None
    if origin is not None:
        return bind_address(listener.address, origin.file, f"{origin.key}.listen")
    return bind_address(listener.address, file, "gateway.listen")


def bind_address(address: ListenAddress, file: str, key: str) -> socket.socket:
    """The same for an address that `key` in `file` names."""
    ipv6 = ip_address(address.host).version == 6
    sock = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        problem = Problem(file, key, "an address that can be listened on", f"{address}: {error.strerror}")
        raise ConfigurationError([problem]) from error
    return sock


def written_address(sock: socket.socket) -> str:
    """Where the socket listens, `127.0.0.1:8443` or `[::]:8443`."""
    host, port = sock.getsockname()[:2]
    return str(ListenAddress(host, port))
