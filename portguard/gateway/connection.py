"""One connection, from accept to relay: handshake, identify, route, decide, admit, dial, greet.

Each step answers what the next one needs or raises Refused. The upstream comes last: it is never dialled for a client
that is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import ssl
import time
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, TypeVar

from portguard.errors import Refused
from portguard.gateway import proxy_protocol
from portguard.gateway.balancer import read_proxy_header
from portguard.gateway.certificate_request import Asker, certificate_response, is_enrolment, wanted_enrolment
from portguard.gateway.dial import DialFailed, Greet
from portguard.gateway.ends import End, PlainEnd, TlsEnd
from portguard.gateway.greeting import greet
from portguard.gateway.handshake import handshake, readable, refusal
from portguard.gateway.http_request import ApiRequest, BadRequest, ConnectTarget, NeedMore, RequestReader
from portguard.gateway.http_response import RefusedRequest, established
from portguard.gateway.http_response import refusal as http_refusal
from portguard.gateway.lingering import Lingering
from portguard.gateway.live import Live, finite, now
from portguard.gateway.messages import CLAIM_FIELDS, Accepted, Admit, Ticket, TurnedAway
from portguard.gateway.relay import Relay
from portguard.gateway.self_service import Visitor, answer
from portguard.gateway.setup import is_own_name
from portguard.gateway.slots import CONNECTED, UPSTREAM
from portguard.gateway.tcp_options import ensure_tcp_options
from portguard.identity.claim import Claim, read_claim
from portguard.observe import log
from portguard.policy.decide import Grant, Request, decide
from portguard.reasons import Reason
from portguard.tls.peer import begun_chain, sent_chain, server_name, verified_chain
from portguard.tls.tls_socket import TlsSocket, wrap

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from portguard.gateway.worker import Worker
    from portguard.identity.names import Group
    from portguard.identity.trust import Caller
    from portguard.policy.model import Service

_T = TypeVar("_T")

_READ = 64 * 1024
_LONGEST_MESSAGE = 200
_LONGEST_NAME = 100
_MOST_GROUPS_BYTES = 3000


class Connection:
    """A client's connection until it is a session. run() ends when it has become one, or has ended."""

    __slots__ = (
        "_accepted",
        "_caller",
        "_destination",
        "_end",
        "_handshake_s",
        "_http",
        "_recorded",
        "_service",
        "_session",
        "_setup",
        "_sock",
        "_source",
        "_ticket",
        "_tls",
        "_upstream",
        "_worker",
    )

    def __init__(self, worker: Worker, accepted: Accepted, sock: socket.socket):
        self._worker = worker
        # One configuration from here on: a reload in the middle must not mix two.
        self._setup = worker.setup
        self._accepted = accepted
        self._sock = sock
        self._session = secrets.token_hex(16)
        # Where the client is, and what it called; None when a balancer does not say.
        self._source: proxy_protocol.Endpoint | None = _endpoint(accepted.source_address, accepted.source_port)
        self._destination: proxy_protocol.Endpoint | None = None
        # What is known so far.
        self._tls: TlsSocket | None = None  # the socket again, once its handshake is complete
        self._handshake_s: float | None = None  # how long it took
        self._end: TlsEnd | None = None
        self._http = False
        self._recorded = False  # a refusal, by the supervisor
        self._caller: Caller | None = None
        self._service: Service | None = None
        self._ticket: Ticket | None = None
        self._upstream: str | None = None

    async def run(self) -> None:
        """Serve the connection. Whatever happens, its socket and its place at the supervisor are given back."""
        handed_over = False
        try:
            handed_over = await self._serve()
        except Refused as refused:
            handed_over = self._refuse(refused)
        except OSError as error:
            # The client closed or reset its connection. There is nobody left to answer.
            self._log("debug", "connection.gone", message=str(error))
        finally:
            if not handed_over:
                self._sock.close()
                self._give_back(Reason.CLIENT_RESET)

    async def _serve(self) -> bool:
        """Return whether the socket has become a session's; raise Refused, or OSError when the client went away."""
        timeouts = self._setup.snapshot.configuration.timeouts
        began_s = time.monotonic()
        self._tls = tls = await _within(timeouts.handshake_s, Reason.HANDSHAKE_TIMEOUT, self._handshake())
        self._handshake_s = round(time.monotonic() - began_s, 6)
        self._end = TlsEnd(tls)
        early, port = b"", None
        service = self._setup.listeners[self._accepted.listener]
        name = server_name(tls)
        self._http = service is None and (
            name is None or is_own_name(name, self._setup.snapshot.configuration.gateway.name)
        )
        asked: ConnectTarget | ApiRequest | None = None
        try:
            self._caller = self._setup.snapshot.trusts.identify(verified_chain(tls), sent_chain(tls), now())
            self._worker.refuse_locked(self._caller)
        except Refused as refused:
            asked = await self._hear_out(service, name)
            if refused.reason is not Reason.NO_IDENTITY or not is_enrolment(asked):
                raise
        if self._caller is None:
            assert isinstance(asked, ApiRequest)
            return await self._enroll(asked)
        if self._http:
            request = await _within(timeouts.request_s, Reason.REQUEST_TIMEOUT, self._request())
            if isinstance(request, ApiRequest):
                return await self._answer(request)
            name, early, port = request.host, request.trailing, request.port
            service = self._named(name)
        elif service is None:
            service = self._setup.snapshot.policy.resolve_name(name or "")
        grant = self._decide(service, name)
        assert service is not None
        _check_port(service, port)
        self._ticket = await self._worker.admit(
            Admit(
                self._accepted.connection,
                self._session,
                self._caller.identity.trust,
                self._caller.identity.name,
                service.name,
                grant.role,
                _listed(self._caller.groups),
                f"{self._caller.serial:x}",
                self._caller.fingerprint,
                str(self._source.address) if self._source is not None else None,
                self._handshake_s,
                self._setup.snapshot.revision,
            )
        )
        admitted_ns = time.monotonic_ns()
        greet = self._greet_upstream(service)
        dialed = await self._worker.dialer.dial(service, timeout_s=timeouts.connect_s, greet=greet)
        self._upstream = str(dialed.upstream)
        try:
            if self._http:
                self._end.write(memoryview(established(self._session)))
        except BaseException:
            dialed.end.sock.close()
            raise
        slots = self._worker.slots
        slots.cells[slots.base(self._ticket.slot) + UPSTREAM] = 1 + service.upstreams.index(dialed.upstream)
        slots.cells[slots.base(self._ticket.slot) + CONNECTED] = max(1, time.monotonic_ns() - admitted_ns)
        self._relay(service, grant, dialed.end, self._upstream, early)
        return True

    # The steps.

    async def _handshake(self) -> TlsSocket:
        if self._from_balancer():
            header = await read_proxy_header(self._sock)
            if not header.local:
                self._source, self._destination = header.source, header.destination
        service = self._setup.listeners[self._accepted.listener]
        contexts = self._setup.contexts
        context = contexts.by_name if service is None else contexts.of_port(service.alpn)
        self._sock = tls = wrap(self._sock, context, server_side=True)
        try:
            await handshake(tls)
        except ssl.SSLError as error:
            raise refusal(error) from None
        if tls.session_reused:
            # Never offered; a resumed session would have no verified chain and skip revocation.
            raise Refused(Reason.HANDSHAKE_FAILED, "expected a full handshake, got a resumed session")
        return tls

    def _from_balancer(self) -> bool:
        networks = self._setup.snapshot.configuration.gateway.accept_proxy_protocol_from
        source = self._source
        return source is not None and any(source.address in network for network in networks)

    async def _request(self) -> ConnectTarget | ApiRequest:
        assert self._end is not None
        reader = RequestReader()
        while True:
            match reader.feed(await self._read_some()):
                case NeedMore(send=answer):
                    if answer:
                        self._end.write(memoryview(answer))
                case BadRequest(status=status, message=message):
                    raise RefusedRequest(status, message)
                case outcome:
                    return outcome

    async def _read_some(self) -> memoryview:
        assert self._end is not None
        while not (data := self._end.read(_READ)):
            if self._end.eof:
                raise ConnectionAbortedError("expected a request, got the end of the connection")
            await readable(self._sock)
        return data

    async def _hear_out(self, service: Service | None, name: str | None) -> ConnectTarget | ApiRequest | None:
        """Learn what a client wants that is refused, for the record. `service` is that of its port, `name` its SNI.

        Who asks by HTTP is told why once the question is there; return it, None where there is none to be understood.
        """
        request = None
        if self._http:
            with contextlib.suppress(Refused, OSError):
                request_s = self._setup.snapshot.configuration.timeouts.request_s
                request = await _within(request_s, Reason.REQUEST_TIMEOUT, self._request())
                service = self._named(request.host) if isinstance(request, ConnectTarget) else None
        elif service is None:
            service = self._setup.snapshot.policy.resolve_name(name or "")
        if self._caller is not None:  # strangers' wishes are nobody's statistics
            self._service = service
        return request

    def _named(self, host: str) -> Service | None:
        policy = self._setup.snapshot.policy
        return policy.resolve_service(host) or policy.resolve_name(host)

    def _decide(self, service: Service | None, name: str | None) -> Grant:
        """Return the grant; `name` is what the client asked for. Raises Refused with the policy's reason.

        *Fails closed*.
        """
        assert self._caller is not None
        if service is None:
            raise Refused(Reason.UNKNOWN_SERVICE, f"there is no service called {_shown(name)}" if name else "")
        self._service = service
        source = self._source.address if self._source is not None else None
        caller = self._caller
        decision = decide(
            self._setup.snapshot.policy, Request(caller.identity, caller.groups, service.name, source, now())
        )
        if isinstance(decision, Grant):
            return decision
        raise Refused(decision.reason)

    async def _answer(self, request: ApiRequest) -> bool:
        """Answer a question about the gateway, and end."""
        assert self._caller is not None
        source = self._source.address if self._source is not None else None
        assert self._tls is not None
        visitor = Visitor(
            self._accepted.connection,
            self._caller,
            source,
            self._setup.snapshot,
            self._session,
            verified_chain(self._tls),
        )
        self._last_words(await answer(request, visitor, self._worker, self._granted), clean=True)
        return True

    async def _enroll(self, request: ApiRequest) -> bool:
        """Have a certificate issued to a client whose own names nobody, and end. *Fails closed*: raises Refused.

        All that is known here is which trust vouches for it. To whom it was given the supervisor finds out.
        """
        assert self._tls is not None
        chain, snapshot = verified_chain(self._tls), self._setup.snapshot
        trust = snapshot.trusts.trust_of_nameless(chain, sent_chain(self._tls), now())
        source = self._source.address if self._source is not None else None
        asker = Asker(self._accepted.connection, self._session, source, trust, chain, snapshot)
        wanted = wanted_enrolment(request, asker)
        self._recorded = True
        self._last_words(certificate_response(await self._worker.certificate(wanted)), clean=True)
        return True

    def _granted(self, name: str) -> tuple[Service, Grant]:
        """Return the service that is called so, and by what it may be reached now.

        Raises Refused unless the policy lets it be reached. *Fails closed*.
        """
        service = self._named(name)
        grant = self._decide(service, name)
        assert service is not None
        return service, grant

    def _greet_upstream(self, service: Service) -> Greet | None:
        """The step that says to an upstream of the service what it wants to hear first; None: it wants nothing."""
        if service.tls is None and service.proxy_protocol == "off":
            return None
        header = self._outbound_header(service) if service.proxy_protocol != "off" else b""
        context = self._setup.upstream_contexts[service.name] if service.tls is not None else None
        server_name = service.tls.server_name if service.tls is not None else None
        return lambda sock, upstream: greet(sock, upstream, header, context, server_name)

    def _outbound_header(self, service: Service) -> bytes:
        assert self._tls is not None
        destination = self._destination or _endpoint(*self._sock.getsockname()[:2])
        if service.proxy_protocol == "v1":
            return proxy_protocol.v1(self._source, destination)
        if service.proxy_protocol == "v2":
            return proxy_protocol.v2(self._source, destination)
        client = proxy_protocol.TlsClient(
            session=self._session,
            identity=self._identity() or "",
            certificate=verified_chain(self._tls)[0],
            server_name=server_name(self._tls),
            alpn=self._tls.selected_alpn_protocol(),
        )
        return proxy_protocol.v2_tls(self._source, destination, client)

    def _relay(self, service: Service, grant: Grant, upstream: End, upstream_name: str, early: bytes) -> None:
        assert self._end is not None
        assert self._ticket is not None
        worker, timeouts = self._worker, self._setup.snapshot.configuration.timeouts
        ensure_tcp_options(self._sock)
        assert self._tls is not None
        assert self._caller is not None
        live = Live(
            worker=worker,
            slot=self._ticket.slot,
            session=self._session,
            tls=self._tls,
            caller=self._caller,
            source=self._source.address if self._source is not None else None,
            service=service,
            grant=grant,
            upstream=upstream_name,
            opened_ns=time.monotonic_ns(),
        )
        live.relay = Relay(
            worker.loop,
            self._end,
            upstream,
            cells=worker.slots.cells,
            base=worker.slots.base(self._ticket.slot),
            on_end=live.on_end,
            lingering=worker.lingering,
            idle_s=finite(service.idle_s, timeouts.idle_s),
            half_close_s=timeouts.half_close_s,
            session_s=finite(grant.session_s, timeouts.session_s),
            gates=worker.allowances.gates(self._ticket.slot),
        )
        worker.live[live.slot] = live
        self._log("info", "session.open", role=grant.role, upstream=upstream_name)
        worker.began(live, self._setup)
        if not live.relay.ended:
            live.relay.start(early)

    # The ways out.

    def _refuse(self, refused: Refused) -> bool:
        """Tell the client, as far as it can be told, and the log. Return True: the socket is taken care of."""
        event = "session.refuse" if self._caller is not None else "handshake.fail"
        # Which addresses were tried, and what names they bear, is for the operator's eyes, not for the client's.
        detail = refused.detail if isinstance(refused, DialFailed) else refused.message
        claim = self._claim()
        claimed = dict(zip(CLAIM_FIELDS, claim, strict=True)) if claim is not None else {}
        self._log("warning", event, reason=refused.reason, message=detail, **claimed)
        if self._ticket is None and not self._recorded:
            # Else there is a session, and its end has the reason; or the supervisor itself has refused and recorded it.
            self._worker.turned_away(self._turned_away(refused.reason, detail, claim))
        if not self._http:
            # By SNI there is no word for it. Without close_notify the client can tell it from an empty answer.
            self._last_words(b"", clean=False, reason=refused.reason)
            return True
        bad = refused if isinstance(refused, RefusedRequest) else None
        words = http_refusal(
            refused.reason,
            refused.message,
            self._session,
            status=bad.status if bad is not None else None,
            retry_after_s=refused.retry_after_s,
            allow=bad.allow if bad is not None else None,
            content=bad is None or bad.content,
        )
        self._last_words(words, clean=True, reason=refused.reason)
        return True

    def _last_words(self, answer: bytes, *, clean: bool, reason: Reason = Reason.CLIENT_CLOSED) -> None:
        """Send `answer` and close, without losing it to a reset.

        The connection keeps its place at the supervisor until it is closed: refusals must not be a way past the
        bound on those that are pending.
        """
        end: End = self._end if self._end is not None else PlainEnd(self._sock)
        if answer:
            with contextlib.suppress(OSError):  # nobody is there to read it, which lingering finds out too
                end.write(memoryview(answer))
        lingering = self._worker.lingering

        def closed(one: Lingering) -> None:
            lingering.discard(one)
            self._give_back(reason)

        one = Lingering(self._worker.loop, end, closed, clean=clean)
        if not one.closed:
            lingering.add(one)

    def _give_back(self, reason: Reason) -> None:
        if self._ticket is not None:
            self._worker.ended(self._ticket.slot, reason, self._upstream)
        else:
            self._worker.gone(self._accepted.connection, self._handshake_s)

    def _turned_away(self, reason: Reason, message: str, claim: Claim | None) -> TurnedAway:
        caller, service, source = self._caller, self._service, self._source
        return TurnedAway(
            session=self._session,
            trust=caller.identity.trust if caller is not None else None,
            name=caller.identity.name if caller is not None else None,
            groups=_listed(caller.groups) if caller is not None else None,
            serial=f"{caller.serial:x}" if caller is not None else None,
            fingerprint=caller.fingerprint if caller is not None else None,
            source=str(source.address) if source is not None else None,
            service=service.name if service is not None else None,
            reason=reason,
            message=message[:_LONGEST_MESSAGE],
            claim=claim,
        )

    def _claim(self) -> Claim | None:
        """What the certificate of a client without an identity says; None when it has one, or showed none."""
        if self._caller is not None or not isinstance(self._sock, TlsSocket):
            return None
        chain = begun_chain(self._sock)
        return read_claim(chain[0]) if chain else None

    def _identity(self) -> str | None:
        """The identity as people write it; None while it is not known."""
        if self._caller is None:
            return None
        return self._setup.snapshot.written(self._caller.identity.trust, self._caller.identity.name)

    def _log(self, level: log.Level, event: str, **fields: log.Field) -> None:
        if not log.is_on(level):
            return
        what = {
            "session": self._session,
            "identity": self._identity(),
            "source": str(self._source.address) if self._source is not None else None,
            "service": self._service.name if self._service is not None else None,
            **fields,
        }
        if level == "info":
            log.event(level, event, **what)
        else:  # a stranger can cause it
            self._worker.floods.event(time.monotonic(), level, event, **what)


def _check_port(service: Service, port: int | None) -> None:
    if port is not None and service.local_port is not None and port != service.local_port:
        raise Refused(Reason.UNKNOWN_SERVICE, f"expected port {service.local_port}, got {port}")


async def _within(seconds: float, late: Reason, step: Coroutine[None, None, _T]) -> _T:
    """Return what the step answers. Raises Refused with `late` when it takes longer."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await step
    except TimeoutError:
        if limit.expired():
            raise Refused(late) from None
        raise  # the kernel's word for a peer that went away


# Clients come back, and taking an address apart costs more than remembering it.
_address = lru_cache(maxsize=4096)(ip_address)


def _shown(name: str) -> str:
    """A name that a client made up, fit for logs and terminals."""
    return "".join(char if char.isascii() and char.isprintable() else "?" for char in name[:_LONGEST_NAME])


def _listed(groups: frozenset[Group]) -> list[str]:
    """The groups of a certificate as they are recorded. Of a great many, the rest is only counted."""
    names = sorted(group.name for group in groups)
    room = _MOST_GROUPS_BYTES
    for index, name in enumerate(names):
        room -= len(json.dumps(name)) + 1
        if room < 0:
            return [*names[:index], f"… and {len(names) - index} more"]
    return names


def _endpoint(address: str, port: int) -> proxy_protocol.Endpoint:
    return proxy_protocol.Endpoint(_address(address), port)
