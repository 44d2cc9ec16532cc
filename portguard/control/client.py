"""The client of the control socket: one request a call, over `http.client`. What the gateway answers is not trusted."""

import grp
import http.client
import json
import os
import pwd
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from portguard.errors import ConfigurationError, PortguardError, Problem, Unreachable, UsageError

ANSWER_S = 10.0  # without a byte of an answer
_LONGEST_ANSWER_BYTES = 256 * 2**20


class NotDone(PortguardError):
    """The gateway answered that it does not do it. `code` is its word for why, see `docs/reference/control.md`."""

    def __init__(self, code: str, message: str):
        self.code = code
        super().__init__(message)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float):
        # The host is for HTTP alone: nobody looks at it.
        super().__init__("portguard", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(self._path)


class ControlClient:
    """A gateway's control socket.

    get() and post() raise Unreachable when nobody answers, or not what portguard answers; ConfigurationError when the
    gateway finds files wrong; UsageError when it finds an argument wrong; NotDone for what else it refuses.
    """

    def __init__(self, path: Path, *, timeout_s: float = ANSWER_S):
        self._path = str(path)
        self._timeout_s = timeout_s

    def get(self, path: str, **query: str | int | bool | None) -> dict[str, Any]:
        """Ask for `path`; arguments that are None are left out."""
        given = {name: _written(value) for name, value in query.items() if value is not None}
        return self._ask("GET", f"{path}?{urlencode(given)}" if given else path, None)

    def post(self, path: str, **body: object) -> dict[str, Any]:
        """Have `path` done; `body` is what json.dumps() takes."""
        return self._ask("POST", path, json.dumps(body))

    def _ask(self, method: str, target: str, body: str | None) -> dict[str, Any]:
        connection = _Connection(self._path, self._timeout_s)
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            content = response.read(_LONGEST_ANSWER_BYTES + 1)
            if response.length and len(content) <= _LONGEST_ANSWER_BYTES:
                raise self._silent("an answer of portguard's", "one that breaks off")
        except FileNotFoundError as error:
            # A gateway that runs has the path that the configuration had when it started.
            found = "no such file; does the gateway run, or did gateway.control change since it started?"
            raise self._silent("a gateway's control socket", found) from error
        except ConnectionRefusedError as error:
            raise self._silent("a gateway that listens", "a socket without one; does the gateway run?") from error
        except PermissionError as error:
            raise self._silent("a socket that you may connect to", self._who_may()) from error
        except TimeoutError as error:
            raise self._silent(f"an answer within {self._timeout_s:.0f} s", "none") from error
        except http.client.HTTPException as error:
            raise self._silent("an answer of portguard's", f"a broken one ({type(error).__name__})") from error
        except OSError as error:
            raise self._silent("an answer", (error.strerror or str(error)).lower()) from error
        finally:
            connection.close()
        return self._read(response.status, content)

    def _read(self, status: int, content: bytes) -> dict[str, Any]:
        try:
            document = json.loads(content) if len(content) <= _LONGEST_ANSWER_BYTES else None
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise self._silent("an answer of portguard's", f"something else, with HTTP status {status}")
        if status == 200:
            return document
        error = document.get("error")
        if not isinstance(error, dict) or not error.get("code") or not error.get("message"):
            raise self._silent("an answer of portguard's", f"HTTP status {status} without a reason")
        raise _error(error)

    def _silent(self, expected: str, found: str) -> Unreachable:
        return Unreachable(f"{self._path}: expected {expected}, got {found}")

    def _who_may(self) -> str:
        """Say to whom the socket belongs, in place of a bare "permission denied"."""
        caller = _user(os.geteuid())
        try:
            found = os.stat(self._path)
        except OSError:
            return f"a folder that {caller} may not look into"
        may = [_user(found.st_uid)]
        if found.st_mode & 0o020:
            may.append(f"members of the group {_group(found.st_gid)}")
        return f"one that only {' and '.join(may)} may; you are {caller}"


def _error(error: Mapping[str, object]) -> PortguardError:
    code, message = str(error["code"]), str(error["message"])
    problems = error.get("problems")
    if code == "configuration" and isinstance(problems, list):
        read = [_problem(each) for each in problems if isinstance(each, dict)]
        if read:
            return ConfigurationError(read)
    if code == "bad_argument":
        return UsageError(_line(message))
    return NotDone(code, _line(message))


def _problem(each: Mapping[str, object]) -> Problem:
    file, key, expected, found = (_line(str(each.get(name, ""))) for name in ("file", "key", "expected", "found"))
    return Problem(file, key, expected, found)


def _line(text: str) -> str:
    """One line, so that it cannot look like several messages."""
    return " ".join(text.split())


def _written(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"
