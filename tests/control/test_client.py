"""The client of the control socket: what it makes of answers, and of none."""

import json
import os
import pwd
import socket
import threading

import pytest

from portguard.control import client as module
from portguard.control.client import ControlClient, NotDone
from portguard.errors import ConfigurationError, Unreachable, UsageError
from tests.patience import PATIENCE_S


@pytest.fixture
def answering(folder):
    """`answering(data)` is the path of a socket where each client is sent `data`; `asked` has what they sent."""
    threads = []

    def start(data, *, close=True):
        path = folder / "control.sock"
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen()

        def serve():
            sock, _ = listening.accept()
            with sock:
                start.asked = b""
                while b"\r\n\r\n" not in start.asked or (start.asked.endswith(b"\r\n\r\n") and b"POST" in start.asked):
                    start.asked += sock.recv(65536)
                sock.sendall(data)
                if not close:
                    sock.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        threads.append((thread, listening))
        return path

    yield start
    for thread, listening in threads:
        thread.join(PATIENCE_S)
        listening.close()


def http(status, document, *more):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return b"\r\n".join([b"HTTP/1.1 %d X" % status, b"Content-Length: %d" % len(body), *more, b"", body])


def unreachable(path, **options):
    with pytest.raises(Unreachable) as caught:
        ControlClient(path, **options).get("/v1/status")
    assert caught.value.exit_code == 4
    return str(caught.value).removeprefix(f"{path}: ")


def test_get_asks_with_a_query_and_leaves_out_what_is_none(answering):
    path = answering(http(200, {"a": 1}))
    assert ControlClient(path).get("/v1/quotas", identity="a b&c=é", role=None, limit=3, all=True) == {"a": 1}
    assert answering.asked.startswith(b"GET /v1/quotas?identity=a+b%26c%3D%C3%A9&limit=3&all=true HTTP/1.1\r\n")


def test_post_sends_json(answering):
    path = answering(http(200, {}))
    assert ControlClient(path).post("/v1/act", identity="é", period=None) == {}
    head, _, body = answering.asked.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/act HTTP/1.1\r\n")
    assert b"\r\nContent-Type: application/json\r\n" in head + b"\r\n"
    assert json.loads(body) == {"identity": "é", "period": None}


def test_without_a_socket_it_is_not_known_whether_the_gateway_runs(folder):
    assert unreachable(folder / "none.sock") == (
        "expected a gateway's control socket, got no such file; "
        "does the gateway run, or did gateway.control change since it started?"
    )


def test_with_a_socket_of_a_dead_gateway_likewise(folder):
    path = folder / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert unreachable(path) == "expected a gateway that listens, got a socket without one; does the gateway run?"


def test_who_may_not_connect_is_told_who_may(folder, monkeypatch):
    if os.getuid() != 0:
        pytest.skip("only root can give a socket to another group")
    path = folder / "control.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o660)
        os.chown(path, 0, 1)

        def refuse(self):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(module._Connection, "connect", refuse)
        monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam("nobody").pw_uid)
        assert unreachable(path) == (
            "expected a socket that you may connect to, "
            "got one that only root and members of the group daemon may; you are nobody"
        )
        path.chmod(0o600)
        assert "got one that only root may; you are nobody" in unreachable(path)
        path.unlink()
        assert "got a folder that nobody may not look into" in unreachable(path)


def test_a_silent_gateway_is_not_waited_for_for_ever(answering):
    path = answering(b"", close=False)
    assert unreachable(path, timeout_s=0.05) == "expected an answer within 0 s, got none"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "a broken one (RemoteDisconnected)"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "a broken one (BadStatusLine)"),
        (http(200, b"<html>"), "something else, with HTTP status 200"),
        (http(200, [1]), "something else, with HTTP status 200"),
        (http(200, b"[" * 100_000), "something else, with HTTP status 200"),
        (http(502, b""), "something else, with HTTP status 502"),
        (http(500, {}), "HTTP status 500 without a reason"),
        (http(403, {"error": "x"}), "HTTP status 403 without a reason"),
        (http(403, {"error": {"code": "x"}}), "HTTP status 403 without a reason"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", "a broken one (IncompleteRead)"),
    ],
)
def test_what_is_not_portguards_answer_is_told_of(answering, data, found):
    if found is None:
        found = "one that breaks off"
    assert unreachable(answering(data)) == f"expected an answer of portguard's, got {found}"


def test_an_answer_without_an_end_is_not_read_for_ever(answering, monkeypatch):
    monkeypatch.setattr(module, "_LONGEST_ANSWER_BYTES", 100)
    assert "something else, with HTTP status 200" in unreachable(answering(http(200, {"a": "x" * 200})))


def raised(answering, status, error):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one it is is what the test asks
        ControlClient(answering(http(status, {"error": error}))).post("/v1/act")
    return caught.value


def test_a_refusal_is_raised_with_its_code_and_on_one_line(answering):
    error = raised(answering, 403, {"code": "forbidden", "message": "no\nportguard: yes"})
    assert isinstance(error, NotDone)
    assert (error.code, str(error), error.exit_code) == ("forbidden", "no portguard: yes", 1)


def test_a_bad_argument_is_wrong_usage(answering):
    error = raised(answering, 400, {"code": "bad_argument", "message": "identity: expected a name, got ''"})
    assert isinstance(error, UsageError)
    assert (str(error), error.exit_code) == ("identity: expected a name, got ''", 2)


def test_files_that_are_wrong_are_told_one_by_one(answering):
    problems = [
        {"file": "policy.toml", "key": "roles[0].name", "expected": "a name", "found": "no\nthing"},
        {"file": "a.toml", "key": "", "expected": "TOML", "found": "an error"},
        "nonsense",
    ]
    error = raised(answering, 409, {"code": "configuration", "message": "…", "problems": problems})
    assert isinstance(error, ConfigurationError)
    assert str(error).splitlines() == [
        "a.toml: expected TOML, got an error",
        "policy.toml: roles[0].name: expected a name, got no thing",
    ]


def test_files_that_are_wrong_in_a_way_that_is_not_told_fail_all_the_same(answering):
    error = raised(answering, 409, {"code": "configuration", "message": "bad", "problems": []})
    assert (type(error), str(error)) == (NotDone, "bad")
