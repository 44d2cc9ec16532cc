"""The operator's HTTP on `[metrics] listen`: `/metrics`, `/healthz` and `/readyz`. Without TLS, so meant for loopback.

Everything is read only. Whoever may connect learns names of identities and services, and how much they move.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from portguard.observe.faults import Faults
from portguard.observe.metrics import Reading, render

_KEEP_ALIVE_S = 300.0  # longer than any usual scrape interval
_SHUTDOWN_S = 1.0

# aiohttp would tell of clients that break off or speak nonsense, in lines that no log reader takes apart.
_silent = logging.Logger("operator_http")  # it has no parent, so nobody hears it
_silent.addHandler(logging.NullHandler())


class OperatorHttp:
    """The server. Belongs to one event loop.

    `read()` is what a scrape shows; it must not keep the loop for long at a time. `not_ready()` answers what keeps the
    gateway from serving, one sentence each; nothing when it serves.
    """

    def __init__(
        self, *, read: Callable[[], Awaitable[Reading]], not_ready: Callable[[], Sequence[str]], faults: Faults
    ):
        self._read = read
        self._not_ready = not_ready
        # One scrape after the other: many at once would take the loop from all else.
        self._one_scrape = asyncio.Lock()
        application = web.Application(middlewares=[_reporting(faults)])
        application.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        self._site: web.SockSite | None = None
        self._runner = web.AppRunner(
            application,
            access_log=None,
            logger=_silent,
            keepalive_timeout=_KEEP_ALIVE_S,
            shutdown_timeout=_SHUTDOWN_S,
        )

    async def start(self, listening: socket.socket) -> None:
        """Serve on a socket that listens; it is the server's from here on."""
        await self._runner.setup()
        await self.move(listening)

    async def move(self, listening: socket.socket) -> None:
        """Serve on another socket from now on. Answers that are under way go out."""
        before, self._site = self._site, web.SockSite(self._runner, listening)
        await self._site.start()
        if before is not None:
            await before.stop()

    async def stop(self) -> None:
        """End, after a moment for answers that are under way."""
        await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        accept = ",".join(request.headers.getall("Accept", []))
        async with self._one_scrape:
            pieces, content_type = render(await self._read(), accept)
            body = bytearray()
            for piece in pieces:
                body += piece
                await asyncio.sleep(0)  # in a thread it would keep the loop from running for longer
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _healthz(self, _request: web.Request) -> web.Response:
        # That it answers at all is the answer: the loop turns.
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        problems = self._not_ready()
        text = "".join(f"{line}\n" for line in ("not ready", *problems)) if problems else "ready\n"
        return web.Response(text=text, status=503 if problems else 200)


def _reporting(faults: Faults) -> Middleware:
    @web.middleware
    async def report(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except Exception as error:  # noqa: BLE001  # a fault of ours: the log has it, and the client is told as much
            faults.report(f"{request.method} {request.path} failed", error)
            return web.Response(text="internal error\n", status=500)

    return report
