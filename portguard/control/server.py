"""The operator's HTTP and JSON on the control socket: who calls, whether they may, and what they are answered.

    curl --unix-socket /run/portguard/control.sock http://portguard/v1/status

Callers are known by the kernel's word for who connected (SO_PEERCRED of unix(7)), never by what they send. One request
a connection. `docs/reference/control.md` is what clients are promised.
"""

import asyncio
import errno
import json
import logging
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from aiohttp import web

from portguard.control.access import Access, Level, Peer
from portguard.control.accounts_of_host import DirectoryUnavailable, HostAccounts
from portguard.control.listening import ControlSocket
from portguard.control.routes import (
    BadArgument,
    Conflict,
    ControlError,
    Forbidden,
    NotFound,
    Pieces,
    Route,
    Unavailable,
)
from portguard.errors import ConfigurationError, PortguardError, UsageError
from portguard.observe import log
from portguard.observe.faults import Faults

LONGEST_BODY_BYTES = 64 * 1024

_HEAD_S = 10.0
_BODY_S = 10.0
_ANSWER_S = 30.0  # to take all of an answer
_LINGER_S = 2.0  # for the rest of a body that is not wanted, or closing would take the answer away
_SHUTDOWN_S = 1.0
_PAUSE_S = 1.0  # of accepting, when the host has no descriptor left

_MOST_CONNECTIONS = 256
_MOST_CONNECTIONS_PER_USER = 32  # so that no user can shut out another
_ACCEPT_BATCH = 16

_CREDENTIALS = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

# aiohttp would tell of clients that break off or speak nonsense, in lines that no log reader takes apart.
_silent = logging.Logger("control")
_silent.disabled = True

OnAct = Callable[[Peer, str, str, Mapping[str, object], str], None]
"""Told of every act once it is over: peer, method, path, arguments, and the outcome, "done" or the code of an error.

Also of those that were refused; then the arguments are empty, as nobody looked at them.
"""


class _MethodNotAllowed(ControlError):
    status = 405
    code = "method_not_allowed"


class _TooSlow(ControlError):
    status = 408
    code = "request_timeout"


class _TooLarge(ControlError):
    status = 413
    code = "too_large"


class _NotJson(ControlError):
    status = 415
    code = "unsupported_media_type"


class _Connection(web.RequestHandler):
    """One client. `uid`, `gid` and `pid` are those of the process that connected."""

    __slots__ = ("gid", "has_asked", "on_lost", "pid", "uid")

    pid: int
    uid: int
    gid: int
    has_asked: bool
    on_lost: Callable[[], None]

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.on_lost()

    def abort(self) -> None:
        """End it at once, whatever is under way."""
        if self.transport is not None:
            self.transport.abort()

    def abort_if_silent(self) -> None:
        """End it unless a request has come."""
        if not self.has_asked:
            self.abort()


class ControlServer:
    """The server. Belongs to one event loop.

    `is_welcome(uid, pid, sock)` tells of a process, as soon as it has connected, whether it may ask anything.
    """

    def __init__(
        self,
        *,
        access: Access,
        routes: Iterable[Route],
        faults: Faults,
        on_act: OnAct,
        accounts: HostAccounts | None = None,
        is_welcome: Callable[[int, int, socket.socket], bool] = lambda _uid, _pid, _sock: True,
    ):
        self._access = access
        self._routes = {(route.path, str(route.method)): route for route in routes}
        self._faults = faults
        self._on_act = on_act
        self._accounts = accounts or HostAccounts(access.groups)
        self._is_welcome = is_welcome
        self._loop = asyncio.get_running_loop()
        self._server = web.Server(self._answer)
        self._listening: ControlSocket | None = None
        self._by_user: Counter[int] = Counter()
        self._welcoming: set[asyncio.Task[None]] = set()
        self._resume: asyncio.TimerHandle | None = None

    def configure(self, access: Access) -> None:
        """Let others in from now on."""
        self._access = access
        self._accounts.close()
        self._accounts = HostAccounts(access.groups)

    def start(self, listening: ControlSocket) -> None:
        """Serve on it; it is the server's from here on."""
        self._listening = listening
        if listening.warning is not None:
            log.event("warning", "control.restricted", message=listening.warning)
        log.event("info", "control.listen", address=listening.path)
        self._loop.add_reader(listening.sock, self._on_acceptable)

    async def stop(self) -> None:
        """End, after a moment for answers that are under way, and remove the socket."""
        if self._resume is not None:
            self._resume.cancel()
        if self._listening is not None:
            self._loop.remove_reader(self._listening.sock)
            self._listening.close()
            self._listening = None
        if self._welcoming:
            await asyncio.wait(self._welcoming)
        await self._server.shutdown(_SHUTDOWN_S)
        self._accounts.close()

    # Connections.

    def _on_acceptable(self) -> None:
        assert self._listening is not None
        for _ in range(_ACCEPT_BATCH):
            try:
                sock, _address = self._listening.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTOR:
                    raise
                # The socket stays readable: without a pause the loop would do nothing but fail.
                self._loop.remove_reader(self._listening.sock)
                self._resume = self._loop.call_later(_PAUSE_S, self._accept_again)
                return
            task = self._loop.create_task(self._welcome(sock), name="welcome to the control socket")
            self._welcoming.add(task)
            task.add_done_callback(self._welcoming.discard)

    def _accept_again(self) -> None:
        self._resume = None
        if self._listening is not None:
            self._loop.add_reader(self._listening.sock, self._on_acceptable)

    async def _welcome(self, sock: socket.socket) -> None:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(credentials)
        if not self._is_welcome(uid, pid, sock):
            sock.close()
            return
        if self._by_user[uid] >= _MOST_CONNECTIONS_PER_USER or self._by_user.total() >= _MOST_CONNECTIONS:
            sock.close()
            return
        self._by_user[uid] += 1
        connection = _Connection(
            self._server,
            loop=self._loop,
            logger=_silent,
            access_log=_silent,
            tcp_keepalive=False,
            auto_decompress=False,
            lingering_time=_LINGER_S,
        )
        connection.pid, connection.uid, connection.gid = pid, uid, gid
        connection.has_asked = False
        connection.on_lost = lambda: self._lost(uid)
        try:
            await self._loop.connect_accepted_socket(lambda: connection, sock)
        except OSError:  # it went away already
            sock.close()
            self._lost(uid)
            return
        self._loop.call_later(_HEAD_S, connection.abort_if_silent)

    def _lost(self, uid: int) -> None:
        self._by_user[uid] -= 1
        if not self._by_user[uid]:
            del self._by_user[uid]

    # Requests.

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, _Connection)
        connection.has_asked = True
        try:
            response = await self._respond(request, connection)
        except Exception as error:  # noqa: BLE001  # a fault of ours: the log has it, and the client is told as much
            self._faults.report(f"control: {request.method} {request.path} failed", error)
            response = _error_response(500, {"code": "internal", "message": "internal error; the gateway's log has it"})
        response.force_close()
        self._loop.call_later(_ANSWER_S, connection.abort)
        if isinstance(response, _PiecesResponse):
            await response.write_all(request, self._faults)
        return response

    async def _respond(self, request: web.BaseRequest, connection: _Connection) -> web.StreamResponse:
        route = self._routes.get((request.path, request.method))
        peer = Peer(connection.uid, connection.gid, connection.pid, None)
        given: Mapping[str, object] = {}
        outcome = "internal"
        try:
            peer, level = await self._identify(peer)
            self._check(request, peer, level, route)
            assert route is not None
            given = await _arguments(request)
            answer = await route.handler(peer, given)
            outcome = "done"
        except PortguardError as error:
            status, document = _told(error)
            outcome = str(document["code"])
            return _error_response(status, document)
        finally:
            if route is not None and route.method != "GET":
                self._on_act(peer, route.method, route.path, given, outcome)
        if isinstance(answer, Pieces):
            return _PiecesResponse(answer)
        return web.Response(text=json.dumps(answer) + "\n", content_type="application/json")

    async def _identify(self, peer: Peer) -> tuple[Peer, Level | None]:
        """Return the peer with its name, and its level; None: it has none. *Fails closed.*"""
        try:
            account = await self._accounts.account(peer.uid)
        except DirectoryUnavailable as error:
            if peer.uid != self._access.own_uid:
                raise Unavailable(f"{peer}: expected the host to say who this is, got {error}") from error
            account = None  # nothing about this one hangs on its name
        named = Peer(peer.uid, peer.gid, peer.pid, account.name if account is not None else None)
        return named, self._access.level(peer.uid, account)

    def _check(self, request: web.BaseRequest, peer: Peer, level: Level | None, route: Route | None) -> None:
        """Raise ControlError unless this peer may ask this. *Fails closed.*"""
        if "Origin" in request.headers:
            # Nobody's browser has a reason to be here; a page that finds a way must not act for who looks at it.
            raise Forbidden("expected a request of a program, got one with an Origin, of a web page")
        needed = route.level if route is not None else Level.VIEWER
        if level is None or level < needed:
            keys = [f"control.{each}s" for each in Level if each >= needed]
            found = f"{level}" if level is not None else "none"
            raise Forbidden(
                f"{request.method} {request.path}: expected the level {needed} ({' or '.join(keys)} give it), "
                f"got {found} for {peer}"
            )
        if route is None:
            methods = sorted(method for path, method in self._routes if path == request.path)
            if methods:
                raise _MethodNotAllowed(f"{request.path}: expected {' or '.join(methods)}, got {request.method}")
            raise NotFound(f"{request.path}: expected a path of this version's, got an unknown one")


async def _arguments(request: web.BaseRequest) -> Mapping[str, object]:
    """The query of a GET or DELETE, the JSON object of a POST. Raises ControlError."""
    if request.method != "POST":
        for name in request.query:
            if len(request.query.getall(name)) > 1:
                raise BadArgument(f"{name}: expected it once, got it several times")
        return dict(request.query)
    if request.query:
        raise BadArgument("query: expected none, as the arguments are in the body")
    body = await _body(request)
    if not body:
        return {}
    if request.content_type != "application/json":
        raise _NotJson(f"Content-Type: expected application/json, got {request.content_type}")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise BadArgument("body: expected a JSON object, got no JSON") from None
    if not isinstance(document, dict):
        raise BadArgument("body: expected a JSON object, got something else")
    return document


async def _body(request: web.BaseRequest) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > LONGEST_BODY_BYTES:
                    raise _TooLarge(f"body: expected at most {LONGEST_BODY_BYTES} bytes, got more")
    except TimeoutError:
        raise _TooSlow(f"body: expected all of it within {_BODY_S:.0f} s") from None
    except (web.RequestPayloadError, ConnectionError) as error:
        raise BadArgument("body: expected all of it, got an end or nonsense before") from error
    return bytes(body)


def _told(error: PortguardError) -> tuple[int, dict[str, object]]:
    """The status of an error, and what is said of it."""
    match error:
        case ControlError():
            return error.status, {"code": error.code, "message": str(error)}
        case ConfigurationError():
            problems = [
                {"file": problem.file, "key": problem.key, "expected": problem.expected, "found": problem.found}
                for problem in error.problems
            ]
            return Conflict.status, {"code": "configuration", "message": str(error), "problems": problems}
        case UsageError():
            return BadArgument.status, {"code": BadArgument.code, "message": str(error)}
        case _:
            return ControlError.status, {"code": ControlError.code, "message": str(error)}


def _error_response(status: int, document: Mapping[str, object]) -> web.Response:
    return web.Response(status=status, text=json.dumps({"error": document}) + "\n", content_type="application/json")


class _PiecesResponse(web.StreamResponse):
    """A document that is sent as it is made."""

    def __init__(self, pieces: Pieces):
        super().__init__(headers={"Content-Type": "application/json"})
        self._pieces = pieces

    async def write_all(self, request: web.BaseRequest, faults: Faults) -> None:
        await self.prepare(request)
        try:
            async for piece in self._pieces.pieces:
                await self.write(piece.encode())
        except ConnectionError:
            raise
        except Exception as error:
            # Broken off, it is no whole document, so nobody takes it for one.
            faults.report(f"control: {request.method} {request.path} broke off", error)
            raise ConnectionAbortedError from error
