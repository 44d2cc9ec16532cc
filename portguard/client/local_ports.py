"""Where each service is on this machine: the addresses that the user wished for, and the ports that were opened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from portguard.errors import UsageError
from portguard.policy.addresses import ListenAddress, parse_host_name, parse_listen_address
from portguard.policy.quantities import Unexpected

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class LocalPort:
    """A port that was opened. `taken` is the one that could not be had in its place, None when this is as wanted."""

    service: str
    host: str
    port: int
    taken: int | None

    @property
    def reachable_host(self) -> str:
        """The address by which a program on this machine connects: of a wildcard, the loopback address."""
        address = ip_address(self.host)
        if address.is_unspecified:
            return "::1" if address.version == 6 else LOOPBACK
        return self.host

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        return ip_address(self.host).is_loopback

    def __str__(self) -> str:
        """`127.0.0.1:5432` or `[::1]:5432`."""
        return str(ListenAddress(self.host, self.port))


@dataclass(frozen=True, slots=True)
class Wish:
    """A local address that the user asked for. `service` is None when it is for the next that has none."""

    service: str | None
    address: ListenAddress


def parse_service(text: str) -> str:
    """Return the name of a service, or an alias, in lower case. Raises UsageError."""
    try:
        return parse_host_name(text)
    except Unexpected:
        raise UsageError(f"service: expected a name such as orders-db, got {text!r}") from None


def parse_wish(text: str) -> Wish:
    """Read `[SERVICE=][ADDR:]PORT`; without ADDR it is the loopback address. Raises UsageError."""
    before, equals, rest = text.rpartition("=")
    service = parse_service(before) if equals else None
    host, colon, port = rest.rpartition(":")
    if not colon or host == "localhost":
        host = LOOPBACK
    try:
        return Wish(service, parse_listen_address(f"{host}:{port}"))
    except Unexpected:
        expected = "[SERVICE=][ADDR:]PORT, such as 15432, 127.0.0.2:5432 or orders-db=15432"
        raise UsageError(f"-L: expected {expected}, got {text!r}") from None


def assign(services: Sequence[str], wishes: Sequence[Wish]) -> Mapping[str, ListenAddress]:
    """Return the address of each service that a wish is for: named ones first, the others in the services' order.

    Raises UsageError when a wish names no service of these, or when there are more wishes than services.
    """
    assigned: dict[str, ListenAddress] = {}
    for wish in wishes:
        if wish.service is None:
            continue
        if wish.service not in services or wish.service in assigned:
            found = "a second one for it" if wish.service in assigned else repr(wish.service)
            raise UsageError(f"-L: expected one of the services {', '.join(services)}, each once, got {found}")
        assigned[wish.service] = wish.address
    waiting = [service for service in services if service not in assigned]
    unnamed = [wish.address for wish in wishes if wish.service is None]
    if len(unnamed) > len(waiting):
        raise UsageError(f"-L: expected at most one for each of {len(services)} services, got {len(wishes)}")
    return assigned | dict(zip(waiting, unnamed, strict=False))
