"""The gateway as a client sees it: dialled, verified, asked over HTTP for a tunnel or about a service."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohappyeyeballs
import h11
from cryptography import x509

from portguard import __version__
from portguard.client.credentials import Credentials
from portguard.client.handshake import handshake
from portguard.client.refusal import Answer, foreseen_refusal, refused, refused_by_alert, untrusted_gateway
from portguard.client.tls_end import BufferedTlsEnd
from portguard.errors import PortguardError, Unreachable
from portguard.gateway.handshake import receive, send
from portguard.pki.proof import HEADER
from portguard.tls.endpoint import Endpoint

_CONNECT_S = 10.0
_HANDSHAKE_S = 10.0
_ANSWER_S = 120.0  # the gateway may be trying several addresses of a service, each for its own connect timeout
_NEXT_ADDRESS_S = 0.25  # RFC 8305 5

_LONGEST_HEAD_BYTES = 16 * 1024
_LONGEST_BODY_BYTES = 64 * 1024
_LONGEST_LIST_BYTES = 16 * 1024 * 1024  # thousands of services, each with its description and limits

_KEEPALIVE_S = 30  # below the shortest time after which home routers forget a silent connection


@dataclass(frozen=True, slots=True)
class Description:
    """What a gateway tells about a service that its caller may reach now.

    `local_port` is what clients open for it by default, 1 to 65535, or None.
    """

    service: str
    local_port: int | None


@dataclass(frozen=True, slots=True)
class Tunnel:
    """An open session. `early` came with the gateway's answer and is the service's first bytes."""

    service: str
    end: BufferedTlsEnd
    early: bytes
    session: str | None


@dataclass(frozen=True, slots=True)
class Presence:
    """What answers at one address of a gateway: the certificate that it showed, and its word of who the caller is."""

    certificate: x509.Certificate
    whoami: dict[str, Any]


class Gateway:
    """One gateway, and the credentials to show it. Each call makes a connection of its own.

    All calls raise RefusedByGateway when the gateway says no, and Unreachable when it does not answer, or when it
    cannot prove that it is the gateway.
    """

    def __init__(self, credentials: Credentials):
        """Raises ConfigurationError when the credentials do not fit together."""
        self.address = credentials.profile.gateway
        self._name = credentials.profile.server_name
        self._host = f"[{self._name}]" if ":" in self._name else self._name
        self._credentials = credentials
        self._context = credentials.context()

    async def describe(self, service: str) -> Description:
        """Ask about `service`: the gateway decides as for connect(), but dials and counts nothing.

        Raises RefusedByGateway also when only its limits, or its state, would refuse a session now.
        """
        exchange = await self._exchange("GET", f"/v1/services/{service}", self._host)
        exchange.sock.close()
        answer = exchange.answer
        if answer.status != 200:
            raise refused(service, self.address, answer)
        document = answer.document()
        if (foreseen := foreseen_refusal(service, document)) is not None:
            raise foreseen
        port = document.get("local_port")
        if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
            port = None
        return Description(service, port)

    async def whoami(self) -> dict[str, Any]:
        """Ask who the caller is: the document of `GET /v1/whoami`, not checked."""
        return (await self._ask("whoami")).document

    async def presence(self, address: str) -> Presence:
        """Ask the same at one IP address of the gateway, and look at the certificate that it shows there."""
        asked = await self._ask("whoami", address)
        der = asked.exchange.endpoint.tls.getpeercert(binary_form=True)
        assert der is not None  # no handshake is complete without
        return Presence(x509.load_der_x509_certificate(der), asked.document)

    async def services(self) -> dict[str, Any]:
        """Ask what the caller may reach: the document of `GET /v1/services`, not checked."""
        return (await self._ask("services")).document

    async def renew(self, request: bytes, proof: str | None) -> bytes:
        """Ask for another certificate for the caller's own identity: the answer, PEM, not checked.

        `request` is a request for it (PKCS #10, DER), `proof` the header that a new key takes (`portguard.pki.proof`).
        """
        return await self._certificate("renew", request, proof)

    async def enroll(self, request: bytes, proof: str) -> bytes:
        """Ask for the certificate that the caller was invited to. As `renew`; the proof is by the invitation's key."""
        return await self._certificate("enroll", request, proof)

    async def _certificate(self, subject: str, request: bytes, proof: str | None) -> bytes:
        headers = [("Content-Type", "application/pkcs10")]
        if proof is not None:
            headers.append((HEADER, proof))
        exchange = await self._exchange("POST", f"/v1/{subject}", self._host, headers=headers, body=request)
        exchange.sock.close()
        if exchange.answer.status != 200:
            raise refused(subject, self.address, exchange.answer)
        return exchange.answer.body

    async def _ask(self, subject: str, address: str | None = None) -> "_Asked":
        exchange = await self._exchange("GET", f"/v1/{subject}", self._host, _LONGEST_LIST_BYTES, address=address)
        exchange.sock.close()
        answer = exchange.answer
        if answer.status != 200:
            raise refused(subject, self.address, answer)
        document = answer.document()
        if not document:
            raise self._silent(f"an answer of portguard to GET /v1/{subject}", "another one")
        return _Asked(exchange, document)

    async def connect(self, service: str) -> Tunnel:
        """Open a session with `service`. Its bytes have not begun to flow when this returns."""
        exchange = await self._exchange("CONNECT", service, service)
        if not exchange.switched:
            exchange.sock.close()
            raise refused(service, self.address, exchange.answer)
        session = exchange.answer.headers.get("portguard-session")
        return Tunnel(service, BufferedTlsEnd(exchange.sock, exchange.endpoint), exchange.trailing, session)

    async def connect_by_name(self, service: str, alpn: tuple[str, ...] = ()) -> Tunnel:
        """Open a session as clients do that know nothing of portguard: by TLS server name (SNI).

        `alpn` is what the service speaks. A refusal has no words here: the session ends before its first byte.
        """
        sock = await self._dial()
        try:
            context = self._credentials.context(alpn)
            endpoint = await self._handshake(sock, context, f"{service}.{self._name}")
        except BaseException:
            sock.close()
            raise
        return Tunnel(service, BufferedTlsEnd(sock, endpoint), b"", None)

    async def _exchange(
        self,
        method: str,
        target: str,
        host: str,
        longest_body_bytes: int = _LONGEST_BODY_BYTES,
        *,
        address: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> "_Exchange":
        sock = await self._dial(address)
        try:
            endpoint = await self._handshake(sock, self._context, self._name)
            exchange = _Exchange(sock, endpoint, longest_body_bytes)
            try:
                async with asyncio.timeout(_ANSWER_S):
                    await exchange.run(method, target, host, headers, body)
            except TimeoutError as error:
                raise self._silent(f"an answer to {method} within {_ANSWER_S:.0f} s", "none") from error
            except ssl.SSLError as error:
                raise self._broken_tls(error) from error
            except h11.RemoteProtocolError as error:
                raise self._silent("HTTP/1.1 from it", str(error)) from error
            except OSError as error:
                # The alert that says why may have been lost: closing with unread input resets a connection.
                expected = f"an answer to {method} (it closes when it does not accept the certificate)"
                raise self._silent(expected, _words(error)) from error
        except BaseException:
            sock.close()
            raise
        return exchange

    async def _dial(self, address: str | None = None) -> socket.socket:
        """Connect to the gateway, at this one of its addresses; None: whichever answers first."""
        loop = asyncio.get_running_loop()
        host, port = address or self.address.host, self.address.port
        tried = ""
        try:
            async with asyncio.timeout(_CONNECT_S):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                tried = f" (tried {', '.join(dict.fromkeys(str(info[4][0]) for info in found))})"
                sock = await aiohappyeyeballs.start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS_S)
        except socket.gaierror as error:
            raise self._silent("a name that resolves", f"“{error.strerror}”") from error
        except TimeoutError as error:
            raise self._silent(f"a connection within {_CONNECT_S:.0f} s", f"none{tried}") from error
        except OSError as error:
            raise self._silent("a connection", f"{_words(error)}{tried}") from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _keep_alive(sock)
        return sock

    async def _handshake(self, sock: socket.socket, context: ssl.SSLContext, name: str) -> Endpoint:
        endpoint = Endpoint(context, server_side=False, server_hostname=name)
        try:
            async with asyncio.timeout(_HANDSHAKE_S):
                await handshake(sock, endpoint)
        except ssl.SSLCertVerificationError as error:
            raise untrusted_gateway(error, self._credentials, name) from error
        except ssl.SSLError as error:
            raise self._broken_tls(error) from error
        except TimeoutError as error:
            raise self._silent(f"a TLS handshake within {_HANDSHAKE_S:.0f} s", "none") from error
        except ConnectionError as error:
            # Before the handshake is complete a gateway has no way to say why.
            raise Unreachable(
                f"gateway {self.address}: it ended the connection during the TLS handshake; usual causes are too many "
                "connections at once from this address, and no valid certificate"
            ) from error
        except OSError as error:
            raise self._silent("a TLS handshake", _words(error)) from error
        return endpoint

    def _broken_tls(self, error: ssl.SSLError) -> PortguardError:
        refusal = refused_by_alert(error, self._credentials, datetime.now(UTC))
        return refusal or self._silent("TLS 1.3", (error.reason or str(error)).lower().replace("_", " "))

    def _silent(self, expected: str, found: str) -> Unreachable:
        return Unreachable(f"gateway {self.address}: expected {expected}, got {found}")


@dataclass(frozen=True, slots=True)
class _Asked:
    exchange: "_Exchange"
    document: dict[str, Any]


class _Exchange:
    """One request and its answer. After run(), `answer` is set, and `switched` says whether a tunnel is open."""

    def __init__(self, sock: socket.socket, endpoint: Endpoint, longest_body_bytes: int):
        self.sock = sock
        self._longest_body_bytes = longest_body_bytes
        self.endpoint = endpoint
        self.answer: Answer
        self.switched = False
        self.trailing = b""
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LONGEST_HEAD_BYTES)

    async def run(
        self, method: str, target: str, host: str, more: Sequence[tuple[str, str]] = (), body: bytes = b""
    ) -> None:
        """Send a request with `more` headers and a body. Raises h11.RemoteProtocolError, ssl.SSLError, OSError."""
        headers = [("Host", host), ("User-Agent", f"portguard/{__version__}"), *more]
        if body:
            headers.append(("Content-Length", str(len(body))))
        request = self._http.send(h11.Request(method=method, target=target, headers=headers)) or b""
        if body:
            request += self._http.send(h11.Data(data=body)) or b""
        request += self._http.send(h11.EndOfMessage()) or b""
        # When this fails, the alert or the answer that says why may still be there to read.
        with contextlib.suppress(OSError):
            await send(self.sock, b"".join(self.endpoint.encrypt(memoryview(request))))
        response = await self._response()
        headers_by_name = {name.decode("ascii"): value.decode("latin-1") for name, value in response.headers}
        if self._http.our_state is h11.SWITCHED_PROTOCOL:
            self.switched = True
            self.trailing, _ = self._http.trailing_data
            self.answer = Answer(response.status_code, headers_by_name, b"")
        else:
            self.answer = Answer(response.status_code, headers_by_name, await self._body())

    async def _response(self) -> h11.Response:
        data = self._decrypt(b"")  # what came with the end of the handshake
        while True:
            if data:
                self._http.receive_data(data)
            while (event := self._http.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    return event
            if self.endpoint.peer_closed:
                raise ConnectionAbortedError("a close instead")
            data = await self._receive()

    async def _body(self) -> bytes:
        body = bytearray()
        while len(body) < self._longest_body_bytes:
            match self._http.next_event():
                case h11.Data(data=data):
                    body += data
                case h11.NEED_DATA:
                    data = b""
                    while not data and not self.endpoint.peer_closed:
                        data = await self._receive()  # nothing while a record is not whole, which is no end yet
                    self._http.receive_data(data)
                case _:
                    break
        return bytes(body)

    async def _receive(self) -> bytes:
        ciphertext = await receive(self.sock)
        if not ciphertext:
            raise ConnectionAbortedError("the end of the connection")
        return self._decrypt(ciphertext)

    def _decrypt(self, ciphertext: bytes) -> bytes:
        plaintext = memoryview(bytearray(len(ciphertext) + Endpoint.HEADROOM))
        count = self.endpoint.decrypt(memoryview(ciphertext), plaintext)
        return bytes(plaintext[:count])


def _words(error: OSError) -> str:
    return f"“{os.strerror(error.errno)}”" if error.errno else str(error)


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), _KEEPALIVE_S)
