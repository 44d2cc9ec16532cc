"""How the gateway ends: it takes no more connections, waits for the last session, and cuts those that go on too long.

serving    connections are taken                                          until `begin()`, or a signal
draining   none are taken; who is connected already still gets a session  until no worker is left: over
           for as long as `drain_s`                                       or `cut()`, or a second signal
cutting    no session begins any more, and workers end those that they    until no worker is left: over
           have, within 10 s                                              or a third signal: over
over       the exit code is there

It never goes back. What operators can take back is another thing, `draining`.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

from portguard.gateway.accepting import Acceptor
from portguard.gateway.admission import Session
from portguard.gateway.messages import Stop
from portguard.gateway.workers import Workers
from portguard.observe import log
from portguard.reasons import Reason

_STOP_S = 10.0  # for workers to end once told to; more than a connection lingers


class Ending:
    """Where the gateway is on its way to the end. Belongs to the running loop.

    `sessions` are those that are admitted, by slot, kept by others. `drain_s()` is for how long they may go on, None
    without a bound. `on_begun()` is called once, when the gateway begins to drain.
    """

    def __init__(
        self,
        *,
        acceptor: Acceptor,
        workers: Workers,
        sessions: Mapping[int, Session],
        drain_s: Callable[[], float | None],
        on_begun: Callable[[], None],
    ):
        self._loop = asyncio.get_running_loop()
        self.since_s: float | None = None  # since when the gateway drains, in seconds since the epoch; None: it serves
        self.cutting = False
        self.over: asyncio.Future[int] = self._loop.create_future()  # the exit code: 1 when sessions were cut, or 0
        self._cut = False  # a session did not end by itself
        self._acceptor = acceptor
        self._workers = workers
        self._sessions = sessions
        self._drain_s = drain_s
        self._on_begun = on_begun

    @property
    def begun(self) -> bool:
        """Whether the gateway drains, or is further."""
        return self.since_s is not None

    def on_signal(self) -> None:
        """Take the next step: who asks again does not want to wait."""
        if self.cutting:
            self._end()
        elif self.begun:
            self.cut()
        else:
            self.begin()

    def begin(self) -> None:
        """Take no connections any more, and end with the last session. Nothing when that has begun."""
        if self.begun:
            return
        self.since_s = time.time()
        self._acceptor.close()
        log.event("info", "gateway.drain", sessions=len(self._sessions))
        self._workers.drain()
        self._on_begun()
        drain_s = self._drain_s()
        if drain_s is not None:
            self._loop.call_later(drain_s, self.cut)
        self._end_if_drained()

    def cut(self) -> None:
        """End the sessions that are left. Nothing when that has begun."""
        if self.cutting:
            return
        self.cutting = True
        self._cut = self._cut or bool(self._sessions)
        self._workers.tell(Stop(Reason.GATEWAY_STOPPED))
        self._loop.call_later(_STOP_S, self._end)

    def on_worker_gone(self, lost: int) -> None:
        """A worker is no more, and so many sessions were lost with it. Nothing while the gateway serves."""
        if self.begun:
            self._cut = self._cut or lost > 0
            self._end_if_drained()

    def _end_if_drained(self) -> None:
        if not self._workers:
            self._end()

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(1 if self._cut else 0)
