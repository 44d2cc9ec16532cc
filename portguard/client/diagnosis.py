"""What stands between a client and its services, step by step: certificate, names, connection, gateway, policy.

Each step needs those before it, so the first that fails is the last one but for those that stand alone.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

from cryptography import x509

from portguard.client.credentials import Credentials
from portguard.client.gateway import Gateway, Presence
from portguard.client.local_ports import LOOPBACK
from portguard.client.refusal import RefusedByGateway, one_line
from portguard.errors import PortguardError
from portguard.gateway.resolve import Names, Unresolved
from portguard.identity.authorities import UNREADABLE
from portguard.identity.validity import ends_soon
from portguard.observe.findings import ANY_SERVICE, Finding, failed, ok, warning
from portguard.reasons import Reason

RENEW_BEFORE = timedelta(days=7)
"""When to warn of a certificate that ends, as `ends_soon` has it."""

_MOST_ADDRESSES = 8
_MOST_LISTED = 5
_NOT_NEEDED = "`portguard connect` and CONNECT do not need it"

_ISSUE_ANEW = "have a new one issued"
_ADVICE: Mapping[str, str] = {
    Reason.CERTIFICATE_EXPIRED: _ISSUE_ANEW,
    Reason.CERTIFICATE_NOT_YET_VALID: "check this machine's clock",
    Reason.CERTIFICATE_REVOKED: "ask who runs the gateway; a new one would have to be issued",
    Reason.CERTIFICATE_UNTRUSTED: "the gateway trusts another authority, or the file lacks the intermediate",
    Reason.CERTIFICATE_USAGE: "have one issued for clients",
    Reason.CRL_EXPIRED: "tell who runs the gateway: it needs a new revocation list",
    Reason.LOCKED: "ask who runs the gateway",
}


async def diagnose(credentials: Credentials, at: datetime) -> AsyncIterator[Finding]:
    """Look at all that a client with these credentials needs at `at` (aware).

    Raises ConfigurationError when they do not fit together. It asks the gateway what `whoami` and `services` ask,
    opens no session, and binds local ports for a moment.
    """
    gateway = Gateway(credentials)
    for finding in _certificates(credentials, at):
        yield finding
    host = gateway.address.host
    try:
        addresses = await _resolved(host)
    except Unresolved as error:
        yield failed("name", f"{host} does not resolve: {error}", "check the gateway in the profile, and DNS")
        return
    if not _is_address(host):
        yield ok("name", f"{host} is {', '.join(addresses)}")
    answers = await asyncio.gather(*(gateway.presence(address) for address in addresses), return_exceptions=True)
    present = [answer for answer in answers if isinstance(answer, Presence)]
    for address, answer in zip(addresses, answers, strict=True):
        yield _presence(address, answer, elsewhere=bool(present))
    if not present:
        return
    for finding in _gateway_certificate(present[0].certificate, credentials.profile.server_name, at):
        yield finding
    if host == credentials.profile.server_name and not _is_address(host):
        yield await _wildcard(host, addresses)
    for finding in _identity(present[0].whoami):
        yield finding
    try:
        services = await gateway.services()
    except PortguardError as error:
        yield failed("services", str(error))
        return
    for finding in _services(services, credentials.profile.local_ports):
        yield finding


def _presence(address: str, answer: Presence | BaseException, *, elsewhere: bool) -> Finding:
    """What came of asking at an address; `elsewhere` whether another one answers."""
    if isinstance(answer, Presence):
        return ok("gateway", f"{address} answers, and proves to be the gateway")
    if not isinstance(answer, PortguardError):
        raise answer
    if elsewhere:
        return warning("gateway", f"at {address}: {answer}", "some connections go there, and fail or are slow")
    advice = _ADVICE.get(answer.reason, "") if isinstance(answer, RefusedByGateway) else ""
    return failed("gateway", f"at {address}: {answer}", advice)


def _certificates(credentials: Credentials, at: datetime) -> Iterator[Finding]:
    path, certificate = credentials.profile.certificate, credentials.certificate
    if at < certificate.not_valid_before_utc:
        begins = _written(certificate.not_valid_before_utc)
        yield failed("certificate", f"{path} is valid from {begins} on", "check this machine's clock")
    else:
        renew = f"`portguard cert renew` gets the next one where the gateway renews; else {_ISSUE_ANEW}"
        yield _until("certificate", str(path), certificate, at, _ISSUE_ANEW, before=renew)
    for number, anchor in enumerate(credentials.anchors()):
        which = f"{credentials.profile.ca}" + (f", certificate {number + 1}" if number else "")
        yield _until("authority", which, anchor, at, "ask for the authority's new certificate")


def _until(
    subject: str, what: str, certificate: x509.Certificate, at: datetime, advice: str, *, before: str | None = None
) -> Finding:
    """Look at its end; `before` is what to do before that, where it is not what to do after it."""
    end = certificate.not_valid_after_utc
    if at > end:
        return failed(subject, f"{what} ended on {_written(end)}", advice)
    text = f"{what} is valid until {_written(end)}"
    if ends_soon(certificate, at, RENEW_BEFORE):
        return warning(subject, text, before or advice)
    return ok(subject, text)


async def _resolved(host: str) -> list[str]:
    """Return the addresses of the host, the first few. Raises Unresolved."""
    names = Names()
    try:
        return [address[0] for _, address in await names.resolve(host)][:_MOST_ADDRESSES]
    finally:
        await names.close()


def _gateway_certificate(certificate: x509.Certificate, name: str, at: datetime) -> Iterator[Finding]:
    yield _until("gateway", "its certificate", certificate, at, "tell who runs the gateway")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    except UNREADABLE:  # TLS looks at less of it
        yield warning("gateway", "its certificate has a part that cannot be read", "tell who runs the gateway")
        return
    if not _is_address(name) and f"*.{name}" not in {each.lower() for each in names.get_values_for_type(x509.DNSName)}:
        text = f"its certificate is not for *.{name}: clients that name services by SNI will refuse it"
        yield warning("wildcard", text, _NOT_NEEDED)


async def _wildcard(host: str, addresses: Sequence[str]) -> Finding:
    try:
        found = await _resolved(f"{ANY_SERVICE}.{host}")
    except Unresolved:
        found = []
    if set(found) & set(addresses):
        return ok("wildcard", f"*.{host} leads there too")
    leads = f"leads to {', '.join(found)}" if found else "does not resolve"
    return warning("wildcard", f"*.{host} {leads}: clients that name services by SNI do not get there", _NOT_NEEDED)


def _identity(whoami: Mapping[str, Any]) -> Iterator[Finding]:
    yield ok("identity", one_line(whoami.get("identity")) or "the gateway does not say")
    refusals = whoami.get("refusals")
    if isinstance(refusals, list) and refusals and isinstance(refusals[0], dict):
        last = refusals[0]
        reason, subject = one_line(last.get("reason")), one_line(last.get("service"))
        text = f"the last was {reason}{f' of {subject}' if subject else ''} at {one_line(last.get('time'))}"
        yield warning("refusals", text, "`portguard whoami` shows the last ten")


def _services(document: Mapping[str, Any], own_ports: Mapping[str, int]) -> Iterator[Finding]:
    listed = document.get("services")
    services = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    names = [one_line(each.get("name")) for each in services]
    if not names:
        yield failed("services", "no role lets you in anywhere now", "ask who writes the gateway's policy")
        return
    more = len(names) - _MOST_LISTED
    yield ok("services", ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else ""))
    for name, each in zip(names, services, strict=True):
        if isinstance(refusal := each.get("refusal"), dict):
            text = f"{one_line(refusal.get('reason'))}: {one_line(refusal.get('message'))}"
            yield warning(name, f"a session would be refused now, with {text}")
        port = own_ports.get(name, each.get("local_port"))
        if isinstance(port, int) and 1 <= port <= 65535 and (trouble := _local_port(port)) is not None:
            advice = f"`portguard connect {name}` takes a free port instead; -L names another"
            yield warning(name, f"port {port} of {LOOPBACK} cannot be had: {trouble}", advice)


def _local_port(port: int) -> str | None:
    try:
        with socket.create_server((LOOPBACK, port)):
            return None
    except OSError as error:
        # create_server() puts an address into strerror.
        return os.strerror(error.errno) if error.errno else str(error)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _written(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
