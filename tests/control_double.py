"""A control socket without a gateway behind it: what commands show, and what they ask for."""

import asyncio
import os
import threading

from portguard.control.access import Access
from portguard.control.listening import listen
from portguard.control.server import ControlServer
from tests.patience import PATIENCE_S


class _Faults:
    def report(self, message, error):
        raise AssertionError(message) from error


class ControlDouble(threading.Thread):
    """A control server with quotas, or with whatever routes it is given, on a loop of its own."""

    def __init__(self, path, routes):
        super().__init__()
        self.acts = []
        self._path = path
        self._routes = routes
        self._ready = threading.Event()

    def run(self):
        asyncio.run(self._serve())

    async def _serve(self):
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = ControlServer(
            access=Access(own_uid=os.getuid()),
            routes=self._routes,
            faults=_Faults(),
            on_act=lambda _peer, _method, path, given, outcome: self.acts.append((path, given, outcome)),
        )
        server.start(listen(str(self._path), "root", "portguard.toml"))
        self._ready.set()
        await self._over.wait()
        await server.stop()

    def __enter__(self):
        self.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._over.set)
        self.join(PATIENCE_S)
