import pytest

from portguard.gateway.http_request import (
    LONGEST_BODY_BYTES,
    LONGEST_HEAD_BYTES,
    ApiRequest,
    BadRequest,
    ConnectTarget,
    NeedMore,
    Outcome,
    RequestReader,
)

HOST = b"Host: bastion.test\r\n"


def read(data: bytes) -> Outcome:
    return RequestReader().feed(data)


def connect(target: bytes, headers: bytes = HOST, after: bytes = b"") -> Outcome:
    return read(b"CONNECT " + target + b" HTTP/1.1\r\n" + headers + b"\r\n" + after)


def refusal(outcome: Outcome, status: int = 400) -> str:
    assert isinstance(outcome, BadRequest), outcome
    assert outcome.status == status
    return outcome.message


@pytest.mark.parametrize(
    ("target", "host", "port"),
    [
        (b"orders-db", "orders-db", None),
        (b"orders-db:5432", "orders-db", 5432),
        (b"Orders-DB.Bastion.Example.COM.:65535", "orders-db.bastion.example.com", 65535),
        (b"orders-db.", "orders-db", None),
        (b"42:1", "42", 1),
        (b"a" * 63 + b".b", "a" * 63 + ".b", None),
    ],
)
def test_connect_names_a_service(target: bytes, host: str, port: int | None) -> None:
    assert connect(target) == ConnectTarget(host, port, b"")


def test_bytes_after_the_head_are_the_tunnels_whatever_they_are() -> None:
    after = b"\x16\x03\x01 \n\x00 \r\n\r\n"
    assert connect(b"orders-db", after=after) == ConnectTarget("orders-db", None, after)


def test_a_reader_that_answered_takes_no_more() -> None:
    reader = RequestReader()
    assert isinstance(reader.feed(b"CONNECT a HTTP/1.1\r\n" + HOST), NeedMore)
    assert isinstance(reader.feed(b"\r\n"), ConnectTarget)
    with pytest.raises(RuntimeError, match="expected no more bytes"):
        reader.feed(b"tunnel")


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (b"10.0.3.7:5432", "an IP address, '10.0.3.7:5432'"),
        (b"10.0.3.7", "an IP address"),
        (b"10.0.3.7.:5432", "an IP address"),
        (b"10.0.3.700:5432", "an IP address"),
        (b"10.3:5432", "an IP address"),
        (b"[::1]:5432", "an IPv6 address, '[::1]:5432'"),
        (b"[::1]", "an IPv6 address"),
        (b"::1:5432", "an IPv6 address"),
        (b"http://orders-db/", "an absolute URL, 'http://orders-db/'"),
        (b"http://orders-db:80/", "an absolute URL"),
        (b"/v1/whoami", "another form of target, '/v1/whoami'"),
        (b"*", "another form of target"),
        (b"user@orders-db:5432", "'user@orders-db:5432'"),
        (b"orders%2ddb", "'orders%2ddb'"),
        (b"orders..db", "'orders..db'"),
        (b"-orders", "'-orders'"),
        (b"a" * 64, repr("a" * 64)),
        (b".", "'.'"),
        (b":5432", "':5432'"),
        (b"..", "'..'"),
        (b"orders-db..", "'orders-db..'"),
        (b"a." * 127 + b"b", "'a.a."),
    ],
)
def test_connect_takes_names_only(target: bytes, found: str) -> None:
    message = refusal(connect(target))
    assert message.startswith('expected a service name with or without a port, such as "orders-db:5432", got ' + found)


@pytest.mark.parametrize("port", [b"", b"0", b"65536", b"05432", b"+1", b"http", b"1 ", b"5432/"])
def test_a_port_that_is_none_is_refused(port: bytes) -> None:
    refusal(connect(b"orders-db:" + port))


def test_the_message_about_a_port_names_it() -> None:
    assert refusal(connect(b"a:65536")) == "expected a port from 1 to 65535, got '65536'"


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.2"])
def test_only_http_1_1_is_spoken(version: bytes) -> None:
    message = refusal(read(b"CONNECT orders-db " + version + b"\r\n" + HOST + b"\r\n"))
    assert message == f"expected HTTP/1.1, got {version.decode()}"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2",
        b"CONNECT orders-db",
        b"CONNECT  orders-db HTTP/1.1",
        b" CONNECT orders-db HTTP/1.1",
        b"CONNECT orders-db HTTP/1.1 ",
        b"CONNECT orders-db http/1.1",
        b"CONNECT\torders-db HTTP/1.1",
        b"CONNECT orders db HTTP/1.1",
        b"CONNECT ord\xc3\xa9rs HTTP/1.1",
    ],
)
def test_another_request_line_is_refused_as_soon_as_it_ends(line: bytes) -> None:
    message = refusal(read(line + b"\r\n"))
    assert message.startswith('expected a request line such as "CONNECT orders-db HTTP/1.1", got ')
    assert read(line) == NeedMore()


def test_what_is_not_http_is_refused_at_once() -> None:
    assert refusal(read(b"\x16\x03")) == r"expected a request head without control characters, got b'\x16' at byte 0"


def test_old_names_of_methods_mean_nothing_in_lower_case() -> None:
    assert "CONNECT only" in refusal(read(b"connect orders-db:5432 HTTP/1.1\r\n" + HOST + b"\r\n"))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"CONNECT a HTTP/1.1\nHost: a\n\n", "lines that end with CRLF"),
        (b"CONNECT a HTTP/1.1\r\nHost: a\n\r\n", "lines that end with CRLF"),
        (b"CONNECT a HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", "lines that end with CRLF"),
        (b"CONNECT a HTTP/1.1\r\nHost: a\r\r\n\r\n", "lines that end with CRLF"),
        (b"CONNECT a HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", "every header on one line"),
        (b"CONNECT a HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n", "every header on one line"),
        (b"CONNECT a HTTP/1.1\r\n Host: a\r\n\r\n", "every header on one line"),
        (b"CONNECT a HTTP/1.1\r\nHost: a\x00b\r\n\r\n", "a request head without control characters"),
        (b"CONNECT a HTTP/1.1\r\nHost: a\x0bb\r\n\r\n", "a request head without control characters"),
        (b"CONNECT a HTTP/1.1\r\nHost: a\x7fb\r\n\r\n", "a request head without control characters"),
        (b"CONNECT a HTTP/1.1\r\nHost : a\r\n\r\n", "a valid HTTP/1.1 request head"),
        (b"CONNECT a HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", "a valid HTTP/1.1 request head"),
        (b"CONNECT a HTTP/1.1\r\nHost: a\r\nX-Y\r\n\r\n", "a valid HTTP/1.1 request head"),
        (b"CONNECT a HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", "a valid HTTP/1.1 request head"),
        (b"CONNECT a HTTP/1.1\r\nX: a\r\n\r\n", "a valid HTTP/1.1 request head"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "a valid HTTP/1.1 request"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", "a valid HTTP/1.1 request head"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n", "a valid HTTP/1.1 request head"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x, chunked\r\n\r\n", "a valid HTTP/1.1 request head"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "no Transfer-Encoding"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "no Transfer-Encoding",
        ),
        (b"CONNECT a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "no Transfer-Encoding"),
        (b"CONNECT a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "no Content-Length with CONNECT"),
        (b"CONNECT a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "no Content-Length with CONNECT"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "no body with GET"),
    ],
)
def test_what_two_readers_could_read_differently_is_refused(head: bytes, expected: str) -> None:
    assert refusal(read(head)).startswith(f"expected {expected}")


def test_the_longest_head_is_read_and_a_longer_one_is_not_waited_for() -> None:
    start, end = b"CONNECT a HTTP/1.1\r\nHost: a\r\nX: ", b"\r\n\r\n"
    longest = start + b"x" * (LONGEST_HEAD_BYTES - len(start) - len(end)) + end
    assert isinstance(read(longest + b"x" * 70_000), ConnectTarget)
    assert isinstance(read(longest[:-1]), NeedMore)
    too_long = longest.replace(b"X: ", b"X: x")
    assert refusal(read(too_long), 431) == "expected a request head of at most 16384 bytes, got a longer one"
    assert refusal(read(too_long[:LONGEST_HEAD_BYTES]), 431) == refusal(read(too_long), 431)


def test_a_message_quotes_a_client_only_so_far() -> None:
    assert len(refusal(connect(b"x" * 10_000))) < 300
    assert len(refusal(connect(b"a", b"x" * 10_000 + b"\r\n"))) < 300


def test_a_get_asks_the_gateway_itself() -> None:
    outcome = read(b"GET /v1/services?zone=prod HTTP/1.1\r\n" + HOST + b"Accept: */*\r\nContent-Length: 0\r\n\r\n")
    headers = (("host", "bastion.test"), ("accept", "*/*"), ("content-length", "0"))
    assert outcome == ApiRequest("GET", "/v1/services", "zone=prod", headers, b"")


@pytest.mark.parametrize("target", [b"http://bastion.test/v1/whoami", b"*", b"whoami", b"orders-db:80"])
def test_other_forms_of_target_are_refused_and_connect_is_named(target: bytes) -> None:
    message = refusal(read(b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n"))
    assert message.startswith('expected a path such as "/v1/services" (other services are reached with CONNECT only)')


@pytest.mark.parametrize("request_line", [b"GET /v1/whoami", b"POST /v1/renew", b"CONNECT orders-db"])
@pytest.mark.parametrize("origin", [b"Origin: https://evil.test\r\n", b"oRIGIN:\r\n"])
def test_a_web_page_is_refused(request_line: bytes, origin: bytes) -> None:
    message = refusal(read(request_line + b" HTTP/1.1\r\n" + HOST + origin + b"\r\n"), 403)
    assert message == "expected no Origin header: web pages may not use the gateway, got one"
    assert not isinstance(read(request_line + b" HTTP/1.1\r\n" + HOST + b"X-Origin: a\r\n\r\n"), BadRequest)


def post(length: int, headers: bytes = b"") -> bytes:
    return b"POST /v1/renew HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n" % length + headers + b"\r\n"


def test_a_post_waits_for_its_body_and_takes_no_more_than_it() -> None:
    reader = RequestReader()
    assert reader.feed(post(4)) == NeedMore()
    assert reader.feed(b"bod") == NeedMore()
    outcome = reader.feed(b"y and more")
    assert isinstance(outcome, ApiRequest)
    assert outcome.body == b"body"


def test_the_longest_body_is_read_and_a_longer_one_is_not_waited_for() -> None:
    outcome = read(post(LONGEST_BODY_BYTES) + b"x" * LONGEST_BODY_BYTES)
    assert isinstance(outcome, ApiRequest)
    assert len(outcome.body) == LONGEST_BODY_BYTES
    assert refusal(read(post(LONGEST_BODY_BYTES + 1)), 413) == "expected a body of at most 65536 bytes, got 65537"


def test_a_client_that_waits_for_100_continue_gets_it_once() -> None:
    reader = RequestReader()
    assert reader.feed(post(4, b"Expect: 100-continue\r\n")) == NeedMore(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert reader.feed(b"b") == NeedMore()
    assert isinstance(reader.feed(b"ody"), ApiRequest)


def test_a_client_that_did_not_wait_gets_no_100_continue() -> None:
    assert isinstance(read(post(4, b"Expect: 100-continue\r\n") + b"body"), ApiRequest)
    assert isinstance(connect(b"a", HOST + b"Expect: 100-continue\r\n"), ConnectTarget)
