"""What certificates are worth by all that the authority knows: their record, and what the root has revoked.

A certificate falls with the CA that issued it, and the record of the certificate itself says nothing of that.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from portguard.pki.authority import Authority
from portguard.pki.profiles import Kind, Revocation
from portguard.pki.revocation import revoked_issuers
from portguard.pki.store import Record, Status


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


def left_to_clients(authority: Authority, revoked: Iterable[Record], at: datetime) -> dict[str, int]:
    """Count what the clients of these certificates have beside them, neither revoked nor expired; by name, no zeros."""
    names = dict.fromkeys(record.name for record in revoked if record.kind is Kind.CLIENT)
    good, standings = {Status.VALID, Status.NOT_YET_VALID}, Standings(authority)
    clients = (each for each in authority.store.records() if each.kind is Kind.CLIENT)
    left = Counter(each.name for each in clients if standings.of(each, at).status in good)
    return {name: left[name] for name in names if left[name]}
