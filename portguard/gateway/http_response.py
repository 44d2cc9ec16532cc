"""What the gateway answers over HTTP: a tunnel is open, a refusal with its reason, or JSON. Always the last answer."""

import json
import math
import re
from collections.abc import Mapping
from http import HTTPStatus

from portguard.errors import Refused
from portguard.reasons import Reason


class RefusedRequest(Refused):
    """A request that HTTP has a status of its own for.

    `allow` is the method that would have done, if it is that; `content` tells whether the answer may have a body.
    """

    def __init__(self, status: int, message: str, *, allow: str | None = None, content: bool = True):
        super().__init__(Reason.BAD_REQUEST, message)
        self.status = status
        self.allow = allow
        self.content = content


_RETRY_AFTER_S = 5
"""For a limit whose end is not known: whoever holds the places gives them back when they like."""

_NAME = re.compile(r"[A-Za-z0-9-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")

_STATUSES = {
    Reason.UNKNOWN_SERVICE: HTTPStatus.NOT_FOUND,
    **dict.fromkeys(
        (Reason.BAD_REQUEST, Reason.REQUEST_TIMEOUT, Reason.HANDSHAKE_TIMEOUT, Reason.HANDSHAKE_FAILED),
        HTTPStatus.BAD_REQUEST,
    ),
    **dict.fromkeys(
        (
            Reason.CERTIFICATE_MISSING,
            Reason.CERTIFICATE_UNTRUSTED,
            Reason.CERTIFICATE_EXPIRED,
            Reason.CERTIFICATE_NOT_YET_VALID,
            Reason.CERTIFICATE_USAGE,
            Reason.CERTIFICATE_REVOKED,
            Reason.CRL_EXPIRED,
            Reason.AMBIGUOUS_IDENTITY,
            Reason.NO_IDENTITY,
            Reason.INVITATION_USED,
            Reason.LOCKED,
            Reason.DENIED,
            Reason.NO_ROLE,
            Reason.SERVICE_NOT_GRANTED,
            Reason.SOURCE_NOT_ALLOWED,
            Reason.OUTSIDE_HOURS,
            Reason.GRANT_EXPIRED,
        ),
        HTTPStatus.FORBIDDEN,
    ),
    **dict.fromkeys(
        (
            Reason.MAX_SESSIONS,
            Reason.SERVICE_FULL,
            Reason.CONNECT_RATE,
            Reason.QUOTA_EXHAUSTED,
            Reason.ADDRESS_LIMIT,
        ),
        HTTPStatus.TOO_MANY_REQUESTS,
    ),
    **dict.fromkeys(
        (Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_UNRESOLVED, Reason.UPSTREAM_TLS), HTTPStatus.BAD_GATEWAY
    ),
    Reason.UPSTREAM_TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
    **dict.fromkeys(
        (Reason.GATEWAY_FULL, Reason.DRAINING, Reason.LEDGER_UNAVAILABLE, Reason.AUDIT_UNAVAILABLE),
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
}


def status_of(reason: Reason) -> int:
    """The HTTP status of a refusal. For a word that closes sessions and refuses none it is 503."""
    return _STATUSES.get(reason, HTTPStatus.SERVICE_UNAVAILABLE)


def established(session: str) -> bytes:
    """The answer to CONNECT after which the tunnel's bytes follow. `session` is the session id."""
    return _head(HTTPStatus.OK, "Connection established", {"Portguard-Session": session})


def refusal(
    reason: Reason,
    message: str,
    session: str | None,
    *,
    status: int | None = None,
    retry_after_s: float | None = None,
    allow: str | None = None,
    content: bool = True,
) -> bytes:
    """A refusal: JSON with `reason`, `message` and `session`, and the reason as a header too.

    curl and others show a client the headers of a refused CONNECT, never its body. `message` may hold anything;
    `session` is the session id, None where there is none; `status` None is status_of(reason). `retry_after_s` is when
    to come back, rounded up to whole seconds; None is unknown, and with 429 some seconds are then suggested. `allow`
    is the method that would do, where another one was used. Without `content` it is the head alone, for HEAD.
    """
    status = status_of(reason) if status is None else status
    if retry_after_s is None and status == HTTPStatus.TOO_MANY_REQUESTS:
        retry_after_s = _RETRY_AFTER_S
    headers = {"Portguard-Reason": str(reason)}
    if session is not None:
        headers["Portguard-Session"] = session
    if allow is not None:
        headers["Allow"] = allow
    if retry_after_s is not None and math.isfinite(retry_after_s):
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    answer = json_response(status, {"reason": str(reason), "message": message, "session": session}, headers=headers)
    return answer if content else answer[: answer.index(b"\r\n\r\n") + 4]


def json_response(status: int, document: object, *, headers: Mapping[str, str] | None = None) -> bytes:
    """An answer with a JSON document, after which the connection is closed.

    `headers` go in beside the usual ones. Raises ValueError for a header that is not printable ASCII.
    """
    return json_text_response(status, json_text(document), headers=headers)


def json_text(document: object) -> str:
    """The document as JSON. ASCII only: what a client sent comes back as escapes, whoever displays it."""
    return json.dumps(document, ensure_ascii=True, separators=(",", ":"))


def json_text_response(status: int, text: str, *, headers: Mapping[str, str] | None = None) -> bytes:
    """As `json_response`, with a document that `json_text` made, maybe in pieces."""
    return response(status, "application/json", text.encode("ascii") + b"\n", headers=headers)


def response(status: int, content_type: str, body: bytes, *, headers: Mapping[str, str] | None = None) -> bytes:
    """As `json_response`, with a body of another type."""
    usual = {
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "Connection": "close",
    }
    return _head(status, HTTPStatus(status).phrase, {**usual, **(headers or {})}) + body


def _head(status: int, phrase: str, headers: Mapping[str, str]) -> bytes:
    for name, value in headers.items():
        # A line break in a value would be a header, or a whole answer, of somebody else's making.
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"header {name!r}: expected printable ASCII, got {value!r}")
    lines = [f"HTTP/1.1 {int(status)} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii")
