"""The decision: may this identity reach this service, from there, now? And by which role, under which limits?

Deny entries come first, in any order. Then roles in theirs: the first one whose member, service, source, hours and
expiry all fit grants. When none fits, the reason is that of the role that got furthest in this order, the first such
role on a tie. Limits are no part of it: an exhausted limit refuses, and never falls through to the next role.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from types import MappingProxyType
from typing import NamedTuple

from portguard.identity.names import Group, Identity
from portguard.policy.entries import EntryIndex
from portguard.policy.model import Address, Deny, Entry, Groups, Limits, PolicyTest, Role, Service
from portguard.reasons import Reason

DECIDED_REASONS = (
    Reason.DENIED,
    Reason.NO_ROLE,
    Reason.SERVICE_NOT_GRANTED,
    Reason.SOURCE_NOT_ALLOWED,
    Reason.OUTSIDE_HOURS,
    Reason.GRANT_EXPIRED,
)
"""What refusals of a known service say, from the least that held to the most."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a decision is about. `service` is the service's own name; `source` None is not known; `at` is aware."""

    identity: Identity
    groups: frozenset[Group]
    service: str
    source: Address | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Grant:
    """A role lets the session in.

    `session_s`: how long it may last; None takes `timeouts.session`, infinite is off. `until`: the instant, in UTC, at
    which the role's hours or the role itself end; None when they never do. What the policy says then is for another
    decision to tell.
    """

    role: str
    limits: Limits
    session_s: float | None
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The session is not let in. `role` is the one that got furthest, None where no role has the identity."""

    reason: Reason
    role: str | None


class Conditions(NamedTuple):
    """The entries for which each condition holds, as masks (see `entries`). `decide` and `explain` read the same."""

    member: int
    service: int
    source: int
    hours: int
    expiry: int


class Policy:
    """A whole policy, compiled for decisions. Not to be changed after it is made."""

    def __init__(
        self,
        *,
        services: Sequence[Service] = (),
        groups: Groups = MappingProxyType({}),
        denies: Sequence[Deny] = (),
        roles: Sequence[Role] = (),
        tests: Sequence[PolicyTest] = (),
        zone: tzinfo = UTC,
        gateway_name: str | None = None,
    ):
        self.services: Mapping[str, Service] = MappingProxyType({service.name: service for service in services})
        self.groups = groups
        self.denies = tuple(denies)
        self.roles = tuple(roles)
        self.entries: tuple[Entry, ...] = (*self.denies, *self.roles)
        """In the order of decision, and of the bits of masks."""
        self.tests = tuple(tests)
        self.zone = zone
        self.index = EntryIndex(denies=self.denies, roles=self.roles, groups=groups, services=self.services, zone=zone)
        self.grants = tuple(Grant(role.name, role.limits, role.session_s, role.expires) for role in self.roles)
        self._hosts = {alias: service for service in services for alias in service.aliases}
        if gateway_name is not None:
            self._hosts |= {f"{service.name}.{gateway_name}": service for service in services}

    def resolve_name(self, host: str) -> Service | None:
        """The service that a client means by the host it connects to: `SERVICE.GATEWAY-NAME`, or an alias."""
        return self._hosts.get(_compared(host))

    def resolve_service(self, name: str) -> Service | None:
        """The service that a client means by a service name as such, in a CONNECT or on the command line."""
        return self.services.get(_compared(name))

    def conditions(self, request: Request) -> Conditions:
        """Which entries hold for a request for a known service.

        Raises ValueError for a time without zone: it would be read as the host's local time.
        """
        if request.at.tzinfo is None:
            raise ValueError("expected a time with a zone, got one without")
        index = self.index
        return Conditions(
            member=index.members.matching(request.identity, request.groups),
            service=index.services[request.service],
            source=index.fitting_source(request.source),
            hours=index.fitting_hours(request.at),
            expiry=index.unexpired(request.at),
        )


def decide(policy: Policy, request: Request) -> Grant | Refusal:
    """Decide on a request. Pure; *fails closed*: what no role grants is refused."""
    if request.service not in policy.services:
        return Refusal(Reason.UNKNOWN_SERVICE, None)
    return _verdict(policy, policy.conditions(request), request.at)


def reachable(policy: Policy, request: Request) -> Iterator[tuple[Service, Grant]]:
    """The services that `decide` grants in this situation, in the policy's order; the request's own does not matter."""
    conditions: Conditions | None = None
    for name, service in policy.services.items():
        # All but the service stays the same, and a list of 1,000 services must not hold up an event loop.
        conditions = (
            conditions._replace(service=policy.index.services[name])
            if conditions is not None
            else policy.conditions(replace(request, service=name))
        )
        if isinstance(verdict := _verdict(policy, conditions, request.at), Grant):
            yield service, verdict


def _verdict(policy: Policy, conditions: Conditions, at: datetime) -> Grant | Refusal:
    denies = len(policy.denies)
    member = conditions.member
    service = member & conditions.service
    source = service & conditions.source
    hours = source & conditions.hours
    fitting = hours & conditions.expiry
    if fitting:
        entry = first(fitting)
        if entry < denies:
            return Refusal(Reason.DENIED, None)
        grant = policy.grants[entry - denies]
        if (times := policy.roles[entry - denies].hours) is not None:
            closes = times.closes(at, policy.zone)
            if closes is not None and (grant.until is None or closes < grant.until):
                return Grant(grant.role, grant.limits, grant.session_s, closes)
        return grant
    # A deny whose member and service hold always fits, so none is left in what follows but among the members.
    if hours:
        return Refusal(Reason.GRANT_EXPIRED, policy.roles[first(hours) - denies].name)
    if source:
        return Refusal(Reason.OUTSIDE_HOURS, policy.roles[first(source) - denies].name)
    if service:
        return Refusal(Reason.SOURCE_NOT_ALLOWED, policy.roles[first(service) - denies].name)
    if roles := member >> denies:
        return Refusal(Reason.SERVICE_NOT_GRANTED, policy.roles[first(roles)].name)
    return Refusal(Reason.NO_ROLE, None)


def first(mask: int) -> int:
    """The smallest number in a mask that is not empty."""
    return (mask & -mask).bit_length() - 1


def _compared(name: str) -> str:
    """A name as names are compared. What is not ASCII is no name: "\u212a" (Kelvin) would become "k"."""
    return name.lower().removesuffix(".") if name.isascii() else ""
