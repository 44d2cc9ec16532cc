"""The control server, on real sockets and with real peers."""

import asyncio
import grp
import gzip
import os
import pwd
import socket

import pytest

from portguard.control import server as module
from portguard.control.access import Account, Level
from portguard.control.accounts_of_host import HostAccounts
from portguard.control.client import ControlClient
from portguard.control.routes import Arguments, Conflict, NotFound, Pieces, Route, Unavailable
from portguard.errors import ConfigurationError, PortguardError, Problem, Refused, Unreachable, UsageError
from portguard.reasons import Reason

ME = pwd.getpwuid(os.getuid()).pw_name


async def echo(peer, given):
    return {"name": peer.name, "uid": peer.uid, "gid": peer.gid, "given": dict(given)}


LOOK = Route("GET", "/v1/look", Level.VIEWER, echo)
ACT = Route("POST", "/v1/act", Level.OPERATOR, echo)
RULE = Route("POST", "/v1/rule", Level.ADMIN, echo)
REMOVE = Route("DELETE", "/v1/act", Level.OPERATOR, echo)
ROUTES = [LOOK, ACT, RULE, REMOVE]


def error_of(answer):
    status, document = answer
    assert list(document) == ["error"]
    return status, document["error"]["code"], document["error"]["message"]


@pytest.fixture
def other(real_program):
    """Another user than root and than this one, in a group that is its own."""
    real_program("curl")
    if os.getuid() != 0:
        pytest.skip("only root can call as another user")
    for name in ("daemon", "nobody"):
        user = pwd.getpwnam(name)
        return user, grp.getgrgid(user.pw_gid).gr_name
    raise AssertionError


async def test_curl_gets_json(control, real_program):
    real_program("curl")
    running = control(ROUTES)
    status, document = await running.curl("/v1/look?a=1&b=%C3%A9")
    assert status == 200
    assert document == {"name": ME, "uid": os.getuid(), "gid": os.getgid(), "given": {"a": "1", "b": "é"}}
    json_type = ("--header", "Content-Type: application/json")
    status, document = await running.curl("/v1/act", *json_type, "--data", '{"a": [1, null]}')
    assert (status, document["given"]) == (200, {"a": [1, None]})
    status, document = await running.curl("/v1/act", "--request", "POST")
    assert (status, document["given"]) == (200, {})


async def test_a_socket_of_the_group_lets_the_group_in_and_the_level_decides(control, other):
    user, group = other
    running = control(ROUTES, group, viewers=[f"group:{group}"], admins=["user:root"])
    status, document = await running.curl("/v1/look", user=user)
    assert (status, document["name"], document["uid"], document["gid"]) == (200, user.pw_name, user.pw_uid, user.pw_gid)
    answer = await running.curl("/v1/act", "--request", "POST", user=user)
    assert error_of(answer) == (
        403,
        "forbidden",
        "POST /v1/act: expected the level operator (control.operators or control.admins give it), "
        f"got viewer for uid {user.pw_uid} ({user.pw_name})",
    )
    answer = await running.curl("/v1/rule", "--request", "POST", user=user)
    assert "expected the level admin (control.admins give it), got viewer" in error_of(answer)[2]
    assert running.acts == [
        (user.pw_name, "POST", "/v1/act", {}, "forbidden"),
        (user.pw_name, "POST", "/v1/rule", {}, "forbidden"),
    ]


async def test_who_gets_in_without_a_level_is_refused_everything(control, other):
    user, group = other
    running = control(ROUTES, group, operators=["group:root"], admins=["user:root"])
    for target in ("/v1/look", "/v1/nothing"):
        status, code, message = error_of(await running.curl(target, user=user))
        assert (status, code) == (403, "forbidden")
        assert message == (
            f"GET {target}: expected the level viewer "
            "(control.viewers or control.operators or control.admins give it), "
            f"got none for uid {user.pw_uid} ({user.pw_name})"
        )


async def test_who_is_not_in_the_group_cannot_even_connect(control, other, real_program):
    user, _ = other
    running = control(ROUTES, "root", viewers=[f"user:{user.pw_name}"])
    ended = await asyncio.to_thread(running.run_curl, "/v1/look", user=user)
    assert ended.returncode == 7  # CURLE_COULDNT_CONNECT


@pytest.mark.parametrize(
    ("levels", "may"),
    [
        ({}, 0),
        ({"viewers": ["user:anna"]}, 1),
        ({"operators": ["group:audit"]}, 2),
        ({"admins": ["user:anna"]}, 3),
        ({"admins": ["user:bob", "group:wheel"]}, 0),
    ],
)
async def test_each_level_may_do_what_is_below_it(control, levels, may):
    accounts = HostAccounts(frozenset(), look=lambda uid, groups: Account("anna", frozenset({"audit"}) & groups))
    accounts._groups = frozenset({"audit", "wheel"})
    running = control(ROUTES, own_uid=os.getuid() + 1, accounts=accounts, **levels)
    statuses = [
        (await running.ask("GET", "/v1/look"))[0],
        (await running.ask("POST", "/v1/act", {}))[0],
        (await running.ask("POST", "/v1/rule", {}))[0],
    ]
    assert statuses == [200] * may + [403] * (3 - may)


async def test_an_unknown_user_is_refused_and_a_changed_group_acts(control):
    found = [None]
    clock = iter(range(0, 1000, 100))
    accounts = HostAccounts(frozenset({"audit"}), look=lambda uid, groups: found[0], clock=lambda: next(clock))
    running = control(ROUTES, own_uid=os.getuid() + 1, accounts=accounts, viewers=["group:audit"])
    status, code, message = error_of(await running.ask("GET", "/v1/look"))
    assert (status, code) == (403, "forbidden")
    assert message.endswith(f"got none for uid {os.getuid()}")
    found[0] = Account("anna", frozenset({"audit"}))
    assert (await running.ask("GET", "/v1/look"))[0] == 200
    found[0] = Account("anna", frozenset())
    assert (await running.ask("GET", "/v1/look"))[0] == 403


async def test_without_the_hosts_word_nobody_but_the_gateways_user_gets_in(control, monkeypatch):
    def fail(uid, groups):
        raise OSError(5, "Input/output error")

    running = control(ROUTES, accounts=HostAccounts(frozenset(), look=fail), admins=[f"user:{ME}"])
    status, document = await running.ask("GET", "/v1/look")
    assert (status, document["name"]) == (200, None)
    running.server._access = module.Access(own_uid=os.getuid() + 1, admins=running.server._access.admins)
    status, code, message = error_of(await running.ask("GET", "/v1/look"))
    assert (status, code) == (503, "unavailable")
    assert message == f"uid {os.getuid()}: expected the host to say who this is, got Input/output error"


async def test_a_process_that_is_not_welcome_is_asked_nothing(control):
    running = control(ROUTES)
    asked = []
    running.server._is_welcome = lambda uid, pid, _sock: asked.append((uid, pid))
    assert await running.raw(b"") == b""
    assert asked == [(os.getuid(), os.getpid())]
    running.server._is_welcome = lambda *_who: True
    assert (await running.ask("GET", "/v1/look"))[0] == 200


async def test_a_request_with_an_origin_is_refused(control):
    running = control(ROUTES)
    for value in ("http://evil.example", "null", ""):
        assert error_of(await running.ask("GET", "/v1/look", Origin=value))[:2] == (403, "forbidden")
        assert error_of(await running.ask("POST", "/v1/act", {}, Origin=value))[:2] == (403, "forbidden")
    assert [act[-1] for act in running.acts] == ["forbidden"] * 3


async def test_the_host_is_not_looked_at(control):
    running = control(ROUTES)
    assert (await running.ask("GET", "http://whatever.example:1/v1/look"))[0] == 200
    assert b"200 OK" in await running.raw(b"GET /v1/look HTTP/1.0\r\n\r\n")


async def test_what_is_not_served_is_told_of(control):
    running = control(ROUTES)
    assert error_of(await running.ask("GET", "/v1/nothing")) == (
        404,
        "not_found",
        "/v1/nothing: expected a path of this version's, got an unknown one",
    )
    assert error_of(await running.ask("GET", "/v1/act")) == (
        405,
        "method_not_allowed",
        "/v1/act: expected DELETE or POST, got GET",
    )
    assert running.acts == []


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"[1]", 400, "body: expected a JSON object, got something else"),
        (b"{", 400, "body: expected a JSON object, got no JSON"),
        (b"\xff", 400, "body: expected a JSON object, got no JSON"),
        (b"[" * 30_000, 400, "body: expected a JSON object, got no JSON"),
        (b'{"a": "' + b"x" * 65_528 + b'"}', 413, "body: expected at most 65536 bytes, got more"),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(control, body, status, message):
    running = control(ROUTES)
    assert error_of(await running.ask("POST", "/v1/act", body))[::2] == (status, message)
    assert [act[3] for act in running.acts] == [{}]


async def test_a_body_of_the_largest_size_is_taken(control):
    running = control(ROUTES)
    status, document = await running.ask("POST", "/v1/act", b'{"a": "' + b"x" * 65_527 + b'"}')
    assert (status, len(document["given"]["a"])) == (200, 65_527)


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", "application/jsonp"])
async def test_a_body_that_is_not_called_json_is_refused(control, content_type):
    running = control(ROUTES)
    answer = await running.ask("POST", "/v1/act", {}, Content_Type=content_type)
    assert error_of(answer) == (
        415,
        "unsupported_media_type",
        f"Content-Type: expected application/json, got {content_type}",
    )


async def test_arguments_have_one_place_and_one_value(control):
    running = control(ROUTES)
    assert "expected it once" in error_of(await running.ask("GET", "/v1/look?a=1&a=2"))[2]
    assert "query: expected none" in error_of(await running.ask("POST", "/v1/act?a=1", {}))[2]
    assert (await running.ask("DELETE", "/v1/act?a=1"))[1]["given"] == {"a": "1"}


@pytest.mark.parametrize(
    ("error", "status", "document"),
    [
        (NotFound("session x: none"), 404, {"code": "not_found", "message": "session x: none"}),
        (Conflict("draining"), 409, {"code": "conflict", "message": "draining"}),
        (Unavailable("ledger"), 503, {"code": "unavailable", "message": "ledger"}),
        (UsageError("wrong"), 400, {"code": "bad_argument", "message": "wrong"}),
        (Refused(Reason.DRAINING, "no"), 409, {"code": "failed", "message": "draining: no"}),
        (PortguardError("broke"), 409, {"code": "failed", "message": "broke"}),
        (
            ConfigurationError([Problem("policy.toml", "roles[0].name", "a name", "nothing")]),
            409,
            {
                "code": "configuration",
                "message": "policy.toml: roles[0].name: expected a name, got nothing",
                "problems": [{"file": "policy.toml", "key": "roles[0].name", "expected": "a name", "found": "nothing"}],
            },
        ),
    ],
)
async def test_errors_of_a_handler_are_told_and_noted(control, error, status, document):
    async def fail(peer, given):
        raise error

    running = control([Route("POST", "/v1/fail", Level.ADMIN, fail)])
    assert await running.ask("POST", "/v1/fail", {"a": 1}) == (status, {"error": document})
    assert running.acts == [(ME, "POST", "/v1/fail", {"a": 1}, document["code"])]
    assert running.faults == []


async def test_bad_arguments_are_told(control):
    async def take(peer, given):
        arguments = Arguments(given)
        arguments.flag("all")
        arguments.finish()
        return {}

    running = control([Route("POST", "/v1/take", Level.ADMIN, take)])
    assert error_of(await running.ask("POST", "/v1/take", {"al": 1})) == (
        400,
        "bad_argument",
        "'al': expected one of the arguments all",
    )


async def test_a_fault_is_reported_and_the_client_learns_nothing_of_it(control):
    async def fail(peer, given):
        raise ZeroDivisionError("secret")

    running = control([Route("POST", "/v1/fail", Level.ADMIN, fail)])
    answer = await running.ask("POST", "/v1/fail", {})
    assert error_of(answer) == (500, "internal", "internal error; the gateway's log has it")
    ((message, error),) = running.faults
    assert (message, type(error)) == ("control: POST /v1/fail failed", ZeroDivisionError)
    assert running.acts == [(ME, "POST", "/v1/fail", {}, "internal")]


async def test_only_acts_are_noted(control):
    running = control(ROUTES)
    await running.ask("GET", "/v1/look")
    await running.ask("POST", "/v1/act", {"a": 1})
    await running.ask("DELETE", "/v1/act?b=2")
    assert running.acts == [
        (ME, "POST", "/v1/act", {"a": 1}, "done"),
        (ME, "DELETE", "/v1/act", {"b": "2"}, "done"),
    ]


async def test_a_long_document_comes_in_pieces(control):
    async def pieces():
        yield '{"rows": ['
        for number in range(20_000):
            yield f"{', ' if number else ''}{number}"
        yield "]}\n"

    async def long(peer, given):
        return Pieces(pieces())

    running = control([Route("GET", "/v1/long", Level.VIEWER, long)])
    document = await asyncio.to_thread(ControlClient(running.path).get, "/v1/long")
    assert document == {"rows": list(range(20_000))}


async def test_a_document_that_breaks_off_is_not_taken_for_a_whole_one(control):
    async def pieces():
        yield '{"rows": []}'
        raise ZeroDivisionError

    async def broken(peer, given):
        return Pieces(pieces())

    running = control([Route("GET", "/v1/broken", Level.VIEWER, broken)])
    with pytest.raises(Unreachable, match="expected an answer"):
        await asyncio.to_thread(ControlClient(running.path).get, "/v1/broken")
    ((message, error),) = running.faults
    assert (message, type(error)) == ("control: GET /v1/broken broke off", ZeroDivisionError)


async def test_what_is_no_http_is_answered_and_closed(control, caplog):
    running = control(ROUTES)
    caplog.clear()
    assert b" 400 " in await running.raw(b"\x16\x03\x01\x00\xa5\x01 hello\r\n\r\n")
    assert b" 400 " in await running.raw(b"GET /v1/look HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n")
    assert caplog.records == []
    assert running.faults == []


async def test_each_connection_carries_one_request(control):
    running = control(ROUTES)
    request = b"GET /v1/look HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"
    assert (await running.raw(request * 3)).count(b"HTTP/1.1 200") == 1


async def test_a_silent_client_is_dropped(control, monkeypatch):
    monkeypatch.setattr(module, "_HEAD_S", 0.05)
    running = control(ROUTES)
    assert await running.raw(b"") == b""
    assert await running.raw(b"GET /v1/look HTTP/1.1\r\nHost") == b""
    monkeypatch.undo()  # or who asks would have to be quick
    assert (await running.ask("GET", "/v1/look"))[0] == 200


async def test_a_client_that_has_asked_may_wait_for_long(control):
    async def slow(peer, given):
        for connection in running.server._server.connections:
            connection.abort_if_silent()  # as when the time for a request to come is over
        await asyncio.sleep(0)
        return {}

    running = control([Route("GET", "/v1/slow", Level.VIEWER, slow)])
    assert await running.ask("GET", "/v1/slow") == (200, {})


async def test_a_compressed_body_is_not_blown_up(control):
    running = control(ROUTES)
    body = gzip.compress(b'{"a": "' + b"x" * 10_000_000 + b'"}')
    assert len(body) < module.LONGEST_BODY_BYTES
    answer = await running.ask("POST", "/v1/act", body, Content_Encoding="gzip")
    assert error_of(answer) == (400, "bad_argument", "body: expected a JSON object, got no JSON")


async def test_a_slow_body_is_given_up(control, monkeypatch):
    monkeypatch.setattr(module, "_BODY_S", 0.05)
    monkeypatch.setattr(module, "_LINGER_S", 0.05)
    running = control(ROUTES)
    head = b"POST /v1/act HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    answer = await running.raw(head + b'{"a"')
    assert b" 408 " in answer
    assert b'"request_timeout"' in answer
    assert [act[-1] for act in running.acts] == ["request_timeout"]


async def test_half_a_body_does_nothing(control):
    running = control([Route("POST", "/v1/act", Level.ADMIN, echo)])
    head = b"POST /v1/act HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(running.path))
        client.sendall(head + b"{}")
    await running.until(lambda: running.acts)
    assert [act[-1] for act in running.acts] == ["bad_argument"]
    assert running.faults == []


async def test_who_does_not_take_the_answer_is_dropped(control, monkeypatch):
    async def pieces():
        while True:
            yield "x" * 65536

    async def endless(peer, given):
        return Pieces(pieces())

    monkeypatch.setattr(module, "_ANSWER_S", 0.1)
    running = control([Route("GET", "/v1/endless", Level.VIEWER, endless)])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(running.path))
        client.sendall(b"GET /v1/endless HTTP/1.1\r\nHost: x\r\n\r\n")
        await running.until(lambda: running.server._by_user)
        await running.until(lambda: not running.server._by_user)
    assert running.faults == []


async def test_one_user_cannot_take_all_connections(control, monkeypatch):
    monkeypatch.setattr(module, "_MOST_CONNECTIONS_PER_USER", 2)
    running = control(ROUTES)
    held = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for client in held:
        client.connect(str(running.path))
    await running.until(lambda: running.server._by_user.total() == 2)
    assert await running.raw(b"GET /v1/look HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    for client in held:
        client.close()
    await running.until(lambda: not running.server._by_user)
    assert (await running.ask("GET", "/v1/look"))[0] == 200


async def test_all_together_are_bounded(control, monkeypatch):
    monkeypatch.setattr(module, "_MOST_CONNECTIONS", 0)
    running = control(ROUTES)
    assert await running.raw(b"GET /v1/look HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    monkeypatch.setattr(module, "_MOST_CONNECTIONS", 1)
    assert (await running.ask("GET", "/v1/look"))[0] == 200


async def test_it_goes_on_when_descriptors_are_free_again(control, monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_S", 0.05)
    running = control(ROUTES)
    accept = socket.socket.accept
    failed = []

    def out_of_descriptors(sock):
        if not failed:
            failed.append(sock)
            raise OSError(24, "Too many open files")
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", out_of_descriptors)
    assert (await running.ask("GET", "/v1/look"))[0] == 200
    assert failed


async def test_stopping_lets_an_answer_out_and_removes_the_socket(control):
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(peer, given):
        begun.set()
        await go_on.wait()
        return {"done": True}

    running = control([Route("POST", "/v1/slow", Level.ADMIN, slow)])
    asking = asyncio.create_task(running.ask("POST", "/v1/slow", {}))
    await begun.wait()
    stopping = asyncio.create_task(running.server.stop())
    await asyncio.sleep(0)
    assert not running.path.exists()
    go_on.set()
    assert await asking == (200, {"done": True})
    await stopping


async def test_stopping_does_not_wait_for_who_says_nothing(control):
    running = control(ROUTES)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(running.path))
        await running.until(lambda: running.server._by_user)
        await running.server.stop()
        assert client.recv(1) == b""


async def test_what_the_log_says_at_the_start(control, monkeypatch):
    events = []
    monkeypatch.setattr(module.log, "event", lambda level, name, **fields: events.append((level, name, fields)))
    running = control(ROUTES, "no-such-group")
    (warned, restricted, told), listens = events
    assert (warned, restricted) == ("warning", "control.restricted")
    assert "got no-such-group" in told["message"]
    assert listens == ("info", "control.listen", {"address": str(running.path)})
