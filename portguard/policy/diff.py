"""What a new policy changes, for whom and where: access, the order of roles, services.

Two policies are compared for all identities, addresses and instants, not for samples. Identities are many, but what a
decision knows of one is the set of its memberships: those of its name, of patterns and of certificate groups. So the
ladders are compared of each name that either policy holds, of everybody who matches a pattern, and of everybody in
a certificate group. With several memberships at once the first role of all their ladders decides. Where each
membership alone gives the same before and after, a difference can only come from two roles that changed places, so
these pairs of roles are compared as well. Nothing is left out: no difference means that `decide` grants the same to
everybody. It may name more than there is where several roles together cover one that is gone.

Not compared: which reason a refusal has where nothing is granted, descriptions of roles and denies, the policy's tests,
and what the TLS files of services hold.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from itertools import combinations

from portguard.identity.names import Group
from portguard.identity.patterns import Pattern
from portguard.policy.decide import Policy
from portguard.policy.ladder import (
    Ladder,
    Ladders,
    Rung,
    Subject,
    bits,
    entry_services,
    exclusive,
    in_order,
    may_overlap,
    named_subjects,
    parted,
    place,
    plain_members,
)
from portguard.policy.model import Service, UpstreamTls


class Kind(StrEnum):
    """What becomes of access, from what to look at first."""

    GAINED = "gained"
    CHANGED = "changed"  # it stays, by other roles or under other terms
    LOST = "lost"
    UNDENIED = "undenied"  # a deny is gone, and no role grants: matters to those who are members of a role otherwise
    DENIED = "denied"  # the opposite


class Aspect(StrEnum):
    """What of a role can change, as a policy calls it."""

    SOURCE = "from"
    HOURS = "hours"
    EXPIRY = "expires"
    SESSION = "session"
    LIMITS = "limits"


@dataclass(frozen=True, slots=True)
class RoleChange:
    """One role of a ladder before and after; None where it is not in it. `aspects` is empty unless it is in both."""

    name: str
    old: Rung | None
    new: Rung | None
    aspects: tuple[Aspect, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """What changes for each of `subjects` at each of `services`."""

    kind: Kind
    subjects: tuple[Subject, ...]
    services: tuple[str, ...]
    old: Ladder
    new: Ladder

    @property
    def roles(self) -> tuple[RoleChange, ...]:
        """The roles that come, go or change. None of a ladder whose order alone changes."""
        old = {rung.terms.role: rung for rung in self.old.rungs}
        new = {rung.terms.role: rung for rung in self.new.rungs}
        return tuple(
            RoleChange(name, old.get(name), new.get(name), _aspects(old.get(name), new.get(name)))
            for name in dict.fromkeys([*old, *new])
            if old.get(name) != new.get(name)
        )


@dataclass(frozen=True, slots=True)
class Exchanged:
    """Two roles that changed places. Whoever has both, each by a membership of its own, is let in by another one.

    `before` came first in the old policy, `after` does in the new one.
    """

    before: str
    after: str
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """A service that comes, goes, or is another one under its name. `keys` are the fields that differ."""

    name: str
    old: Service | None
    new: Service | None
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Differences:
    """All that changes; false when nothing does."""

    access: tuple[Difference, ...]
    exchanged: tuple[Exchanged, ...]
    services: tuple[ServiceChange, ...]

    def __bool__(self) -> bool:
        return bool(self.access or self.exchanged or self.services)


def differences(old: Policy, new: Policy, *, since: datetime | None = None) -> Differences:
    """Compare two policies for all decisions from `since` (aware) on; None: at any time, by long expired roles too."""
    services = tuple(_service_changes(old, new))
    if _written_alike(old, new) and not services:
        return Differences((), (), ())
    comparison = _Comparison(old, new, since)
    return Differences(tuple(comparison.access()), tuple(comparison.exchanged()), services)


class _Comparison:
    """Services are numbered over both policies; masks of services are by these numbers, masks of entries by each
    policy's own.
    """

    def __init__(self, old: Policy, new: Policy, since: datetime | None):
        self._names = tuple(dict.fromkeys([*old.services, *new.services]))
        numbers = {name: number for number, name in enumerate(self._names)}
        self._old, self._new = Ladders(old, since), Ladders(new, since)
        self._old_services, self._new_services = entry_services(old, numbers), entry_services(new, numbers)
        # What an entry means, as a number that is the same in both policies.
        meanings: dict[object, int] = {}
        self._old_meanings, self._new_meanings = (
            [
                meanings.setdefault((None if entry < denies else side.rungs[entry - denies].terms, mask), len(meanings))
                for entry, mask in enumerate(masks)
            ]
            for side, masks, denies in (
                (self._old, self._old_services, len(old.denies)),
                (self._new, self._new_services, len(new.denies)),
            )
        )
        self._kinds: dict[tuple[int, int], Kind | None] = {}

    def access(self) -> Iterator[Difference]:
        subjects: dict[tuple[int, int], list[Subject]] = {}
        for subject in named_subjects(self._old.policy) | named_subjects(self._new.policy):
            masks = (self._old.member_mask(subject), self._new.member_mask(subject))
            subjects.setdefault(masks, []).append(subject)
        rows: dict[tuple[Kind, int, Ladder, Ladder], list[Subject]] = {}
        for (old, new), alike in subjects.items():
            found: dict[tuple[Kind, Ladder, Ladder], int] = {}
            for services, old_candidates, new_candidates in self._parted(old, new):
                kind = self._kind(old_candidates, new_candidates)
                if kind is not None:
                    row = (kind, self._old.ladder(old_candidates), self._new.ladder(new_candidates))
                    found[row] = found.get(row, 0) | services
            for (kind, before, after), services in found.items():
                rows.setdefault((kind, services, before, after), []).extend(alike)
        kinds = list(Kind)
        yield from sorted(
            (
                Difference(kind, in_order(alike), self._named(services), before, after)
                for (kind, services, before, after), alike in rows.items()
            ),
            key=lambda row: (kinds.index(row.kind), row.services, [place(subject) for subject in row.subjects]),
        )

    def exchanged(self) -> Iterator[Exchanged]:
        old_numbers, new_numbers = (
            {
                rung.terms.role: entry
                for entry, rung in enumerate(side.rungs, len(side.policy.denies))
                if side.alive >> entry & 1
            }
            for side in (self._old, self._new)
        )
        common = [name for name in old_numbers if name in new_numbers]
        order = [new_numbers[name] for name in common]
        if order == sorted(order):
            return
        old, new = self._old, self._new
        old_subjects = {entry: _by_trust(old.policy, entry) for entry in old_numbers.values()}
        new_subjects = {entry: _by_trust(new.policy, entry) for entry in new_numbers.values()}
        for (before, x), (after, y) in combinations(zip(common, order, strict=True), 2):
            if x < y:
                continue
            a, b = old_numbers[before], old_numbers[after]
            shared = self._old_services[a] & self._old_services[b] & self._new_services[x] & self._new_services[y]
            if not shared or (old.exclude(a, b) and new.exclude(x, y)):
                continue
            if _may_join(old_subjects[a], old_subjects[b]) or _may_join(new_subjects[x], new_subjects[y]):
                yield Exchanged(before, after, self._named(shared))

    def _parted(self, old: int, new: int) -> Iterator[tuple[int, int, int]]:
        """The services at which members of exactly `old` and `new` may see a difference, parted by the entries that
        have them: a mask of services, and the candidates of each policy.
        """
        old_entries, new_entries = list(bits(old)), list(bits(new))
        before = [self._old_meanings[entry] for entry in old_entries]
        after = [self._new_meanings[entry] for entry in new_entries]
        if before == after:
            return
        in_both = set(before) & set(after)
        # Entries that stay, in the order in which they were, decide as they did wherever no other entry has a say.
        moved = [each for each in before if each in in_both] != [each for each in after if each in in_both]
        concerned = 0
        for entry, meaning in zip(old_entries, before, strict=True):
            concerned |= self._old_services[entry] if meaning not in in_both else 0
        for entry, meaning in zip(new_entries, after, strict=True):
            concerned |= self._new_services[entry] if moved or meaning not in in_both else 0
        for services, x in parted(concerned, old_entries, self._old_services):
            for part, y in parted(services, new_entries, self._new_services):
                yield part, x, y

    def _kind(self, old: int, new: int) -> Kind | None:
        if (old, new) not in self._kinds:
            self._kinds[old, new] = _kind(self._old.ladder(old), self._new.ladder(new))
        return self._kinds[old, new]

    def _named(self, services: int) -> tuple[str, ...]:
        return tuple(sorted(self._names[number] for number in bits(services)))


def _kind(old: Ladder, new: Ladder) -> Kind | None:
    if old.reaches and new.reaches:
        return None if _climb_alike(old.rungs, new.rungs) else Kind.CHANGED
    if old.reaches or new.reaches:
        return Kind.GAINED if new.reaches else Kind.LOST
    if old.denied == new.denied:
        return None
    return Kind.DENIED if new.denied else Kind.UNDENIED


def _climb_alike(old: Sequence[Rung], new: Sequence[Rung]) -> bool:
    """Whether two ladders decide alike: the same roles, in one order as far as it matters."""
    if old == new:
        return True
    places = {rung.terms: place for place, rung in enumerate(new)}
    if len(old) != len(new) or any(rung.terms not in places for rung in old):
        return False
    return all(places[one.terms] < places[other.terms] or exclusive(one, other) for one, other in combinations(old, 2))


def _aspects(old: Rung | None, new: Rung | None) -> tuple[Aspect, ...]:
    if old is None or new is None:
        return ()
    a, b = old.terms, new.terms
    differs = {
        Aspect.SOURCE: a.sources != b.sources,
        Aspect.HOURS: a.hours != b.hours,
        Aspect.EXPIRY: a.expires != b.expires,
        Aspect.SESSION: a.session_s != b.session_s,
        Aspect.LIMITS: (a.limits, a.quota_zone) != (b.limits, b.quota_zone),
    }
    return tuple(aspect for aspect, does in differs.items() if does)


def _may_join(one: Mapping[str, set[Subject]], other: Mapping[str, set[Subject]]) -> bool:
    """Whether somebody may be a member of two entries by two memberships that are not both told by the name alone."""
    for trust in one.keys() & other.keys():
        x, y = one[trust], other[trust]
        if any(isinstance(subject, Group) for subject in (*x, *y)) and (len(x) > 1 or x != y):
            return True
        patterns = [subject for subject in y if isinstance(subject, Pattern)]
        if any(may_overlap(p, q) for p in x if isinstance(p, Pattern) for q in patterns if p != q):
            return True
    return False


def _by_trust(policy: Policy, entry: int) -> Mapping[str, set[Subject]]:
    found: dict[str, set[Subject]] = {}
    for subject in plain_members(policy, policy.entries[entry]):
        found.setdefault(subject.trust, set()).add(subject)
    return found


def _written_alike(old: Policy, new: Policy) -> bool:
    """Whether the entries are the same, in the same order where it matters."""
    return (
        old.roles == new.roles
        and set(old.denies) == set(new.denies)
        and old.groups == new.groups
        and str(old.zone) == str(new.zone)
    )


def _service_changes(old: Policy, new: Policy) -> Iterator[ServiceChange]:
    for name in sorted({*old.services, *new.services}):
        before, after = old.services.get(name), new.services.get(name)
        keys = tuple(_changed_keys(before, after)) if before is not None and after is not None else ()
        if before is None or after is None or keys:
            yield ServiceChange(name, before, after, keys)


def _changed_keys(old: Service, new: Service) -> Iterator[str]:
    for field in fields(Service):
        if not field.compare:
            continue
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.name == "tls":
            if not _same_tls(old, new):
                yield field.name
        elif before != after:
            yield field.name


def _same_tls(old: Service, new: Service) -> bool:
    """A policy that is not in its place yet names its files from where it is: equal from there is equal."""
    return old.tls == new.tls or (
        old.tls is not None and new.tls is not None and _from_own_folder(old, old.tls) == _from_own_folder(new, new.tls)
    )


def _from_own_folder(service: Service, tls: UpstreamTls) -> Mapping[str, str | None]:
    folder = os.path.dirname(service.origin.file)
    paths = {key: getattr(tls, key) for key in ("ca", "certificate", "key")}
    return {key: os.path.relpath(path, folder) if path and folder else path for key, path in paths.items()} | {
        "server_name": tls.server_name
    }
