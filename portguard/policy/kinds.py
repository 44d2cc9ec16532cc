"""The kinds of values that only a policy holds, for `toml.Table`."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from typing import TypeVar
from zoneinfo import ZoneInfo

from portguard.identity.names import Group, Identity, Malformed, Namespace, parse_group, parse_identity
from portguard.identity.patterns import Glob, Pattern, parse_pattern
from portguard.policy.addresses import parse_address, parse_host_port
from portguard.policy.hours import DAY_MINUTES, Window, parse_window
from portguard.policy.model import Address, Member, PolicyGroup, Selector, Upstream
from portguard.policy.quantities import Unexpected
from portguard.policy.toml import INSTANT, Kind, text_kind

V = TypeVar("V")

# RFC 1035 2.3.1, with digits in front as RFC 1123 2.1 allows.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,62})", re.ASCII)
_SERVICE_GLOB = re.compile(r"[a-z0-9*-]{1,63}", re.ASCII)
# sun_path of unix(7), less the final NUL.
_LONGEST_SOCKET_PATH_BYTES = 107
_NOBODY = Identity("", "")
# Far from the borders of datetime, where arithmetic with time zones overflows.
_FIRST_YEAR, _LAST_YEAR = 1970, 9000


def is_service_name(text: str) -> bool:
    """Whether a service can be called so: a DNS label in lower case."""
    return _LABEL.fullmatch(text) is not None


def is_entry_name(text: str) -> bool:
    """Whether a role or a group can be called so. No ":", which would make `@NAME` a group of certificates."""
    return _NAME.fullmatch(text) is not None


SERVICE_NAME_EXPECTED = 'a name of lower-case letters, digits and "-", at most 63, "-" neither first nor last'
ENTRY_NAME_EXPECTED = 'a name of letters, digits, "-", "_" and ".", at most 63, the first one a letter or digit'


def or_off(kind: Kind[V]) -> Kind[V | None]:
    """The same kind, or "off", which is read as None. It lifts a default."""

    def convert(value: object) -> V | None:
        if value == "off":
            return None
        try:
            return kind.convert(value)
        except Unexpected as error:
            raise Unexpected(f'{error}, or "off"') from None

    return Kind(f'{kind.expected}, or "off"', convert, None)


def check_instant(at: datetime) -> datetime:
    """Return `at`, an instant to decide for; raises Unexpected when it is so far off that zones cannot be applied."""
    if not _FIRST_YEAR <= at.year <= _LAST_YEAR:
        raise Unexpected(f"a date in the years {_FIRST_YEAR} to {_LAST_YEAR}")
    return at


def parse_zone(text: str) -> tzinfo:
    """A time zone of the IANA data base, `Europe/Zurich`. Raises Unexpected."""
    if text == "UTC":
        # A host without the data base has this one all the same.
        return UTC
    try:
        return ZoneInfo(text)
    except (ValueError, LookupError, OSError):
        # OSError: a file that may not be read; of the tzdata package also a folder, such as "America".
        raise Unexpected(_ZONE_EXPECTED) from None


def parse_selector(text: str) -> Selector:
    """Services: `orders-db`, `metrics-*`, `zone:data`, `zone:data+prod`. Raises Unexpected."""
    if text.startswith("zone:"):
        zones = text.removeprefix("zone:").split("+")
        if not all(map(is_service_name, zones)):
            raise Unexpected('a zone, or several joined by "+", such as "zone:data+prod"')
        return Selector(zones=frozenset(zones))
    if not _SERVICE_GLOB.fullmatch(text) or "**" in text:
        raise Unexpected(_SELECTOR_EXPECTED)
    return Selector(glob=Glob(text))


def parse_upstream(text: str) -> Upstream:
    """Where to dial: `10.0.3.7:5432`, `[::1]:5432`, `db.internal:5432` or `unix:/run/x.sock`. Raises Unexpected."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path or len(path.encode()) > _LONGEST_SOCKET_PATH_BYTES:
            raise Unexpected(f'"unix:" and an absolute path of at most {_LONGEST_SOCKET_PATH_BYTES} bytes')
        return Upstream(path=path)
    address = parse_host_port(text)
    return Upstream(address.host, address.port)


def parse_own_group(text: str, identity: Identity, namespace: Namespace) -> Group:
    """A group in which the identity's certificate puts it: `dba`, or `@corp:dba`. Raises Unexpected.

    A certificate has groups of its own trust only.
    """
    try:
        group = parse_group(text if text.startswith("@") else f"@{identity.trust}:{text}", namespace)
    except Malformed as error:
        raise Unexpected(error.expected) from None
    if group.trust != identity.trust:
        raise Unexpected(f"a group of the identity's own trust, {identity.trust}")
    return group


def member_kind(namespace: Namespace | None) -> Kind[Member]:
    """Members of roles and denies. `namespace` None: names are not read, and any text stands for the blank."""

    def parse(text: str) -> Member:
        if text.startswith("@") and ":" not in text:
            if not is_entry_name(text[1:]):
                raise Unexpected('"@" and the name of a group of [groups]')
            return PolicyGroup(text[1:])
        return _plain_member(text, namespace)

    return text_kind(parse, _MEMBER_EXPECTED, _NOBODY)


def group_member_kind(namespace: Namespace | None) -> Kind[Identity | Pattern | Group]:
    """Members of the policy's groups; `namespace` as for `member_kind`."""

    def parse(text: str) -> Identity | Pattern | Group:
        if text.startswith("@") and ":" not in text:
            # Nested groups would need an order to read them in, and a rule for circles.
            raise Unexpected("no group of [groups] inside another, only identities, patterns and @TRUST:GROUP")
        return _plain_member(text, namespace)

    return text_kind(parse, _MEMBER_EXPECTED, _NOBODY)


def identity_kind(namespace: Namespace | None) -> Kind[Identity]:
    """One identity, no pattern; `namespace` as for `member_kind`."""
    return text_kind(
        _well_formed(lambda text: parse_identity(text, namespace) if namespace is not None else _NOBODY),
        'an identity such as "alice" or "corp:alice@example.com"',
        _NOBODY,
    )


def _plain_member(text: str, namespace: Namespace | None) -> Identity | Pattern | Group:
    if namespace is None:
        return _NOBODY
    try:
        if text.startswith("@"):
            if "*" in text:
                # It would be taken for the name itself, and a deny of it would never match.
                raise Unexpected("the exact name of a group; groups have no patterns")
            return parse_group(text, namespace)
        # Most of 100,000 members are exact; as Identity they take a tenth of the memory of a Pattern.
        return parse_pattern(text, namespace) if "*" in text else parse_identity(text, namespace)
    except Malformed as error:
        raise Unexpected(error.expected) from None


def _well_formed(parse: Callable[[str], V]) -> Callable[[str], V]:
    def wrapped(text: str) -> V:
        try:
            return parse(text)
        except Malformed as error:
            raise Unexpected(error.expected) from None

    return wrapped


def _parse_alpn(text: str) -> str:
    # RFC 7301 3.1 allows any byte; nobody registered a name that is not printable ASCII without spaces.
    if not 1 <= len(text) <= 255 or not text.isascii() or not text.isprintable() or " " in text:
        raise Unexpected(_ALPN_EXPECTED)
    return text


def _parse_entry_name(text: str) -> str:
    if not is_entry_name(text):
        raise Unexpected(ENTRY_NAME_EXPECTED)
    return text


def _parse_zone_label(text: str) -> str:
    if not is_service_name(text):
        raise Unexpected(SERVICE_NAME_EXPECTED)
    return text


_ZONE_EXPECTED = 'a time zone of this system\'s IANA data base, such as "Europe/Zurich" or "UTC"'
_SELECTOR_EXPECTED = 'a service, a pattern such as "metrics-*", or zones such as "zone:data+prod"'
_MEMBER_EXPECTED = 'a member such as "alice", "corp:*@example.com", "@oncall" or "@corp:dba"'
_ALPN_EXPECTED = 'an ALPN protocol such as "postgresql" or "http/1.1"'

ENTRY_NAME = text_kind(_parse_entry_name, ENTRY_NAME_EXPECTED, "")
ZONE_LABEL = text_kind(_parse_zone_label, 'a zone such as "prod"', "")
TIME_ZONE: Kind[tzinfo] = text_kind(parse_zone, _ZONE_EXPECTED, UTC)
SELECTOR = text_kind(parse_selector, _SELECTOR_EXPECTED, Selector())
UPSTREAM = text_kind(parse_upstream, 'an address such as "10.0.3.7:5432" or "unix:/run/x.sock"', Upstream("", 0))
ALPN = text_kind(_parse_alpn, _ALPN_EXPECTED, "")
HOURS = text_kind(parse_window, 'hours such as "Mon-Fri 07:00-20:00"', Window((), 0, DAY_MINUTES))
SOURCE: Kind[Address | None] = text_kind(parse_address, 'an IP address such as "10.0.3.7"', None)
TEST_INSTANT = Kind(INSTANT.expected, lambda value: check_instant(INSTANT.convert(value)), INSTANT.blank)
