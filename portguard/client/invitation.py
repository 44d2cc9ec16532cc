"""Invitations: one file, by which its holder gets a certificate for a key that nobody else ever has.

    gateway = "bastion.example.com:8443"
    server_name = "bastion.example.com"
    identity = "spiffe://bastion.example.com/alice"
    certificate = '''…'''  # in PEM; it names nobody, and is good for one enrolment
    key = '''…'''          # its own, and of no other use
    ca = '''…'''           # whom to believe that it is the gateway, and who the certificate has to come from

Whoever has the file before it is used can become the identity. It comes from elsewhere, so nothing in it is believed:
what it names becomes no path, no host and no line of a profile before it was looked at.
"""

from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from portguard.client.certificate_request import reaches
from portguard.client.credentials import Credentials
from portguard.client.key_pair import PrivateKey
from portguard.client.profile import SERVER_NAME, Profile
from portguard.client.secret_file import NotSecret, read_secret
from portguard.errors import ConfigurationError, Problem, UsageError
from portguard.identity.authorities import UNREADABLE, quietly
from portguard.identity.names import Malformed, parse_spiffe_id
from portguard.instants import written_instant
from portguard.pki.names import client_file_stem
from portguard.policy.addresses import HostPort
from portguard.policy.quantities import Unexpected
from portguard.policy.toml import HOST_PORT, STRING, Table, parse, text_kind

SUFFIX = ".invitation"

LARGEST_BYTES = 64 * 1024

# One of RSA with 4096 bits has 3.3 kB. To look at a larger one can take hours, and Ctrl-C would wait as well.
_LARGEST_KEY_BYTES = 4096

_CA = "ca"


@dataclass(frozen=True, slots=True)
class Invitation:
    """What is in the file. `key_pem` is the key of the first certificate in `certificate_pem`."""

    gateway: HostPort
    server_name: str
    identity: str
    certificate_pem: str = field(repr=False)
    key_pem: str = field(repr=False)
    anchors_pem: str = field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate of the invitation itself."""
        return x509.load_pem_x509_certificates(self.certificate_pem.encode())[0]

    def text(self) -> str:
        """Return what stands in the file."""
        until = written_instant(self.certificate.not_valid_after_utc)
        return f"""\
# An invitation to {self.gateway}, good for one certificate, until {until}.
# Whoever has this file can become {self.identity}: keep it secret.
# `portguard enroll` takes it.
gateway = "{self.gateway}"
server_name = "{self.server_name}"
identity = "{self.identity}"
certificate = '''
{self.certificate_pem}'''
key = '''
{self.key_pem}'''
ca = '''
{self.anchors_pem}'''
"""

    def credentials(self, path: Path) -> Credentials:
        """Return what to show the gateway, and whom to take for it. `path` is the file, for messages."""
        profile = Profile(
            path=path,
            gateway=self.gateway,
            server_name=self.server_name,
            ca=path,
            certificate=path,
            key=path,
            key_passphrase_file=None,
            local_ports={},
        )
        return Credentials(
            profile=profile,
            certificate=self.certificate,
            _anchors_pem=self.anchors_pem,
            _certificate_pem=self.certificate_pem.encode(),
            _key_pem=self.key_pem.encode(),
            _passphrase=None,
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Where the files of a client go: in one folder, called as `cert issue` calls them."""

    profile: Path
    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def of(cls, folder: Path, identity: str) -> "Place":
        """Raises UsageError for a name that would lead elsewhere, or give two of them one name."""
        try:
            stem = client_file_stem(parse_spiffe_id(identity)[1])
        except Malformed as error:
            raise UsageError(f"identity: {error}") from error
        if stem.lower() == _CA:  # some file systems have no case
            raise UsageError(f"client name: expected another one than that of {_CA}.crt, got {stem!r}")
        return cls(*(folder / name for name in (f"{stem}.toml", f"{_CA}.crt", f"{stem}.crt", f"{stem}.key")))


def read_invitation(path: Path) -> Invitation:
    """Read the invitation at `path`.

    *Fails closed*: raises ConfigurationError for a file that others may read, and for what is not one whole invitation.
    """
    try:
        content = read_secret(path, LARGEST_BYTES + 1)
    except NotSecret as error:
        found = f"mode {error.mode:04o} (chmod 600 {path})"
        raise _problem(path, "a file that only its owner can read", found) from error
    except OSError as error:
        raise _problem(path, "an invitation that can be read", f"“{error.strerror}”") from error
    if len(content) > LARGEST_BYTES:
        raise _problem(path, f"an invitation of at most {LARGEST_BYTES} bytes", "a larger file")
    problems: list[Problem] = []
    root = parse(str(path), content, problems)
    invitation = Invitation(
        gateway=root.get("gateway", HOST_PORT),
        server_name=root.get("server_name", SERVER_NAME),
        identity=root.get("identity", _IDENTITY),
        certificate_pem=root.get("certificate", STRING),
        key_pem=root.get("key", STRING),
        anchors_pem=root.get("ca", STRING),
    )
    root.finish()
    if not problems:
        _check(root, invitation)
    if problems:
        raise ConfigurationError(problems)
    return invitation


def _check(root: Table, invitation: Invitation) -> None:
    """Report what does not fit together. What stands in the place of the key is shown nowhere."""
    chain = _certificates(root, "certificate", invitation.certificate_pem)
    anchors = _certificates(root, "ca", invitation.anchors_pem)
    if len(key_pem := invitation.key_pem.encode()) > _LARGEST_KEY_BYTES:
        root.report_as("key", f"a private key of at most {_LARGEST_KEY_BYTES} bytes", f"{len(key_pem)}")
        return
    try:
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        root.report_as("key", "a private key in PEM, without a passphrase", "something else")
        return
    if chain and not (isinstance(key, PrivateKey) and key.public_key() == chain[0].public_key()):
        root.report_as("key", "the key of the certificate", "another one")
    if chain and anchors and not reaches(chain, anchors):
        root.report_as("certificate", "one of the authority in ca", "one of another authority")


def _certificates(root: Table, key: str, pem: str) -> list[x509.Certificate]:
    """Return them; none where they cannot be read, which is reported."""
    try:
        with quietly():
            certificates = x509.load_pem_x509_certificates(pem.encode())
            for certificate in certificates:
                certificate.public_key()
    except UNREADABLE:
        root.report_as(key, "certificates in PEM", "something else")
        return []
    return certificates


def _identity(text: str) -> str:
    try:
        Place.of(Path(), text)
    except UsageError:
        raise Unexpected(_IDENTITY.expected) from None
    return text


_IDENTITY = text_kind(_identity, 'the SPIFFE ID of a client, such as "spiffe://bastion.example.com/alice"', "")


def _problem(path: Path, expected: str, found: str) -> ConfigurationError:
    return ConfigurationError([Problem(str(path), "", expected, found)])
