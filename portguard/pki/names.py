"""The names that go into certificates: SPIFFE IDs of clients, DNS names and addresses of gateways."""

import re
from collections.abc import Iterable
from ipaddress import ip_address

from cryptography import x509

from portguard.errors import UsageError
from portguard.identity import names as identity

# ub-common-name and ub-organization-name, RFC 5280 appendix A.1
ATTRIBUTE_MAX = 64

# With a suffix, such a name still fits the 255 bytes of a file name. SPIFFE itself would allow about 1,800.
CLIENT_NAME_MAX = 200

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def trust_domain(text: str) -> str:
    """Return `text` if it is a SPIFFE trust domain. Raises UsageError."""
    try:
        identity.check_trust_domain(text)
    except identity.Malformed as error:
        raise UsageError(f"trust domain: {error}") from error
    return text


def client(text: str) -> str:
    """Return `text` if it can be a client's name: by the rule with which gateways read it back. Raises UsageError.

    That is the path of a SPIFFE ID without its leading slash: segments of letters, digits, `.`, `_` and `-`, split by
    `/`, none of them empty, `.` or `..`.
    """
    if len(text) > CLIENT_NAME_MAX:
        raise UsageError(f"client name: expected at most {CLIENT_NAME_MAX} characters, got {len(text)}")
    try:
        identity.check_name(text, "spiffe")
    except identity.Malformed as error:
        raise UsageError(f"client name: {error}") from error
    return text


def spiffe_id(domain: str, name: str = "") -> str:
    """`spiffe://DOMAIN/NAME`, or without a name the ID of the trust domain itself."""
    return f"spiffe://{domain}/{name}" if name else f"spiffe://{domain}"


def client_file_stem(name: str) -> str:
    """Return the file name, without suffix, for what a client is given: `ci/deploy` becomes `ci+deploy`.

    A name cannot contain `+`, so no two names share a file.
    """
    return client(name).replace("/", "+")


def gateway(texts: Iterable[str]) -> list[x509.GeneralName]:
    """Return the SAN entries for a gateway, in order, doubles removed. Raises UsageError.

    Each text is a DNS name, `*.` and a DNS name of two labels or more, or an IP address.
    """
    names = list(dict.fromkeys(map(_gateway, texts)))
    if not names:
        raise UsageError("gateway names: expected at least one, got none")
    return names


def _gateway(text: str) -> x509.GeneralName:
    # ip_address() takes "fe80::1%eth0"; a certificate cannot say %eth0.
    if "%" not in text:
        try:
            return x509.IPAddress(ip_address(text))
        except ValueError:
            pass
    name = text.lower().removesuffix(".")
    labels = name.removeprefix("*.").split(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise UsageError(
            f"gateway name: expected a DNS name (international ones as xn--…), *.NAME, or an IP address, got {text!r}"
        )
    if name.startswith("*.") and len(labels) < 2:
        raise UsageError(
            f"gateway name: expected two labels or more after '*.', because TLS clients match no fewer, got {text!r}"
        )
    return x509.DNSName(name)
