"""What a decision costs, in microseconds, with a policy of 1,000 services, 1,000 roles and 100,000 members.

    python -m bench.decide [--json]

Every case is decided many times over, with other identities and services each time so that nothing is met warm that
would be cold in a gateway. Nothing is remembered between decisions anyway: the index has no cache.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from portguard.identity.names import Group, Identity, Namespace
from portguard.policy.checks import warnings
from portguard.policy.decide import Grant, Policy, Request, decide
from portguard.policy.model import Address
from portguard.policy.read import read_policy

BOUND_US = 20.0
SERVICES, ROLES, MEMBERS = 1_000, 1_000, 100_000
MONDAY = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
INSIDE = ip_address("10.7.1.9")
NAMESPACE = Namespace({"local": "spiffe", "corp": "email"}, "local", {"bastion.example.com": "local"})


@dataclass(frozen=True)
class Case:
    """One kind of request, and the verdict without which its figure would mean nothing."""

    name: str
    policy: Policy
    requests: list[Request]
    expected: str  # the name of the granting role, or the reason


def main() -> None:
    """Print a table, or JSON; exit 1 when a median is above the bound."""
    parser = argparse.ArgumentParser(prog="python -m bench.decide", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()

    started = time.perf_counter()
    plain = read_policy([("policy.toml", _plain().encode())], NAMESPACE)
    load_s = time.perf_counter() - started
    started = time.perf_counter()
    list(warnings(plain))
    warnings_s = time.perf_counter() - started
    globs = read_policy([("policy.toml", _globs().encode())], NAMESPACE)
    everywhere = read_policy([("policy.toml", _everywhere().encode())], NAMESPACE)

    figures = {case.name: _measured(case) for case in _cases(plain, globs, everywhere)}
    result = {"load_s": load_s, "warnings_s": warnings_s, "bound_us": BOUND_US, "decisions": figures}
    if arguments.json:
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        print(f"{SERVICES} services, {ROLES} roles, {MEMBERS} members: read in {load_s:.2f} s, ", end="")
        print(f"warnings in {warnings_s:.2f} s\n\n{'one decision, µs':<52}{'median':>8}{'p99':>8}")
        for name, figure in figures.items():
            print(f"{name:<52}{figure['median_us']:>8.1f}{figure['p99_us']:>8.1f}")
    if any(figure["median_us"] > BOUND_US for figure in figures.values()):
        sys.exit(f"a median is above {BOUND_US:.0f} µs")


def _cases(plain: Policy, globs: Policy, everywhere: Policy) -> Iterator[Case]:
    draw = random.Random(2)
    people = [f"team-{draw.randrange(ROLES - 1)}/p{draw.randrange(MEMBERS // ROLES - 1)}" for _ in range(2_000)]

    def case(name: str, policy: Policy, expected: str, make: Callable[[int], Request]) -> Case:
        return Case(name, policy, [make(n) for n in range(2_000)], expected)

    def request(
        name: str,
        service: str,
        *,
        trust: str = "local",
        source: Address = INSIDE,
        groups: frozenset[Group] = frozenset(),
    ) -> Request:
        return Request(Identity(trust, name), groups, service, source, MONDAY)

    yield case(
        "a member of one role, not of this service", plain, "service_not_granted", lambda n: request(people[n], "s999")
    )
    yield case("granted by the last role", plain, "last", lambda n: request(f"last/p{n % 100}", "s999"))
    yield case("a member of nothing", plain, "no_role", lambda n: request(f"nobody-{n}", f"s{n % SERVICES}"))
    yield case("denied", plain, "denied", lambda n: request(f"banned/p{n % 100}", f"s{n % SERVICES}"))
    groups = frozenset(Group("corp", f"g{n}") for n in range(50))
    yield case(
        "50 groups in the certificate, granted by the last role",
        plain,
        "last",
        lambda n: request(f"user{n}@example.com", "s999", trust="corp", groups=groups),
    )
    yield case(
        "100,000 globs, granted by the last of them",
        globs,
        "role-999",
        lambda n: request(f"user{n}@dba99999.example.com", f"s{n % SERVICES}", trust="corp"),
    )
    yield case(
        "100,000 globs, a member of nothing",
        globs,
        "no_role",
        lambda n: request(f"user{n}@elsewhere.example.org", f"s{n % SERVICES}", trust="corp"),
    )
    yield case(
        "a path that 1,000 globs share in part",
        globs,
        "role-998",
        lambda n: request(f"ns/cluster-{n}/sa/app998-{n}", f"s{n % SERVICES}"),
    )
    yield case(
        "a member of all roles, all but the last outside hours",
        everywhere,
        "role-999",
        lambda n: request(f"person-{n}", f"s{n % SERVICES}"),
    )
    yield case(
        "a member of all roles, none from here",
        everywhere,
        "source_not_allowed",
        lambda n: request(f"person-{n}", f"s{n % SERVICES}", source=ip_address("192.0.2.7")),
    )


def _measured(case: Case) -> dict[str, float]:
    durations = []
    for request in case.requests:
        started = time.perf_counter_ns()
        verdict = decide(case.policy, request)
        durations.append(time.perf_counter_ns() - started)
        word = verdict.role if isinstance(verdict, Grant) else verdict.reason
        if word != case.expected:
            raise AssertionError(f"{case.name}: expected {case.expected}, got {word}")
    return {
        "median_us": statistics.median(durations) / 1000,
        "p99_us": statistics.quantiles(durations, n=100)[98] / 1000,
    }


def _services() -> Iterator[str]:
    for n in range(SERVICES):
        yield f'[services.s{n}]\nupstream = ["10.0.{n // 250}.{n % 250 + 1}:5432"]\nzones = ["z{n % 20}"]\n'


def _plain() -> str:
    """100 members a role, each role with services of its own."""
    parts = ['timezone = "Europe/Zurich"', *_services()]
    banned = ", ".join(f'"banned/p{n}"' for n in range(100))
    parts.append(f'[[deny]]\nmembers = [{banned}]\nservices = ["*"]')
    for n in range(ROLES - 1):
        members = ", ".join(f'"team-{n}/p{m}"' for m in range(MEMBERS // ROLES - 1))
        services = ", ".join(f'"s{(n * 7 + m) % (SERVICES - 1)}"' for m in range(5))
        parts.append(
            f'[[roles]]\nname = "role-{n}"\nmembers = [{members}, "banned/p{n % 100}"]\nservices = [{services}]'
        )
        parts.append(f'hours = ["Mon-Fri {n % 8:02}:00-20:00"]\nfrom = ["10.{n % 256}.0.0/16", "10.7.0.0/16"]')
    members = ", ".join(f'"last/p{m}"' for m in range(MEMBERS // ROLES))
    parts.append(f'[[roles]]\nname = "last"\nmembers = [{members}, "@corp:g49"]\nservices = ["s999", "zone:z3"]')
    return "\n".join(parts)


def _globs() -> str:
    """100 globs a role, of many lengths, and one with two stars that begins and ends as those of all other roles."""
    parts = list(_services())
    for n in range(ROLES):
        members = ", ".join(f'"corp:*@dba{n * 100 + m}.example.com"' for m in range(MEMBERS // ROLES))
        parts.append(f'[[roles]]\nname = "role-{n}"\nmembers = [{members}, "ns/*/sa/app{n}-*"]\nservices = ["s*"]')
    return "\n".join(parts)


def _everywhere() -> str:
    """Everybody is a member of every role, and only hours, source and expiry tell them apart."""
    parts = ['timezone = "Europe/Zurich"', *_services()]
    for n in range(ROLES):
        hours = "Mon 10:00-11:00" if n == ROLES - 1 else f"Tue-Fri {n % 24:02}:{n % 59:02}-{n % 24:02}:59"
        expires = (MONDAY + timedelta(days=n + 1)).isoformat()
        parts.append(f'[[roles]]\nname = "role-{n}"\nmembers = ["**"]\nservices = ["*"]\nhours = ["{hours}"]')
        parts.append(f'from = ["10.0.0.0/8", "172.16.{n % 256}.0/24"]\nexpires = {expires}')
    return "\n".join(parts)


if __name__ == "__main__":
    main()
