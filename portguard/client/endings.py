"""Why the gateway ended sessions: a session that is cut carries no word of it, but whoami has it.

Who is locked out altogether is not answered by whoami either, and its refusal is the reason.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from portguard.client.refusal import RefusedByGateway, one_line
from portguard.errors import PortguardError
from portguard.reasons import Reason

_GATHER_S = 0.05  # what one limit ends, ends at about the same time
_ANSWER_S = 3.0  # nobody waits longer than that for an explanation

# By which whoami is refused, and sessions are ended. By another, such as a failing ledger, they may well go on.
_LOCKED_OUT = frozenset(
    {
        Reason.LOCKED,
        Reason.CERTIFICATE_UNTRUSTED,
        Reason.CERTIFICATE_EXPIRED,
        Reason.CERTIFICATE_NOT_YET_VALID,
        Reason.CERTIFICATE_USAGE,
        Reason.CERTIFICATE_REVOKED,
        Reason.CRL_EXPIRED,
        Reason.AMBIGUOUS_IDENTITY,
        Reason.NO_IDENTITY,
    }
)


class Gateway(Protocol):
    """What is needed of `gateway.Gateway`."""

    async def whoami(self) -> Mapping[str, object]:
        """Ask who the caller is. Raises PortguardError."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What the gateway says of sessions that have ended."""

    by_session: Mapping[str, str] = field(default_factory=dict)
    of_all: str | None = None  # where the caller is locked out altogether


class Endings:
    """Asks the gateway once for all sessions that end at about the same time. Ends with close()."""

    def __init__(self, gateway: Gateway):
        self._gateway = gateway
        self._asking: asyncio.Task[_Told] | None = None  # the one that is yet to ask
        self._tasks: set[asyncio.Task[_Told]] = set()

    async def why(self, session: str | None) -> str | None:
        """The stable word and the gateway's own sentence, on one line and not escaped: "killed: an operator ended …".

        None where it has none, or does not answer.
        """
        if session is None:
            return None
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="ask why sessions ended")
            self._tasks.add(self._asking)
            self._asking.add_done_callback(self._tasks.discard)
        # Who gives up waiting must not take the answer from others.
        told = await asyncio.shield(self._asking)
        return told.by_session.get(session, told.of_all)

    async def close(self) -> None:
        """Ask no more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self) -> _Told:
        await asyncio.sleep(_GATHER_S)
        self._asking = None  # an answer tells nothing of sessions that end after it was asked for
        try:
            async with asyncio.timeout(_ANSWER_S):
                document = await self._gateway.whoami()
        except RefusedByGateway as refused:
            return _Told(of_all=f"{refused.reason}: {refused.message}" if refused.reason in _LOCKED_OUT else None)
        except (PortguardError, TimeoutError):
            return _Told()
        refusals = document.get("refusals")
        if not isinstance(refusals, list):
            return _Told()
        return _Told(
            {
                session: words
                for refusal in refusals
                if isinstance(refusal, dict) and isinstance(session := refusal.get("session"), str)
                if (words := ": ".join(filter(None, (one_line(refusal.get(key)) for key in ("reason", "message")))))
            }
        )
