"""When what a configuration is made of goes out of date: certificates, authorities, revocation lists."""

from collections.abc import Iterable

from cryptography import x509

from portguard.gateway.snapshot import Snapshot
from portguard.identity.authorities import CanonicalName
from portguard.identity.revocation import RevocationList


def certificate_expiries(snapshot: Snapshot) -> dict[str, float]:
    """When the first certificate of each use expires, in seconds since the epoch.

    Uses are `gateway` (what clients are shown), `trust:NAME` (the authorities of its clients), `service:NAME` (what the
    gateway shows to the service) and `service-ca:NAME` (the authorities of the service).
    """
    expiries = {"gateway": _first(x509.load_pem_x509_certificates(snapshot.certificate))}
    for trust in snapshot.trusts.every:
        expiries[f"trust:{trust.name}"] = _first(trust.anchors)
    for name, material in snapshot.upstream_tls.items():
        if material.certificate is not None:
            expiries[f"service:{name}"] = _first(x509.load_pem_x509_certificates(material.certificate))
        if material.ca:
            expiries[f"service-ca:{name}"] = _first(x509.load_pem_x509_certificates(material.ca.encode()))
    return expiries


def crl_expiries(snapshot: Snapshot) -> dict[str, float]:
    """When the first issuer of each trust is without a list that is current, in seconds since the epoch.

    Trusts without lists, or whose lists never go out of date, are left out.
    """
    expiries = {}
    for trust in snapshot.trusts.every:
        latest: dict[CanonicalName, float] = {}
        for crl in trust.crls:
            latest[crl.issuer] = max(latest.get(crl.issuer, 0.0), _until(crl))
        first = min(latest.values(), default=float("inf"))
        if first != float("inf"):
            expiries[trust.name] = first
    return expiries


def _first(certificates: Iterable[x509.Certificate]) -> float:
    return min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)


def _until(crl: RevocationList) -> float:
    return crl.next_update.timestamp() if crl.next_update is not None else float("inf")
