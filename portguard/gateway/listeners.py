"""The sockets that clients connect to: the gateway's own, and those of services with a port of their own."""

import socket
from dataclasses import dataclass
from ipaddress import ip_address

from portguard.errors import ConfigurationError, Problem
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


def bind(listener: Listener, file: str) -> socket.socket:
    """Return a non-blocking socket that listens there. Raises ConfigurationError naming `file` when it cannot."""
    ipv6 = ip_address(listener.address.host).version == 6
    sock = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((listener.address.host, listener.address.port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        origin = listener.service.origin if listener.service is not None else None
        problem = Problem(
            origin.file if origin is not None else file,
            f"{origin.key}.listen" if origin is not None else "gateway.listen",
            "an address that can be listened on",
            f"{listener.address}: {error.strerror}",
        )
        raise ConfigurationError([problem]) from error
    return sock
