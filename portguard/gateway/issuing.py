"""The authority by which a gateway renews certificates, as the supervisor opens it: anew each time.

Its key is the supervisor's alone: it is in no bundle, so no worker is handed it, and it is not kept between two uses.
"""

from portguard.gateway.credentials import AUTHORITY_PASSPHRASE, credential, read_credential
from portguard.gateway.trust_files import authority_mismatch
from portguard.identity.trust import Trust
from portguard.pki.authority import Authority
from portguard.pki.errors import PkiError
from portguard.secret_line import NotOneLine


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
            raise PkiError(
                handed_over, "a credential that can be read", (error.strerror or type(error).__name__).lower()
            ) from error
        except NotOneLine as error:
            raise PkiError(handed_over, "one line with a passphrase", str(error)) from error
    authority.unlock(passphrase)
    if not authority.store.path.is_file():
        raise PkiError(authority.store.path, "the record of issued certificates", "no such file")
    return authority


def open_authority_of(trust: Trust, directory: str) -> Authority:
    """Open an authority that issues for the trust. *Fails closed*: raises PkiError for one that does not."""
    authority = open_authority(directory)
    mismatch = authority_mismatch(authority.anchor, trust)
    if mismatch is not None:
        raise PkiError(directory, *mismatch)
    return authority
