"""What somebody may do on a service at any time and from anywhere: the roles that could grant it, in order.

A decision is about one instant and one address. To compare policies, or to tell an auditor who could reach what, all
of them count, and there are too many to try. But a decision needs of a policy only those roles that have somebody as a
member and the service among theirs, in their order, with what each grants and when: the ladder. The first role of a
ladder whose source, hours and expiry hold decides. So equal ladders are equal decisions, always and from everywhere.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import NamedTuple

from portguard.identity.names import Group, Identity
from portguard.identity.patterns import Pattern
from portguard.policy.checks import covers
from portguard.policy.decide import Policy, first
from portguard.policy.entries import selected
from portguard.policy.hours import WEEK_MINUTES
from portguard.policy.model import Entry, Limits, PolicyGroup, Role, Selector
from portguard.policy.quantities import Quota
from portguard.policy.spans import Span, merged, network_span

Subject = Identity | Pattern | Group
"""Who is asked about: one identity, whose certificate has no groups; everybody who matches a pattern, with no groups;
or everybody whom a certificate puts in a group, with no other membership."""

Spans = tuple[Span, ...]


class Terms(NamedTuple):
    """All of a role that a decision can tell: two roles with equal terms are one to everybody, however written."""

    role: str
    sources: tuple[Spans, Spans] | None  # of IPv4 and IPv6; None: from anywhere
    hours: tuple[Spans, str] | None  # minutes of the week, and the zone they are in; None: at any hour
    expires: datetime | None
    session_s: float | None
    limits: Limits  # quotas in one order
    quota_zone: str | None  # where calendar periods begin; None without a quota


@dataclass(frozen=True, slots=True)
class Rung:
    """One role of a ladder. Equal when the terms are."""

    terms: Terms
    role: Role = field(compare=False)
    zone: tzinfo = field(compare=False)


@dataclass(frozen=True, slots=True)
class Ladder:
    """The roles that could grant, first to last; none where a deny holds. What an earlier one covers is left out."""

    denied: bool
    rungs: tuple[Rung, ...]

    @property
    def reaches(self) -> bool:
        """Whether there is an address and an instant for which a session is let in."""
        return bool(self.rungs)


class Ladders:
    """The ladders of one policy, from `since` (aware) on: roles that have expired then are left out; None: of none.

    Sets of entries are masks as in `entries`.
    """

    def __init__(self, policy: Policy, since: datetime | None = None):
        self.policy = policy
        zone = policy.zone
        self.rungs = tuple(Rung(_terms(role, str(zone)), role, zone) for role in policy.roles)
        """By number of the role, expired ones too."""
        denies = len(policy.denies)
        self.alive = policy.index.everything
        for number, role in enumerate(policy.roles, denies):
            if since is not None and role.expires is not None and role.expires <= since:
                self.alive &= ~(1 << number)
        self._denies = (1 << denies) - 1
        self._ladders: dict[int, Ladder] = {}
        # Few roles differ in their conditions; of 1,000 alike one comparison is enough.
        conditions: dict[tuple[object, ...], int] = {}
        self._conditions = [
            conditions.setdefault((rung.terms.sources, rung.terms.hours, rung.terms.expires), len(conditions))
            for rung in self.rungs
        ]
        self._covers: dict[tuple[int, int], bool] = {}

    def member_mask(self, subject: Subject) -> int:
        """The entries that surely have everybody as a member whom `subject` stands for."""
        return self.policy.index.members.covering(subject)

    def ladder(self, candidates: int) -> Ladder:
        """The ladder of those who are members of exactly `candidates`, which all have the service."""
        if (known := self._ladders.get(candidates)) is not None:
            return known
        denied = bool(candidates & self._denies)
        made = Ladder(denied, () if denied else tuple(self._climbed(candidates & self.alive)))
        self._ladders[candidates] = made
        return made

    def exclude(self, one: int, other: int) -> bool:
        """Whether the roles of two entries surely never hold together."""
        denies = len(self.policy.denies)
        return exclusive(self.rungs[one - denies], self.rungs[other - denies])

    def _climbed(self, candidates: int) -> Iterator[Rung]:
        kept: dict[int, int] = {}  # condition -> the first role that has it
        for entry in bits(candidates):
            number = entry - len(self.policy.denies)
            condition = self._conditions[number]
            if condition in kept or any(self._is_covered(number, earlier) for earlier in kept.values()):
                continue
            kept[condition] = number
            yield self.rungs[number]

    def _is_covered(self, number: int, earlier: int) -> bool:
        key = (self._conditions[number], self._conditions[earlier])
        if (known := self._covers.get(key)) is None:
            known = self._covers[key] = covers(self.rungs[earlier].role, self.rungs[number].role)
        return known


def named_subjects(policy: Policy) -> set[Subject]:
    """Everybody whom a policy names: members of entries, and the identities of its tests.

    Who is none of them, and matches none, is a member of nothing.
    """
    found: set[Subject] = set()
    for entry in policy.entries:
        found.update(plain_members(policy, entry))
    for test in policy.tests:
        found.add(test.identity)
    return found


def plain_members(policy: Policy, entry: Entry) -> Iterator[Subject]:
    """The members of an entry, those of the policy's groups in place of these."""
    for member in entry.members:
        if isinstance(member, PolicyGroup):
            yield from policy.groups[member.name]
        else:
            yield member


def in_order(subjects: Iterable[Subject]) -> tuple[Subject, ...]:
    """Identities first, then patterns, then groups; each by trust and name."""
    return tuple(sorted(subjects, key=place))


def place(subject: Subject) -> tuple[int, str, str]:
    """Where a subject stands among others."""
    text = subject.text if isinstance(subject, Pattern) else subject.name
    return (Identity, Pattern, Group).index(type(subject)), subject.trust, text


def may_overlap(one: Pattern, other: Pattern) -> bool:
    """Whether a name may match both. False only if surely none does: they are of two trusts, begin or end otherwise."""
    a, b = sorted((one.literal_prefix, other.literal_prefix), key=len)
    c, d = sorted((pattern.text.rpartition("*")[2] for pattern in (one, other)), key=len)
    return one.trust == other.trust and b.startswith(a) and d.endswith(c)


def entry_services(policy: Policy, numbers: Mapping[str, int]) -> list[int]:
    """For each entry its services, as a mask of their `numbers`."""
    by_selector: dict[Selector, int] = {}
    masks = []
    for entry in policy.entries:
        mask = 0
        for selector in entry.services:
            if selector not in by_selector:
                by_selector[selector] = sum(1 << numbers[name] for name in selected(selector, policy.services))
            mask |= by_selector[selector]
        masks.append(mask)
    return masks


def parted(services: int, entries: Iterable[int], masks: Sequence[int]) -> list[tuple[int, int]]:
    """Part a mask of services by which of the entries have them: (services, mask of these entries).

    `masks` is what `entry_services` returned.
    """
    parts = [(services, 0)] if services else []
    for entry in entries:
        mask, bit = masks[entry], 1 << entry
        parts = [
            part for each, found in parts for part in ((each & mask, found | bit), (each & ~mask, found)) if part[0]
        ]
    return parts


def exclusive(one: Rung, other: Rung) -> bool:
    """Whether two of one policy never hold together, so that their order does not matter. True only if sure."""
    a, b = one.terms, other.terms
    if a.sources is not None and b.sources is not None and not any(map(_meet, a.sources, b.sources)):
        return True
    return (
        a.hours is not None and b.hours is not None and a.hours[1] == b.hours[1] and not _meet(a.hours[0], b.hours[0])
    )


def bits(mask: int) -> Iterator[int]:
    """The numbers in a mask, ascending."""
    while mask:
        yield first(mask)
        mask &= mask - 1


def _terms(role: Role, zone: str) -> Terms:
    limits = role.limits
    sources = None
    if role.sources is not None:
        v4, v6 = (
            merged(network_span(network) for network in role.sources if network.version == version)
            for version in (4, 6)
        )
        sources = (v4, v6)
    hours = None
    if role.hours is not None and role.hours.spans != ((0, WEEK_MINUTES),):
        hours = (role.hours.spans, zone)
    return Terms(
        role=role.name,
        sources=sources,
        hours=hours,
        expires=role.expires,
        session_s=role.session_s,
        limits=Limits(
            limits.max_sessions,
            limits.connect_rate,
            limits.bandwidth,
            _sorted(limits.quota),
            _sorted(limits.pooled_quota),
        ),
        quota_zone=zone if limits.quota or limits.pooled_quota else None,
    )


def _sorted(quotas: tuple[Quota, ...]) -> tuple[Quota, ...]:
    return tuple(sorted(quotas, key=lambda quota: quota.period))


def _meet(one: Spans, other: Spans) -> bool:
    return any(start < b and a < end for start, end in one for a, b in other)
