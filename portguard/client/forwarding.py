"""Local sockets joined to services: each connection becomes a session of its own at the gateway."""

import asyncio
import contextlib
import errno
import socket
import sys
import time
from collections.abc import Callable

from portguard.client.endings import Endings
from portguard.client.gateway import Gateway, Tunnel
from portguard.client.local_ports import LocalPort
from portguard.errors import PortguardError
from portguard.gateway.ends import PlainEnd
from portguard.gateway.lingering import Lingering
from portguard.gateway.relay import Relay
from portguard.gateway.slots import ACTIVITY
from portguard.policy.addresses import ListenAddress
from portguard.reasons import Reason

_CELLS = 8  # as many as a slot has: the relay counts in them
_BACKLOG = 128
_PAUSE_S = 1.0  # of accepting, when this process or the host has no descriptor left
_LOOK_S = 0.02

Report = Callable[[str], None]
"""Takes a line for the user. What the gateway said is in it unescaped."""


class Broken(PortguardError):
    """A session ended before both sides had finished. `by_gateway` tells whose connection broke.

    `why` is the gateway's word for it; None where it has none, as when the service broke its own connection.
    """

    def __init__(self, message: str, *, by_gateway: bool, why: str | None = None):
        self.by_gateway = by_gateway
        self.why = why
        super().__init__(message)


class Forwarding:
    """All sessions of one client process. Every session and every listener ends with close()."""

    def __init__(self, gateway: Gateway, report: Report):
        self._gateway = gateway
        self._endings = Endings(gateway)
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._relays: dict[Relay, list[int]] = {}
        self._lingering: set[Lingering] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[asyncio.Task[None]] = []

    async def carry(self, tunnel: Tunnel, local: socket.socket) -> None:
        """Join `local` to `tunnel`, both of which this takes over; return when both sides have finished.

        Raises Broken. When it was the gateway's doing, the gateway is asked for the reason first.
        """
        local.setblocking(False)
        ended: asyncio.Future[Reason] = self._loop.create_future()
        cells = [0] * _CELLS
        # To the relay, the gateway is the client: it is the side whose first bytes came early, and where an end
        # without close_notify has to reach the other side, the local program, as a reset.
        relay = Relay(
            self._loop,
            tunnel.end,
            PlainEnd(local),
            cells=cells,
            base=0,
            on_end=lambda _, reason: None if ended.done() else ended.set_result(reason),
            lingering=self._lingering,
        )
        self._relays[relay] = cells
        try:
            relay.start(tunnel.early)
            reason = await ended
        finally:
            del self._relays[relay]
            relay.close(Reason.KILLED)  # does nothing when it has ended
        if reason in (Reason.CLIENT_TRUNCATED, Reason.CLIENT_RESET):
            why = await self._endings.why(tunnel.session)
            session = "" if tunnel.session is None else f" (session {tunnel.session})"
            message = "the gateway ended the session" + (f": {why}" if why else " before it was finished")
            raise Broken(f"{tunnel.service}: {message}{session}", by_gateway=True, why=why)
        if reason is Reason.UPSTREAM_RESET:
            raise Broken(f"{tunnel.service}: the local side ended before the session was finished", by_gateway=False)

    def listen(self, service: str, address: ListenAddress, *, fallback: bool) -> LocalPort:
        """Listen at `address` for `service`; port 0 is a free one.

        With `fallback`, a port that is in use or privileged gives way to a free one. Raises PortguardError when the
        address cannot be listened on.
        """
        taken = None
        try:
            sock = _bind(address)
        except OSError as error:
            if not fallback or error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise _cannot_listen(service, address, error) from error
            taken = address.port
            address = ListenAddress(address.host, 0)
            try:
                sock = _bind(address)
            except OSError as second:
                raise _cannot_listen(service, address, second) from second
        host, port = sock.getsockname()[:2]
        task = self._loop.create_task(self._accept(service, sock), name=f"listen for {service}")
        self._listeners.append(task)
        return LocalPort(service, host, port, taken)

    async def _accept(self, service: str, listening: socket.socket) -> None:
        with listening:
            while True:
                try:
                    sock, _ = await self._loop.sock_accept(listening)
                except ConnectionError:
                    continue  # it was gone before it was accepted
                except OSError as error:
                    self._report(f"{service}: expected another connection, got “{error.strerror}”")
                    await asyncio.sleep(_PAUSE_S)
                    continue
                task = self._loop.create_task(self._serve(service, sock), name=f"session with {service}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _serve(self, service: str, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            tunnel = await self._gateway.connect(service)
        except BaseException as error:
            PlainEnd(sock).reset()
            if not isinstance(error, PortguardError):
                raise
            self._report(str(error))
            return
        try:
            await self.carry(tunnel, sock)
        except Broken as error:
            # Programs end their connections as they like: a reset on their side is nothing to tell.
            if error.by_gateway:
                self._report(str(error))

    def stop_listening(self) -> None:
        """Take no more connections; the sessions go on."""
        for task in self._listeners:
            task.cancel()

    async def finish(self, silent_s: float) -> None:
        """Return when every session is over, or nothing has moved in any of them for `silent_s` seconds."""
        started_ns = time.monotonic_ns()
        while self._tasks:
            await asyncio.wait(self._tasks, timeout=_LOOK_S)
            moved_ns = max([started_ns, *(cells[ACTIVITY] for cells in self._relays.values())])
            if time.monotonic_ns() - moved_ns > silent_s * 1e9:
                return

    async def close(self, linger_s: float) -> None:
        """End every session and listener. What was written has at most `linger_s` seconds to arrive."""
        self.stop_listening()
        tasks = [*self._listeners, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._endings.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(linger_s):
                while self._lingering:  # noqa: ASYNC110  # relays put ends in and take them out, and tell nobody
                    await asyncio.sleep(_LOOK_S)
        for lingering in list(self._lingering):
            lingering.close()


def _bind(address: ListenAddress) -> socket.socket:
    ipv6 = ":" in address.host
    sock = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if sys.platform == "win32":
            # There, SO_REUSEADDR would let another program take the port over.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _cannot_listen(service: str, address: ListenAddress, error: OSError) -> PortguardError:
    return PortguardError(f"{service}: expected to listen at {address}, got “{error.strerror}”")
