"""What a policy says to sessions that were under another one: those that are live, and those of the past."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from portguard.identity.names import Group, Identity
from portguard.policy.decide import DECIDED_REASONS, Grant, Policy, Refusal, Request, decide
from portguard.policy.model import Address
from portguard.reasons import Reason


class Becomes(StrEnum):
    """What becomes of a live session."""

    STAYS = "stays"
    CHANGES = "changes"  # it goes on by another role, under other limits or for another time
    ENDS = "ends"


@dataclass(frozen=True, slots=True)
class Live:
    """A session that is open: since `opened` (aware), by `role`."""

    session: str
    identity: Identity
    groups: frozenset[Group]
    service: str
    source: Address | None
    opened: datetime
    role: str


@dataclass(frozen=True, slots=True)
class Prospect:
    """What becomes of a live session under another policy. `reason` is given where it ends, `grant` where not."""

    live: Live
    becomes: Becomes
    reason: Reason | None
    grant: Grant | None


@dataclass(frozen=True, slots=True)
class Past:
    """A request of the past: at `at` (aware), let in by `role` or, where that is None, refused for `reason`."""

    identity: Identity
    groups: frozenset[Group]
    service: str
    source: Address | None
    at: datetime
    role: str | None
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request of the past that is decided otherwise: was it let in, now `verdict` says no; or the opposite."""

    past: Past
    verdict: Grant | Refusal


def prospects(sessions: Iterable[Live], old: Policy, new: Policy, now: datetime) -> Iterator[Prospect]:
    """Tell of each session whether it ends at `now` (aware) when `new` takes the place of `old`. *Fails closed.*

    Whatever `new` would refuse ends, with the reason, and what has lasted longer than its role now allows.
    """
    roles = {role.name: (role.limits, role.session_s) for role in old.roles}
    for live in sessions:
        verdict = decide(new, Request(live.identity, live.groups, live.service, live.source, now))
        if isinstance(verdict, Refusal):
            yield Prospect(live, Becomes.ENDS, verdict.reason, None)
        elif _has_lasted(live, verdict.session_s, now):
            yield Prospect(live, Becomes.ENDS, Reason.SESSION_TIMEOUT, None)
        else:
            alike = live.role == verdict.role and roles.get(live.role) == (verdict.limits, verdict.session_s)
            yield Prospect(live, Becomes.STAYS if alike else Becomes.CHANGES, None, verdict)


def replayed(requests: Iterable[Past], policy: Policy) -> Iterator[Outcome]:
    """Yield those requests of the past that `policy` decides otherwise: let in or not, each at its own time.

    Refusals that were not the policy's stay refusals, whatever it says.
    """
    for past in requests:
        verdict = decide(policy, Request(past.identity, past.groups, past.service, past.source, past.at))
        if isinstance(verdict, Refusal):
            if past.role is not None:
                yield Outcome(past, verdict)
        elif past.role is None and past.reason in DECIDED_REASONS:
            yield Outcome(past, verdict)


def _has_lasted(live: Live, session_s: float | None, now: datetime) -> bool:
    # None is `timeouts.session`, which no policy tells; whoever ends sessions by it does so in any case.
    return session_s is not None and not math.isinf(session_s) and now - live.opened >= timedelta(seconds=session_s)
