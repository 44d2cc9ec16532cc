"""Log lines for operators: one event a line, as text or JSON, on standard error.

    2026-11-23T21:05:09.123456Z info session.open session=9f… identity=alice service=orders-db

Values may come from certificates and clients. In text, one that holds anything but plain printable characters is
written as a JSON string, so that no value can end its line, start another field, or reach a terminal raw.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Literal

_logger = logging.getLogger("portguard")

_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")  # ASCII without space, '"', '=' and '\\'

Level = Literal["debug", "info", "warning", "error"]
_LEVELS: dict[Level, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

Field = str | int | float | None


def configure(*, json_lines: bool, level: Level) -> None:
    """Write events of `level` and above to standard error from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if json_lines else _TextFormatter())
    _logger.handlers[:] = [handler]
    _logger.setLevel(_LEVELS[level])
    _logger.propagate = False


def is_on(level: Level) -> bool:
    """Whether events of `level` are written. To put together what one tells can cost more than all the rest of it."""
    return _logger.isEnabledFor(_LEVELS[level])


def event(level: Level, name: str, **fields: Field) -> None:
    """Log one event, such as `session.open`. Fields that are None are left out."""
    if is_on(level):
        told = {key: value for key, value in fields.items() if value is not None}
        _logger.log(_LEVELS[level], name, extra={"fields": told})


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Field] = getattr(record, "fields", {})
        words = [_time(record), record.levelname.lower(), record.getMessage()]
        words += [f"{key}={_text(value)}" for key, value in fields.items()]
        return " ".join(words)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        head = {"time": _time(record), "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps(head | getattr(record, "fields", {}))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _text(value: Field) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value).lower() if isinstance(value, bool) else str(value)  # as in JSON
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


class FloodGate:
    """Lets a burst of events of one kind through, then `per_s` a second; counts those that it holds back.

    Time is `now_s`, of any clock that does not go back.
    """

    def __init__(self, *, burst: int, per_s: float):
        self._burst = burst
        self._per_s = per_s
        self._allowance = float(burst)
        self._last_s: float | None = None
        self._held_back = 0

    def admit(self, now_s: float) -> int | None:
        """Return how many were held back since the last one that was let through; None to hold this one back too."""
        if self._last_s is not None:
            self._allowance = min(self._burst, self._allowance + (now_s - self._last_s) * self._per_s)
        self._last_s = now_s
        if self._allowance < 1:
            self._held_back += 1
            return None
        self._allowance -= 1
        return self.take_held_back()

    def hold_back(self, count: int) -> None:
        """Count events that it has let through, or told of, as held back all the same."""
        self._held_back += count

    def take_held_back(self) -> int:
        """Return how many were held back and not told of yet, and count from zero."""
        held_back, self._held_back = self._held_back, 0
        return held_back


class Floods:
    """Events that strangers can cause as often as they like, each name behind a flood gate of its own."""

    _BURST = 20
    _PER_S = 5.0

    def __init__(self) -> None:
        self._gates: dict[str, FloodGate] = {}

    def event(self, now_s: float, level: Level, name: str, **fields: Field) -> None:
        """Log the event unless too many of its name came lately; `held_back` tells how many did not get here."""
        gate = self._gates.get(name)
        if gate is None:
            gate = self._gates[name] = FloodGate(burst=self._BURST, per_s=self._PER_S)
        held_back = gate.admit(now_s)
        if held_back is not None:
            event(level, name, **fields, held_back=held_back or None)

    def report(self) -> None:
        """Tell of what was held back since, so that the end of a flood is not lost. To be called now and then."""
        for name, gate in self._gates.items():
            if held_back := gate.take_held_back():
                event("warning", f"{name}.flood", held_back=held_back)
