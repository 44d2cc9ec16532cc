"""The index of a policy's entries: for each condition, the set of entries for which it holds, in one step each.

Entries are numbered in the order of decision: denies first, then roles. A set of them is the bits of one integer, so
the five conditions of a decision meet in five `&`, however many entries there are.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, tzinfo
from ipaddress import IPv6Address

from portguard.identity.names import Group, Identity
from portguard.identity.patterns import Pattern
from portguard.policy.globs import GlobIndex
from portguard.policy.hours import minute_of_week
from portguard.policy.model import Address, Deny, Entry, Groups, Member, PolicyGroup, Role, Selector, Service
from portguard.policy.spans import Steps, network_span


class EntryIndex:
    """Answers which entries hold; every answer is a mask, bit n for entry n."""

    def __init__(
        self,
        *,
        denies: Sequence[Deny],
        roles: Sequence[Role],
        groups: Groups,
        services: Mapping[str, Service],
        zone: tzinfo,
    ):
        entries: list[Entry] = [*denies, *roles]
        self.everything = (1 << len(entries)) - 1
        self.members = MemberIndex([entry.members for entry in entries], groups)
        self.services = _service_masks([entry.services for entry in entries], services)
        self._zone = zone

        first = len(denies)
        sources = [(first + n, role.sources) for n, role in enumerate(roles) if role.sources is not None]
        self._sourced = _mask(number for number, _ in sources)
        self._sources_v4, self._sources_v6 = (
            Steps(
                (number, [network_span(network) for network in networks if network.version == version])
                for number, networks in sources
            )
            for version in (4, 6)
        )

        hours = [(first + n, role.hours) for n, role in enumerate(roles) if role.hours is not None]
        self._houred = _mask(number for number, _ in hours)
        self._week = Steps((number, timed.spans) for number, timed in hours)

        expiries = sorted((role.expires, first + n) for n, role in enumerate(roles) if role.expires is not None)
        self._expiries = [expires for expires, _ in expiries]
        self._unexpired = [self.everything]
        for _, number in expiries:
            self._unexpired.append(self._unexpired[-1] & ~(1 << number))

        self.timed = self._houred | _mask(number for _, number in expiries)
        """The entries that depend on time."""

    def fitting_source(self, source: Address | None) -> int:
        """The entries that allow sessions from `source`. *Fails closed*: of an unknown one, those without `from`.

        An IPv4-mapped address is compared as IPv4. One with a zone id belongs to no network, as the same address means
        another host on another link.
        """
        free = self.everything & ~self._sourced
        if source is None or not self._sourced:
            return free
        if isinstance(source, IPv6Address):
            if source.scope_id is not None:
                return free
            if (mapped := source.ipv4_mapped) is None:
                return free | self._sources_v6.at(int(source))
            source = mapped
        return free | self._sources_v4.at(int(source))

    def fitting_hours(self, at: datetime) -> int:
        """The entries that allow sessions at the hour of `at` (aware)."""
        if not self._houred:
            return self.everything
        return (self.everything & ~self._houred) | self._week.at(minute_of_week(at.astimezone(self._zone)))

    def unexpired(self, at: datetime) -> int:
        """The entries that have not expired at `at` (aware); at the very instant of `expires` a role has."""
        return self._unexpired[bisect_right(self._expiries, at)]


class MemberIndex:
    """Which entries an identity, with the groups of its certificate, is a member of."""

    def __init__(self, entries: Sequence[Iterable[Member]], groups: Groups):
        self._groups = groups
        masks: defaultdict[Member, int] = defaultdict(int)
        for number, members in enumerate(entries):
            for member in members:
                masks[member] |= 1 << number
        for name, members in groups.items():
            if mask := masks[PolicyGroup(name)]:
                for member in members:
                    masks[member] |= mask

        # Most members share few masks: of 100,000 equal integers one is enough.
        shared: dict[int, int] = {}
        self._exact: dict[str, dict[str, int]] = {}
        self._globs: dict[str, GlobIndex] = {}
        self._certificate_groups: dict[str, dict[str, int]] = {}
        for member, new in masks.items():
            mask = shared.setdefault(new, new)
            match member:
                case Identity(trust, name):
                    self._exact.setdefault(trust, {})[name] = mask
                case Group(trust, name):
                    self._certificate_groups.setdefault(trust, {})[name] = mask
                case Pattern(trust):
                    self._globs.setdefault(trust, GlobIndex()).add(member.glob, mask)

    def matching(self, identity: Identity, groups: Iterable[Group]) -> int:
        """The entries that have the identity as a member."""
        mask = 0
        name = identity.name
        if (exact := self._exact.get(identity.trust)) is not None:
            mask = exact.get(name, 0)
        if (globs := self._globs.get(identity.trust)) is not None:
            mask |= globs.matching(name)
        for group in groups:
            mask |= self._of_group(group)
        return mask

    def covering(self, member: Member) -> int:
        """Entries that surely have everybody as a member whom `member` stands for."""
        match member:
            case Identity():
                return self.matching(member, ())
            case Group():
                return self._of_group(member)
            case Pattern(trust):
                globs = self._globs.get(trust)
                return globs.covering(member.glob) if globs is not None else 0
            case PolicyGroup(name):
                # All bits set: of an empty group it is true of every entry.
                mask = -1
                for each in self._groups[name]:
                    mask &= self.covering(each)
                return mask

    def _of_group(self, group: Group) -> int:
        by_name = self._certificate_groups.get(group.trust)
        return by_name.get(group.name, 0) if by_name is not None else 0


def selected(selector: Selector, services: Mapping[str, Service]) -> list[str]:
    """The names of the services that a selector means, in their order."""
    if selector.glob is not None and selector.glob.is_exact:
        return [selector.glob.text] if selector.glob.text in services else []
    return [name for name, service in services.items() if selector.selects(service)]


def _service_masks(entries: Sequence[Iterable[Selector]], services: Mapping[str, Service]) -> dict[str, int]:
    by_selector: dict[Selector, list[str]] = {}
    masks = dict.fromkeys(services, 0)
    for number, selectors in enumerate(entries):
        for selector in selectors:
            if (names := by_selector.get(selector)) is None:
                names = by_selector[selector] = selected(selector, services)
            for name in names:
                masks[name] |= 1 << number
    return masks


def _mask(numbers: Iterable[int]) -> int:
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask
