"""Addresses as people write them in a policy or a configuration: to listen on, to dial, to compare with.

Every `parse_*` raises `Unexpected`. IPv6 addresses with a zone id are refused: what a zone means depends on the host
and on the order in which its interfaces came up.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from portguard.policy.quantities import Unexpected

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class ListenAddress:
    """An address to bind: `host` is an IP address in its canonical form, `port` 0 to 65535 (0: the system picks)."""

    host: str
    port: int

    def __str__(self) -> str:
        """`0.0.0.0:8443` or `[::]:8443`."""
        return _joined(self.host, self.port)

    def overlaps(self, other: "ListenAddress") -> bool:
        """Whether the two cannot be bound at the same time. IPv6 sockets are V6ONLY, and port 0 is always free."""
        if self.port != other.port or self.port == 0:
            return False
        one, two = ip_address(self.host), ip_address(other.host)
        return one == two or (one.version == two.version and (one.is_unspecified or two.is_unspecified))


@dataclass(frozen=True, slots=True, order=True)
class HostPort:
    """An address to dial: `host` is a name in lower case or an IP address in canonical form, `port` 1 to 65535."""

    host: str
    port: int

    def __str__(self) -> str:
        """`db.internal:5432` or `[::1]:5432`."""
        return _joined(self.host, self.port)


def parse_listen_address(text: str) -> ListenAddress:
    """The address in "0.0.0.0:8443" or "[::]:8443". Names are refused: what they resolve to may change."""
    host, port = _split(text, minimum_port=0, expected='an IP address and a port such as "0.0.0.0:8443" or "[::]:8443"')
    try:
        address = parse_address(host)
    except Unexpected:
        raise Unexpected('an IP address (not a name) and a port such as "0.0.0.0:8443" or "[::]:8443"') from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        # IPv6 sockets are V6ONLY: binding it would fail.
        raise Unexpected(f'an IPv4 address, "{ListenAddress(str(address.ipv4_mapped), port)}"')
    return ListenAddress(str(address), port)


def parse_host_port(text: str) -> HostPort:
    """The address in "10.0.3.7:5432", "[::1]:5432" or "db.internal:5432"."""
    expected = 'a host and a port such as "10.0.3.7:5432", "[::1]:5432" or "db.internal:5432"'
    host, port = _split(text, minimum_port=1, expected=expected)
    try:
        return HostPort(str(parse_address(host)), port)
    except Unexpected:
        # "[name]:80" is no name, and "10.0.3.700:80" must not be looked up in DNS.
        if text.startswith("["):
            raise Unexpected(expected) from None
    return HostPort(parse_host_name(host), port)


def parse_host_name(text: str) -> str:
    """A DNS name in lower case, without the trailing dot: at most 253 characters, labels of at most 63."""
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not name or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise Unexpected('a host name such as "db.example.com"')
    return name


def parse_address(text: str) -> IPv4Address | IPv6Address:
    """An IPv4 or IPv6 address without a zone id."""
    try:
        address = ip_address(text)
    except ValueError:
        raise Unexpected('an IP address such as "10.0.3.7" or "2001:db8::7"') from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise Unexpected("an IP address without a zone id")
    return address


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """A network in CIDR form, or a single address. Host bits must be zero, and IPv4 must be written as IPv4.

    Sources are compared as IPv4 when they are IPv4-mapped, so a mapped network would never match anybody.
    """
    if "%" in text:
        raise Unexpected("a network without a zone id")
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise Unexpected('a network such as "10.0.0.0/8" or "2001:db8::/32"') from None
    # ipaddress takes a netmask or a hostmask too, and "10.0.0.0/0.0.0.255" is read as /24.
    if not re.fullmatch(r"[^/]+(/[0-9]{1,3})?", text):
        raise Unexpected('a network such as "10.0.0.0/8" or "2001:db8::/32"')
    if ip_address(text.partition("/")[0]) != network.network_address:
        raise Unexpected(f'a network without host bits, "{network}"')
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise Unexpected("an IPv4 network, not its IPv4-mapped form")
    return network


def _split(text: str, *, minimum_port: int, expected: str) -> tuple[str, int]:
    """Host without brackets, and port. An IPv6 address needs its brackets."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host) != bracketed or not re.fullmatch(r"[0-9]{1,5}", port):
        raise Unexpected(expected)
    if not minimum_port <= int(port) <= 65535:
        raise Unexpected(f"a port from {minimum_port} to 65535")
    return (host[1:-1] if bracketed else host), int(port)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
