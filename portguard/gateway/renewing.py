"""Renewals: the next certificate of who has one. What is looked at before, and how it is issued.

Either the request is for the key of the certificate that is to be renewed, and so signed by it, or there is a proof by
that key (`portguard.pki.proof`).
"""

from datetime import datetime, timedelta

from cryptography import x509

from portguard.errors import Refused
from portguard.gateway.issuing import Asked, issuing_authority, settings_of
from portguard.gateway.messages import RenewalWanted
from portguard.gateway.snapshot import Snapshot
from portguard.identity.issued import check_issued
from portguard.pki.errors import PkiError
from portguard.pki.issued import SignedCertificate
from portguard.pki.proof import Purpose, check_proof
from portguard.pki.renewal import renew
from portguard.pki.request import read_request
from portguard.reasons import Reason


def check(snapshot: Snapshot, wanted: RenewalWanted, at: datetime) -> Asked:
    """Say who asks, and for which key. *Fails closed*: raises Refused."""
    check_issued(wanted.chain)
    caller = snapshot.trusts.identify(wanted.chain, wanted.chain, at)
    leaf = wanted.chain[0]
    certificate = x509.load_der_x509_certificate(leaf)
    try:
        request = read_request(wanted.request, "request")
        if request.public_key != certificate.public_key():
            if wanted.proof is None:
                raise PkiError("request", "the key of the certificate, or a proof by it", "another key without one")
            check_proof(Purpose.RENEWAL, wanted.proof, leaf, request.der, at.timestamp())
    except PkiError as error:
        raise Refused(Reason.BAD_REQUEST, str(error)) from None
    trust = caller.identity.trust
    if settings_of(snapshot, trust).authority is None:
        raise Refused(Reason.BAD_REQUEST, f"certificates of trust {trust} are not renewed here")
    return Asked(caller.identity, certificate, request.public_key)


def issue(snapshot: Snapshot, asked: Asked, at: datetime) -> SignedCertificate:
    """Issue it. Raises Refused by the authority's own record, and where what it issues is not taken now; PkiError."""
    authority = issuing_authority(snapshot, asked, at)
    valid_for = timedelta(seconds=settings_of(snapshot, asked.identity.trust).renew_for_s)
    return renew(authority, asked.certificate, asked.public_key, asked.identity.name, at=at, valid_for=valid_for)
