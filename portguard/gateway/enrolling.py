"""Enrolments: the first certificate of who was invited. What is looked at before, and how it is issued.

The certificate of an invitation names nobody: it proves that the authority has issued it, and the record of the
authority says whom it is for, and whether it is of use still. There has to be a proof by its key, over the request
(`portguard.pki.proof`): a worker has seen the certificate, and could ask for a key of its own.
"""

from datetime import datetime, timedelta

from cryptography import x509

from portguard.errors import Refused
from portguard.gateway.issuing import Asked, issuing_authority, open_authority_of, settings_of
from portguard.gateway.messages import EnrolmentWanted
from portguard.gateway.snapshot import Snapshot
from portguard.identity.issued import check_issued
from portguard.identity.names import Identity
from portguard.pki.enrolment import enroll, invited
from portguard.pki.errors import PkiError
from portguard.pki.issued import SignedCertificate
from portguard.pki.proof import Purpose, check_proof
from portguard.pki.request import read_request
from portguard.reasons import Reason


def check(snapshot: Snapshot, wanted: EnrolmentWanted, at: datetime) -> Asked:
    """Say who was invited, and for which key a certificate is wanted.

    *Fails closed*: raises Refused; PkiError when the authority's record cannot be read.
    """
    check_issued(wanted.chain)
    trust = snapshot.trusts.trust_of_nameless(wanted.chain, wanted.chain, at)
    leaf = wanted.chain[0]
    certificate = x509.load_der_x509_certificate(leaf)
    try:
        request = read_request(wanted.request, "request")
        if wanted.proof is None:
            raise PkiError("request", "a proof by the key of the invitation", "none")
        check_proof(Purpose.ENROLMENT, wanted.proof, leaf, request.der, at.timestamp())
    except PkiError as error:
        raise Refused(Reason.BAD_REQUEST, str(error)) from None
    if settings_of(snapshot, trust).authority is None:
        raise Refused(Reason.BAD_REQUEST, f"invitations to trust {trust} are not taken here")
    name = invited(open_authority_of(snapshot, trust), certificate)
    return Asked(Identity(trust, name), certificate, request.public_key)


def issue(snapshot: Snapshot, asked: Asked, at: datetime) -> SignedCertificate:
    """Issue it, or return that of the first time. Raises Refused by the authority's own record, PkiError.

    Refused also where what the authority issues is not taken here now.
    """
    authority = issuing_authority(snapshot, asked, at)
    valid_for = timedelta(seconds=settings_of(snapshot, asked.identity.trust).renew_for_s)
    return enroll(authority, asked.certificate, asked.public_key, asked.identity.name, at=at, valid_for=valid_for)
