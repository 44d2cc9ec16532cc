"""What goes wrong in the certificate authority: one class, so that every message has the same three parts."""

from os import PathLike

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from portguard.errors import PortguardError

MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises when it meets a certificate, or a part of one, that it cannot read."""


class PkiError(PortguardError):
    """`subject` (a file, a directory or a name) is not what it had to be.

    `expected` and `found` complete "expected …, got …". None of the three ever holds a key or a passphrase.
    """

    def __init__(self, subject: str | PathLike[str], expected: str, found: str):
        self.subject = str(subject)
        self.expected = expected
        self.found = found
        super().__init__(f"{self.subject}: expected {expected}, got {found}")


class WrongPassphrase(PkiError):
    """The passphrase does not open the key, or there is none and one is needed."""
