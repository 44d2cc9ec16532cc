"""A client's first certificate: for a key that is made here, asked for with an invitation, once.

First the key is put down, then the gateway is asked; the rest is written when the answer is there, and the certificate
last. So whatever breaks in between, the next attempt has the same key, for which the gateway gives the same certificate
again. A certificate that is there, and fits the key, is the end of it.
"""

import os
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from portguard.client.certificate_request import NotAsked, make_request, read_answer
from portguard.client.credentials import Credentials
from portguard.client.gateway import Gateway
from portguard.client.invitation import Invitation, Place
from portguard.client.key_pair import PrivateKey
from portguard.client.refusal import RefusedByGateway
from portguard.client.secret_file import NotOurs, NotSecret, read_secret
from portguard.errors import PortguardError, Refused, Unreachable
from portguard.identity.validity import written
from portguard.pki import files
from portguard.pki.files import PUBLIC, SECRET, NewFile
from portguard.pki.proof import Purpose, make_proof
from portguard.reasons import Reason

_ADVICE = {
    Reason.INVITATION_USED: "if that was not you, somebody else has it: tell who invited you",
    Reason.CERTIFICATE_EXPIRED: "ask for another one",
    Reason.CERTIFICATE_REVOKED: "ask for another one",
    Reason.CERTIFICATE_UNTRUSTED: "it has to be used at the gateway for which it was made; else ask for another one",
    Reason.NO_IDENTITY: "this gateway takes no invitations",
    Reason.CRL_EXPIRED: "tell who runs the gateway: it needs a new revocation list",
    Reason.LOCKED: "ask who runs the gateway",
}


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A client's certificate, in its place."""

    place: Place
    certificate: x509.Certificate


def enrolled_before(place: Place, invitation: Invitation, credentials: Credentials, at: datetime) -> Enrolled | None:
    """Return what an earlier attempt has brought to its end, but for files that it may not have written; None: nothing.

    Raises PortguardError for a certificate that is there, and is another one.
    """
    if not place.certificate.exists():
        return None
    pem, key = files.read(place.certificate, "a certificate"), read_key(place)
    try:
        if key is None:
            raise NotAsked("a key", "none")
        chain = read_answer(pem, key, [invitation.identity], credentials, at, of_known=True)
    except NotAsked as error:
        found = "another one; --out DIR takes another folder"
        raise PortguardError(f"{place.certificate}: expected none, or that of this invitation, got {found}") from error
    return Enrolled(place, chain[0])


def expect_room(place: Place, invitation: Invitation) -> None:
    """Find out before the invitation is used whether what it leads to could be written. Raises PortguardError."""
    _new_files(place, invitation)


def check_dates(invitation: Invitation, at: datetime) -> None:
    """Raise Refused for an invitation that has ended at `at` (aware, this machine's clock), or has not begun."""
    certificate = invitation.certificate
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    clock = f"and this machine's clock says {written(at)}"
    if at > last:
        message = f"the invitation was good until {written(last)}, {clock}; if that is right, ask for another one"
        raise Refused(Reason.CERTIFICATE_EXPIRED, message)
    if at < first:
        message = f"the invitation is good from {written(first)} on, {clock}; set the clock"
        raise Refused(Reason.CERTIFICATE_NOT_YET_VALID, message)


def keep_key(place: Place) -> PrivateKey:
    """Return the key that is there since an earlier attempt; else make one, which is on the disk then.

    Raises PortguardError.
    """
    key = read_key(place)
    if key is None:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        files.publish([NewFile(place.key, pem, SECRET)])
    return key


def read_key(place: Place) -> PrivateKey | None:
    """Return the key that is there; None where there is none.

    *Fails closed*: raises PortguardError, also for one that another user has put there, who then has it too.
    """
    expected = "no file, or the key of an earlier attempt"
    try:
        key = load_pem_private_key(read_secret(place.key, ours=True), None)
    except FileNotFoundError:
        return None
    except NotOurs as error:
        raise PortguardError(f"{place.key}: expected {expected}, got one of another user, or a pipe") from error
    except NotSecret as error:
        found = f"one that others can read, with mode {error.mode:04o}"
        raise PortguardError(f"{place.key}: expected {expected}, got {found}") from error
    except OSError as error:
        raise PortguardError(f"{place.key}: expected {expected}, got “{error.strerror}”") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PortguardError(f"{place.key}: expected {expected}, got something else") from error
    if not isinstance(key, PrivateKey):
        raise PortguardError(f"{place.key}: expected {expected}, got one of another kind")
    return key


async def enroll(
    gateway: Gateway, invitation: Invitation, credentials: Credentials, place: Place, key: PrivateKey, *, at: datetime
) -> Enrolled:
    """Ask the gateway for the certificate of `key`, which `keep_key` has returned, and write it. `at` is now, aware.

    `credentials` are those of the invitation. Raises RefusedByGateway; Unreachable also for an answer that is not what
    was asked for; PortguardError when it cannot be written.
    """
    request = make_request(key)
    proof = make_proof(
        Purpose.ENROLMENT,
        credentials.key(),
        credentials.certificate.public_bytes(Encoding.DER),
        request,
        int(time.time()),
    )
    try:
        pem = await gateway.enroll(request, proof)
    except RefusedByGateway as refused:
        raise _advised(refused) from refused
    try:
        chain = read_answer(pem, key, [invitation.identity], credentials, at, of_known=True)
    except NotAsked as error:
        raise Unreachable(f"gateway {gateway.address}: {error}; no certificate was written") from error
    finish(place, invitation, chain)
    return Enrolled(place, chain[0])


def finish(place: Place, invitation: Invitation, chain: list[x509.Certificate] | None = None) -> None:
    """Write what is not there yet, and the certificate last, unless that is None. Raises PortguardError."""
    new = _new_files(place, invitation)
    if chain is not None:
        pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
        new.append(NewFile(place.certificate, pem, PUBLIC))
    files.publish(new)


def _new_files(place: Place, invitation: Invitation) -> list[NewFile]:
    """Return what is to be written beside key and certificate. Raises PkiError where another file has the name."""
    profile = (
        f'gateway = "{invitation.gateway}"\n'
        f'server_name = "{invitation.server_name}"\n'
        f'ca = "{place.ca.name}"\n'
        f'certificate = "{place.certificate.name}"\n'
        f'key = "{place.key.name}"\n'
    )
    wanted = (place.ca, invitation.anchors_pem.encode()), (place.profile, profile.encode())
    new = [NewFile(path, data, PUBLIC) for path, data in wanted if not _holds(path, data)]
    files.refuse_existing([file.path for file in new])
    return new


def _holds(path: Path, data: bytes) -> bool:
    """Whether that is what a file has, and will have: who else owns it could send us to another gateway later."""
    try:
        with path.open("rb") as stream:
            owner = os.fstat(stream.fileno()).st_uid
            return (not hasattr(os, "getuid") or owner in {0, os.getuid()}) and stream.read() == data
    except OSError:
        return False


def _advised(refused: RefusedByGateway) -> RefusedByGateway:
    """Return the refusal with what to do about it."""
    advice = _ADVICE.get(Reason(refused.reason)) if refused.reason in set(Reason) else None
    message = refused.message if advice is None else f"{refused.message}; {advice}"
    return RefusedByGateway(
        refused.subject, refused.reason, message, session=refused.session, retry_after_s=refused.retry_after_s
    )
