"""Reading TOML: typed values out of tables, every problem of a file in one list, unknown keys found.

A reader asks a `Table` for the keys that it knows, then calls `finish` once, on the root:

    problems: list[Problem] = []
    root = parse("policy.toml", content, problems)
    for name, service in root.tables_by_name("services").items():
        local_port = service.get("local_port", PORT, default=None)
        aliases = service.array("aliases", HOST_NAME)
    root.finish()
    if problems:
        raise ConfigurationError(problems)

What a getter cannot read is noted as a Problem and answered with the kind's blank. So values are of the right type all
the way, and are worth something only while `problems` is empty.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Generic, TypeVar, cast, overload

from portguard.errors import Problem
from portguard.policy.addresses import HostPort, ListenAddress, parse_host_name, parse_host_port, parse_listen_address
from portguard.policy.addresses import parse_network as _parse_network
from portguard.policy.quantities import (
    Period,
    Quota,
    Rate,
    Unexpected,
    parse_bandwidth,
    parse_duration,
    parse_duration_or_off,
    parse_quota,
    parse_rate,
    parse_size,
)

V = TypeVar("V")
D = TypeVar("D")
W = TypeVar("W", bound=str)

LONGEST_SHOWN = 60
"""Characters of a found value in a message."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,63}", re.ASCII)
_PLACE = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")


@dataclass(frozen=True, slots=True)
class Kind(Generic[V]):
    """A kind of value. `convert` takes what tomllib gave and raises Unexpected for what is not of this kind.

    `expected` is said where there is no value at all; `blank` stands in for a value that cannot be read. Of a `secret`
    kind nothing is shown that could hold a password.
    """

    expected: str
    convert: Callable[[object], V]
    blank: V
    secret: bool = False


def text_kind(parse: Callable[[str], V], expected: str, blank: V, *, secret: bool = False) -> Kind[V]:
    """A kind written as a TOML string. `parse` raises Unexpected; `expected` is also said of what is not a string."""

    def convert(value: object) -> V:
        if not isinstance(value, str):
            raise Unexpected(expected)
        return parse(value)

    return Kind(expected, convert, blank, secret)


def or_none(kind: Kind[V]) -> Kind[V | None]:
    """The same kind with None for what cannot be read, for values that are compared with others afterwards.

    Any other blank would be compared too, and blamed for what no file holds.
    """
    return Kind(kind.expected, kind.convert, None, kind.secret)


def integer(minimum: int, maximum: int) -> Kind[int]:
    """A whole number, both bounds included."""
    expected = f"an integer, {minimum} to {maximum}"

    def convert(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Unexpected(expected)
        if not minimum <= value <= maximum:
            raise Unexpected(f"{minimum} to {maximum}")
        return value

    return Kind(expected, convert, minimum)


def choice(*words: W) -> Kind[W]:
    """One of `words`, exactly."""
    known = {str(word): word for word in words}
    *others, last = [f'"{word}"' for word in words]
    expected = f"{', '.join(others)} or {last}" if others else last

    def parse(text: str) -> W:
        if text not in known:
            raise Unexpected(expected)
        return known[text]

    return text_kind(parse, expected, words[0])


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise Unexpected("true or false")
    return value


def _non_empty(text: str) -> str:
    if not text:
        raise Unexpected("a string that is not empty")
    return text


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise Unexpected("the path of a file")
    return text


def _instant(value: object) -> datetime:
    # A time without an offset would mean another instant on a host in another zone.
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise Unexpected(INSTANT.expected)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise Unexpected("a date and time in the years 1 to 9999 of UTC") from None


def _lasting(text: str) -> float:
    duration_s = parse_duration(text)
    if duration_s == 0:
        raise Unexpected("a duration longer than 0s")
    return duration_s


def _lasting_or_off(text: str) -> float | None:
    if parse_duration_or_off(text) == 0:
        raise Unexpected('a duration longer than 0s, or "off"')
    return parse_duration_or_off(text)


STRING: Kind[str] = text_kind(_non_empty, "a string", "")
BOOLEAN = Kind("true or false", _boolean, False)
PORT = integer(1, 65535)
PATH: Kind[str] = text_kind(_path, "the path of a file", "")
INSTANT = Kind(
    "a date and time with an offset such as 2027-01-31T00:00:00Z, without quotes",
    _instant,
    datetime.min.replace(tzinfo=UTC),
)
"""An aware datetime in UTC."""

DURATION = text_kind(_lasting, 'a duration such as "10s"', 0.0)
"""Seconds, more than 0."""
DURATION_OR_OFF: Kind[float | None] = text_kind(_lasting_or_off, 'a duration such as "10s", or "off"', None)
"""Seconds, more than 0; None is "off"."""

SIZE = text_kind(parse_size, 'a size such as "20GB" or "64MiB"', 0)
RATE = text_kind(parse_rate, 'a rate such as "30/m"', Rate(1, 1))
BANDWIDTH = text_kind(parse_bandwidth, 'a bandwidth such as "50MB/s"', 1)
QUOTA = text_kind(parse_quota, 'a quota such as "20GB/day"', Quota(1, Period.DAY))

HOST_NAME = text_kind(parse_host_name, "a host name", "")
LISTEN_ADDRESS = text_kind(
    parse_listen_address, 'an IP address and a port such as "0.0.0.0:8443"', ListenAddress("127.0.0.1", 0)
)
HOST_PORT = text_kind(parse_host_port, 'a host and a port such as "10.0.3.7:5432"', HostPort("", 0))
NETWORK: Kind[IPv4Network | IPv6Network] = text_kind(
    _parse_network, 'a network such as "10.0.0.0/8"', IPv4Network("0.0.0.0/32")
)


class _Required:
    """The default of keys that have none."""


_REQUIRED = _Required()


class Table:
    """One table of a file. `file` is the file's path for messages, `path` the table's own dotted key ("" for the root).

    A table that the file does not have reads as an empty one, so its required keys are reported; `present` is False.
    `readable` is False where the file holds something else than a table: one problem, and not one for each missing key.
    """

    def __init__(
        self,
        file: str,
        path: str,
        content: Mapping[str, Any],
        problems: list[Problem],
        *,
        present: bool = True,
        readable: bool = True,
    ):
        self.file = file
        self.path = path
        self.present = present
        self.readable = readable
        self._content = content
        self._problems = problems
        # In the order asked, for messages.
        self._known: dict[str, None] = {}
        self._children: dict[str, Table] = {}  # by their path, so that a table asked for twice is checked once

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def keys(self) -> tuple[str, ...]:
        """The keys that the file has here, in its order; for tables whose keys are the user's own names."""
        return tuple(self._content)

    def subpath(self, key: str) -> str:
        """The dotted path of `key` in this table, quoted where TOML needs it."""
        own = key if _BARE_KEY.fullmatch(key) else _quoted(key)
        return f"{self.path}.{own}" if self.path else own

    def report(self, key: str, expected: str, found: object) -> None:
        """Note a Problem with `key` of this table ("" is the table itself); `found` is shown by `shown`."""
        self.report_as(key, expected, shown(found))

    def report_as(self, key: str, expected: str, found: str) -> None:
        """Note a Problem with the words of the caller. `key` may end with an index, `upstream[0]`."""
        name, bracket, index = key.partition("[")
        path = self.subpath(name) + bracket + index if key else self.path
        self._problems.append(Problem(self.file, path, expected, found))

    @overload
    def get(self, key: str, kind: Kind[V]) -> V: ...
    @overload
    def get(self, key: str, kind: Kind[V], default: D) -> V | D: ...
    def get(self, key: str, kind: Kind[V], default: object = _REQUIRED) -> object:
        """The value of `key`, or `default` where the file has none; without a default the key is required."""
        self._known[key] = None
        if key not in self._content:
            if default is not _REQUIRED:
                return default
            if self.readable:
                self.report_as(key, kind.expected, "nothing")
            return kind.blank
        return self._converted(self.subpath(key), self._content[key], kind)

    def array(self, key: str, kind: Kind[V], *, default: Iterable[V] = (), minimum: int = 0) -> tuple[V, ...]:
        """The array `key`, each item of `kind`; problems name the item, `upstream[1]`.

        With a `minimum` of 1 the key is required, unless there is a default.
        """
        self._known[key] = None
        default = tuple(default)
        if key not in self._content:
            if len(default) < minimum and self.readable:
                self.report_as(key, "an array", "nothing")
            return default
        items = self._content[key]
        if not isinstance(items, list):
            self.report(key, "an array", items)
            return default
        if len(items) < minimum:
            self.report_as(key, f"an array of at least {minimum}", "an empty one" if not items else str(len(items)))
        path = self.subpath(key)
        return tuple(self._converted(f"{path}[{index}]", item, kind) for index, item in enumerate(items))

    def table(self, key: str) -> "Table":
        """The table `key`, an empty one where the file has none."""
        self._known[key] = None
        if key not in self._content:
            return self._child(self.subpath(key), {}, present=False, readable=self.readable)
        return self._as_child(self.subpath(key), self._content[key])

    def tables(self, key: str) -> tuple["Table", ...]:
        """The array of tables `key`, `[[key]]` in the file."""
        self._known[key] = None
        items = self._content.get(key, [])
        if not isinstance(items, list):
            self.report(key, f"an array of tables, [[{key}]]", items)
            return ()
        path = self.subpath(key)
        return tuple(self._as_child(f"{path}[{index}]", item) for index, item in enumerate(items))

    def tables_by_name(self, key: str) -> dict[str, "Table"]:
        """The tables in `key` whose names are the user's own, `[services.orders-db]`."""
        parent = self.table(key)
        return {name: parent.table(name) for name in parent.keys()}  # noqa: SIM118 - a Table is no mapping

    def finish(self) -> None:
        """Report the keys that nobody asked for, here and in all tables that were asked for. Call it on the root."""
        for key in self._content:
            if key not in self._known:
                self._problems.append(Problem(self.file, self.subpath(key), self._known_keys(key), _quoted(key)))
        for child in self._children.values():
            child.finish()

    def _known_keys(self, key: str) -> str:
        alike = difflib.get_close_matches(key.lower(), self._known, n=1)
        if alike:
            return f"a known key (did you mean {alike[0]}?)"
        return f"one of the keys {', '.join(self._known)}" if self._known else "no keys"

    def _converted(self, path: str, value: object, kind: Kind[V]) -> V:
        try:
            return kind.convert(value)
        except Unexpected as error:
            found = "a value that is not shown" if kind.secret and _may_hold_password(value) else shown(value)
            self._problems.append(Problem(self.file, path, str(error), found))
            return kind.blank

    def _as_child(self, path: str, value: object) -> "Table":
        if path in self._children:
            return self._children[path]
        if isinstance(value, dict):
            return self._child(path, cast(dict[str, Any], value))
        self._problems.append(Problem(self.file, path, "a table", shown(value)))
        return self._child(path, {}, readable=False)

    def _child(self, path: str, content: Mapping[str, Any], *, present: bool = True, readable: bool = True) -> "Table":
        child = Table(self.file, path, content, self._problems, present=present, readable=readable)
        return self._children.setdefault(path, child)


def parse(file: str, content: bytes, problems: list[Problem]) -> Table:
    """The root table of a file. What is no TOML in UTF-8 is a Problem with its line, and reads as a blank table."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problems.append(Problem(file, "", "UTF-8", f"byte 0x{content[error.start]:02x} at line {line}"))
        return Table(file, "", {}, problems, readable=False)
    try:
        return Table(file, "", tomllib.loads(text), problems)
    except RecursionError:
        problems.append(Problem(file, "", "TOML", "arrays or tables nested too deeply"))
    except ValueError as error:  # TOMLDecodeError is one; an integer of 5,000 digits raises the plain one
        problems.append(Problem(file, "", "TOML", _syntax_error(error)))
    return Table(file, "", {}, problems, readable=False)


def shown(value: object) -> str:
    """A found value for a message: as TOML writes it, shortened, and never with a password or private key in it."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _quoted(_without_secrets(value))
        case float():
            return str(value)
        case int():
            # str() of an integer of more than 4300 digits raises, and hexadecimal ones may have that many.
            return str(value) if abs(value) < 10**LONGEST_SHOWN else "a huge number"
        case datetime():
            return value.isoformat() if value.tzinfo else f"{value.isoformat()} without an offset"
        case date() | time():
            return value.isoformat()
        case list():
            return "an array" if value else "an empty array"
        case dict():
            return "a table"
        case None:
            return "nothing"
        case _:
            return f"a {type(value).__name__}"


def _quoted(text: str) -> str:
    short = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
    short = short.replace("\\", "\\\\").replace('"', '\\"')
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in short)
    return f'"{escaped}"'


def _without_secrets(text: str) -> str:
    if "PRIVATE KEY" in text:
        return "(a private key)"
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    # A password may hold any character, "@", "/" and "?" too, where somebody forgot to escape it.
    _, user, host = rest.rpartition("@")
    return f"{scheme}://{'(hidden)@' if user else ''}{host.partition('?')[0]}"


def _may_hold_password(value: object) -> bool:
    return isinstance(value, str) and any(c in value.partition("://")[0] for c in ":@?")


def _syntax_error(error: ValueError) -> str:
    message = str(error)
    place = _PLACE.search(message)
    if place is None:
        return f"an error: {message}"
    where = f"line {place['line']}, column {place['column']}" if place["line"] else "the end of the file"
    return f"an error at {where}: {message[: place.start()]}"
