"""From `[trusts.*]` and the files that they name to the trusts that judge clients."""

import os
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.errors import Problem
from portguard.gateway.configuration import Configuration, TrustSettings
from portguard.gateway.server_certificate import date_warnings
from portguard.identity.authorities import UNREADABLE, read_authority
from portguard.identity.names import Malformed
from portguard.identity.pem import parse_certificates
from portguard.identity.revocation import RevocationList, parse_revocation_lists
from portguard.identity.trust import Trust, Trusts, UnusableTrusts
from portguard.identity.validity import ends_soon, written
from portguard.pki import ca_certificates

T = TypeVar("T")

RENEW_BEFORE = timedelta(days=30)
"""When to warn of an authority that expires, as `ends_soon` has it: everybody must learn of the next one."""

RENEW_LIST_BEFORE = timedelta(days=7)
"""When to warn of a revocation list that no later one follows; of a short-lived one, in the last fifth of its life."""


def read_trusts(
    configuration: Configuration, files: Mapping[str, bytes], problems: list[Problem]
) -> tuple[tuple[Trust, ...], Trusts | None]:
    """Read all trusts. What is wrong is added to `problems`; then the trusts that judge clients are None.

    `problems` holds what is known already: what is wrong with the same key of the configuration is not told twice, and
    files that `files` lacks are told of elsewhere.
    """
    trusts = tuple(filter(None, (_read_trust(settings, files, problems) for settings in configuration.trusts)))
    try:
        return trusts, Trusts(trusts)
    except UnusableTrusts as error:
        told = {problem.key for problem in problems}
        for problem in error.problems:
            table = f"trusts.{problem.trust}"
            if table not in told and f"{table}.{problem.key}" not in told:
                key = f"{table}.{problem.key}"
                problems.append(Problem(configuration.path, key, problem.expected, problem.found))
        return trusts, None


def authority_problems(
    configuration: Configuration, trusts: tuple[Trust, ...], files: Mapping[str, bytes]
) -> Iterator[Problem]:
    """Which authorities do not issue for the trusts that they are to renew certificates of.

    What keeps their files from being read is told elsewhere.
    """
    directories = {settings.name: settings.authority for settings in configuration.trusts}
    for trust in trusts:
        directory = directories[trust.name]
        root = os.path.join(directory, ca_certificates.ROOTS) if directory is not None else ""
        if root not in files:
            continue
        try:
            mismatch = authority_mismatch(parse_certificates(files[root])[0], trust)
        except ValueError:
            mismatch = "the directory of an authority of portguard's", f"another {ca_certificates.ROOTS}"
        if mismatch is not None:
            yield Problem(configuration.path, f"trusts.{trust.name}.authority", *mismatch)


def authority_mismatch(anchor: x509.Certificate, trust: Trust) -> tuple[str, str] | None:
    """What is expected and found where the authority with this root does not issue for the trust; None where it does.

    *Fails closed*. Raises Malformed for a root that cannot be read.
    """
    root = read_authority(anchor.public_bytes(Encoding.DER))
    anchors = [read_authority(each.public_bytes(Encoding.DER)) for each in trust.anchors]
    if not any((root.key, root.subject) == (each.key, each.subject) for each in anchors):
        return "an authority whose certificate is in ca", root.name
    if _own_trust_domain(anchor) != trust.trust_domain:
        return f"an authority of the trust domain {trust.trust_domain}", str(_own_trust_domain(anchor))
    return None


def authority_warnings(configuration: Configuration, files: Mapping[str, bytes], at: datetime) -> Iterator[str]:
    """Which intermediates, by which certificates are renewed, are out of date at `at` (aware), or will be soon."""
    for settings in configuration.trusts:
        path = os.path.join(settings.authority, ca_certificates.ISSUING) if settings.authority is not None else ""
        if path in files:
            yield from date_warnings(path, parse_certificates(files[path]), at)


def trust_warnings(path: str, trusts: tuple[Trust, ...], at: datetime) -> Iterator[str]:
    """What is out of date at `at` (aware), or will be soon, and trust domains that are not the authorities' own.

    `path` is the configuration's.
    """
    for trust in trusts:
        subject = f"{path}: trusts.{trust.name}"
        for anchor in trust.anchors:
            domain = _own_trust_domain(anchor)
            if trust.trust_domain is not None and domain not in {None, trust.trust_domain}:
                name = anchor.subject.rfc4514_string()
                yield f"{subject}.trust_domain: expected {domain}, as {name} has it, got {trust.trust_domain}"
            start, end, name = anchor.not_valid_before_utc, anchor.not_valid_after_utc, anchor.subject.rfc4514_string()
            if at < start:
                yield f"{subject}.ca: {name} is not valid before {written(start)}; its clients are refused until then"
            elif at > end:
                yield f"{subject}.ca: {name} expired on {written(end)}; its clients are refused"
            elif ends_soon(anchor, at, RENEW_BEFORE):
                yield f"{subject}.ca: {name} expires on {written(end)}"
        consequence = (
            "are refused" if trust.crl_expired == "refuse" else "are accepted unless an older list revokes them"
        )
        for crl in trust.crls:
            if not crl.is_current(at):
                staleness = _staleness(crl, at)
                yield f"{subject}.crl: the list of {crl.issuer_name} is {staleness}; its clients {consequence}"
            elif (until := _soon_out_of_date(crl, trust.crls, at)) is not None:
                yield f"{subject}.crl: the list of {crl.issuer_name} is out of date from {written(until)} on"


def _own_trust_domain(anchor: x509.Certificate) -> str | None:
    """The domain of an authority's own SPIFFE ID, X509-SVID 3.1; None where it has none, or several."""
    try:
        names = anchor.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    domains = {uri.removeprefix("spiffe://").partition("/")[0] for uri in uris if uri.startswith("spiffe://")}
    return domains.pop() if len(domains) == 1 else None


def _read_trust(settings: TrustSettings, files: Mapping[str, bytes], problems: list[Problem]) -> Trust | None:
    """None where the authorities cannot be read."""
    anchors = _parsed(settings.ca, parse_certificates, files, problems)
    lists = [_parsed(path, parse_revocation_lists, files, problems) for path in settings.crl]
    if anchors is None:
        return None
    return Trust(
        name=settings.name,
        anchors=anchors,
        source=settings.identity,
        trust_domain=settings.trust_domain,
        default=settings.default,
        groups=settings.groups,
        crls=tuple(crl for crls in lists for crl in crls or ()),
        crl_expired=settings.crl_expired,
    )


def _parsed(path: str, parse: Callable[[bytes], T], files: Mapping[str, bytes], problems: list[Problem]) -> T | None:
    if path not in files:
        return None
    try:
        return parse(files[path])
    except Malformed as error:
        problems.append(Problem(path, "", error.expected, error.found))
        return None


def _soon_out_of_date(crl: RevocationList, others: tuple[RevocationList, ...], at: datetime) -> datetime | None:
    """When a list that is current is out of date, None: not soon, or one of `others` goes on where it ends."""
    end = crl.next_update
    if end is None or end - at >= min(RENEW_LIST_BEFORE, (end - crl.this_update) / 5):
        return None
    same = (each.next_update for each in others if each.issuer == crl.issuer)
    return None if any(each is None or each > end for each in same) else end


def _staleness(crl: RevocationList, at: datetime) -> str:
    if at < crl.this_update:
        return f"not valid before {written(crl.this_update)}"
    return f"out of date since {written(crl.next_update or crl.this_update)}"
