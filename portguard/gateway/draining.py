"""Draining by hand: new sessions are refused with a reason, live ones go on, and it can be taken back.

The sockets go on listening, so that clients are told why. How a gateway drains to end is `ending`; `portguard drain
--exit` only begins that.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from portguard.control.access import Level, Peer
from portguard.control.routes import Arguable, Arguments, Conflict, Route
from portguard.errors import Refused
from portguard.observe import log
from portguard.reasons import Reason


class Drained(NamedTuple):
    """Since when (seconds since the epoch), and by whom."""

    since_s: float
    by: str


class DrainDesk:
    """Serves the routes, and knows whether new sessions are refused.

    `is_ending()` tells whether the gateway drains to end, which cannot be taken back; `begin_to_end()` has it do so.
    `sessions()` is how many are live.
    """

    def __init__(
        self,
        *,
        is_ending: Callable[[], bool],
        begin_to_end: Callable[[], None],
        sessions: Callable[[], int],
        clock: Callable[[], float] = time.time,
    ):
        self.drained: Drained | None = None  # None: new sessions are taken
        self._is_ending = is_ending
        self._begin_to_end = begin_to_end
        self._sessions = sessions
        self._clock = clock

    @property
    def routes(self) -> tuple[Route, ...]:
        """What is served, and to whom."""
        return (
            Route("POST", "/v1/drain", Level.OPERATOR, self._drain),
            Route("POST", "/v1/resume", Level.OPERATOR, self._resume),
        )

    def check(self) -> None:
        """Raise Refused with `draining` when no new sessions are taken. *Fails closed*."""
        if self.drained is not None:
            raise Refused(Reason.DRAINING)

    def state(self) -> list[Any] | None:
        """What another program needs to go on; JSON."""
        return list(self.drained) if self.drained is not None else None

    def restore(self, state: list[Any] | None) -> None:
        """Go on where another program has left off."""
        self.drained = Drained(*state) if state is not None else None

    async def _drain(self, peer: Peer, given: Arguable) -> Mapping[str, object]:
        arguments = Arguments(given)
        ends = arguments.flag("exit")
        arguments.finish()
        if self._is_ending():
            raise Conflict("expected a gateway that goes on, got one that drains to end")
        changed = ends or self.drained is None
        if ends:
            # Once the answer is out: without sessions the gateway ends at once.
            asyncio.get_running_loop().call_soon(self._begin_to_end)
        elif self.drained is None:
            self.drained = Drained(self._clock(), str(peer))
            log.event("info", "gateway.drain", by=str(peer), sessions=self._sessions())
        return {"draining": True, "exit": ends, "changed": changed, "sessions": self._sessions()}

    async def _resume(self, peer: Peer, given: Arguable) -> Mapping[str, object]:
        Arguments(given).finish()
        if self._is_ending():
            raise Conflict("expected a gateway that goes on, got one that drains to end, which cannot be taken back")
        changed = self.drained is not None
        self.drained = None
        if changed:
            log.event("info", "gateway.resume", by=str(peer))
        return {"draining": False, "changed": changed, "sessions": self._sessions()}
