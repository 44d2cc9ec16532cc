"""Who asks for a reload: an operator over the control socket, `/v1/reload`, or somebody who sends SIGHUP."""

from collections.abc import Callable
from dataclasses import asdict

from portguard.control.access import Level, Peer
from portguard.control.routes import Arguable, Arguments, Conflict, Route
from portguard.gateway.reloading import Reloader
from portguard.observe import log

LONGEST_MESSAGE = 200  # characters


class ReloadDesk:
    """Serves the route, and hears the signal. `is_ending()` tells that the gateway drains to end."""

    def __init__(self, reloader: Reloader, is_ending: Callable[[], bool]):
        self._reloader = reloader
        self._is_ending = is_ending

    @property
    def routes(self) -> tuple[Route, ...]:
        """What is served, and to whom."""
        return (Route("POST", "/v1/reload", Level.OPERATOR, self._on_request),)

    def on_hangup(self) -> None:
        """SIGHUP has come."""
        if self._is_ending():
            log.event("warning", "gateway.reload_failed", message="draining: expected a gateway that goes on")
        else:
            self._reloader.soon("SIGHUP")

    async def _on_request(self, peer: Peer, given: Arguable) -> object:
        arguments = Arguments(given)
        message = arguments.line("message", LONGEST_MESSAGE) or None
        arguments.finish()
        if self._is_ending():
            raise Conflict("expected a gateway that goes on, got one that drains")
        return asdict(await self._reloader.reload(by=str(peer), message=message))
