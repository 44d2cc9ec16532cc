"""How one program's supervisor gives way to that of another version, in the same process (`reexec`)."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine

from portguard.control.access import Level, Peer
from portguard.control.routes import Arguable, Arguments, Conflict, Route
from portguard.errors import PortguardError
from portguard.gateway.accepting import Acceptor
from portguard.gateway.accounting import Accounting
from portguard.gateway.audit_trail import AuditTrail
from portguard.gateway.handover import Handover
from portguard.gateway.notify import Notifier
from portguard.gateway.reexec import become, try_out
from portguard.gateway.reloading import Reloader
from portguard.gateway.workers import Workers
from portguard.observe import log

_SILENCE_S = 5.0  # for what is under way when another program is to take over
_LOOK_EVERY_S = 0.01
_ANSWER_S = 0.2  # for an answer to be on its way before this program ends


class Succession:
    """Tries the version that is installed now, and gives way to it. Belongs to the running loop.

    `handover()` is what is to be left at that moment. `is_ending()` tells that the gateway drains to end. `stop()` ends
    what runs by itself and would disturb the books; it is called when there is no way back.
    """

    def __init__(
        self,
        *,
        workers: Workers,
        acceptor: Acceptor,
        accounting: Accounting,
        trail: AuditTrail,
        reloader: Reloader,
        notifier: Notifier,
        is_issuing: Callable[[], bool],
        handover: Callable[[], Handover],
        is_ending: Callable[[], bool],
        stop: Callable[[], object],
    ):
        self.under_way = False
        self._workers = workers
        self._acceptor = acceptor
        self._accounting = accounting
        self._trail = trail
        self._reloader = reloader
        self._notifier = notifier
        self._is_issuing = is_issuing
        self._handover = handover
        self._is_ending = is_ending
        self._stop = stop
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def routes(self) -> tuple[Route, ...]:
        """What is served, and to whom."""
        return (Route("POST", "/v1/reexec", Level.OPERATOR, self._on_request),)

    def on_signal(self) -> None:
        """Somebody asks for it who does not wait."""
        self._start(self._succeed_quietly("SIGUSR2"))

    async def _succeed_quietly(self, by: str) -> None:
        with contextlib.suppress(PortguardError):  # which the log has
            await self._try_out()
            await self._give_way(by)

    async def _on_request(self, peer: Peer, given: Arguable) -> object:
        Arguments(given).finish()
        await self._try_out()
        self._start(self._give_way(str(peer), after_s=_ANSWER_S))
        return {"trial": "passed"}

    def _start(self, step: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(step, name="reexec")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try_out(self) -> None:
        """Raises PortguardError when the version that is installed now could not take over."""
        if self._is_ending() or self.under_way:
            raise Conflict("expected a gateway that goes on, got one that ends or is being replaced")
        if self._trail.failing is not None or self._accounting.health.failing is not None:
            # What waits to be written would be lost with this program.
            raise Conflict("expected an audit and a ledger that can be written, got one that cannot")
        self.under_way = True
        try:
            await try_out(self._handover())
        except BaseException as error:
            self.under_way = False
            log.event("error", "gateway.reexec_failed", message=str(error))
            raise

    async def _give_way(self, by: str, *, after_s: float = 0.0) -> None:
        """Become the version that is installed now, unless what is under way does not end."""
        await asyncio.sleep(after_s)
        async with self._reloader.paused():
            self._acceptor.stop()
            if not self._is_ending() and await self._fall_silent() and not self._is_ending():
                self._stop()
                self._notifier.reloading(time.monotonic())
                await self._accounting.suspend()
                await self._trail.suspend(by)
                log.event("info", "gateway.reexec", by=by)
                try:
                    become(self._handover())
                except OSError as error:
                    log.event("error", "gateway.reexec_failed", message=error.strerror or str(error))
                    os._exit(1)  # ledger and audit are closed: whatever went on would go on uncounted
            self.under_way = False
            self._workers.resume()
            if not self._is_ending():
                self._acceptor.start()
            log.event("error", "gateway.reexec_failed", message="expected what was under way to end soon, got no end")

    async def _fall_silent(self) -> bool:
        """Hear nobody, and wait until nobody waits for an answer of ours; return whether it came to that."""
        self._workers.pause()
        deadline_s = time.monotonic() + _SILENCE_S
        while self._trail.is_deciding or self._accounting.is_securing or self._is_issuing():
            if time.monotonic() > deadline_s:
                return False
            await asyncio.sleep(_LOOK_EVERY_S)
        return await self._workers.flush()
