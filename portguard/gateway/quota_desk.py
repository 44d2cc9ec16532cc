"""Quotas as operators see and change them over the control socket: `/v1/quotas`.

What is changed acts at once, and is done when the ledger has it. While that cannot be written nothing is changed: this
gateway may not even know yet what was used.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from datetime import tzinfo
from itertools import islice
from typing import NamedTuple, Protocol

from portguard.control.access import Level, Peer
from portguard.control.routes import Arguable, Arguments, BadArgument, NotFound, Pieces, Route, Unavailable
from portguard.gateway.saving import why_unsaved
from portguard.gateway.snapshot import Snapshot
from portguard.identity.names import Identity, Malformed, Namespace, parse_identity
from portguard.instants import written_second
from portguard.limits.accounts import QuotaLine
from portguard.limits.ledger import Owner, Store
from portguard.observe import log
from portguard.policy.quantities import Period

LARGEST_GRANT_BYTES = 10**15
"""More is a slip of the keyboard, and sums of such would not fit a column of the ledger."""

_MOST_LINES = 10_000_000
_AT_A_TIME = 200  # lines or owners; others want to run in between


class QuotaAccounts(Protocol):
    """What is needed of the accounts, `portguard.limits.accounts.Accounts`."""

    def lines(self, wanted: Callable[[Owner], bool], now_s: float) -> Iterator[QuotaLine]:
        """How each wanted owner stands; may be taken slowly, with other things done in between."""

    def owners(self) -> Collection[Owner]:
        """Whoever has an account."""

    def quota_periods(self, owner: Owner) -> Collection[Period]:
        """The periods in which the owner has a quota, whether or not it has an account yet."""

    def reset(self, owner: Owner, periods: Collection[Period], now_s: float) -> None:
        """Forget what was used in the running periods."""

    def grant(self, owner: Owner, periods: Collection[Period], extra_bytes: int, now_s: float) -> None:
        """Give bytes beyond the quotas, until the running periods end."""


class Rules(NamedTuple):
    """What of the configuration and the policy in force decides how quotas are named and shown."""

    namespace: Namespace
    roles: frozenset[str]
    zone: tzinfo

    @classmethod
    def of(cls, snapshot: Snapshot) -> "Rules":
        """Those of a snapshot."""
        policy = snapshot.policy
        return cls(snapshot.configuration.namespace, frozenset(role.name for role in policy.roles), policy.zone)


class QuotaDesk:
    """Serves the routes.

    `rules()` are those in force now. `on_changed(role)` is called when there is more left for a role, for which
    sessions may be waiting, and has the `store` write that. `clock()` is seconds since the epoch.
    """

    def __init__(
        self,
        accounts: QuotaAccounts,
        rules: Callable[[], Rules],
        on_changed: Callable[[str], None],
        store: Store,
        clock: Callable[[], float] = time.time,
    ):
        self._accounts = accounts
        self._rules = rules
        self._on_changed = on_changed
        self._store = store
        self._clock = clock

    @property
    def routes(self) -> tuple[Route, ...]:
        """What is served, and to whom."""
        return (
            Route("GET", "/v1/quotas", Level.VIEWER, self._show),
            Route("POST", "/v1/quotas/reset", Level.ADMIN, self._reset),
            Route("POST", "/v1/quotas/grant", Level.ADMIN, self._grant),
        )

    async def _show(self, _peer: Peer, given: Arguable) -> Pieces:
        arguments = Arguments(given)
        identity = self._identity(arguments)
        role = self._role(arguments)
        most = arguments.integer("limit", 1, _MOST_LINES)
        arguments.finish()

        def wanted(owner: Owner) -> bool:
            if role is not None and owner.role != role:
                return False
            return identity is None or (owner.trust, owner.name) == (identity.trust, identity.name)

        return Pieces(self._document(self._accounts.lines(wanted, self._clock()), most))

    async def _document(self, lines: Iterator[QuotaLine], most: int | None) -> AsyncIterator[str]:
        rules = self._rules()
        yield f'{{"timezone": {json.dumps(str(rules.zone))}, "quotas": ['
        chosen = lines if most is None else islice(lines, most)
        separator = ""
        while written := [_line(line, rules.namespace) for line in islice(chosen, _AT_A_TIME)]:
            yield separator + json.dumps(written)[1:-1]
            separator = ", "
            await asyncio.sleep(0)
        more = most is not None and next(lines, None) is not None
        yield f'], "more": {json.dumps(more)}, "ledger": {json.dumps(self._store.trouble)}}}\n'

    async def _reset(self, _peer: Peer, given: Arguable) -> object:
        arguments = Arguments(given)
        chosen = self._chosen(arguments, ahead=False)
        self._check_ledger("reset")
        changed = []
        async for owner, periods in self._each(chosen):
            self._accounts.reset(owner, periods, self._clock())
            changed.append(self._changed(owner, periods))
        await self._save("reset", chosen)
        return {"reset": changed}

    async def _grant(self, _peer: Peer, given: Arguable) -> object:
        arguments = Arguments(given)
        extra_bytes = arguments.integer("bytes", 1, LARGEST_GRANT_BYTES)
        if extra_bytes is None:
            raise BadArgument(f"bytes: expected an integer, 1 to {LARGEST_GRANT_BYTES}, got nothing")
        chosen = self._chosen(arguments, ahead=True)
        self._check_ledger("grant")
        changed = []
        async for owner, periods in self._each(chosen):
            self._accounts.grant(owner, periods, extra_bytes, self._clock())
            changed.append(self._changed(owner, periods))
        await self._save("grant", chosen)
        return {"bytes": extra_bytes, "granted": changed}

    # The ledger.

    def _check_ledger(self, act: str) -> None:
        """Raise Unavailable when it is known that nothing can be written now."""
        if self._store.failing_s() is not None:
            found = self._store.trouble or "one that cannot be written"
            raise Unavailable(f"quota {act}: expected a ledger that takes it, got {found}; nothing was changed")

    async def _save(self, act: str, chosen: Sequence[tuple[Owner, Collection[Period]]]) -> None:
        """Have what was changed act, and return once the ledger has it. Raises Unavailable when it acts only here."""
        for role in sorted({owner.role for owner, _ in chosen}):
            self._on_changed(role)
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        # Rows are written together with all that wait: when none is left, the changed ones are there.
        self._store.write([], written.set_result)
        trouble = await why_unsaved(self._store, written)
        if trouble is not None:
            log.event("warning", "quota.unsaved", act=act, message=trouble)
            means = "in force at this gateway until it restarts, and not yet in the ledger"
            raise Unavailable(f"quota {act}: {means}: {trouble}")

    # Whose quotas.

    def _chosen(self, arguments: Arguments, *, ahead: bool) -> Sequence[tuple[Owner, Collection[Period]]]:
        """Whom to change, and in which periods. With `ahead` an identity with a role need not have an account.

        Raises ControlError when that is nobody, before anything is changed.
        """
        identity = self._identity(arguments)
        everybody, pool = arguments.flag("all"), arguments.flag("pool")
        role = self._role(arguments)
        period = self._period(arguments)
        arguments.finish()
        if (identity is not None) + everybody + pool != 1:
            raise BadArgument("identity, all, pool: expected exactly one of them")
        if pool:
            if role is None:
                raise BadArgument("role: expected the role whose pool is meant, got nothing")
            owners: Iterable[Owner] = [Owner(role, "", "")]
            subject = f"role {role}"
        elif identity is None:
            owners = [each for each in self._accounts.owners() if not each.is_pool and role in (None, each.role)]
            subject = "all" if role is None else f"all of role {role}"
        else:
            subject = identity.written(self._rules().namespace.default)
            owners = self._owners(identity, role, subject, ahead=ahead)
        chosen = [
            (owner, periods)
            for owner in owners
            if (periods := [each for each in self._accounts.quota_periods(owner) if period in (None, each)])
        ]
        if not chosen:
            kind = "a pooled quota" if pool else "a quota"
            raise NotFound(f"{subject}: expected {kind}{f' per {period}' if period else ''}, got none")
        return chosen

    def _owners(self, identity: Identity, role: str | None, subject: str, *, ahead: bool) -> list[Owner]:
        trust, name = identity.trust, identity.name
        if role is not None and ahead:
            return [Owner(role, trust, name)]
        owners = [
            owner
            for owner in self._accounts.owners()
            if (owner.trust, owner.name) == (trust, name) and role in (None, owner.role)
        ]
        if not owners:
            where = f" in role {role}" if role is not None else ""
            hint = "; with a role it can be given some ahead" if ahead else ""
            raise NotFound(f"{subject}: expected an identity that has used something{where}, got an unknown one{hint}")
        return owners

    async def _each(
        self, chosen: Sequence[tuple[Owner, Collection[Period]]]
    ) -> AsyncIterator[tuple[Owner, Collection[Period]]]:
        for number, each in enumerate(chosen, start=1):
            yield each
            if number % _AT_A_TIME == 0:
                await asyncio.sleep(0)

    def _identity(self, arguments: Arguments) -> Identity | None:
        text = arguments.text("identity")
        if text is None:
            return None
        try:
            return parse_identity(text, self._rules().namespace)
        except Malformed as error:
            raise BadArgument(f"identity: {error}") from None

    def _role(self, arguments: Arguments) -> str | None:
        """The role, which may be one that the policy has no more, as long as there are accounts of it."""
        role = arguments.text("role")
        if role is None or role in self._rules().roles or any(role == each.role for each in self._accounts.owners()):
            return role
        raise NotFound(f"role: expected one of the policy's, got {role!a}")

    @staticmethod
    def _period(arguments: Arguments) -> Period | None:
        text = arguments.text("period")
        if text is not None and text not in set(Period):
            raise BadArgument(f"period: expected {', '.join(Period)}, got {text!a}")
        return Period(text) if text is not None else None

    def _changed(self, owner: Owner, periods: Collection[Period]) -> dict[str, object]:
        return _names(owner, self._rules().namespace) | {"periods": sorted(periods, key=list(Period).index)}


def _names(owner: Owner, namespace: Namespace) -> dict[str, object]:
    if owner.is_pool:
        return {"role": owner.role, "identity": None, "trust": None, "name": None}
    written = Identity(owner.trust, owner.name).written(namespace.default)
    return {"role": owner.role, "identity": written, "trust": owner.trust, "name": owner.name}


def _line(line: QuotaLine, namespace: Namespace) -> dict[str, object]:
    limit, granted, used = line.limit_bytes, line.granted_bytes, line.used_bytes
    return _names(line.owner, namespace) | {
        "period": line.period,
        "limit": limit,
        "granted": granted,
        "used": used,
        "left": max(0, limit + granted - used) if limit is not None else None,
        "outstanding": line.outstanding_bytes,
        "ends": written_second(line.end_s),
    }
