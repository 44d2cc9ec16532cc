"""The first certificate of a client that was invited: once, and for a key that it has made itself.

An invitation (`Authority.invite`) is a certificate without a name, and its key. Whom it is for is in the authority's
record alone, and so is whether it was used. Whoever asks again with the same key gets the same certificate: the answer
may have been lost.
"""

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from portguard.errors import Refused
from portguard.pki.authority import Authority
from portguard.pki.issued import SignedCertificate
from portguard.pki.profiles import Kind
from portguard.pki.standing import expect_good_issuer
from portguard.reasons import Reason


def invited(authority: Authority, invitation: x509.Certificate) -> str:
    """Return whom an invitation is for, used or not. *Fails closed*: raises Refused where it is none of this record's.

    Raises PkiError when the record cannot be read.
    """
    record = authority.store.record_of(invitation)
    if record is None or record.kind is not Kind.INVITATION:
        raise Refused(Reason.CERTIFICATE_UNTRUSTED, "the authority has no record of the invitation")
    return record.name


def enroll(
    authority: Authority,
    invitation: x509.Certificate,
    public_key: CertificatePublicKeyTypes,
    name: str,
    *,
    at: datetime,
    valid_for: timedelta,
) -> SignedCertificate:
    """Issue the certificate for which `name` was invited, or return that of the first time, for the same key.

    The invitation's chain and dates were checked before. *Fails closed*: raises Refused as `Store.enroll` does, for an
    invitation of a CA that is revoked or gone, and for its own key, which others have had in their hands. Raises as
    `Authority.sign_client` does.
    """
    if public_key == invitation.public_key():
        raise Refused(Reason.BAD_REQUEST, "request: expected a key of your own, got that of the invitation")
    expect_good_issuer(authority, invitation, "the invitation")
    signed = authority.sign_client(public_key, name, at=at, valid_for=valid_for, invitation=invitation)
    certificate = x509.load_der_x509_certificate(signed.record.der)
    expect_good_issuer(authority, certificate, "the certificate that the invitation was used for")
    return signed
