"""What a policy says, entry by entry, after reading: plain values, no rule of decision.

Entries know their `origin`, so that whoever finds something wrong or decisive in one can say where it is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

from portguard.identity.names import Group, Identity
from portguard.identity.patterns import Glob, Pattern
from portguard.policy.addresses import ListenAddress
from portguard.policy.hours import Hours
from portguard.policy.quantities import Quota, Rate
from portguard.reasons import Reason

Balance = Literal["failover", "round-robin"]
ProxyProtocol = Literal["off", "v1", "v2", "v2-tls"]
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where an entry is written: the file's path as the user knows it, and the dotted key in it."""

    file: str
    key: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}"


NOWHERE = Origin("", "")
"""The origin of entries that no file holds."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a service's bytes go: either `host` (a name, or an IP address in canonical form) and `port`, or the
    absolute `path` of a unix socket. What is not used is None.
    """

    host: str | None = None
    port: int | None = None
    path: str | None = None

    def __str__(self) -> str:
        """`10.0.3.7:5432`, `[::1]:5432` or `unix:/run/x.sock`."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in (self.host or "") else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """TLS towards the upstreams. The files are paths: their content is read together with all other files.

    `ca` None: the system's authorities. `server_name` None: the upstream's own host. `certificate` and `key` are both
    there or both None.
    """

    ca: str | None = None
    server_name: str | None = None
    certificate: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """A named target. `upstreams` has at least one item, in order of preference."""

    name: str
    upstreams: tuple[Upstream, ...]
    balance: Balance = "failover"
    description: str = ""
    zones: frozenset[str] = frozenset()
    local_port: int | None = None  # None: clients choose, and CONNECT takes any port
    alpn: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()  # lower case, without a trailing dot
    proxy_protocol: ProxyProtocol = "off"
    tls: UpstreamTls | None = None  # None: the upstream is spoken to in the clear
    listen: tuple[ListenAddress, ...] = ()
    idle_s: float | None = None  # None: `timeouts.idle`; infinite: off
    max_sessions: int | None = None  # None: no bound
    origin: Origin = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True, order=True)
class PolicyGroup:
    """A group that the policy itself lists, `@oncall`. Its members stand in the policy's `groups`."""

    name: str

    def __str__(self) -> str:
        return f"@{self.name}"


Member = Identity | Pattern | PolicyGroup | Group
"""Exact names are `Identity`, a `Pattern` always holds a star, `Group` comes from certificates."""


@dataclass(frozen=True, slots=True)
class Selector:
    """Services by name or pattern (`glob`), or those that are in each of `zones`. Exactly one of the two is used."""

    glob: Glob | None = None
    zones: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.glob.text if self.glob is not None else "zone:" + "+".join(sorted(self.zones))

    def selects(self, service: Service) -> bool:
        """Whether the service is meant. *Fails closed*: a selector of nothing selects nothing."""
        if self.glob is not None:
            return self.glob.matches(service.name)
        return bool(self.zones) and self.zones <= service.zones


@dataclass(frozen=True, slots=True)
class Limits:
    """What sessions of a role may use; None and () are no limit.

    All are per identity within the role, but `pooled_quota`, which the whole role shares.
    """

    max_sessions: int | None = None
    connect_rate: Rate | None = None
    bandwidth: int | None = None  # bytes per second, each direction
    quota: tuple[Quota, ...] = ()  # both directions together
    pooled_quota: tuple[Quota, ...] = ()


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Deny:
    """Members that may not reach services, whatever the roles say."""

    members: tuple[Member, ...]
    services: tuple[Selector, ...]
    description: str = ""
    origin: Origin = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Role:
    """Members that may reach services, while source, hours and expiry fit."""

    name: str
    members: tuple[Member, ...]
    services: tuple[Selector, ...]
    limits: Limits = NO_LIMITS
    session_s: float | None = None  # None: `timeouts.session`; infinite: off
    sources: tuple[Network, ...] | None = None  # None: from anywhere
    hours: Hours | None = None  # None: at any hour
    expires: datetime | None = None  # aware, in UTC; None: never
    description: str = ""
    origin: Origin = field(default=NOWHERE, compare=False, repr=False)


Entry = Deny | Role


@dataclass(frozen=True, slots=True)
class PolicyTest:
    """A decision that the policy's author expects. The policy is refused as a whole where it decides otherwise."""

    identity: Identity
    service: str
    allowed: bool
    reason: Reason | None = None  # None: any
    at: datetime | None = None  # aware; None: the decision must not depend on time
    source: Address | None = None  # None: not known, so no role with `from` fits
    groups: frozenset[Group] = frozenset()
    origin: Origin = field(default=NOWHERE, compare=False, repr=False)


Groups = Mapping[str, tuple[Identity | Pattern | Group, ...]]
"""The policy's own groups by name. They do not nest."""
