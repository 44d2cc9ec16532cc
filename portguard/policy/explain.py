"""Why a decision came out as it did: the entries in the order of decision, with each condition that held or failed.

It reads the very masks that `decide` reads; only the words of the details are looked up anew.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from portguard.identity.names import Group, Identity
from portguard.identity.patterns import Pattern
from portguard.instants import written_instant
from portguard.policy.decide import Policy, Request
from portguard.policy.hours import DAYS
from portguard.policy.model import Deny, Entry, Groups, Member, PolicyGroup, Role


class Condition(StrEnum):
    """The conditions of an entry, in the order in which they count. A deny has the first two only."""

    MEMBER = "member"
    SERVICE = "service"
    SOURCE = "source"
    HOURS = "hours"
    EXPIRY = "expiry"


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether one condition of one entry held. `detail` says by what, or what it would have taken; for a person.

    The detail holds text of the policy, and no escapes.
    """

    condition: Condition
    held: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Examined:
    """One entry: `number` counts from 1 among the denies, or among the roles."""

    entry: Entry
    number: int
    findings: tuple[Finding, ...]

    @property
    def fits(self) -> bool:
        """Whether the entry decides."""
        return all(finding.held for finding in self.findings)

    @property
    def failed(self) -> Finding | None:
        """The first condition that failed: how far the entry got. None where the entry decides."""
        return next((finding for finding in self.findings if not finding.held), None)


def explain(policy: Policy, request: Request) -> Iterator[Examined]:
    """Yield the entries that a decision looks at, the deciding one last; none for an unknown service."""
    if request.service not in policy.services:
        return
    conditions = policy.conditions(request)
    for index, entry in enumerate(policy.entries):
        findings = []
        for condition, mask in zip(Condition, conditions, strict=True):
            if isinstance(entry, Role) or condition in {Condition.MEMBER, Condition.SERVICE}:
                held = bool(mask >> index & 1)
                findings.append(Finding(condition, held, _detail(condition, held, entry, policy, request)))
        number = index + 1 if isinstance(entry, Deny) else index + 1 - len(policy.denies)
        examined = Examined(entry, number, tuple(findings))
        yield examined
        if examined.fits:
            return


def _detail(condition: Condition, held: bool, entry: Entry, policy: Policy, request: Request) -> str:
    match condition, entry:
        case Condition.MEMBER, _:
            return f"as {', '.join(_memberships(entry.members, request, policy.groups))}" if held else "not a member"
        case Condition.SERVICE, _:
            service = policy.services[request.service]
            by = [str(selector) for selector in entry.services if selector.selects(service)]
            return f"by {', '.join(by)}" if by else f"only {_some(map(str, entry.services))}"
        case Condition.SOURCE, Role(sources=None):
            return "from anywhere"
        case Condition.SOURCE, Role(sources=sources):
            source = "an unknown address" if request.source is None else str(request.source)
            return f"from {_some(map(str, sources or ()))}; it is {source}"
        case Condition.HOURS, Role(hours=None):
            return "at any hour"
        case Condition.HOURS, Role(hours=hours):
            return f"{hours}; it is {_wall_clock(request.at.astimezone(policy.zone))} {policy.zone}"
        case Condition.EXPIRY, Role(expires=None):
            return "never expires"
        case Condition.EXPIRY, Role(expires=datetime() as expires):
            return f"expires {written_instant(expires)}"
    raise AssertionError((condition, entry))


def _memberships(members: Iterable[Member], request: Request, groups: Groups) -> list[str]:
    """The written members through which the identity is one."""
    found = []
    for member in members:
        match member:
            case PolicyGroup(name):
                found += [f"{member} ({inner})" for inner in _memberships(groups[name], request, groups)]
            case Pattern():
                found += [member.written(None)] if member.matches(request.identity) else []
            case Group():
                found += [member.written()] if member in request.groups else []
            case Identity():
                found += [member.written(None)] if member == request.identity else []
    return found


def _wall_clock(local: datetime) -> str:
    return f"{DAYS[local.weekday()]} {local:%Y-%m-%d %H:%M}"


def _some(texts: Iterable[str], most: int = 5) -> str:
    """The first few of many, and how many more there are."""
    listed = list(texts)
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")
