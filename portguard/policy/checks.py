"""What is wrong, or odd, with a policy that could be read: names and ports that collide, tests that fail, entries
that can never have an effect.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from portguard.errors import Problem
from portguard.policy.addresses import ListenAddress
from portguard.policy.decide import Grant, Policy, Refusal, Request, decide, first
from portguard.policy.entries import selected
from portguard.policy.model import Entry, Network, PolicyGroup, PolicyTest, Role, Service
from portguard.policy.spans import Span, contains, merged, network_span

_ANY_INSTANT = datetime(2000, 1, 1, tzinfo=UTC)


def name_collisions(services: Iterable[Service], gateway_name: str | None) -> Iterator[Problem]:
    """Names by which a client could mean two things. `gateway_name` None: names below it are not looked at."""
    owners: dict[str, str] = {}
    if gateway_name is not None:
        owners[gateway_name] = "the gateway's own name"
    for service in services:
        if service.name in owners:
            found = f"{owners[service.name]}, {service.name}"
            yield Problem(service.origin.file, service.origin.key, "another name", found)
        owners[service.name] = f"the service {service.name}"
        if gateway_name is not None:
            owners[f"{service.name}.{gateway_name}"] = f"a name that the service {service.name} has by itself"
    for service in services:
        for index, alias in enumerate(service.aliases):
            if not alias:
                continue  # it could not be read, which is a problem already
            if alias in owners:
                key = f"{service.origin.key}.aliases[{index}]"
                yield Problem(service.origin.file, key, "a name that nothing else has", f"{alias}, {owners[alias]}")
            owners.setdefault(alias, f"an alias of the service {service.name}")


def port_collisions(services: Iterable[Service], occupied: Sequence[tuple[ListenAddress, str]]) -> Iterator[Problem]:
    """Addresses that cannot be listened on, as `occupied` (with whose they are) or another service has them."""
    taken = list(occupied)
    for service in services:
        for index, address in enumerate(service.listen):
            owner = next((owner for other, owner in taken if address.overlaps(other)), None)
            if owner is not None:
                key = f"{service.origin.key}.listen[{index}]"
                yield Problem(
                    service.origin.file, key, "an address that nothing else listens on", f"{address}, {owner}"
                )
            taken.append((address, f"that of the service {service.name}"))


def failed_tests(policy: Policy) -> Iterator[Problem]:
    """The policy's own tests that it does not pass, and those that would pass only at some times."""
    for test in policy.tests:
        request = Request(test.identity, test.groups, test.service, test.source, test.at or _ANY_INSTANT)
        if test.at is None and (role := _deciding_by_time(policy, request)) is not None:
            expected = f"a date and time with an offset, as the hours or expiry of role {role.name} decide"
            yield Problem(test.origin.file, f"{test.origin.key}.at", expected, "nothing")
            continue
        verdict = decide(policy, request)
        if isinstance(verdict, Grant) != test.allowed or (
            isinstance(verdict, Refusal) and test.reason not in {None, verdict.reason}
        ):
            yield Problem(test.origin.file, test.origin.key, _expectation(test), described(verdict))


def described(verdict: Grant | Refusal) -> str:
    """A verdict in a few words, `deny, service_not_granted (role dba)`."""
    if isinstance(verdict, Grant):
        return f"allow (role {verdict.role})"
    return f"deny, {verdict.reason}" + (f" (role {verdict.role})" if verdict.role is not None else "")


def warnings(policy: Policy) -> Iterator[str]:
    """What is allowed but hardly meant, one line each. The text may hold anything that a file can hold."""
    if not policy.roles:
        yield "the policy has no roles, so it allows nobody"
    for entry in policy.entries:
        for index, selector in enumerate(entry.services):
            if not selected(selector, policy.services):
                yield f"{entry.origin}.services[{index}]: {selector} matches no service"
        if _is_empty(policy, entry):
            yield f"{entry.origin}: has no members, as its groups are empty"
    for number, role in enumerate(policy.roles):
        if (entry_covering := _covering(policy, number, role)) is not None:
            by = f"role {entry_covering.name}" if isinstance(entry_covering, Role) else "a deny"
            yield f"{role.origin}: role {role.name} can never decide, {by} covers it ({entry_covering.origin})"


def _deciding_by_time(policy: Policy, request: Request) -> Role | None:
    """The first role by whose hours or expiry the request is allowed or refused; None if time makes no difference."""
    conditions = policy.conditions(request)
    fitting = conditions.member & conditions.service & conditions.source
    if not fitting or fitting & ~policy.index.timed:
        return None
    return policy.roles[first(fitting) - len(policy.denies)]


def _expectation(test: PolicyTest) -> str:
    verdict = "allow" if test.allowed else "deny"
    reason = f", {test.reason}" if test.reason is not None else ""
    return f"{verdict}{reason} for {test.identity.written(None)} at {test.service}"


def _covering(policy: Policy, number: int, role: Role) -> Entry | None:
    """An earlier entry that decides whenever the role could. Found only if surely so."""
    index = policy.index
    candidates = (1 << len(policy.denies) + number) - 1
    for member in role.members:
        if not candidates:
            return None
        candidates &= index.members.covering(member)
    services = {name for selector in role.services for name in selected(selector, policy.services)}
    if not services or _is_empty(policy, role):
        return None
    for name in services:
        candidates &= index.services[name]
    while candidates:
        earlier = policy.entries[first(candidates)]
        if not isinstance(earlier, Role) or covers(earlier, role):
            return earlier
        candidates &= candidates - 1
    return None


def _is_empty(policy: Policy, entry: Entry) -> bool:
    return all(isinstance(member, PolicyGroup) and not policy.groups[member.name] for member in entry.members)


def covers(wide: Role, narrow: Role) -> bool:
    """Whether source, hours and expiry of `wide` hold whenever those of `narrow` do."""
    if wide.expires is not None and (narrow.expires is None or narrow.expires > wide.expires):
        return False
    if wide.hours is not None and (narrow.hours is None or not contains(wide.hours.spans, narrow.hours.spans)):
        return False
    return wide.sources is None or (
        narrow.sources is not None
        and all(contains(_spans(wide.sources, version), _spans(narrow.sources, version)) for version in (4, 6))
    )


def _spans(networks: Iterable[Network], version: int) -> tuple[Span, ...]:
    return merged(network_span(network) for network in networks if network.version == version)
