"""`policy.toml`, or a folder of such files, as a Policy. `docs/reference/policy.md` says what the keys mean.

The files of a folder count as one: services and groups of all of them are known in all of them, and entries stand in
the order of the files. What can be there only once (the time zone, defaults, a name) is an error the second time.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from difflib import get_close_matches
from typing import Literal

from portguard.errors import ConfigurationError, Problem
from portguard.identity.names import Group, Identity, Namespace
from portguard.identity.patterns import Pattern
from portguard.policy import checks, kinds
from portguard.policy.addresses import ListenAddress
from portguard.policy.decide import DECIDED_REASONS, Policy
from portguard.policy.hours import Hours
from portguard.policy.model import (
    NO_LIMITS,
    Balance,
    Deny,
    Entry,
    Limits,
    Member,
    Network,
    Origin,
    PolicyGroup,
    PolicyTest,
    ProxyProtocol,
    Role,
    Service,
    UpstreamTls,
)
from portguard.policy.quantities import Quota, Unexpected
from portguard.policy.toml import (
    BANDWIDTH,
    DURATION_OR_OFF,
    HOST_NAME,
    INSTANT,
    LISTEN_ADDRESS,
    NETWORK,
    PATH,
    PORT,
    QUOTA,
    RATE,
    STRING,
    Kind,
    Table,
    choice,
    integer,
    or_none,
    parse,
    text_kind,
)

PolicyFile = tuple[str, bytes]
"""A file's path, absolute so that relative paths in it are found, and what it holds."""


def policy_file_names(names: Iterable[str]) -> list[str]:
    """Of the names in a policy folder those that are read, in their order. Editors leave hidden ones behind."""
    return sorted(name for name in names if name.endswith(".toml") and not name.startswith("."))


def tls_files(files: Sequence[PolicyFile]) -> tuple[str, ...]:
    """The paths of all files that services name under `tls`, as far as `files` can be read; no problem is told."""
    paths: dict[str, None] = {}
    for file, content in files:
        for service in parse(file, content, []).tables_by_name("services").values():
            tls = _tls(service.table("tls")) or UpstreamTls()
            paths |= {path: None for path in (tls.ca, tls.certificate, tls.key) if path}
    return tuple(paths)


def read_policy(
    files: Sequence[PolicyFile],
    namespace: Namespace,
    *,
    gateway_name: str | None = None,
    occupied: Sequence[tuple[ListenAddress, str]] = (),
) -> Policy:
    """Read a policy and run its tests. *Fails closed*: it is all right, or nothing of it is used.

    `gateway_name` in lower case; None: not known, and names below it are not looked up. `occupied`: addresses that
    something else listens on, with what it is, for a person. Raises ConfigurationError with everything wrong in all
    files, or with all tests that failed. Warnings are for `checks.warnings`.
    """
    reading, problems = _read(files, namespace, gateway_name, occupied)
    if problems:
        raise ConfigurationError(_joined_alike(problems, namespace.prefix_expected))
    policy = Policy(
        services=reading.services,
        groups=reading.groups,
        denies=[deny for deny, _ in reading.denies],
        roles=[role for role, _ in reading.roles],
        tests=[test for test, _ in reading.tests],
        zone=reading.zone,
        gateway_name=gateway_name,
    )
    if failures := list(checks.failed_tests(policy)):
        raise ConfigurationError(failures)
    return policy


def nameless_problems(
    files: Sequence[PolicyFile],
    *,
    gateway_name: str | None = None,
    occupied: Sequence[tuple[ListenAddress, str]] = (),
) -> list[Problem]:
    """What is wrong in a policy whose names cannot be read yet, because the trusts are in doubt.

    It is all that `read_policy` would tell but what depends on what names mean: members, and how the tests come out.
    """
    _, problems = _read(files, None, gateway_name, occupied)
    return problems


def _read(
    files: Sequence[PolicyFile],
    namespace: Namespace | None,
    gateway_name: str | None,
    occupied: Sequence[tuple[ListenAddress, str]],
) -> tuple["_Reading", list[Problem]]:
    problems: list[Problem] = []
    roots = [parse(file, content, problems) for file, content in files]
    reading = _Reading(roots, namespace)
    for root in roots:
        root.finish()
    if all(root.readable for root in roots):
        # Else what is missing may well be in the file that cannot be read.
        reading.check_references()
    problems += checks.name_collisions(reading.services, gateway_name)
    problems += checks.port_collisions(reading.services, occupied)
    return reading, problems


@dataclass(frozen=True, slots=True)
class _RoleTerms:
    """The keys of a role that `[defaults.role]` may have too."""

    limits: Limits = NO_LIMITS
    session_s: float | None = None
    sources: tuple[Network, ...] | None = None
    hours: Hours | None = None
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class _ServiceTerms:
    """The keys of a service that `[defaults.service]` may have too."""

    balance: Balance = "failover"
    alpn: tuple[str, ...] = ()
    proxy_protocol: ProxyProtocol = "off"
    idle_s: float | None = None
    max_sessions: int | None = None


class _Reading:
    """All files together. Problems are noted in the tables; entries keep theirs for what is checked later."""

    def __init__(self, roots: Sequence[Table], namespace: Namespace | None):
        self._namespace = namespace
        self.zone = self._zone(roots)
        self.groups = self._groups(roots)
        self.services = self._services(roots)
        members = kinds.member_kind(namespace)
        self.denies = [(_deny(table, members), table) for root in roots for table in root.tables("deny")]
        self.roles = self._roles(roots, members)
        self.tests = [(self._test(table), table) for root in roots for table in root.tables("tests")]

    def check_references(self) -> None:
        """Note what entries name and no file has."""
        services = {service.name for service in self.services}
        zones = {zone for service in self.services for zone in service.zones}
        entries: list[tuple[Entry, Table]] = [*self.denies, *self.roles]
        for entry, table in entries:
            for index, member in enumerate(entry.members):
                if isinstance(member, PolicyGroup) and member.name not in self.groups:
                    expected = f"{_known('a group of [groups]', member.name, self.groups)}, or @TRUST:GROUP"
                    table.report(f"members[{index}]", expected, str(member))
            for index, selector in enumerate(entry.services):
                if selector.glob is not None and selector.glob.is_exact and selector.glob.text not in services:
                    table.report(
                        f"services[{index}]", _known("a service", selector.glob.text, services), selector.glob.text
                    )
                for zone in sorted(selector.zones - zones):
                    table.report(f"services[{index}]", _known("a zone of some service", zone, zones), zone)
        for test, table in self.tests:
            if test.service and test.service not in services:
                table.report("service", _known("a service", test.service, services), test.service)

    def _zone(self, roots: Sequence[Table]) -> tzinfo:
        zone: tzinfo = UTC
        first: Table | None = None
        for root in roots:
            if "timezone" in root and first is not None:
                root.report_as("timezone", "a time zone only once in a folder", f"a second one beside {first.file}")
            found = root.get("timezone", kinds.TIME_ZONE, UTC)
            if "timezone" in root and first is None:
                zone, first = found, root
        return zone

    def _groups(self, roots: Sequence[Table]) -> dict[str, tuple[Identity | Pattern | Group, ...]]:
        member = kinds.group_member_kind(self._namespace)
        groups: dict[str, tuple[Identity | Pattern | Group, ...]] = {}
        files: dict[str, str] = {}
        for root in roots:
            table = root.table("groups")
            for name in table.keys():  # noqa: SIM118 - a Table is no mapping
                if not kinds.is_entry_name(name):
                    table.report_as(name, kinds.ENTRY_NAME_EXPECTED, "another")
                if name in groups:
                    table.report_as(name, "a group that no other file has", f"one that is in {files[name]} too")
                groups[name] = table.array(name, member)
                files[name] = root.file
        return groups

    def _services(self, roots: Sequence[Table]) -> list[Service]:
        terms = _ServiceTerms()
        for table in _defaults(roots, "service"):
            terms = _service_terms(table, terms)
        services: dict[str, Service] = {}
        for root in roots:
            for name, table in root.tables_by_name("services").items():
                if not kinds.is_service_name(name):
                    table.report("", kinds.SERVICE_NAME_EXPECTED, name)
                if name in services:
                    other = services[name].origin.file
                    table.report_as("", "a service that no other file has", f"one that is in {other} too")
                services[name] = _service(name, table, _service_terms(table, terms))
        return list(services.values())

    def _roles(self, roots: Sequence[Table], members: Kind[Member]) -> list[tuple[Role, Table]]:
        terms = _RoleTerms()
        for table in _defaults(roots, "role"):
            terms = _role_terms(table, terms)
        roles: list[tuple[Role, Table]] = []
        origins: dict[str, Origin] = {}
        for root in roots:
            for table in root.tables("roles"):
                role = _role(table, members, terms)
                if role.name in origins:
                    table.report_as("name", "a name that no other role has", f"that of {origins[role.name]}")
                elif role.name:
                    origins[role.name] = role.origin
                roles.append((role, table))
        return roles

    def _test(self, table: Table) -> PolicyTest:
        identity = table.get("identity", kinds.identity_kind(self._namespace))
        service = table.get("service", STRING)
        expect = table.get("expect", _EXPECT)
        reason = table.get("reason", _REASON, None)
        if reason is not None and expect == "allow":
            table.report_as("reason", 'no reason, as expect is "allow"', f'"{reason}"')
        groups = set()
        for index, text in enumerate(table.array("groups", STRING)):
            if self._namespace is None:
                continue
            try:
                groups.add(kinds.parse_own_group(text, identity, self._namespace))
            except Unexpected as error:
                # A group of an identity that could not be read cannot be either.
                if identity.trust:
                    table.report(f"groups[{index}]", str(error), text)
        return PolicyTest(
            identity=identity,
            service=service,
            allowed=expect == "allow",
            reason=reason,
            at=table.get("at", kinds.TEST_INSTANT, None),
            source=table.get("from", kinds.SOURCE, None),
            groups=frozenset(groups),
            origin=_origin(table),
        )


def _defaults(roots: Sequence[Table], name: str) -> Iterator[Table]:
    """The tables `[defaults.NAME]`. One is right; a second one is read too, for its own problems."""
    first: Table | None = None
    for root in roots:
        table = root.table("defaults").table(name)
        if table.present:
            if first is not None:
                table.report_as("", f"[{table.path}] only once in a folder", f"a second one beside {first.file}")
            first = first or table
            yield table


def _service_terms(table: Table, default: _ServiceTerms) -> _ServiceTerms:
    return _ServiceTerms(
        balance=table.get("balance", _BALANCE, default.balance),
        alpn=table.array("alpn", kinds.ALPN, default=default.alpn),
        proxy_protocol=table.get("proxy_protocol", _PROXY_PROTOCOL, default.proxy_protocol),
        idle_s=table.get("idle", _DURATION_OR_INFINITE, default.idle_s),
        max_sessions=table.get("max_sessions", _SESSIONS, default.max_sessions),
    )


def _service(name: str, table: Table, terms: _ServiceTerms) -> Service:
    upstreams = table.array("upstream", kinds.UPSTREAM, minimum=1)
    tls_table = table.table("tls")
    tls = _tls(tls_table)
    if tls is not None and "server_name" not in tls_table and any(upstream.path for upstream in upstreams):
        tls_table.report_as("server_name", "a name to verify, as a unix socket has none", "nothing")
    return Service(
        name=name,
        upstreams=upstreams,
        balance=terms.balance,
        description=table.get("description", STRING, ""),
        zones=frozenset(table.array("zones", kinds.ZONE_LABEL)),
        local_port=table.get("local_port", PORT, None),
        alpn=terms.alpn,
        aliases=table.array("aliases", HOST_NAME),
        proxy_protocol=terms.proxy_protocol,
        tls=tls,
        listen=table.array("listen", LISTEN_ADDRESS),
        idle_s=terms.idle_s,
        max_sessions=terms.max_sessions,
        origin=_origin(table),
    )


def _tls(table: Table) -> UpstreamTls | None:
    ca = table.get("ca", PATH, None)
    server_name = table.get("server_name", HOST_NAME, None)
    certificate = table.get("certificate", PATH, None)
    key = table.get("key", PATH, None)
    if certificate is None and key is not None:
        table.report_as("certificate", "a certificate for the key", "nothing")
    if key is None and certificate is not None:
        table.report_as("key", "the key of the certificate", "nothing")
    if not table.present:
        return None
    folder = os.path.dirname(table.file)
    return UpstreamTls(_joined(folder, ca), server_name, _joined(folder, certificate), _joined(folder, key))


def _deny(table: Table, members: Kind[Member]) -> Deny:
    return Deny(
        members=table.array("members", members, minimum=1),
        services=table.array("services", kinds.SELECTOR, minimum=1),
        description=table.get("description", STRING, ""),
        origin=_origin(table),
    )


def _role_terms(table: Table, default: _RoleTerms) -> _RoleTerms:
    limits = Limits(
        max_sessions=table.get("max_sessions", _SESSIONS, default.limits.max_sessions),
        connect_rate=table.get("connect_rate", _RATE_OR_OFF, default.limits.connect_rate),
        bandwidth=table.get("bandwidth", _BANDWIDTH_OR_OFF, default.limits.bandwidth),
        quota=_quotas(table, "quota", default.limits.quota),
        pooled_quota=_quotas(table, "pooled_quota", default.limits.pooled_quota),
    )
    session_s = table.get("session", _DURATION_OR_INFINITE, default.session_s)
    # An empty list would be read as "no hours" by one person and as "any hour" by the next.
    windows = table.array("hours", kinds.HOURS, minimum=1 if "hours" in table else 0)
    sources = table.array("from", NETWORK, minimum=1 if "from" in table else 0)
    return _RoleTerms(
        limits=limits,
        session_s=session_s,
        sources=sources if "from" in table else default.sources,
        hours=Hours(windows) if "hours" in table else default.hours,
        expires=table.get("expires", INSTANT, default.expires),
    )


def _role(table: Table, members: Kind[Member], defaults: _RoleTerms) -> Role:
    name = table.get("name", kinds.ENTRY_NAME)
    who = table.array("members", members, minimum=1)
    services = table.array("services", kinds.SELECTOR, minimum=1)
    terms = _role_terms(table, defaults)
    return Role(
        name=name,
        members=who,
        services=services,
        limits=terms.limits,
        session_s=terms.session_s,
        sources=terms.sources,
        hours=terms.hours,
        expires=terms.expires,
        description=table.get("description", STRING, ""),
        origin=_origin(table),
    )


def _quotas(table: Table, key: str, default: tuple[Quota, ...]) -> tuple[Quota, ...]:
    quotas = table.array(key, or_none(QUOTA), default=default)
    seen = set()
    for index, quota in enumerate(quotas):
        if quota is None:
            continue
        if key in table and quota.period in seen:
            table.report_as(f"{key}[{index}]", "one quota a period", f"a second one a {quota.period}")
        seen.add(quota.period)
    return tuple(quota for quota in quotas if quota is not None)


def _origin(table: Table) -> Origin:
    return Origin(table.file, table.path)


def _joined_alike(problems: Sequence[Problem], expected: str) -> Iterator[Problem]:
    """The problems, of those that expect `expected` the first one with the number of the others.

    One line too little in the configuration is the cause of all of them, and would hide what else there is.
    """
    alike = sorted(problem for problem in problems if problem.expected == expected)
    yield from (problem for problem in problems if problem.expected != expected)
    if alike:
        others = len(alike) - 1
        more = f" and {others} more name{'s' * (others != 1)} without one" if others else ""
        yield replace(alike[0], found=alike[0].found + more)


def _joined(folder: str, path: str | None) -> str | None:
    return os.path.join(folder, path) if path else None


def _known(what: str, name: str, names: Iterable[str]) -> str:
    alike = get_close_matches(name, names, n=1)
    return f"{what} (did you mean {alike[0]}?)" if alike else what


def _parse_duration_or_infinite(text: str) -> float:
    duration_s = DURATION_OR_OFF.convert(text)
    return math.inf if duration_s is None else duration_s


_BALANCE: Kind[Balance] = choice("failover", "round-robin")
_PROXY_PROTOCOL: Kind[ProxyProtocol] = choice("off", "v1", "v2", "v2-tls")
_DURATION_OR_INFINITE = text_kind(_parse_duration_or_infinite, DURATION_OR_OFF.expected, math.inf)
_SESSIONS = kinds.or_off(integer(1, 1_000_000))
_RATE_OR_OFF = kinds.or_off(RATE)
_BANDWIDTH_OR_OFF = kinds.or_off(BANDWIDTH)
_EXPECTED_WORD: Kind[Literal["allow", "deny"]] = choice("allow", "deny")
_EXPECT = or_none(_EXPECTED_WORD)
_REASON = or_none(choice(*DECIDED_REASONS))
