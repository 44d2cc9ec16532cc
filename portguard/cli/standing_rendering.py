"""How whoami and services look to people, on a terminal of 80 columns. Lines are not escaped yet."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Any

from portguard.cli.tables import table_lines
from portguard.cli.zones import zone_here
from portguard.client.refusal import one_line, written_wait
from portguard.limits.periods import written_period
from portguard.policy.quantities import Period, format_duration, parse_rate, written_size

_WIDTH = 80
_LEAST_DESCRIPTION = 16
_DAY_S = 86_400

_RATE_UNITS = {1: "second", 60: "minute", 3600: "hour", _DAY_S: "day"}


def whoami_lines(document: Mapping[str, Any], now: datetime) -> Iterator[str]:
    """Lines about the caller. Raises LookupError, TypeError or ValueError for a document of another kind."""
    certificate = document["certificate"]
    not_after = datetime.fromisoformat(certificate["not_after"])
    yield from _facts(
        [
            ("identity", one_line(document["identity"])),
            ("trust", one_line(document["trust"])),
            ("groups", ", ".join(map(one_line, document["groups"])) or "none"),
            ("certificate", f"{_local(not_after)}, {_days(not_after, now)}"),
            ("serial", one_line(certificate["serial"])),
            ("fingerprint", one_line(certificate["fingerprint"])),
            ("source", one_line(document["source"]) or "not known"),
        ]
    )
    refusals = document["refusals"]
    yield ""
    yield "Refused or ended by the gateway, the latest first:" if refusals else "Nothing was refused of late."
    for refusal in refusals:
        yield f"  {_local(datetime.fromisoformat(refusal['time']))}  {one_line(refusal['reason'])}"
        service = one_line(refusal["service"])
        yield from _wrapped(f"{f'{service}: ' if service else ''}{one_line(refusal['message'])}")
        yield f"    session {one_line(refusal['session'])}"


def services_lines(document: Mapping[str, Any], now: datetime) -> Iterator[str]:
    """Lines about services and limits. Raises LookupError, TypeError or ValueError likewise."""
    services = document["services"]
    if not services:
        yield "No service may be reached now; `portguard whoami` says as whom."
        return
    yield from _table(services)
    yield from _refused_now(services)
    zone = zone_here(one_line(document["timezone"]))
    for role, service in {one_line(service["role"]): service for service in services}.items():
        facts = list(_limits(service, zone, now))
        yield ""
        yield f"As {role}, with times in {zone}:" if facts else f"As {role}: no limits."
        yield from _facts(facts, indent="  ")


def _table(services: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    header = ("SERVICE", "PORT", "ROLE")
    rows = [
        (one_line(service["name"]), str(service["local_port"] or "any"), one_line(service["role"]))
        for service in services
    ]
    room = max(
        _LEAST_DESCRIPTION, _WIDTH - sum(2 + max(map(len, column)) for column in zip(header, *rows, strict=True))
    )
    descriptions = [textwrap.shorten(one_line(service["description"]), room, placeholder="…") for service in services]
    full = [(*row, description) for row, description in zip(rows, descriptions, strict=True)]
    yield from table_lines((*header, "DESCRIPTION" if any(descriptions) else ""), full, right=frozenset({1}))


def _refused_now(services: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Why sessions would be refused now, with the services that it is so for. A gateway of before tells of none."""
    names: dict[tuple[str, str], list[str]] = {}
    waits_s: dict[tuple[str, str], float | None] = {}  # those of one reason differ by what asking has taken
    for service in services:
        if (refusal := service.get("refusal")) is not None:
            why = one_line(refusal["reason"]), one_line(refusal["message"])
            names.setdefault(why, []).append(one_line(service["name"]))
            waits_s[why] = refusal["retry_after_s"]
    if names:
        yield ""
        yield "A new session would be refused now:"
    for (reason, message), those in names.items():
        wait_s = waits_s[reason, message]
        again = f" (try again in {written_wait(max(1, math.ceil(wait_s)))})" if wait_s is not None else ""
        yield f"  {reason}"
        yield from _wrapped(f"{', '.join(those)}: {message}{again}")


def _limits(service: Mapping[str, Any], zone: tzinfo, now: datetime) -> Iterator[tuple[str, str]]:
    limits = service["limits"]
    if (until := service["until"]) is not None:
        yield "until", f"{datetime.fromisoformat(until).astimezone(zone):%Y-%m-%d %H:%M}"
    if (session_s := service["session_s"]) is not None:
        yield "a session", f"at most {format_duration(session_s)}"
    if (sessions := limits["max_sessions"]) is not None:
        yield "sessions", f"{int(sessions['open'])} of {int(sessions['limit'])} open"
    if (connects := limits["connect_rate"]) is not None:
        rate, wait_s = parse_rate(connects["limit"]), connects["retry_after_s"]
        next_one = f"in {written_wait(math.ceil(wait_s))}" if wait_s else "now"
        yield "connections", f"{rate.count} a {_RATE_UNITS[rate.per_s]}, the next one {next_one}"
    if (bandwidth := limits["bandwidth_bytes_per_s"]) is not None:
        yield "bandwidth", f"{written_size(bandwidth)}/s in each direction"
    for quota in limits["quotas"]:
        shared = ", shared" if quota["pooled"] else ""
        yield f"{written_period(Period(quota['period']))} quota{shared}", _quota(quota, zone, now)


def _quota(quota: Mapping[str, Any], zone: tzinfo, now: datetime) -> str:
    limit, left = written_size(quota["limit_bytes"]), quota["left_bytes"]
    if quota["granted_bytes"]:
        limit += f" + {written_size(quota['granted_bytes'])}"
    ends = datetime.fromisoformat(quota["ends"]).astimezone(zone)
    day = "" if (ends - now).total_seconds() < _DAY_S else f"{ends:%Y-%m-%d} "
    left_of = f"{written_size(left)} of {limit} left" if left else f"{limit} used up"
    return f"{left_of}; renews at {day}{ends:%H:%M}"


def _facts(facts: Sequence[tuple[str, str]], indent: str = "") -> Iterator[str]:
    """Labels and what stands beside them, aligned; what is too long goes on below itself."""
    width = max((len(label) for label, _ in facts), default=0) + 2
    for label, text in facts:
        first = f"{indent}{label:<{width}}"
        yield from textwrap.wrap(
            text, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False
        ) or [first.rstrip()]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def _local(at: datetime) -> str:
    """In this machine's own zone."""
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S %Z}"


def _days(not_after: datetime, now: datetime) -> str:
    days = (not_after - now).days
    if days < 0:
        return "which is over"  # by this machine's clock: to the gateway it still is valid
    return "less than a day left" if days == 0 else f"{days} {'day' if days == 1 else 'days'} left"
