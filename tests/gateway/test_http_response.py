import json
from http.client import HTTPResponse
from io import BytesIO
from math import inf
from socket import socket
from typing import cast

import pytest

from portguard.gateway.http_response import (
    established,
    json_response,
    json_text,
    json_text_response,
    refusal,
    status_of,
)
from portguard.reasons import Reason

SESSION = "0123456789abcdef" * 2


class _Received:
    def __init__(self, data: bytes):
        self.stream = BytesIO(data)

    def makefile(self, *_: object) -> BytesIO:
        return self.stream


def received(data: bytes, method: str = "GET") -> tuple[HTTPResponse, bytes]:
    """The response as Python's own client reads it, and what it left."""
    source = _Received(data)
    response = HTTPResponse(cast(socket, source), method=method)
    response.begin()
    return response, source.stream.read() if method == "CONNECT" else response.read()


def test_an_established_tunnel_has_no_body() -> None:
    response, rest = received(established(SESSION) + b"tunnel", "CONNECT")
    assert response.status == 200
    assert response.headers.items() == [("Portguard-Session", SESSION)]
    assert rest == b"tunnel"


def test_a_refusal_says_why_in_json_and_in_a_header() -> None:
    response, body = received(refusal(Reason.NO_ROLE, "no role has bob", SESSION))
    assert response.status == 403
    assert response.reason == "Forbidden"
    assert json.loads(body) == {"reason": "no_role", "message": "no role has bob", "session": SESSION}
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Content-Length"] == str(len(body))
    assert response.headers["Connection"] == "close"
    assert response.headers["Portguard-Reason"] == "no_role"
    assert response.headers["Portguard-Session"] == SESSION
    assert "Retry-After" not in response.headers


def test_a_refused_method_is_answered_with_the_right_one() -> None:
    response, body = received(refusal(Reason.BAD_REQUEST, "m", SESSION, status=405, allow="GET"))
    assert (response.status, response.headers["Allow"]) == (405, "GET")
    assert json.loads(body)["reason"] == "bad_request"


def test_a_refused_head_has_the_head_alone() -> None:
    whole = refusal(Reason.BAD_REQUEST, "m", SESSION, status=405)
    alone = refusal(Reason.BAD_REQUEST, "m", SESSION, status=405, content=False)
    assert alone == whole[: whole.index(b"{")]


def test_an_answer_may_be_written_in_pieces() -> None:
    pieces = f"[{json_text('é')},{json_text(1)}]"
    assert json_text_response(200, pieces) == json_response(200, ["é", 1])


def test_a_refusal_before_there_is_a_session_says_so() -> None:
    response, body = received(refusal(Reason.BAD_REQUEST, "m", None, status=431))
    assert response.status == 431
    assert json.loads(body)["session"] is None
    assert "Portguard-Session" not in response.headers


@pytest.mark.parametrize(
    ("reason", "retry_after_s", "header"),
    [
        (Reason.CONNECT_RATE, 0.2, "1"),
        (Reason.CONNECT_RATE, 1.5, "2"),
        (Reason.CONNECT_RATE, 0.0, "1"),
        (Reason.QUOTA_EXHAUSTED, 86400, "86400"),
        (Reason.QUOTA_EXHAUSTED, inf, None),
        (Reason.MAX_SESSIONS, None, "5"),
        (Reason.GATEWAY_FULL, 3, "3"),
        (Reason.GATEWAY_FULL, None, None),
        (Reason.DENIED, None, None),
    ],
)
def test_a_limit_says_when_to_come_back(reason: Reason, retry_after_s: float | None, header: str | None) -> None:
    response, _ = received(refusal(reason, "m", SESSION, retry_after_s=retry_after_s))
    assert response.headers["Retry-After"] == header


@pytest.mark.parametrize(
    ("status", "reasons"),
    [
        (400, "bad_request request_timeout handshake_timeout handshake_failed"),
        (
            403,
            "certificate_missing certificate_untrusted certificate_expired certificate_not_yet_valid certificate_usage "
            "certificate_revoked crl_expired ambiguous_identity no_identity locked denied no_role service_not_granted "
            "source_not_allowed outside_hours grant_expired",
        ),
        (404, "unknown_service"),
        (429, "max_sessions service_full connect_rate quota_exhausted address_limit"),
        (502, "upstream_unreachable upstream_unresolved upstream_tls"),
        (503, "gateway_full draining ledger_unavailable audit_unavailable"),
        (504, "upstream_timeout"),
    ],
)
def test_every_reason_to_refuse_has_its_status(status: int, reasons: str) -> None:
    assert {status_of(Reason(reason)) for reason in reasons.split()} == {status}


def test_every_reason_whatsoever_has_some_status() -> None:
    assert {status_of(reason) for reason in Reason} == {400, 403, 404, 429, 502, 503, 504}


@pytest.mark.parametrize("message", ["a\r\nSet-Cookie: b", '"}\n', "\x1b[31m\u202e", "\udcff", "\0"])
def test_a_message_cannot_leave_its_place(message: str) -> None:
    written = refusal(Reason.BAD_REQUEST, message, SESSION)
    head, _, body = written.partition(b"\r\n\r\n")
    assert head.count(b"\r\n") == refusal(Reason.BAD_REQUEST, "m", SESSION).partition(b"\r\n\r\n")[0].count(b"\r\n")
    assert body.endswith(b"\n")
    assert body[:-1].decode("ascii").isprintable()
    assert json.loads(body)["message"] == message


def test_an_answer_of_the_api_may_have_headers_of_its_own() -> None:
    response, body = received(json_response(405, [1], headers={"Allow": "GET"}))
    assert (response.status, response.headers["Allow"], body) == (405, "GET", b"[1]\n")
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "headers", [{"Allow": "GET\r\nX: y"}, {"Allow": "GET\n"}, {"A\r\nB": "x"}, {"A B": "x"}, {"A": "é"}, {"": "x"}]
)
def test_a_header_that_would_be_more_than_one_raises(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected printable ASCII"):
        json_response(200, {}, headers=headers)
    with pytest.raises(ValueError, match="expected printable ASCII"):
        established(SESSION + "\r\nX: y")
