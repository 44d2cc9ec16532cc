"""What a comparison of policies leaves out, nobody can notice; and what it names, somebody can."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from portguard.identity.names import Group, Identity
from portguard.identity.patterns import Pattern
from portguard.policy.decide import Grant, Policy, Request, decide
from portguard.policy.diff import Aspect, Kind, differences
from portguard.policy.ladder import Ladders, named_subjects
from portguard.policy.model import Limits, PolicyGroup, Service, Upstream
from tests.property.test_policy_decisions import (
    NAMES,
    SERVICES,
    SOURCES,
    STARTS,
    TRUSTS,
    ZONE,
    denies,
    groups,
    instants,
    policies,
    requests,
    roles,
    some_members,
    some_selectors,
)

MORE = Service("extra", (Upstream("10.0.0.1", 1),), zones=frozenset({"prod"}))


def made(policy: Policy, **changes: object) -> Policy:
    """The policy with other parts."""
    parts = {
        "services": list(policy.services.values()), "groups": policy.groups, "denies": policy.denies,
        "roles": policy.roles, "zone": policy.zone,
    }  # fmt: skip
    return Policy(**(parts | changes))


@st.composite
def edits(draw) -> tuple[Policy, Policy]:
    """A policy before and after somebody worked on it."""
    old = draw(policies())
    new = old
    for edit in draw(st.lists(st.sampled_from(["order", "role", "deny", "members", "services", "terms", "group", "zone", "service"]), min_size=1, max_size=3)):  # fmt: skip # noqa: E501
        found = list(new.roles)
        index = draw(st.integers(0, len(found) - 1)) if found else None
        match edit:
            case "order":
                new = made(new, roles=draw(st.permutations(found)))
            case "deny":
                new = made(new, denies=draw(st.lists(denies, max_size=1)))
            case "group":
                new = made(new, groups=draw(groups))
            case "zone":
                new = made(new, zone=draw(st.sampled_from([UTC, ZONE])))
            case "service":
                new = made(new, services=draw(st.sampled_from([SERVICES[:2], [*SERVICES, MORE]])))
            case "role":
                new = made(new, roles=[*found[:index], draw(roles), *found[index:]] if index is not None else found)
            case _ if index is not None:
                change = {
                    "members": {"members": draw(some_members)},
                    "services": {"services": draw(some_selectors)},
                    "terms": draw(
                        st.sampled_from([{"limits": Limits(max_sessions=3)}, {"session_s": 60.0}, {"expires": None}])
                    ),
                }[edit]
                found[index] = replace(found[index], **change)
                new = made(new, roles=found)
    return old, new


def granted(policy: Policy, request: Request) -> Grant | None:
    verdict = decide(policy, request)
    return verdict if isinstance(verdict, Grant) else None


def is_named(old: Policy, new: Policy, request: Request, **keywords: datetime) -> bool:
    """Whether the differences name the identity of a request at its service."""
    found = differences(old, new, **keywords)

    def stands_for(subject: object) -> bool:
        if isinstance(subject, Pattern):
            return subject.matches(request.identity)
        return subject == request.identity or subject in request.groups

    def is_member(policy: Policy, name: str) -> bool:
        (role,) = (role for role in policy.roles if role.name == name)
        members = [policy.groups[each.name] if isinstance(each, PolicyGroup) else (each,) for each in role.members]
        return any(stands_for(each) for inner in members for each in inner)

    return any(request.service in row.services and any(map(stands_for, row.subjects)) for row in found.access) or any(
        request.service in row.services and is_member(old, row.before) and is_member(old, row.after)
        for row in found.exchanged
    )


@given(policies())
def test_a_policy_does_not_differ_from_itself(policy):
    assert not differences(policy, policy)
    again = made(policy, denies=policy.denies[::-1])
    assert not differences(policy, again)


@given(edits(), requests())
def test_whoever_is_decided_on_otherwise_is_named(edited, request):
    old, new = edited
    if granted(old, request) != granted(new, request):
        assert is_named(old, new, request)


@given(edits(), st.sampled_from(TRUSTS), st.sampled_from(NAMES), st.frozensets(st.sampled_from(["dba", "ops"])))
def test_whoever_is_not_named_notices_nothing_anywhere_at_any_hour(edited, trust, name, held):
    old, new = edited
    for service in old.services:
        for source in SOURCES:
            for start in STARTS:
                request = Request(
                    Identity(trust, name), frozenset(Group(trust, each) for each in held), service, source, start
                )
                for hours in (0, 11, 26, 47):
                    asked = replace(request, at=start + timedelta(hours=hours, minutes=30))
                    if granted(old, asked) != granted(new, asked):
                        assert is_named(old, new, asked)


@given(edits(), instants, requests())
def test_what_expired_before_is_left_out_and_nothing_else(edited, since, request):
    old, new = edited
    if request.at >= since and granted(old, request) != granted(new, request):
        assert is_named(old, new, request, since=since)


@given(edits())
def test_there_and_back_is_told_by_opposites(edited):
    old, new = edited
    there, back = differences(old, new), differences(new, old)
    opposite = {
        Kind.GAINED: Kind.LOST, Kind.LOST: Kind.GAINED, Kind.CHANGED: Kind.CHANGED, Kind.DENIED: Kind.UNDENIED,
        Kind.UNDENIED: Kind.DENIED,
    }  # fmt: skip
    assert {(row.kind, row.subjects, row.services) for row in there.access} == {
        (opposite[row.kind], row.subjects, row.services) for row in back.access
    }


@given(edits())
def test_a_row_is_about_what_the_ladders_of_its_subjects_say(edited):
    old, new = edited
    before, after = Ladders(old), Ladders(new)
    seen = set()
    for row in differences(old, new).access:
        for subject in row.subjects:
            assert subject in named_subjects(old) | named_subjects(new)
            for service in row.services:
                assert (subject, service) not in seen, "expected each pair once"
                seen.add((subject, service))
                for side, policy, ladder in ((before, old, row.old), (after, new, row.new)):
                    candidates = side.member_mask(subject) & policy.index.services.get(service, 0)
                    assert side.ladder(candidates) == ladder
        assert set(Aspect) >= {aspect for change in row.roles for aspect in change.aspects}
