"""What a look at the Redis of a fleet finds. Nothing is changed there; it is a look from this host, by its clock.

To be imported only when the ledger is in a Redis: it imports `redis`, which is an extra.
"""

import shlex
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import redis

from portguard.limits.redis_link import FAILURES, RedisSettings, because, connect, is_untrusted
from portguard.limits.redis_rights import missing_rights
from portguard.limits.redis_rows import FleetRows, Member
from portguard.limits.redis_texts import NotAFleet
from portguard.observe.findings import Finding, failed, ok, warning

_OLDEST = (6, 2)
_MOST_LISTED = 20
_CLOCKS_S = 1.0  # by which clocks may differ
_HERE = ("localhost", "127.0.0.1", "::1")
_DURABILITY = {
    "always": "loses nothing when its host fails",
    "everysec": "loses up to a second when its host fails",
}


def diagnose_redis(settings: RedisSettings) -> Iterator[Finding]:
    """Look at the server, at what the gateway's user may do there, and at the fleet. It takes some seconds at most."""
    try:
        client = connect(settings)
    except ValueError:
        # What redis-py says of a URL may have the password in it.
        yield failed("ledger", f"{settings.shown}: expected a URL that redis-py takes, got another")
        return
    try:
        yield from _server(client, settings)
        yield from _rights(client, settings)
        yield from _persistence(client)
        yield from _memory(client)
        yield from _clock(client)
        yield from _fleet(client, settings)
    except FAILURES as error:
        expected = error.expected if isinstance(error, NotAFleet) else "a Redis that can be used"
        found = because(error, settings.secrets)
        yield failed("ledger", f"{settings.shown}: expected {expected}, got {found}", _advice(error))
    except (TypeError, ValueError, LookupError, AttributeError):
        yield failed("ledger", f"{settings.shown}: expected answers as Redis gives them, got others")
    finally:
        client.close()
        client.connection_pool.disconnect()


def _server(client: Any, settings: RedisSettings) -> Iterator[Finding]:
    """It needs no right but to be let in."""
    words = client.execute_command("HELLO")
    told = words if isinstance(words, dict) else dict(zip(words[::2], words[1::2], strict=False))
    server, version, mode = (str(told.get(word, "")) for word in ("server", "version", "mode"))
    text = f"{settings.shown} answers: {server} {version}"
    if server == "redis" and _numbers(version) < _OLDEST:
        yield failed("ledger", text, f"a fleet needs Redis {'.'.join(map(str, _OLDEST))} or newer, or Valkey")
    elif mode != "standalone":
        yield failed("ledger", f"{text}, as a {mode}", "Redis Cluster and Sentinel are not spoken to")
    else:
        yield ok("ledger", text)
    parts = urlsplit(settings.url)
    if parts.scheme == "redis" and parts.hostname not in _HERE:
        advice = "where others are on the network, have Redis speak TLS, and write rediss:// in ledger.url"
        yield warning("ledger", f"{settings.shown} is spoken to without TLS, the password too", advice)


def _rights(client: Any, settings: RedisSettings) -> Iterator[Finding]:
    missing = missing_rights(client, settings.fleet)
    lacking = [f"+{command}" for command in missing.commands]
    if missing.keys:
        lacking.append(f"~portguard:{{{settings.fleet}}}:*")
    if lacking:
        advice = f"`redis-cli {shlex.join(['ACL', 'SETUSER', settings.user, *lacking])}`"
        yield failed("ledger rights", f"the user {settings.user} lacks {', '.join(lacking)}", advice)
    else:
        yield ok("ledger rights", "all that a gateway needs")


def _persistence(client: Any) -> Iterator[Finding]:
    appends, sync, save = (_setting(client, name) for name in ("appendonly", "appendfsync", "save"))
    if appends is None:
        yield warning("ledger persistence", *_not_told("CONFIG GET", "+config|get"))
    elif appends == "yes" and sync in _DURABILITY:
        yield ok("ledger persistence", f"appendonly yes, appendfsync {sync}: it {_DURABILITY[sync]}")
    elif appends == "yes":
        text = f"appendfsync {sync}: what it loses when its host fails is up to that host"
        yield warning("ledger persistence", text, "set appendfsync everysec, or always")
    else:
        kept = f"what came since the last snapshot (save {save})" if save else "everything"
        text = f"appendonly {appends}: when Redis ends, {kept} is lost that no gateway which runs knows of"
        yield warning("ledger persistence", text, "set appendonly yes")


def _memory(client: Any) -> Iterator[Finding]:
    policy = _setting(client, "maxmemory-policy")
    if policy == "noeviction":
        yield ok("ledger memory", "maxmemory-policy noeviction: nothing is forgotten")
    elif policy is not None:
        text = f"maxmemory-policy {policy}: it forgets use when its memory is full"
        yield warning("ledger memory", text, "set maxmemory-policy noeviction")


def _clock(client: Any) -> Iterator[Finding]:
    before_s = time.time()
    try:
        seconds, microseconds = client.execute_command("TIME")
    except redis.ResponseError:
        yield warning("ledger clock", *_not_told("TIME", "+time"))
        return
    after_s = time.time()
    ahead_s = int(seconds) + int(microseconds) / 1e6 - (before_s + after_s) / 2
    text = f"that of Redis is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} this host's"
    if abs(ahead_s) > _CLOCKS_S + (after_s - before_s) / 2:
        yield warning("ledger clock", text, "the clocks of a fleet are to agree to a second or so: look at NTP at both")
    else:
        yield ok("ledger clock", text)


def _fleet(client: Any, settings: RedisSettings) -> Iterator[Finding]:
    rows = FleetRows(client, settings.fleet, "")
    try:
        rows.check_format()
        members = sorted(rows.members(), key=lambda each: (not each.runs, each.host, each.gateway))
    except redis.exceptions.NoPermissionError:
        return  # told already
    running = [_named(each) for each in members if each.runs]
    away = [f"{_named(each)}, last heard of at {_date(each.heard_s)}" for each in members if not each.runs]
    text = f"{settings.fleet}: {_listed(running) or 'no gateway runs'}"
    yield ok("fleet", f"{text}; not running: {_listed(away)}" if away else text)


def _setting(client: Any, name: str) -> str | None:
    """None where Redis does not tell."""
    try:
        found = client.execute_command("CONFIG GET", name)
    except redis.ResponseError:
        return None
    value = found.get(name) if isinstance(found, dict) else None
    return None if value is None else str(value)


def _not_told(command: str, right: str) -> tuple[str, str]:
    return f"not known: the user may not ask ({command})", f"{right} lets doctor look; a gateway does without"


def _advice(error: Exception) -> str:
    if is_untrusted(error):
        return "?ssl_ca_certs=/path in ledger.url names another authority than the system's"
    match error:
        case NotAFleet():
            return "another portguard, or something else, has written there"
        case redis.AuthenticationError():
            return "look at the user in ledger.url and at ledger.password_file; a credential reaches the unit alone"
        case redis.ReadOnlyError():
            return "ledger.url is to lead to the primary"
        case redis.BusyLoadingError():
            return "wait until it has"
        case redis.ResponseError():
            return "look at the log of Redis"
    return "look whether Redis runs, and may be reached from here; gateways go on by ledger.when_unavailable"


def _named(member: Member) -> str:
    return f"{member.host} ({member.gateway})"


def _listed(gateways: list[str]) -> str:
    more = len(gateways) - _MOST_LISTED
    return f"{', '.join(gateways[:_MOST_LISTED])} and {more} more" if more > 0 else ", ".join(gateways)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in version.split(".") if each.isascii() and each.isdecimal())


def _date(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
