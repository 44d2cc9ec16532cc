"""The kinds of values that only `portguard.toml` has: how each is read from its text, and what is expected of it."""

import re
from collections.abc import Callable
from typing import Literal

from portguard.control.access import Principal
from portguard.gateway.redis_url import is_redis_url
from portguard.identity.names import SOURCES, Malformed, Source, check_trust_domain
from portguard.policy.addresses import parse_host_name
from portguard.policy.quantities import Unexpected, parse_duration, parse_duration_or_off, parse_size
from portguard.policy.toml import PATH, Kind, choice, or_none, text_kind

# A name is written below the gateway's, `SERVICE.GATEWAY-NAME`: 253 characters less a label of 63 and a dot.
_LONGEST_GATEWAY_NAME = 189
# A file of the audit that is smaller would be little more than its own beginning and end.
_LEAST_ROTATE_BYTES = 64 * 1024
# A certificate that ends sooner would hardly reach its owner.
_LEAST_RENEW_FOR_S = 60.0
_FLEET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,188}", re.ASCII)


def _parse_rotate_size(text: str) -> int | None:
    if text == "off":
        return None
    size = parse_size(text)
    if size < _LEAST_ROTATE_BYTES:
        raise Unexpected(ROTATE_SIZE.expected)
    return size


def _parse_renew_for(text: str) -> float:
    duration_s = parse_duration(text)
    if duration_s < _LEAST_RENEW_FOR_S:
        raise Unexpected(RENEW_FOR.expected)
    return duration_s


def _parse_gateway_name(text: str) -> str:
    name = parse_host_name(text)
    if "_" in name:
        # OpenSSL matches no wildcard below such a name, and `cert gateway` issues nothing for it.
        raise Unexpected('a host name of letters, digits, "-" and "." such as "bastion.example.com"')
    if len(name) > _LONGEST_GATEWAY_NAME:
        raise Unexpected(f"a host name of at most {_LONGEST_GATEWAY_NAME} characters")
    return name


def _parse_trust_domain(text: str) -> str:
    try:
        check_trust_domain(text)
    except Malformed as error:
        raise Unexpected(error.expected) from None
    return text


def _parse_groups(text: str) -> str:
    prefix = text.removeprefix("uri:")
    # Without a prefix every URI of a certificate would be a group, the SPIFFE ID itself too.
    if text != "ou" and (prefix == text or not prefix or not prefix.isprintable()):
        raise Unexpected(GROUPS.expected)
    return text


def _parse_ledger_url(text: str) -> str:
    if text != "sqlite" and not is_redis_url(text):
        raise Unexpected(LEDGER_URL.expected)
    return text


def _parse_fleet(text: str) -> str:
    if text and _FLEET_NAME.fullmatch(text) is None:
        raise Unexpected(FLEET.expected)
    return text


def _parse_account(text: str) -> str:
    if not text or not text.isprintable() or any(c in text for c in ":/ ,"):
        raise Unexpected(ACCOUNT.expected)
    return text


def _parse_principal(text: str) -> Principal:
    kind, _, name = text.partition(":")
    if kind not in {"user", "group"}:
        raise Unexpected(PRINCIPAL.expected)
    try:
        return Principal("user" if kind == "user" else "group", _parse_account(name))
    except Unexpected:
        raise Unexpected(PRINCIPAL.expected) from None


def _kind(parse: Callable[[str], str], expected: str) -> Kind[str]:
    return text_kind(parse, expected, "")


IDENTITY: Kind[Source | None] = or_none(choice(*SOURCES))
CONFINEMENT: Kind[Literal["auto", "required"]] = choice("auto", "required")
CRL_EXPIRED: Kind[Literal["refuse", "accept"]] = choice("refuse", "accept")
WHEN_UNAVAILABLE: Kind[Literal["refuse", "allow"]] = choice("refuse", "allow")
SYNC: Kind[Literal["written", "disk"]] = choice("written", "disk")
COPY: Kind[Literal["none", "journal"]] = choice("none", "journal")
FORMAT: Kind[Literal["text", "json"]] = choice("text", "json")
LEVEL: Kind[Literal["debug", "info", "warning", "error"]] = choice("debug", "info", "warning", "error")
ROTATE_SIZE: Kind[int | None] = text_kind(
    _parse_rotate_size, 'a size of at least 64KiB such as "100MB", or "off"', None
)
RENEW_FOR: Kind[float] = text_kind(_parse_renew_for, 'a duration of at least 1m such as "30d"', 0.0)
GATEWAY_NAME = _kind(_parse_gateway_name, 'a host name such as "bastion.example.com"')
TRUST_DOMAIN = _kind(_parse_trust_domain, 'a trust domain such as "example.com"')
GROUPS = _kind(_parse_groups, '"ou", or "uri:" and a prefix such as "uri:urn:acme:group:"')
PASSWORD_FILE = text_kind(lambda text: PATH.convert(text) if text else "", 'a path, or ""', "")
DRAIN: Kind[float | None] = text_kind(parse_duration_or_off, 'a duration such as "5m", or "off"', None)
FLEET = _kind(_parse_fleet, 'up to 189 letters, digits, ".", "-" and "_" such as "bastions"')
# There may be a password in it.
LEDGER_URL = text_kind(
    _parse_ledger_url, '"sqlite", or the URL of a Redis such as "rediss://redis.example.com:6379/0"', "", secret=True
)
ACCOUNT = _kind(_parse_account, "the name of a group of this host")
PRINCIPAL = text_kind(_parse_principal, '"user:NAME" or "group:NAME"', Principal("user", ""))
