"""A live session: by what right it is open, and what it takes to look at that again."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from portguard.errors import Refused
from portguard.gateway.slots import RECEIVED, SENT
from portguard.observe import log
from portguard.policy.decide import Grant, Refusal, Request, decide
from portguard.reasons import Reason
from portguard.tls.peer import sent_chain, verified_chain

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from portguard.gateway.relay import Relay
    from portguard.gateway.setup import Setup
    from portguard.gateway.snapshot import Snapshot
    from portguard.gateway.worker import Worker
    from portguard.identity.trust import Caller
    from portguard.policy.model import Service
    from portguard.tls.tls_socket import TlsSocket

_NS = 1_000_000_000


@dataclass(slots=True)
class Live:
    """A session that is being relayed."""

    worker: Worker
    slot: int
    session: str
    tls: TlsSocket  # that of its client
    caller: Caller
    source: IPv4Address | IPv6Address | None
    service: Service
    grant: Grant
    upstream: str
    opened_ns: int
    relay: Relay = field(init=False)
    unanswered: int = 0  # how often the supervisor was told that it goes on by another grant, and has not answered
    until_s: float = field(init=False)  # since the epoch: from then on its certificate or grant may not hold any more

    def __post_init__(self) -> None:
        self._set_until()

    @property
    def identity(self) -> str:
        """The identity as people write it."""
        return self.worker.setup.snapshot.written(self.caller.identity.trust, self.caller.identity.name)

    def recheck(self, setup: Setup, at: datetime) -> bool:
        """Decide on it as if it began `at` (aware); return whether it may go on, else it is being closed.

        *Fails closed*. A session whose service is somewhere else by now, or whose certificate means another identity,
        ends with `policy_changed`.
        """
        try:
            service, grant = self._decide(setup.snapshot, at)
        except Refused as refused:
            log.event(
                "info",
                "session.recheck",
                session=self.session,
                identity=self.identity,
                service=self.service.name,
                reason=refused.reason,
                message=refused.message,
            )
            self.relay.close(refused.reason)
            return False
        before, self.service, self.grant = self.grant, service, grant
        self._set_until()
        timeouts = setup.snapshot.configuration.timeouts
        self.relay.limit(
            idle_s=finite(service.idle_s, timeouts.idle_s),
            half_close_s=timeouts.half_close_s,
            session_s=finite(grant.session_s, timeouts.session_s),
            began_ns=self.opened_ns,
        )
        if grant.role != before.role or _kinds(grant) != _kinds(before):
            self.worker.regrant(self)
        return True

    def _decide(self, snapshot: Snapshot, at: datetime) -> tuple[Service, Grant]:
        before = self.caller
        caller = snapshot.trusts.identify(verified_chain(self.tls), sent_chain(self.tls), at)
        if caller.identity != before.identity:  # all that was counted and recorded is the other one's
            raise Refused(Reason.POLICY_CHANGED, f"certificate: expected it to mean {self.identity}, got another")
        self.caller = caller
        self.worker.refuse_locked(caller)
        name = self.service.name
        decision = decide(snapshot.policy, Request(caller.identity, caller.groups, name, self.source, at))
        if isinstance(decision, Refusal):
            raise Refused(decision.reason)
        service = snapshot.policy.services[name]
        if self.upstream not in map(str, service.upstreams):
            raise Refused(Reason.POLICY_CHANGED, f"service {name}: expected it at {self.upstream}, got it elsewhere")
        return service, decision

    def _set_until(self) -> None:
        not_after, until = self.caller.not_after, self.grant.until
        self.until_s = (not_after if until is None else min(not_after, until)).timestamp()

    def on_end(self, _relay: Relay, reason: Reason) -> None:
        """Log the end and tell the supervisor."""
        if log.is_on("info"):
            self._log_end(reason)
        self.worker.ended(self.slot, reason, self.upstream)

    def _log_end(self, reason: Reason) -> None:
        cells, base = self.worker.slots.cells, self.worker.slots.base(self.slot)
        log.event(
            "info",
            "session.close",
            session=self.session,
            identity=self.identity,
            service=self.service.name,
            role=self.grant.role,
            upstream=self.upstream,
            received=cells[base + RECEIVED],
            sent=cells[base + SENT],
            duration=(time.monotonic_ns() - self.opened_ns) / _NS,
            reason=reason,
        )


def finite(own_s: float | None, general_s: float | None) -> float | None:
    """The service's or role's own timeout where it has one; infinite means off."""
    if own_s is None:
        return general_s
    return None if math.isinf(own_s) else own_s


def now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


def _kinds(grant: Grant) -> tuple[bool, bool]:
    """Which kinds of limits bytes come under: quotas, and a bandwidth."""
    limits = grant.limits
    return bool(limits.quota or limits.pooled_quota), limits.bandwidth is not None
