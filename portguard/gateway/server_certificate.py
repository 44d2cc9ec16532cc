"""The certificates that the gateway shows: can TLS use them, are they in date, do they bear the names it goes by.

What makes every handshake fail is a Problem. What fails for some clients only is a warning, a line of text: a gateway
that is reached by CONNECT alone needs no wildcard.
"""

import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from portguard.errors import Problem
from portguard.identity.authorities import UNREADABLE, canonical_name
from portguard.identity.revocation import RevocationList
from portguard.identity.validity import ends_soon, written
from portguard.policy.model import Service
from portguard.tls.chain import UnusableChain, load_chain

Finding = Problem | str
"""What is wrong, or a warning."""

RENEW_BEFORE = timedelta(days=14)
"""When to warn of a certificate that expires, as `ends_soon` has it."""

_MOST_LISTED = 5


def check_key_pair(certificate_path: str, key_path: str, files: Mapping[str, bytes]) -> Iterator[Problem]:
    """Whether TLS can use a certificate chain and its key. A file that `files` lacks is a problem told elsewhere.

    Keys with a passphrase are refused: nobody is there to type it when the gateway restarts at night, and one in a file
    beside the key protects nothing. (One that systemd hands over has been taken off before.)
    """
    if certificate_path not in files or key_path not in files:
        return
    try:
        load_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), files[certificate_path], files[key_path])
    except UnusableChain as error:
        yield Problem(key_path if error.part == "key" else certificate_path, "", error.expected, error.found)


def date_warnings(path: str, chain: Iterable[x509.Certificate], at: datetime) -> Iterator[str]:
    """Which are out of date at `at` (aware), or soon will be; for certificates that trouble some services only."""
    for number, certificate in enumerate(chain):
        yield from map(str, _check_dates(path, number, certificate, at))


def revocation_warnings(path: str, pem: bytes, lists: Iterable[RevocationList]) -> Iterator[str]:
    """What of the chain that is shown is revoked by the lists that the gateway has for its clients.

    Few clients look at lists. Yet what was issued below a CA that is revoked is to be replaced: who has the key of that
    can be the gateway, to all who trust its root.
    """
    for number, certificate in enumerate(x509.load_pem_x509_certificates(pem)):
        for each in lists:
            if certificate.serial_number in each.serials and canonical_name(certificate.issuer) == each.issuer:
                what = "the certificate" if number == 0 else f"its issuer {certificate.subject.rfc4514_string()}"
                yield f"{path}: {what} is revoked by {each.issuer_name}; have another one issued"


def check_server_certificate(
    path: str, pem: bytes, gateway_name: str, services: Iterable[Service], at: datetime
) -> Iterator[Finding]:
    """Whether a chain that TLS can use is in date at `at` (aware), for servers, and covers the names of section 2."""
    chain = x509.load_pem_x509_certificates(pem)
    for number, certificate in enumerate(chain):
        yield from _check_dates(path, number, certificate, at)
    try:
        covered = _dns_names(chain[0])
        for_servers = _is_for_servers(chain[0])
    except UNREADABLE as error:
        yield Problem(path, "", "a certificate with readable extensions", str(error))
        return
    if not for_servers:
        yield f"{path}: expected a certificate for servers (extended key usage), got another; clients will refuse it"
    shown = _listed(covered) if covered else "no DNS name"
    if missing := _missing_names(covered, gateway_name, services):
        yield f"{path}: expected a certificate for {_listed(missing)}, which clients look for, got one for {shown}"


def _check_dates(path: str, number: int, certificate: x509.Certificate, at: datetime) -> Iterator[Finding]:
    which = "" if number == 0 else f"certificate {number + 1}"
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if at < start:
        yield Problem(path, which, f"a certificate that is valid at {written(at)}", f"one from {written(start)} on")
    elif at > end:
        yield Problem(path, which, f"a certificate that is valid at {written(at)}", f"one until {written(end)}")
    elif ends_soon(certificate, at, RENEW_BEFORE):
        yield f"{path}: {which or 'the certificate'} expires on {written(end)}"


def _missing_names(covered: Sequence[str], gateway_name: str, services: Iterable[Service]) -> list[str]:
    services = list(services)
    wildcard = f"*.{gateway_name}"
    names = [gateway_name]
    if not all(_covers(covered, f"{service.name}.{gateway_name}") for service in services):
        # The wildcard stands for all services, as one certificate for each would have to change with the policy.
        names.append(wildcard)
    names += [alias for service in services for alias in service.aliases]
    return [name for name in names if not _covers(covered, name)]


def _covers(patterns: Iterable[str], name: str) -> bool:
    """Whether one of `patterns` matches: exactly, or with `*` as its whole first label (RFC 6125 6.4.3)."""
    wildcard = f"*.{name.partition('.')[2]}"
    return any(pattern in (name, wildcard) for pattern in patterns)


def _dns_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in names.get_values_for_type(x509.DNSName)]


def _is_for_servers(certificate: x509.Certificate) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return bool({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(usages))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
