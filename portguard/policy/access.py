"""Who could reach what, by which role: the auditor's question.

It is answered for everybody whom the policy names: identities, all who match a pattern, all whom a certificate puts in
a group. An auditor does not know from where they would have come, so each role is told with the networks it takes.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from datetime import datetime

from portguard.identity.names import Group, Identity
from portguard.identity.patterns import Pattern
from portguard.policy.checks import covers
from portguard.policy.decide import Policy
from portguard.policy.ladder import (
    Ladders,
    Rung,
    Subject,
    bits,
    entry_services,
    in_order,
    may_overlap,
    named_subjects,
    parted,
    place,
    plain_members,
)
from portguard.policy.model import Role


@dataclass(frozen=True, slots=True)
class Access:
    """One role by which each of `subjects` could reach each of `services`. Roles stand in the order of decision.

    `until`: when the role's hours or the role itself end, in UTC, as of the time that was asked about; None: never, or
    no time was. `unless`: members of denies; whoever is one of these as well reaches none of the services.
    """

    subjects: tuple[Subject, ...]
    services: tuple[str, ...]
    rung: Rung
    until: datetime | None
    unless: tuple[Subject, ...]


def who_could(
    policy: Policy,
    *,
    services: Set[str] | None = None,
    somebody: Set[Subject] | None = None,
    at: datetime | None = None,
    since: datetime | None = None,
) -> list[Access]:
    """Tell who could reach `services` (names; None: any), by which roles.

    `somebody`: one caller by all that is known of him, such as an identity and the groups of its certificate, or a
    group alone; None: all whom the policy names, each by this one membership; who has several of them has the roles of
    each. `at` (aware): only roles whose hours and expiry hold then; None: all, whenever they hold, but
    those that have expired at `since` (aware).
    """
    names = tuple(policy.services)
    asked = sum(1 << number for number, name in enumerate(names) if services is None or name in services)
    masks = entry_services(policy, {name: number for number, name in enumerate(names)})
    ladders = Ladders(policy, since)
    holding = ladders.alive
    if at is not None:
        holding &= policy.index.fitting_hours(at) & policy.index.unexpired(at)
    denies = [in_order(set(plain_members(policy, deny))) for deny in policy.denies]

    alike: dict[int, list[Set[Subject]]] = {}
    for each in [somebody] if somebody is not None else [{subject} for subject in named_subjects(policy)]:
        mask = 0
        for subject in each:
            mask |= ladders.member_mask(subject)
        alike.setdefault(mask & holding, []).append(each)

    found: dict[tuple[Rung, int, tuple[Subject, ...]], list[Subject]] = {}
    for mask, callers in alike.items():
        for part, candidates in parted(asked, bits(mask), masks):
            ladder = ladders.ladder(candidates)
            concerned = [number for number in range(len(denies)) if masks[number] & part]
            for rung in ladder.rungs if at is None else _at_one_instant(ladder.rungs):
                for caller in callers:
                    for services_mask, against in parted(part, concerned, masks):
                        unless = [subject for number in bits(against) for subject in denies[number]]
                        key = (rung, services_mask, _joinable(caller, unless))
                        found.setdefault(key, []).extend(caller)
    rows = [
        Access(
            in_order(set(subjects)),
            tuple(sorted(names[number] for number in bits(services_mask))),
            rung,
            _until(rung, at),
            unless,
        )
        for (rung, services_mask, unless), subjects in found.items()
    ]
    order = {role.name: number for number, role in enumerate(policy.roles)}
    return sorted(
        rows, key=lambda row: (row.services, [place(subject) for subject in row.subjects], order[row.rung.terms.role])
    )


def _at_one_instant(rungs: tuple[Rung, ...]) -> Iterator[Rung]:
    """Those that decide when all of them hold: then only addresses tell them apart."""
    kept: list[Role] = []
    for rung in rungs:
        bare = replace(rung.role, hours=None, expires=None)
        if not any(covers(earlier, bare) for earlier in kept):
            kept.append(bare)
            yield rung


def _until(rung: Rung, at: datetime | None) -> datetime | None:
    if at is None:
        return None
    closes = rung.role.hours.closes(at, rung.zone) if rung.role.hours is not None else None
    return min((end for end in (closes, rung.role.expires) if end is not None), default=None)


def _joinable(caller: Set[Subject], denied: list[Subject]) -> tuple[Subject, ...]:
    """Those of `denied` that somebody may be who is `caller`."""
    return in_order({subject for subject in denied if any(_may_be(each, subject) for each in caller)})


def _may_be(subject: Subject, other: Subject) -> bool:
    if subject.trust != other.trust:
        return False
    match subject, other:
        case (Group(), _) | (_, Group()):
            return True
        case Identity(), _:
            return False  # which patterns its name matches is known
        case Pattern(), Identity():
            return subject.matches(other)
        case Pattern(), Pattern():
            return may_overlap(subject, other)
    raise AssertionError((subject, other))
