"""The policy in force as operators see it over the control socket: `/v1/policy`."""

from collections.abc import Callable

from portguard.control.access import Level, Peer
from portguard.control.routes import Arguable, Arguments, Route
from portguard.gateway.bundle import policy_files
from portguard.gateway.reloading import InForce


class PolicyDesk:
    """Serves the route. `in_force()` is by what the gateway works now."""

    def __init__(self, in_force: Callable[[], InForce]):
        self._in_force = in_force

    @property
    def routes(self) -> tuple[Route, ...]:
        """What is served, and to whom."""
        return (Route("GET", "/v1/policy", Level.VIEWER, self._show),)

    async def _show(self, _peer: Peer, given: Arguable) -> object:
        Arguments(given).finish()
        in_force = self._in_force()
        snapshot, files = in_force.snapshot, in_force.bundle.files
        return {
            "revision": snapshot.revision,
            "files": [
                {"path": path, "text": content.decode()}  # it was read as TOML, which is UTF-8
                for path, content in policy_files(snapshot.configuration, files)
            ],
        }
