"""What the rows of a fleet say: text, which anybody may have written who can write to the same Redis.

Everything raises NotAFleet for what is not as portguard writes it. *Fails closed*: nothing is made of a part of a row.
"""

import re

from portguard.limits.fleet import (
    Others,
    OthersConnects,
    SessionsElsewhere,
    StampedLock,
    read_counted,
    read_lock,
    read_owner,
)
from portguard.limits.ledger import Owner, UsageRow
from portguard.limits.rates import Connects
from portguard.policy.quantities import Period

_LAST_S = 10**11  # no period ends later, and nobody was heard of then
_MOST_SESSIONS = 1_000_000
_NUMBER = re.compile(r"-?[0-9]{1,18}", re.ASCII)


class NotAFleet(Exception):
    """What is there cannot be used. `expected` and `found` complete "expected …, got …"."""

    def __init__(self, expected: str, found: str):
        super().__init__(f"expected {expected}, got {found}")
        self.expected = expected
        self.found = found


def _numbers(text: str) -> tuple[int, int, int]:
    numbers = [read_number(each) for each in text.split(" ", 3)]
    if len(numbers) != 3 or min(numbers) < 0:
        raise NotAFleet("use as portguard writes it", f"{text[:100]!a}")
    used, granted, resets = numbers
    return used, granted, resets


def read_number(text: str) -> int:
    """Read what a script or a row says. A script makes `inf` and `nan` of numbers that are none of ours."""
    if _NUMBER.fullmatch(text) is None:
        raise NotAFleet("use as portguard writes it", f"{text[:100]!a}")
    return int(text)


def read_span(span: str, end_text: str = "0") -> tuple[Period, int, int]:
    """Read a period: which kind, when it begins, and when it ends."""
    try:
        period, start_text = span.split(":")
        whole = Period(period), int(start_text), int(end_text)
    except ValueError:
        raise NotAFleet("periods as portguard writes them", f"{span[:100]!a}") from None
    if not (0 <= whole[1] < _LAST_S and 0 <= whole[2] < _LAST_S):
        raise NotAFleet("periods as portguard writes them", f"{span[:100]!a}")
    return whole


def others_from(owner: str, span: str, total: str, mine: str | None) -> Others:
    """What others have: all, less what this gateway has of it."""
    used, granted, resets = _numbers(total)
    own_used, own_granted, own_resets = _numbers(mine) if mine is not None else (0, 0, resets)
    period, start_s, _ = read_span(span)
    others_used = used - (own_used if own_resets == resets else 0)
    return Others(_owner(owner), period, start_s, max(0, others_used), max(0, granted - own_granted), resets)


def own_from(others: Others, end_s: int, mine: str) -> UsageRow:
    """What this gateway has of it: nothing of what was reset since."""
    used, granted, resets = _numbers(mine)
    used = used if resets == others.resets else 0
    return UsageRow(others.owner, others.period, others.start_s, end_s, used, granted, others.resets)


def _owner(text: str) -> Owner:
    try:
        return read_owner(text)
    except ValueError:
        raise NotAFleet("an owner as portguard writes it", f"{text[:100]!a}") from None


def connects_from(owner: str, gateway: str, text: str) -> OthersConnects:
    """How often an owner has connected to a gateway."""
    try:
        Connects.from_text(text)
    except ValueError:
        raise NotAFleet("connects as portguard writes them", f"{text[:100]!a}") from None
    return OthersConnects(_owner(owner), gateway, text)


def sessions_from(counted: str, gateway: str, text: str) -> SessionsElsewhere:
    """How many sessions a gateway has."""
    count = read_number(text)
    try:
        if not 0 <= count <= _MOST_SESSIONS:
            raise ValueError
        return SessionsElsewhere(read_counted(counted), gateway, count)
    except ValueError:
        raise NotAFleet("sessions as portguard writes them", f"{counted[:100]!a}") from None


def lock_from(target: str, rest: str) -> StampedLock:
    """A lock, or that it was taken away."""
    try:
        return read_lock(target, rest)
    except ValueError:
        raise NotAFleet("locks as portguard writes them", f"{target[:100]!a}") from None


def host_from(text: str) -> tuple[str, int]:
    """The host of a gateway, and when that was heard of."""
    heard_text, _, host = text.partition(" ")
    heard_s = read_number(heard_text)
    if not 0 <= heard_s < _LAST_S:
        raise NotAFleet("gateways as portguard writes them", f"{text[:100]!a}")
    return host, heard_s
