"""What the gateway tells its callers over HTTP: who they are, what they may reach, and how much of it is left.

    GET /v1/whoami          the identity, its certificate, and its last refusals
    GET /v1/services        what it may reach now, under which limits
    GET /v1/services/NAME   whether it may reach this one
    POST /v1/renew          a new certificate for the same identity (`certificate_request`)

`POST /v1/enroll` is for those whose certificate names nobody, and answered elsewhere (`connection`).
What may be reached says too whether a session would be admitted now, or why it would be refused.

Each answer is about the caller alone. What the supervisor knows of it is asked for there.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from portguard.gateway.certificate_request import ENROLL, RENEW, Asker, Issuing, certificate_response, wanted_renewal
from portguard.gateway.http_response import RefusedRequest, json_response, json_text, json_text_response
from portguard.gateway.messages import (
    MOST_FORECAST,
    MOST_ROLES,
    ForecastWanted,
    ForeseenRefusal,
    PastRefusal,
    PastRefusalsWanted,
    RoleStanding,
    StandingWanted,
)
from portguard.policy.decide import Grant, Request, reachable
from portguard.policy.quantities import format_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from portguard.gateway.http_request import ApiRequest
    from portguard.gateway.snapshot import Snapshot
    from portguard.identity.trust import Caller
    from portguard.policy.model import Address, Service

_WHOAMI = "/v1/whoami"
_SERVICES = "/v1/services"

_AT_A_TIME = 100  # services, about a millisecond; sessions want to go on in between


class Supervising(Issuing, Protocol):
    """What is asked of the supervisor. All raise Refused when it does not answer."""

    async def standing(self, request: StandingWanted) -> list[RoleStanding]:
        """How an identity stands, role by role."""

    async def forecast(self, request: ForecastWanted) -> list[ForeseenRefusal | None]:
        """How sessions would be answered now, one by one; None: admitted."""

    async def past_refusals(self, request: PastRefusalsWanted) -> list[PastRefusal]:
        """What an identity was refused of late."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks, over which connection, and what is in force. `source` None is not known."""

    connection: int
    caller: Caller
    source: Address | None
    snapshot: Snapshot
    session: str = ""  # what log and audit know the request by
    chain: tuple[bytes, ...] = ()  # that was verified: the certificate, those above it, the anchor; DER


async def answer(
    request: ApiRequest, visitor: Visitor, supervisor: Supervising, granted: Callable[[str], tuple[Service, Grant]]
) -> bytes:
    """Return the answer to a request, whole. Raises RefusedRequest, and Refused.

    `granted(name)` is the service that is called so, and the grant; it raises Refused unless the policy lets the
    visitor reach it now. *Fails closed*: what the visitor may not reach is not told of.
    """
    content = request.method != "HEAD"  # whose answer has none (RFC 9110 9.3.2)
    if request.path not in (_WHOAMI, _SERVICES, RENEW, ENROLL) and not request.path.startswith(f"{_SERVICES}/"):
        expected = f"CONNECT SERVICE, or GET {_WHOAMI}, {_SERVICES} or {_SERVICES}/SERVICE, or POST {RENEW}"
        raise RefusedRequest(404, f"expected {expected}, got {request.path!r}", content=content)
    allowed = "POST" if request.path in (RENEW, ENROLL) else "GET"
    if request.method != allowed:
        message = f"expected {allowed} {request.path}, got {request.method}"
        raise RefusedRequest(405, message, allow=allowed, content=content)
    if request.path == RENEW:
        wanted = wanted_renewal(request, _asker(visitor))
        return certificate_response(await supervisor.certificate(wanted))
    if request.path == ENROLL:
        raise RefusedRequest(403, "expected an invitation, got a certificate that has a name already")
    if request.path == _WHOAMI:
        return json_response(200, await _whoami(visitor, supervisor))
    if request.path == _SERVICES:
        return json_text_response(200, await _services(visitor, supervisor))
    service, grant = granted(request.path.removeprefix(f"{_SERVICES}/"))
    [refusal] = await _forecast(visitor, [(service, grant)], supervisor)
    return json_response(
        200,
        {
            "service": service.name,
            "local_port": service.local_port,
            "description": service.description,
            "refusal": refusal,
        },
    )


def _asker(visitor: Visitor) -> Asker:
    trust = visitor.caller.identity.trust
    return Asker(visitor.connection, visitor.session, visitor.source, trust, visitor.chain, visitor.snapshot)


async def _whoami(visitor: Visitor, supervisor: Supervising) -> object:
    caller, identity = visitor.caller, visitor.caller.identity
    past = await supervisor.past_refusals(PastRefusalsWanted(visitor.connection, identity.trust, identity.name))
    return {
        "identity": visitor.snapshot.written(identity.trust, identity.name),
        "trust": identity.trust,
        "name": identity.name,
        "groups": [group.written() for group in sorted(caller.groups)],
        "certificate": {
            "serial": f"{caller.serial:x}",
            "fingerprint": caller.fingerprint,
            "not_after": _written(caller.not_after),
        },
        "source": str(visitor.source) if visitor.source is not None else None,
        "refusals": [
            {
                "time": _written(datetime.fromtimestamp(refusal.time_s, UTC), "milliseconds"),
                "service": refusal.service,
                "reason": refusal.reason,
                "message": refusal.message,
                "session": refusal.session,
            }
            for refusal in past
        ],
    }


async def _services(visitor: Visitor, supervisor: Supervising) -> str:
    policy, caller = visitor.snapshot.policy, visitor.caller
    request = Request(caller.identity, caller.groups, "", visitor.source, datetime.now(UTC))
    found: list[tuple[Service, Grant]] = []
    for number, (service, grant) in enumerate(reachable(policy, request), start=1):
        found.append((service, grant))
        if number % _AT_A_TIME == 0:
            await asyncio.sleep(0)
    grants = {grant.role: grant for _, grant in found}
    limits = await _limits(visitor, grants, supervisor)
    refusals = await _forecast(visitor, found, supervisor)
    pieces = []
    for number, ((service, grant), refusal) in enumerate(zip(found, refusals, strict=True), start=1):
        now = {"refusal": refusal, "limits": limits[grant.role]}
        pieces.append(json_text(_service(visitor, service, grant) | now))
        if number % _AT_A_TIME == 0:
            await asyncio.sleep(0)
    return f'{{"timezone":{json_text(str(policy.zone))},"services":[{",".join(pieces)}]}}'


def _service(visitor: Visitor, service: Service, grant: Grant) -> dict[str, object]:
    session_s = grant.session_s
    if session_s is None:
        session_s = visitor.snapshot.configuration.timeouts.session_s
    return {
        "name": service.name,
        "description": service.description,
        "local_port": service.local_port,
        "role": grant.role,
        "until": _written(grant.until) if grant.until is not None else None,
        "session_s": session_s if session_s is not None and math.isfinite(session_s) else None,
    }


async def _limits(visitor: Visitor, grants: dict[str, Grant], supervisor: Supervising) -> dict[str, object]:
    """The limits of each role that lets the visitor in, and how it stands there."""
    identity = visitor.caller.identity
    limits: dict[str, object] = {}
    roles = list(grants)
    for begin in range(0, len(roles), MOST_ROLES):
        some = roles[begin : begin + MOST_ROLES]
        wanted = StandingWanted(visitor.connection, identity.trust, identity.name, some)
        for role, standing in zip(some, await supervisor.standing(wanted), strict=True):
            limits[role] = _limit(grants[role], standing)
    return limits


async def _forecast(
    visitor: Visitor, found: Sequence[tuple[Service, Grant]], supervisor: Supervising
) -> list[dict[str, object] | None]:
    """Why a session with each service would be refused now; None where it would not."""
    caller = visitor.caller
    foreseen: list[ForeseenRefusal | None] = []
    for begin in range(0, len(found), MOST_FORECAST):
        some = [(service.name, grant.role) for service, grant in found[begin : begin + MOST_FORECAST]]
        who = (caller.identity.trust, caller.identity.name, f"{caller.serial:x}", caller.fingerprint)
        foreseen += await supervisor.forecast(ForecastWanted(visitor.connection, *who, some))
    return [_refusal(each) if each is not None else None for each in foreseen]


def _refusal(foreseen: ForeseenRefusal) -> dict[str, object]:
    wait_s = foreseen.retry_after_s
    return {
        "reason": foreseen.reason,
        "message": foreseen.message,
        "retry_after_s": round(wait_s, 3) if wait_s is not None else None,
    }


def _limit(grant: Grant, standing: RoleStanding) -> dict[str, object]:
    limits = grant.limits
    most, rate = limits.max_sessions, limits.connect_rate
    return {
        "max_sessions": {"limit": most, "open": standing.sessions} if most is not None else None,
        "connect_rate": (
            {"limit": format_rate(rate), "retry_after_s": round(standing.connect_wait_s, 3)}
            if rate is not None
            else None
        ),
        "bandwidth_bytes_per_s": limits.bandwidth,
        "quotas": [
            {
                "period": quota.period,
                "pooled": quota.pooled,
                "limit_bytes": quota.limit_bytes,
                "granted_bytes": quota.granted_bytes,
                "used_bytes": quota.used_bytes,
                "left_bytes": max(0, quota.limit_bytes + quota.granted_bytes - quota.used_bytes),
                "ends": _written(datetime.fromtimestamp(quota.end_s, UTC)),
            }
            for quota in standing.quotas
        ],
    }


def _written(at: datetime, precision: str = "seconds") -> str:
    """RFC 3339, in UTC."""
    return at.astimezone(UTC).isoformat(timespec=precision).replace("+00:00", "Z")
