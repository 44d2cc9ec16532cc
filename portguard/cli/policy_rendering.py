"""How an explained decision looks to people and to programs."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from portguard.instants import written_instant
from portguard.policy.decide import Grant, Policy, Refusal, Request
from portguard.policy.explain import Condition, Examined
from portguard.policy.model import Limits, Role
from portguard.policy.quantities import format_bandwidth, format_duration, format_quota, format_rate

_WIDTH = max(map(len, Condition))


@dataclass(frozen=True)
class Explained:
    """A request with everything that was found about it."""

    request: Request
    examined: tuple[Examined, ...]
    verdict: Grant | Refusal
    policy: Policy
    default_trust: str | None

    @property
    def allowed(self) -> bool:
        """Whether a role lets the request in."""
        return isinstance(self.verdict, Grant)

    @property
    def identity(self) -> str:
        """The identity as people write it."""
        return self.request.identity.written(self.default_trust)


def explained_lines(explained: Explained) -> Iterator[str]:
    """Lines for people, not escaped yet. Of each entry the conditions as far as it got."""
    request, policy = explained.request, explained.policy
    groups = "".join(f", in {group.written()}" for group in sorted(request.groups))
    source = "an unknown address" if request.source is None else str(request.source)
    local = request.at.astimezone(policy.zone)
    yield f"{explained.identity}{groups} to {request.service} from {source}, {local:%a %Y-%m-%d %H:%M:%S} {policy.zone}"
    for examined in explained.examined:
        yield _title(examined)
        for finding in examined.findings:
            yield f"  {finding.condition:<{_WIDTH}}  {'yes' if finding.held else 'no '}  {finding.detail}"
            if not finding.held:
                break
    left = len(policy.entries) - len(explained.examined)
    if left and explained.examined:
        yield f"not looked at: {left} more"
    yield from _verdict_lines(explained)


def explained_json(explained: Explained) -> Mapping[str, object]:
    """The same for programs, with all conditions of each entry that was looked at."""
    request, verdict = explained.request, explained.verdict
    common = {
        "identity": explained.identity,
        "trust": request.identity.trust,
        "name": request.identity.name,
        "groups": [group.written() for group in sorted(request.groups)],
        "service": request.service,
        "source": None if request.source is None else str(request.source),
        "at": written_instant(request.at),
        "entries": [_entry_json(examined) for examined in explained.examined],
        "allowed": explained.allowed,
        "role": verdict.role,
    }
    if isinstance(verdict, Refusal):
        return common | {"reason": verdict.reason, "message": verdict.reason.sentence}
    granted = {"reason": None, "until": written_instant(verdict.until) if verdict.until is not None else None}
    return common | granted | {"limits": written_limits(verdict.limits, verdict.session_s)}


def _title(examined: Examined) -> str:
    entry = examined.entry
    name = f"role {entry.name}" if isinstance(entry, Role) else f"deny {examined.number}"
    description = f", {entry.description}" if entry.description else ""
    return f"{name}{description} ({entry.origin})"


def _verdict_lines(explained: Explained) -> Iterator[str]:
    verdict = explained.verdict
    if isinstance(verdict, Refusal):
        by = f" (role {verdict.role})" if verdict.role is not None else ""
        yield f"refused: {verdict.reason}, {verdict.reason.sentence}{by}"
        return
    until = f" until {written_instant(verdict.until)}" if verdict.until is not None else ""
    yield f"allowed by role {verdict.role}{until}"
    for key, value in written_limits(verdict.limits, verdict.session_s).items():
        yield f"  {key} {', '.join(value) if isinstance(value, list) else value}"


def _entry_json(examined: Examined) -> Mapping[str, object]:
    entry = examined.entry
    return {
        "kind": "role" if isinstance(entry, Role) else "deny",
        "number": examined.number,
        "name": entry.name if isinstance(entry, Role) else None,
        "description": entry.description,
        "file": entry.origin.file,
        "key": entry.origin.key,
        "fits": examined.fits,
        "conditions": [
            {"condition": finding.condition, "held": finding.held, "detail": finding.detail}
            for finding in examined.findings
        ],
    }


def written_limits(limits: Limits, session_s: float | None) -> Mapping[str, object]:
    """The limits that there are, as a policy writes them."""
    written: dict[str, object] = {}
    if limits.max_sessions is not None:
        written["max_sessions"] = limits.max_sessions
    if limits.connect_rate is not None:
        written["connect_rate"] = format_rate(limits.connect_rate)
    if limits.bandwidth is not None:
        written["bandwidth"] = format_bandwidth(limits.bandwidth)
    if limits.quota:
        written["quota"] = [format_quota(quota) for quota in limits.quota]
    if limits.pooled_quota:
        written["pooled_quota"] = [format_quota(quota) for quota in limits.pooled_quota]
    if session_s is not None:
        written["session"] = format_duration(None if math.isinf(session_s) else session_s)
    return written
