"""What certificates are worth by all that the authority knows: their record, and what the root has revoked.

A certificate falls with the CA that issued it, and the record of the certificate itself says nothing of that.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from portguard.errors import Refused
from portguard.pki.authority import Authority
from portguard.pki.profiles import OF_CLIENTS, Kind, Revocation
from portguard.pki.revocation import revoked_issuers
from portguard.pki.store import Record, Status
from portguard.reasons import Reason


@dataclass(frozen=True, slots=True)
class Standing:
    """`revocation` is the certificate's own or that of `revoked_issuer`, the CA that issued it; None: neither is."""

    status: Status
    revocation: Revocation | None
    revoked_issuer: x509.Name | None


class Standings:
    """Of all that one authority issued, as its root's list is now. Raises PkiError where that cannot be read."""

    def __init__(self, authority: Authority):
        self._issuers = revoked_issuers(authority)

    def of(self, record: Record, at: datetime) -> Standing:
        """What `record` is worth at `at`. What was revoked by itself tells that, and not of its issuer."""
        if self._issuers and record.revocation is None:
            issuer = x509.load_der_x509_certificate(record.der).issuer
            if issuer in self._issuers:
                return Standing(Status.REVOKED, self._issuers[issuer], issuer)
        return Standing(record.status(at), record.revocation, None)


def expect_good_issuer(authority: Authority, certificate: x509.Certificate, what: str) -> None:
    """Raise Refused for `what` a CA issued that is revoked, or gone from the directory. *Fails closed*.

    Raises PkiError where the root's list cannot be read.
    """
    if authority.issuer_of(certificate) is None:
        raise Refused(Reason.CERTIFICATE_UNTRUSTED, f"the CA that issued {what} was replaced")
    if certificate.issuer in revoked_issuers(authority):
        raise Refused(Reason.CERTIFICATE_REVOKED, f"the CA that issued {what} is revoked")


def left_to_clients(authority: Authority, revoked: Iterable[Record], at: datetime) -> dict[str, Counter[Kind]]:
    """Count what the clients of these certificates have beside them that is good, by name and kind; no zeros."""
    names = {record.name for record in revoked if record.kind in OF_CLIENTS}
    standings = Standings(authority)
    left: dict[str, Counter[Kind]] = {}
    for each in authority.store.records():
        if each.kind in OF_CLIENTS and each.name in names and standings.of(each, at).status.is_good:
            left.setdefault(each.name, Counter())[each.kind] += 1
    return left
