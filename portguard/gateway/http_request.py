"""What a client asks over HTTP: a tunnel (CONNECT), or something of the gateway itself (`GET /v1/…`).

One request a connection, HTTP/1.1 only (RFC 9112). h11 parses the head; what it forgives for the sake of old clients
(bare LF, folded headers, control characters) is refused before it sees it, because a balancer in front may read the
same bytes otherwise. Nothing here does I/O.
"""

import re
from dataclasses import dataclass
from typing import NoReturn

import h11

LONGEST_HEAD_BYTES = 16 * 1024
"""Of a request line with all headers and the empty line."""

LONGEST_BODY_BYTES = 64 * 1024
"""Of a POST."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_TARGET = 'a service name with or without a port, such as "orders-db:5432"'

_FLAW = re.compile(
    rb"(?P<control>[\x00-\x08\x0b\x0c\x0e-\x1f\x7f])"
    rb"|(?P<line>(?<!\r)\n|\r[^\n])"
    rb"|(?P<fold>\r\n[ \t])"
)
_EXPECTED_INSTEAD = {
    "control": "a request head without control characters",
    "line": "lines that end with CRLF",
    "fold": "every header on one line",
}
_REQUEST_LINE = re.compile(rb"[!-~]+ [!-~]+ (HTTP/[0-9]\.[0-9])")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


@dataclass(frozen=True, slots=True)
class NeedMore:
    """The request is not complete. `send` goes to the client now: it may be waiting for "100 Continue"."""

    send: bytes = b""


@dataclass(frozen=True, slots=True)
class ConnectTarget:
    """A tunnel is asked for.

    `host` is in lower case without a trailing dot; no address, but not yet known to name anything. `port` is 1 to
    65535, None when the client gave none. `trailing` came after the head and is the tunnel's first bytes.
    """

    host: str
    port: int | None
    trailing: bytes


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """Something of the gateway itself is asked for. `path` begins with "/" and is not decoded; names are lower case."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class BadRequest:
    """The request is refused (reason `bad_request`) with this HTTP status. `message` quotes the client: escape it."""

    status: int
    message: str


Outcome = NeedMore | ConnectTarget | ApiRequest | BadRequest


class RequestReader:
    """Reads one request from a connection, in whatever pieces it comes.

    feed() it until it answers something other than NeedMore. That answer is final, and does not depend on the pieces.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned_bytes = 0  # of the head: they hold no flaw and no end
        self._line_checked = False
        self._head: _Head | None = None
        self._continued = False
        self._answered = False

    def feed(self, data: bytes | bytearray | memoryview) -> Outcome:
        """Take what came and answer what the client asks. *Fails closed:* what is not understood is a BadRequest.

        After an answer other than NeedMore, feeding more raises RuntimeError: those bytes are the tunnel's.
        """
        if self._answered:
            raise RuntimeError("expected no more bytes after the request was read, got some")
        self._buffer += data
        try:
            outcome = self._read()
        except _RefusedRequest as refused:
            outcome = BadRequest(refused.status, refused.message)
        self._answered = not isinstance(outcome, NeedMore)
        return outcome

    def _read(self) -> Outcome:
        if self._head is None:
            head_bytes = self._find_head()
            if head_bytes is None:
                return NeedMore()
            self._head = _parse_head(bytes(self._buffer[:head_bytes]))
            del self._buffer[:head_bytes]
        head = self._head
        if head.method == "CONNECT":
            host, port = _parse_authority(head.target)
            return ConnectTarget(host, port, bytes(self._buffer))
        if len(self._buffer) < head.body_bytes:
            send = _CONTINUE if head.waits_for_continue and not self._continued else b""
            self._continued = True
            return NeedMore(send)
        path, _, query = head.target.partition("?")
        return ApiRequest(head.method, path, query, head.headers, bytes(self._buffer[: head.body_bytes]))

    def _find_head(self) -> int | None:
        """The length of the head with its empty line; None while it is incomplete.

        Of several flaws the first in the stream is reported, so that the answer does not depend on the pieces.
        """
        buffer, scanned = self._buffer, self._scanned_bytes
        end = buffer.find(b"\r\n\r\n", max(0, scanned - 3), LONGEST_HEAD_BYTES)
        seen = min(len(buffer), LONGEST_HEAD_BYTES) if end < 0 else end + 4
        flaw = _FLAW.search(buffer, max(0, scanned - 2), seen)
        line_end = -1 if self._line_checked else buffer.find(b"\r\n", 0, seen)
        if line_end >= 0 and (flaw is None or line_end + 2 < flaw.end()):
            _check_request_line(bytes(buffer[:line_end]))
            self._line_checked = True
        if flaw is not None:
            expected = _EXPECTED_INSTEAD[str(flaw.lastgroup)]
            _refuse(expected, f"{flaw.group()!r} at byte {flaw.start()}")
        if end < 0 and seen == LONGEST_HEAD_BYTES:
            _refuse(f"a request head of at most {LONGEST_HEAD_BYTES} bytes", "a longer one", status=431)
        self._scanned_bytes = seen
        return None if end < 0 else seen


class _RefusedRequest(Exception):
    def __init__(self, status: int, message: str):
        self.status = status
        self.message = message
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class _Head:
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body_bytes: int
    waits_for_continue: bool


def _check_request_line(line: bytes) -> None:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        _refuse('a request line such as "CONNECT orders-db HTTP/1.1"', _excerpt(line))
    if match[1] != b"HTTP/1.1":
        _refuse("HTTP/1.1", match[1].decode("ascii"))


def _parse_head(head: bytes) -> _Head:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD_BYTES)
    connection.receive_data(head)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        # One Host, header names without spaces, Content-Length that is a number.
        _refuse("a valid HTTP/1.1 request head", str(error)[:100])
    if not isinstance(event, h11.Request):
        _refuse("a whole request head", type(event).__name__)
    method, target = event.method.decode("ascii"), event.target.decode("ascii")
    headers = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers)
    names = {name for name, _ in headers}
    if "origin" in names:
        # A web page made the user's browser, which holds the certificate, ask this.
        _refuse("no Origin header: web pages may not use the gateway", "one", status=403)
    if "transfer-encoding" in names:
        _refuse("no Transfer-Encoding", "one")
    body_bytes = 0
    if "content-length" in names:
        if method == "CONNECT":
            _refuse("no Content-Length with CONNECT", "one")
        body_bytes = int(dict(headers)["content-length"])
    if body_bytes and method != "POST":
        _refuse(f"no body with {method}", f"one of {body_bytes} bytes")
    if body_bytes > LONGEST_BODY_BYTES:
        _refuse(f"a body of at most {LONGEST_BODY_BYTES} bytes", str(body_bytes), status=413)
    if method != "CONNECT" and not target.startswith("/"):
        _refuse('a path such as "/v1/services" (other services are reached with CONNECT only)', _excerpt(target))
    return _Head(method, target, headers, body_bytes, connection.they_are_waiting_for_100_continue)


def _parse_authority(target: str) -> tuple[str, int | None]:
    """Host and port of CONNECT's target (authority-form, RFC 9112 3.2.3; the port may be left out).

    *Fails closed:* an address is refused here, whatever the policy knows: clients choose services, not addresses.
    """
    host, colon, port = target.partition(":")
    if target.startswith("[") or ":" in port:
        # Of an absolute-form target with a port, too: "http://orders-db:80/".
        found = "an absolute URL" if "://" in target else "an IPv6 address"
        _refuse(_TARGET, f"{found}, {_excerpt(target)}")
    if "/" in target or target == "*":
        found = "an absolute URL" if "://" in target else "another form of target"
        _refuse(_TARGET, f"{found}, {_excerpt(target)}")
    host = host.lower().removesuffix(".")
    labels = host.split(".")
    if len(labels) > 1 and labels[-1].isdigit():  # no host name ends so, RFC 1123 2.1
        _refuse(_TARGET, f"an IP address, {_excerpt(target)}")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        _refuse(_TARGET, _excerpt(target))
    if not colon:
        return host, None
    if not _PORT.fullmatch(port) or int(port) > 65535:
        _refuse("a port from 1 to 65535", _excerpt(port))
    return host, int(port)


def _refuse(expected: str, found: str, *, status: int = 400) -> NoReturn:
    raise _RefusedRequest(status, f"expected {expected}, got {found}")


def _excerpt(text: str | bytes) -> str:
    """`text` quoted, and cut: a message is no place for 16 KiB of a client's."""
    return repr(text) if len(text) <= 100 else f"{text[:100]!r}…"
