"""Identities and groups, and the text by which people write them.

    alice                      name `alice` of the default trust
    corp:alice@example.com     name `alice@example.com` of the trust `corp`
    spiffe://corp.example/ns/a name `ns/a` of the trust whose trust domain is `corp.example`
    @corp:dba                  group `dba`, from certificates of the trust `corp`

Code carries the pair (trust, name), never the joined text: a name may itself hold a colon. Text is split at the first
colon, and what stands before it must be a trust: a mistyped trust is an error, not a name of the default one.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Source = Literal["spiffe", "email", "dns", "upn", "cn"]
"""The one place of a certificate from which a trust reads names."""

SOURCES: tuple[Source, ...] = get_args(Source)

# RFC 1034 3.1 and RFC 5321 4.5.3.1; SPIFFE-ID 2.3 (of the whole URI); a generous bound where X.520 has 64.
_LONGEST_BYTES: Mapping[Source, int] = {"spiffe": 2048, "email": 320, "dns": 253, "upn": 320, "cn": 256}
_LONGEST_GROUP_BYTES = 256

_SPIFFE_SCHEME = "spiffe://"
_SPIFFE_SEGMENT = re.compile(r"[A-Za-z0-9._*-]+")
_SPIFFE_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_DNS_LABEL = re.compile(r"[a-z0-9_*-]{1,63}")
# RFC 5322 3.2.3, dot-atom, without "/": `*` does not match one, so `*@example.com` in a deny entry would miss the name.
_EMAIL_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+=?^_`{|}~.-]+")
_TRUST = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")


class Malformed(ValueError):
    """Text does not name what it should. `expected` and `found` complete "expected …, got …"."""

    def __init__(self, expected: str, found: str):
        self.expected = expected
        self.found = found
        super().__init__(f"expected {expected}, got {found}")


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """Who is calling: a name, and the trust that vouches for it. Equal names of two trusts are two identities."""

    trust: str
    name: str

    def written(self, default_trust: str | None) -> str:
        """The text that `parse_identity` reads back; without prefix only where nothing else could be meant."""
        if self.trust == default_trust and ":" not in self.name and not self.name.startswith("@"):
            return self.name
        return f"{self.trust}:{self.name}"


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """A group that a certificate of `trust` puts its holder in. Groups of the policy itself are not of this type."""

    trust: str
    name: str

    def written(self) -> str:
        """The text that `parse_group` reads back, `@corp:dba`; always with its trust, as `@dba` is a policy's group."""
        return f"@{self.trust}:{self.name}"


@dataclass(frozen=True, slots=True)
class Namespace:
    """What must be known of the trusts to read written names."""

    sources: Mapping[str, Source]  # by the trust's name
    default: str | None  # the trust of names without a prefix; None: every name needs one
    domains: Mapping[str, str]  # trust domain -> trust, of the trusts that have one

    def split(self, text: str) -> tuple[str, str]:
        """Return (trust, rest) of a written name or pattern; the rest is not checked yet. Raises Malformed."""
        if text.startswith(_SPIFFE_SCHEME):
            domain, _, path = text.removeprefix(_SPIFFE_SCHEME).partition("/")
            if domain not in self.domains:
                raise Malformed(f"a trust domain of a trust ({_listed(self.domains)})", repr(text))
            return self.domains[domain], path
        before, colon, after = text.partition(":")
        if colon:
            if before not in self.sources:
                raise Malformed(f'a trust before the first ":" ({_listed(self.sources)})', repr(text))
            return before, after
        if self.default is None:
            raise Malformed(self.prefix_expected, repr(text))
        return self.default, text

    @property
    def prefix_expected(self) -> str:
        """What is expected of a name without a prefix where no trust is the default."""
        known = _listed(self.sources)
        return f'a trust and a colon before the name, as no trust has "default = true" ({known})'


def parse_identity(text: str, namespace: Namespace) -> Identity:
    """Read one written identity, in the form in which certificates of its trust yield it (see `fold`).

    Raises Malformed for an unknown trust, for a name that no certificate of that trust can yield, for a pattern and
    for a group.
    """
    if text.startswith("@"):
        raise Malformed("an identity, not a group", repr(text))
    trust, rest = namespace.split(text)
    source = namespace.sources[trust]
    name = fold(rest, source)
    check_name(name, source)
    return Identity(trust, name)


def parse_group(text: str, namespace: Namespace) -> Group:
    """Read a group from certificates, `@corp:dba`. Raises Malformed, also for a group without a trust."""
    if not text.startswith("@"):
        raise Malformed('a group, such as "@corp:dba"', repr(text))
    trust, colon, name = text[1:].partition(":")
    if not colon or trust not in namespace.sources:
        raise Malformed(f'a trust between "@" and ":" ({_listed(namespace.sources)})', repr(text))
    check_group_name(name)
    return Group(trust, name)


def check_trust_name(text: str) -> None:
    """Raise Malformed unless `text` can name a trust. `spiffe` cannot: its names could read as `spiffe://…`."""
    if not _TRUST.fullmatch(text) or text == "spiffe":
        raise Malformed('lower-case letters, digits, "-" and "_", at most 63, and not "spiffe"', repr(text))


def check_trust_domain(text: str) -> None:
    """Raise Malformed unless `text` is a trust domain (SPIFFE-ID 2.1: lower case, no port, at most 255 bytes)."""
    if not _SPIFFE_DOMAIN.fullmatch(text):
        raise Malformed('a trust domain of lower-case letters, digits, ".", "-" and "_"', repr(text))


def fold(text: str, source: Source) -> str:
    """Bring a name or pattern into the case in which it is compared.

    Host names have no case (RFC 4343), nor has the domain of an e-mail address, while its local part has (RFC 5280
    7.5). User principal names have none at all in the directories that issue them. The rest is compared as it is.
    Certificates and policies pass through here alike: else a deny entry in the wrong case would silently never match.
    """
    match source:
        case "dns":
            return text.lower() if text.isascii() else text
        case "email":
            local, at, domain = text.rpartition("@")
            return local + at + domain.lower() if at and domain.isascii() else text
        case "upn":
            return unicodedata.normalize("NFC", text.lower())
        case _:
            return text


def check_name(name: str, source: Source, *, wildcards: bool = False) -> None:
    """Raise Malformed unless certificates of a trust with this `source` can yield `name`. *Fails closed.*

    `name` is folded already. With `wildcards`, `*` may stand for something: the text of a pattern is checked. Without,
    a name that holds one is refused, because written down it could not be told from a pattern.
    """
    _check_text(name, _LONGEST_BYTES[source])
    if not wildcards and "*" in name:
        raise Malformed('a name without "*"', repr(name))
    loose = wildcards and "*" in name
    match source:
        case "spiffe":
            _check_spiffe_path(name)
        case "dns":
            if not all(map(_DNS_LABEL.fullmatch, name.split("."))):
                raise Malformed("a host name", repr(name))
        case "email" | "upn":
            _check_address(name, source, loose=loose)
        case "cn":
            pass


def check_group_name(name: str) -> None:
    """Raise Malformed unless a certificate can put its holder in a group of this name. *Fails closed.*"""
    _check_text(name, _LONGEST_GROUP_BYTES)


def parse_spiffe_id(uri: str) -> tuple[str, str]:
    """Split a SPIFFE ID into trust domain and path, the path without its leading slash. *Fails closed.*

    By SPIFFE-ID 2: lower-case scheme and trust domain, no user, port, query, fragment or percent-encoding; segments
    of letters, digits, ".", "-" and "_", none empty, "." or ".."; at most 2048 bytes. By X509-SVID 5.2 a path is
    required. Raises Malformed.
    """
    if len(uri) > _LONGEST_BYTES["spiffe"]:
        raise Malformed("a SPIFFE ID of at most 2048 bytes", f"{len(uri)} bytes")
    if not uri.startswith(_SPIFFE_SCHEME):
        raise Malformed('a URI that begins with "spiffe://"', repr(uri))
    domain, _, path = uri.removeprefix(_SPIFFE_SCHEME).partition("/")
    check_trust_domain(domain)
    check_name(path, "spiffe")
    return domain, path


def _check_text(text: str, longest_bytes: int) -> None:
    if not text:
        raise Malformed("a name", "nothing")
    # A lone surrogate is not printable, so it must be found before encode() would trip over it.
    if not text.isprintable():
        raise Malformed("printable characters only", repr(text))
    if (length := len(text.encode())) > longest_bytes:
        raise Malformed(f"at most {longest_bytes} bytes", f"{length} bytes")
    if text.strip() != text:
        raise Malformed("no space at either end", repr(text))
    # Two spellings of one visible name would be two identities, and a deny entry would hit only one of them.
    if not unicodedata.is_normalized("NFC", text):
        raise Malformed("characters in composed form (NFC)", ascii(text))


def _check_spiffe_path(path: str) -> None:
    for segment in path.split("/"):
        if segment in {"", ".", ".."} or not _SPIFFE_SEGMENT.fullmatch(segment):
            raise Malformed(
                'a SPIFFE path: segments of letters, digits, ".", "-", "_", none of them empty, "." or ".."', repr(path)
            )


def _check_address(name: str, source: Source, *, loose: bool) -> None:
    local, at, domain = name.partition("@")
    if " " in name or "/" in name:
        raise Malformed('an address without spaces and "/"', repr(name))
    if not at and loose:
        # `*Example.com` could end in either part of an address, of which only one has case.
        if source == "email" and name != name.lower():
            raise Malformed('lower case, or a pattern with "@"', repr(name))
        return
    if not local or not domain or "@" in domain:
        raise Malformed('an address with one "@"', repr(name))
    if source == "email" and not (_EMAIL_LOCAL.fullmatch(local) and all(map(_DNS_LABEL.fullmatch, domain.split(".")))):
        raise Malformed("an e-mail address", repr(name))


def _listed(names: Mapping[str, object]) -> str:
    return f"known: {', '.join(sorted(names))}" if names else "none is known"
