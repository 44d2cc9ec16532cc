"""The authority by which a gateway issues certificates, as the supervisor opens it: anew each time.

Its key is the supervisor's alone: it is in no bundle, so no worker is handed it, and it is not kept between two uses.
"""

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.errors import because
from portguard.gateway.configuration import TrustSettings
from portguard.gateway.credentials import AUTHORITY_PASSPHRASE, credential, read_credential
from portguard.gateway.snapshot import Snapshot
from portguard.gateway.trust_files import authority_mismatch
from portguard.identity.names import Identity
from portguard.pki.authority import Authority
from portguard.pki.errors import PkiError
from portguard.secret_line import NotOneLine


@dataclass(frozen=True, slots=True)
class Asked:
    """A wish for a certificate that was looked at: whose it would be, for which key, and what the client came with.

    The trust has an authority.
    """

    identity: Identity
    certificate: x509.Certificate
    public_key: CertificatePublicKeyTypes


def open_authority(directory: str) -> Authority:
    """Open an authority and its key, with the passphrase that systemd hands over where there is one.

    Raises PkiError, also where the record of what it has issued is missing.
    """
    authority = Authority.open(directory)
    passphrase = None
    if authority.key_is_encrypted:
        handed_over = credential(AUTHORITY_PASSPHRASE)
        if handed_over is None:
            raise PkiError(authority.key_path, f"the credential {AUTHORITY_PASSPHRASE}, as it has a passphrase", "none")
        try:
            passphrase = read_credential(handed_over)
        except OSError as error:
            raise PkiError(handed_over, "a credential that can be read", because(error)) from error
        except NotOneLine as error:
            raise PkiError(handed_over, "one line with a passphrase", str(error)) from error
    authority.unlock(passphrase)
    if not authority.store.path.is_file():
        raise PkiError(authority.store.path, "the record of issued certificates", "no such file")
    return authority


def settings_of(snapshot: Snapshot, trust: str) -> TrustSettings:
    """Return the settings of the trust of this name."""
    [settings] = [each for each in snapshot.configuration.trusts if each.name == trust]
    return settings


def issuing_authority(snapshot: Snapshot, asked: Asked, at: datetime) -> Authority:
    """Open the authority that is to issue what was asked for at `at` (aware), if what it issues is taken here.

    After `portguard ca rotate` it would not be until the new list is here: who came would leave with a certificate that
    is worth less than the one they came with. *Fails closed*: raises Refused; PkiError as `open_authority_of` does.
    """
    trust = asked.identity.trust
    authority = open_authority_of(snapshot, trust)
    issuers = dict.fromkeys((authority.issuer, authority.anchor))
    chain = [each.public_bytes(Encoding.DER) for each in issuers]
    snapshot.trusts.expect_issuer(trust, chain, asked.certificate, at)
    return authority


def open_authority_of(snapshot: Snapshot, trust: str) -> Authority:
    """Open the authority that issues for a trust which has one.

    *Fails closed*: raises PkiError for one that does not issue for it.
    """
    directory = settings_of(snapshot, trust).authority
    assert directory is not None
    authority = open_authority(directory)
    [judged] = [each for each in snapshot.trusts.every if each.name == trust]
    mismatch = authority_mismatch(authority.anchor, judged)
    if mismatch is not None:
        raise PkiError(directory, *mismatch)
    return authority
