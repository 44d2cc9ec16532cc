"""Locks as operators see, set and lift them over the control socket: `/v1/locks`, `/v1/lock` and `/v1/unlock`.

A lock acts at once, here and in the workers, and what is open under it ends. Then it goes into the ledger, from which
it comes back after a restart; who set it is told that it is done when it is there. A ledger that cannot be written
keeps no lock from acting, and gets it when it can be written again. Where gateways share a ledger, a lock that was set
or lifted at another one acts here as soon as it is heard of.
"""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from portguard.control.access import Level, Peer
from portguard.control.routes import Arguable, Arguments, BadArgument, Conflict, NotFound, Pieces, Route, Unavailable
from portguard.gateway.admission import Session
from portguard.gateway.messages import Locked, Message, Unlocked
from portguard.gateway.saving import why_unsaved
from portguard.identity.names import Identity, Malformed, Namespace
from portguard.instants import written_second
from portguard.limits.fleet import Fleet, News
from portguard.limits.ledger import LockRow, LockTarget, Store
from portguard.limits.locks import (
    Locks,
    parse_certificate_target,
    parse_identity_target,
    targets_of,
    written_target,
)
from portguard.observe import log
from portguard.policy.quantities import Unexpected, parse_duration
from portguard.reasons import Reason

LONGEST_REASON = 200  # characters

MOST_LOCKS = 10_000
"""Each is in every worker's memory. More is a program that ran wild: deny entries of a policy are for many."""

_AT_A_TIME = 200  # locks; others want to run in between


class LockDesk:
    """Serves the routes, and is the only one to change the locks.

    `locks` are those that the ledger held, and `sessions` those that are admitted, by slot. `namespace()` is that in
    force now. `tell` reaches all workers, `end` has one session ended. `on_expired` is told of a lock that has ended by
    itself; `clock` is seconds since the epoch.
    """

    def __init__(
        self,
        locks: Locks,
        *,
        store: Store,
        namespace: Callable[[], Namespace],
        sessions: Mapping[int, Session],
        tell: Callable[[Message], None],
        end: Callable[[Session, Reason], None],
        on_expired: Callable[[LockRow], None],
        clock: Callable[[], float] = time.time,
    ):
        self._locks = locks
        self._unsaved: dict[LockTarget, LockRow] = {}  # what the ledger has not acknowledged yet
        self._store = store
        self._namespace = namespace
        self._sessions = sessions
        self._tell = tell
        self._end = end
        self._on_expired = on_expired
        self._clock = clock
        self._unsaved_means = "in force until the gateway restarts"
        if isinstance(store, Fleet):
            self._unsaved_means = "in force at this gateway"
            store.listen(self._hear)

    @property
    def routes(self) -> tuple[Route, ...]:
        """What is served, and to whom."""
        return (
            Route("GET", "/v1/locks", Level.VIEWER, self._show),
            Route("POST", "/v1/lock", Level.OPERATOR, self._lock),
            Route("POST", "/v1/unlock", Level.ADMIN, self._unlock),
        )

    def greeting(self) -> Iterator[Message]:
        """What a worker has to know before it serves anybody."""
        return (_locked(row) for row in self._locks.rows())

    def tick(self) -> None:
        """To be called about once a second."""
        for row in self._locks.take_expired(self._clock()):
            self._unsaved.pop(row.target, None)
            self._tell(Unlocked(*row.target))
            log.event("info", "lock.expire", lock=self._written(row.target), message=row.reason)
            self._on_expired(row)
        if self._unsaved and self._store.failing_s() is None:
            # It writes them by itself; only it does not say when.
            for row in list(self._unsaved.values()):
                self._write(row)

    def state(self) -> list[LockRow]:
        """What the ledger may not have, for another program that goes on: what json.dumps() takes."""
        return list(self._unsaved.values())

    def restore(self, state: Iterable[Iterable[Any]]) -> None:
        """Go on from a `state`. To be called before workers are greeted."""
        for target, *rest in state:
            row = LockRow(LockTarget(*target), *rest)
            if row.until_s == 0:
                self._locks.remove(row.target)
            else:
                self._locks.add(row)
            self._write(row)

    def _hear(self, news: News) -> None:
        """Somebody has set or lifted locks at another gateway. *Fails closed*: what has not ended acts."""
        now_s = self._clock()
        for row in news.locks:
            target = row.target
            self._unsaved.pop(target, None)  # it is older, or it would not have been heard of this one
            if row.until_s is not None and row.until_s <= now_s:
                if self._locks.get(target) is None:
                    continue
                self._locks.remove(target)
                self._tell(Unlocked(*target))
                log.event("info", "lock.heard", lock=self._written(target), state="unlocked")
            else:
                self._locks.add(row)
                self._tell(_locked(row))
                ended = self._end_sessions(target)
                log.event("info", "lock.heard", lock=self._written(target), state="locked", by=row.by, sessions=ended)

    # What operators see and do.

    async def _show(self, _peer: Peer, given: Arguable) -> Pieces:
        Arguments(given).finish()
        return Pieces(self._document())

    async def _document(self) -> AsyncIterator[str]:
        now_s, separator = self._clock(), ""
        yield '{"locks": ['
        in_force = (row for row in self._locks.rows() if row.until_s is None or now_s < row.until_s)
        rows = iter(sorted(in_force, key=lambda row: (row.since_s, row.target)))
        while shown := [self._shown(row) for row in islice(rows, _AT_A_TIME)]:
            yield separator + json.dumps(shown)[1:-1]
            separator = ", "
            await asyncio.sleep(0)
        yield "]}\n"

    async def _lock(self, peer: Peer, given: Arguable) -> object:
        arguments = Arguments(given)
        identity, certificate = arguments.text("identity"), arguments.text("certificate")
        reason, for_s = arguments.line("reason", LONGEST_REASON, shortest=1), _duration_s(arguments)
        arguments.finish()
        target = self._target(identity, certificate)
        before = self._locks.get(target)
        if before is None and len(self._locks) >= MOST_LOCKS:
            raise Conflict(f"expected at most {MOST_LOCKS} locks, got as many already")
        now_s = self._clock()
        until_s = None if for_s is None else math.ceil(now_s + for_s)
        row = LockRow(target, reason, str(peer), int(now_s), until_s)
        self._locks.add(row)
        self._tell(_locked(row))
        ended = self._end_sessions(target)
        await self._save(row, "locked")
        return {"lock": self._shown(row), "replaced": before is not None, "sessions": ended}

    async def _unlock(self, _peer: Peer, given: Arguable) -> object:
        arguments = Arguments(given)
        identity, certificate = arguments.text("identity"), arguments.text("certificate")
        arguments.finish()
        target = self._listed(identity, certificate) or self._target(identity, certificate)
        row = self._locks.get(target)
        if row is None:
            raise NotFound(f"{self._written(target)}: expected a lock, got none")
        self._locks.remove(target)
        self._tell(Unlocked(*target))
        shown = self._shown(row)
        await self._save(row._replace(until_s=0), "unlocked")
        return {"unlocked": shown}

    def _end_sessions(self, target: LockTarget) -> int:
        """End what is open under a lock; return how many sessions that are."""
        ended = 0
        for session in list(self._sessions.values()):
            owner, client = session.owner, session.client
            if target in targets_of(Identity(owner.trust, owner.name), client.fingerprint, client.serial):
                self._end(session, Reason.LOCKED)
                ended += 1
        return ended

    # Whom they mean.

    def _target(self, identity: str | None, certificate: str | None) -> LockTarget:
        if (identity is None) == (certificate is None):
            raise BadArgument("identity, certificate: expected exactly one of them")
        try:
            if identity is not None:
                return parse_identity_target(identity, self._namespace())
            assert certificate is not None
            return parse_certificate_target(certificate, self._namespace())
        except Malformed as error:
            name = "identity" if identity is not None else "certificate"
            raise BadArgument(f"{name}: {error}") from None

    def _listed(self, identity: str | None, certificate: str | None) -> LockTarget | None:
        """The lock that is listed as just this: one of a trust that is configured no more cannot be read otherwise."""
        for row in self._locks.rows():
            by_name = row.target.kind == "identity"
            if self._written(row.target) == (identity if by_name else certificate):
                return row.target
        return None

    def _written(self, target: LockTarget) -> str:
        return written_target(target, self._namespace().default)

    def _shown(self, row: LockRow) -> dict[str, object]:
        target, written = row.target, self._written(row.target)
        by_name = target.kind == "identity"
        return {
            "identity": written if by_name else None,
            "certificate": None if by_name else written,
            "trust": target.trust or None,
            "name": target.value if by_name else None,
            "reason": row.reason,
            "by": row.by,
            "since": written_second(row.since_s),
            "until": written_second(row.until_s) if row.until_s is not None else None,
            "saved": target not in self._unsaved,
        }

    # The ledger.

    async def _save(self, row: LockRow, done: str) -> None:
        """Return once the ledger has it. Raises Unavailable when it cannot be written now."""
        trouble = await why_unsaved(self._store, self._write(row))
        if trouble is not None:
            who = self._written(row.target)
            log.event("warning", "lock.unsaved", lock=who, state=done, message=trouble)
            raise Unavailable(f"{who}: {done}; {self._unsaved_means}, and not yet in the ledger: {trouble}")

    def _write(self, row: LockRow) -> "asyncio.Future[bool]":
        self._unsaved[row.target] = row
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def on_written(written: bool) -> None:
            if written and self._unsaved.get(row.target) is row:
                del self._unsaved[row.target]
            answer.set_result(written)

        self._store.write([row], on_written)
        return answer


def _locked(row: LockRow) -> Locked:
    return Locked(*row.target, row.until_s)


def _duration_s(arguments: Arguments) -> float | None:
    """For how long to lock; None: for ever."""
    text = arguments.text("for")
    if text is None:
        return None
    try:
        duration_s = parse_duration(text)
    except Unexpected as error:
        raise BadArgument(f"for: expected {error}, got {text[:60]!a}") from None
    if not duration_s:
        raise BadArgument('for: expected more than nothing, got "0s"')
    return duration_s
