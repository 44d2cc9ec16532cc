"""Decisions compared with the rules of the design, written down once more without any index."""

from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, ip_address, ip_network
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from portguard.identity.names import Group, Identity
from portguard.identity.patterns import Glob, Pattern
from portguard.policy.checks import warnings
from portguard.policy.decide import Grant, Policy, Refusal, Request, decide, reachable
from portguard.policy.explain import Condition, explain
from portguard.policy.hours import Hours, parse_window
from portguard.policy.model import Deny, Entry, PolicyGroup, Role, Selector, Service, Upstream
from portguard.reasons import Reason

ZONE = ZoneInfo("Europe/Zurich")
TRUSTS = ["local", "corp"]
NAMES = ["a", "ab", "abc", "b", "n/a", "n/a/b", "n/b/a"]
GLOBS = ["*", "**", "a*", "*b", "a*c", "n/*", "n/**", "n/*/a", "*/a"]
GROUPS = ["dba", "ops"]
SERVICES = [
    Service("orders", (Upstream("10.0.0.1", 1),), zones=frozenset({"data", "prod"})),
    Service("orders-2", (Upstream("10.0.0.1", 1),), zones=frozenset({"data"})),
    Service("web", (Upstream("10.0.0.1", 1),)),
]
SELECTORS = [
    *(Selector(glob=Glob(text)) for text in ("orders", "orders-*", "*", "w*b", "x*")),
    *(Selector(zones=frozenset(zones)) for zones in (["data"], ["prod"], ["data", "prod"])),
]
NETWORKS = [
    ip_network(text) for text in ("10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "192.0.2.7", "2001:db8::/32", "::/0")
]
SOURCES = [
    None,
    *map(
        ip_address, ("10.1.2.3", "10.2.0.0", "11.0.0.0", "192.0.2.7", "2001:db8::1", "::ffff:10.1.2.3", "fe80::1%eth0")
    ),
]
WINDOWS = ["Mon-Fri 07:00-20:00", "Sat-Sun", "22:00-06:00", "Sun 01:00-02:30", "Sun 02:00-03:00", "Mon"]
# Around a jump of the clocks each way, and an ordinary week.
STARTS = [datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 10, 24, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)]

instants = st.builds(
    lambda start, minutes: start + timedelta(minutes=minutes), st.sampled_from(STARTS), st.integers(0, 7 * 24 * 60)
)
identities = st.builds(Identity, st.sampled_from(TRUSTS), st.sampled_from(NAMES))
plain_members = st.one_of(
    identities,
    st.builds(Pattern, st.sampled_from(TRUSTS), st.sampled_from(GLOBS)),
    st.builds(Group, st.sampled_from(TRUSTS), st.sampled_from(GROUPS)),
)
members = st.one_of(plain_members, st.builds(PolicyGroup, st.sampled_from(["one", "two"])))
groups = st.fixed_dictionaries({name: st.lists(plain_members, max_size=2).map(tuple) for name in ("one", "two")})
some_members = st.lists(members, min_size=1, max_size=3).map(tuple)
some_selectors = st.lists(st.sampled_from(SELECTORS), min_size=1, max_size=2).map(tuple)
denies = st.builds(Deny, some_members, some_selectors)
roles = st.builds(
    Role,
    name=st.uuids().map(str),
    members=some_members,
    services=some_selectors,
    sources=st.none() | st.lists(st.sampled_from(NETWORKS), max_size=2).map(tuple),
    hours=st.none()
    | st.lists(st.sampled_from(WINDOWS).map(parse_window), min_size=1, max_size=2).map(
        lambda found: Hours(tuple(found))
    ),
    expires=st.none() | instants,
)


@st.composite
def policies(draw) -> Policy:
    return Policy(
        services=SERVICES,
        groups=draw(groups),
        denies=draw(st.lists(denies, max_size=2)),
        roles=draw(st.lists(roles, max_size=5)),
        zone=ZONE,
    )


@st.composite
def requests(draw) -> Request:
    identity = draw(identities)
    held = draw(st.frozensets(st.builds(Group, st.just(identity.trust), st.sampled_from(GROUPS))))
    service = draw(st.sampled_from(SERVICES)).name
    return Request(identity, held, service, draw(st.sampled_from(SOURCES)), draw(instants))


def is_member(policy: Policy, entry: Entry, request: Request) -> bool:
    written = [
        inner
        for member in entry.members
        for inner in (policy.groups[member.name] if isinstance(member, PolicyGroup) else (member,))
    ]
    return any(
        member.matches(request.identity)
        if isinstance(member, Pattern)
        else member in {request.identity, *request.groups}
        for member in written
    )


def grants_service(policy: Policy, entry: Entry, request: Request) -> bool:
    service = policy.services[request.service]
    return any(
        selector.zones <= service.zones if selector.zones else selector.glob.matches(service.name)
        for selector in entry.services
    )


def allows_source(role: Role, request: Request) -> bool:
    if role.sources is None:
        return True
    source = request.source
    if source is None or (isinstance(source, IPv6Address) and source.scope_id):
        return False
    if isinstance(source, IPv6Address) and source.ipv4_mapped:
        source = source.ipv4_mapped
    return any(source in network for network in role.sources)


def allows_hour(role: Role, at: datetime) -> bool:
    if role.hours is None:
        return True
    local = at.astimezone(ZONE)
    minute = local.hour * 60 + local.minute
    for window in role.hours.windows:
        if window.start < window.end:
            if local.weekday() in window.days and window.start <= minute < window.end:
                return True
        elif (local.weekday() in window.days and minute >= window.start) or (
            (local.weekday() - 1) % 7 in window.days and minute < window.end
        ):
            return True
    return False


def reference(policy: Policy, request: Request) -> tuple[Reason | None, str | None]:
    """The reason and role of the decision; the reason is None where the role grants."""
    for deny in policy.denies:
        if is_member(policy, deny, request) and grants_service(policy, deny, request):
            return Reason.DENIED, None
    reasons = [
        Reason.NO_ROLE, Reason.SERVICE_NOT_GRANTED, Reason.SOURCE_NOT_ALLOWED, Reason.OUTSIDE_HOURS,
        Reason.GRANT_EXPIRED, None,
    ]  # fmt: skip
    furthest, name = 0, None
    for role in policy.roles:
        conditions = [
            is_member(policy, role, request),
            grants_service(policy, role, request),
            allows_source(role, request),
            allows_hour(role, request.at),
            role.expires is None or request.at < role.expires,
        ]
        got = (*conditions, False).index(False)
        if got == len(conditions):
            return None, role.name
        if got > furthest:
            furthest, name = got, role.name
    return reasons[furthest], name


def decided(policy: Policy, request: Request) -> tuple[Reason | None, str | None]:
    verdict = decide(policy, request)
    return (None if isinstance(verdict, Grant) else verdict.reason), verdict.role


@given(policies(), requests())
def test_a_decision_is_that_of_the_rules_written_plainly(policy, request):
    assert decided(policy, request) == reference(policy, request)


@given(policies(), requests())
def test_reachable_services_are_those_that_the_rules_grant(policy, request):
    expected = []
    for service in SERVICES:
        asked = Request(request.identity, request.groups, service.name, request.source, request.at)
        if reference(policy, asked)[0] is None:
            expected.append(service.name)
    assert [service.name for service, _ in reachable(policy, request)] == expected


@given(policies(), denies, st.integers(0, 2), requests())
def test_adding_a_deny_never_widens_access(policy, deny, position, request):
    entries = [*policy.denies[:position], deny, *policy.denies[position:]]
    wider = Policy(services=SERVICES, groups=policy.groups, denies=entries, roles=policy.roles, zone=ZONE)
    before, after = decide(policy, request), decide(wider, request)
    assert after in {before, Refusal(Reason.DENIED, None)}


@given(policies(), roles, requests())
def test_a_role_added_at_the_end_takes_nothing_away_and_decides_only_where_none_did(policy, role, request):
    more = Policy(services=SERVICES, groups=policy.groups, denies=policy.denies, roles=[*policy.roles, role], zone=ZONE)
    before, after = decide(policy, request), decide(more, request)
    if isinstance(before, Grant) or before.reason is Reason.DENIED:
        assert after == before
    elif isinstance(after, Grant):
        assert after.role == role.name


@given(policies(), requests())
def test_roles_after_the_one_that_grants_do_not_matter(policy, request):
    verdict = decide(policy, request)
    if isinstance(verdict, Grant):
        position = [role.name for role in policy.roles].index(verdict.role)
        for kept in (position, position + 1):
            fewer = Policy(
                services=SERVICES, groups=policy.groups, denies=policy.denies, roles=policy.roles[:kept], zone=ZONE
            )
            assert (decide(fewer, request) == verdict) is (kept > position)


@given(policies(), requests())
def test_the_explanation_tells_what_was_decided(policy, request):
    examined = list(explain(policy, request))
    verdict = decide(policy, request)
    last = examined[-1] if examined else None
    assert [each.fits for each in examined[:-1]] == [False] * (len(examined) - 1 if examined else 0)
    if isinstance(verdict, Grant):
        assert last is not None
        assert last.fits
        assert last.entry.name == verdict.role
    elif verdict.reason is Reason.DENIED:
        assert last is not None
        assert last.fits
        assert isinstance(last.entry, Deny)
    else:
        assert len(examined) == len(policy.entries)
        order = list(Condition)
        furthest = max(
            (order.index(each.failed.condition) for each in examined if isinstance(each.entry, Role)), default=0
        )
        assert verdict.reason is [
            Reason.NO_ROLE, Reason.SERVICE_NOT_GRANTED, Reason.SOURCE_NOT_ALLOWED, Reason.OUTSIDE_HOURS,
            Reason.GRANT_EXPIRED,
        ][furthest]  # fmt: skip


@given(policies(), requests())
def test_a_grant_holds_until_it_says_and_not_then(policy, request):
    verdict = decide(policy, request)
    if isinstance(verdict, Grant) and verdict.until is not None:
        alone = Policy(
            services=SERVICES,
            groups=policy.groups,
            roles=[role for role in policy.roles if role.name == verdict.role],
            zone=ZONE,
        )

        def allowed_at(at: datetime) -> bool:
            asked = Request(request.identity, request.groups, request.service, request.source, at)
            return isinstance(decide(alone, asked), Grant)

        assert verdict.until > request.at
        assert not allowed_at(verdict.until)
        assert allowed_at(verdict.until - timedelta(microseconds=1))
        # On the way, at every quarter of an hour of which each window is a multiple.
        minutes = int((verdict.until - request.at).total_seconds() // 60)
        assert all(allowed_at(request.at + timedelta(minutes=minute)) for minute in range(0, minutes, 15))


@given(policies(), requests())
def test_a_role_of_which_is_said_that_it_never_decides_never_does(policy, request):
    verdict = decide(policy, request)
    if isinstance(verdict, Grant):
        assert not any(f"role {verdict.role} can never decide" in warning for warning in warnings(policy))
