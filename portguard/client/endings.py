"""Why the gateway ended sessions: a session that is cut carries no word of it, but whoami has it."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from portguard.client.refusal import one_line
from portguard.errors import PortguardError

_GATHER_S = 0.05  # what one limit ends, ends at about the same time
_ANSWER_S = 3.0  # nobody waits longer than that for an explanation


class Gateway(Protocol):
    """What is needed of `gateway.Gateway`."""

    async def whoami(self) -> Mapping[str, object]:
        """Ask who the caller is. Raises PortguardError."""


class Endings:
    """Asks the gateway once for all sessions that end at about the same time. Ends with close()."""

    def __init__(self, gateway: Gateway):
        self._gateway = gateway
        self._asking: asyncio.Task[Mapping[str, str]] | None = None  # the one that is yet to ask
        self._tasks: set[asyncio.Task[Mapping[str, str]]] = set()

    async def why(self, session: str | None) -> str | None:
        """The gateway's own words, on one line and not escaped; None where it has none, or does not answer."""
        if session is None:
            return None
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="ask why sessions ended")
            self._tasks.add(self._asking)
            self._asking.add_done_callback(self._tasks.discard)
        # Who gives up waiting must not take the answer from others.
        return (await asyncio.shield(self._asking)).get(session)

    async def close(self) -> None:
        """Ask no more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self) -> Mapping[str, str]:
        """The gateway's words by session."""
        await asyncio.sleep(_GATHER_S)
        self._asking = None  # an answer tells nothing of sessions that end after it was asked for
        try:
            async with asyncio.timeout(_ANSWER_S):
                document = await self._gateway.whoami()
        except (PortguardError, TimeoutError):
            return {}
        refusals = document.get("refusals")
        if not isinstance(refusals, list):
            return {}
        return {
            session: message
            for refusal in refusals
            if isinstance(refusal, dict) and isinstance(session := refusal.get("session"), str)
            if (message := one_line(refusal.get("message")))
        }
