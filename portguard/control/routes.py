"""What the control socket serves: routes, the arguments that their handlers take, and the errors that they raise.

async def kill(peer: Peer, given: Mapping[str, object]) -> object:
    arguments = Arguments(given)
    session = arguments.text("session")
    arguments.finish()
    ...
    raise NotFound(f"session {session}: expected one that is live, got none of this id")

Route("POST", "/v1/sessions/kill", Level.OPERATOR, kill)
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from portguard.control.access import Level, Peer
from portguard.errors import PortguardError

_NUMBER = re.compile(r"-?[0-9]{1,19}")

Arguable = Mapping[str, object]
"""The JSON object of a body, or the texts of a query."""

Handler = Callable[[Peer, Arguable], Awaitable[object]]
"""Answers what json.dumps() takes, or Pieces. What it answers must not take the loop for long."""


@dataclass(frozen=True, slots=True)
class Route:
    """One thing that the socket serves. Everything but GET is an act, of which `on_act` is told."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    level: Level
    handler: Handler


@dataclass(frozen=True, slots=True)
class Pieces:
    """A JSON document that is too long to be made at once."""

    pieces: AsyncIterator[str]


class ControlError(PortguardError):
    """What the client is answered instead. `code` is a stable word, `status` that of HTTP."""

    status = 409
    code = "failed"


class BadArgument(ControlError):
    """An argument is not what its place calls for."""

    status = 400
    code = "bad_argument"
    exit_code = 2


class Forbidden(ControlError):
    """The caller's level is too low."""

    status = 403
    code = "forbidden"


class NotFound(ControlError):
    """What the arguments name does not exist."""

    status = 404
    code = "not_found"


class Conflict(ControlError):
    """The gateway is not in a state in which this could be done."""

    code = "conflict"


class Unavailable(ControlError):
    """Something that the gateway needs for it does not work now."""

    status = 503
    code = "unavailable"


class Arguments:
    """Takes the arguments of one request apart. Everything raises BadArgument; unknown ones are never passed over.

    An argument that is null, or empty in a query, counts as missing.
    """

    def __init__(self, given: Arguable):
        self._given = given
        self._known: list[str] = []

    def text(self, name: str) -> str | None:
        """A text, None where it is missing."""
        value = self._take(name)
        if value is not None and not isinstance(value, str):
            raise self._bad(name, "a string", value)
        return value

    def line(self, name: str, longest: int, *, shortest: int = 0) -> str:
        """A text for people: `shortest` to `longest` printable characters, no spaces around them; "" if missing."""
        text = (self.text(name) or "").strip()
        if not text.isprintable() or not shortest <= len(text) <= longest:
            found = f"{_shown(text)}, of {len(text)} characters" if text else "nothing"
            bounds = f"{shortest} to {longest}" if shortest else f"at most {longest}"
            raise BadArgument(f"{name}: expected {bounds} printable characters, got {found}")
        return text

    def flag(self, name: str) -> bool:
        """True or false, false where it is missing; in a query "true" or "false"."""
        match self._take(name):
            case None | False | "false":
                return False
            case True | "true":
                return True
            case value:
                raise self._bad(name, "true or false", value)

    def integer(self, name: str, minimum: int, maximum: int) -> int | None:
        """A whole number, both bounds included; None where it is missing."""
        value = self._take(name)
        if value is None:
            return None
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self._bad(name, f"an integer, {minimum} to {maximum}", value)
        return value

    def finish(self) -> None:
        """Find the arguments that nobody asked for."""
        for name in self._given:
            if name not in self._known:
                known = f"one of the arguments {', '.join(self._known)}" if self._known else "no arguments"
                raise BadArgument(f"{_shown(name)}: expected {known}")

    def _take(self, name: str) -> object:
        self._known.append(name)
        value = self._given.get(name)
        return None if value == "" else value

    def _bad(self, name: str, expected: str, value: object) -> BadArgument:
        return BadArgument(f"{name}: expected {expected}, got {_shown(value)}")


def _shown(value: object) -> str:
    match value:
        case str():
            return ascii(value) if len(value) <= 60 else f"{value[:60]!a}…"
        case None | bool():
            return {None: "nothing", True: "true", False: "false"}[value]
        case int() | float():
            return str(value) if -(10**60) < value < 10**60 else "a huge number"
        case _:
            return "an array" if isinstance(value, list) else "an object"
