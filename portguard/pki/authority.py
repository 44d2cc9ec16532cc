"""The certificate authority: a directory with a key, that issues certificates to clients and gateways.

    authority = Authority.create(directory, trust_domain="bastion.example.com", at=now)
    alice = authority.issue_client("alice", at=now)
    certificate_path, key_path = alice.write(directory, "alice")

The directory holds

    ca.crt            the root: what gateways and clients trust
    ca.key            its key, unless a root directory was given
    ca.crl            what was revoked, for gateways: `revocation` writes it anew
    issuing.crt       with a root directory: the CA that signs in the root's place,
    issuing.key       and its key
    root.crl          with a root directory: the root's own list, which becomes a part of ca.crl
    certificates.db   the record of everything issued and revoked

and the root directory, which can be unplugged and put in a safe, `root.crt` and `root.key`. After a rotation (see
`rotation`), keys of later CAs are in `ca-ID.key` and `issuing-ID.key`, and issuing CAs that were replaced in
`issuing-ID.crt`, where ID is how the CA's name ends. Of several roots in ca.crt the first one issues.
"""

import contextlib
import os
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from portguard.errors import UsageError
from portguard.pki import ca_certificates, files, keys, names, profiles
from portguard.pki.ca_certificates import ISSUING, ROOTS, pem
from portguard.pki.errors import PkiError
from portguard.pki.files import PUBLIC, SECRET, NewFile
from portguard.pki.issued import IssuedCertificate, SignedCertificate
from portguard.pki.keys import KeyType
from portguard.pki.new_directory import claimed
from portguard.pki.profiles import Issuer, Kind, Revocation, Validity
from portguard.pki.request import check_public_key
from portguard.pki.store import Record, Store

STORE = "certificates.db"

AUTHORITY_VALID_FOR = timedelta(days=3650)
CLIENT_VALID_FOR = timedelta(days=30)
GATEWAY_VALID_FOR = timedelta(days=365)
INVITATION_VALID_FOR = timedelta(days=3)
# As openssl's default_crl_days. A list that ends keeps everybody out, so a weekly renewal may fail three times.
LIST_VALID_FOR = timedelta(days=30)


class Authority:
    """A certificate authority in a directory. Made by `create` or `open`.

    Its attributes are as they were when it was opened; what it issues is on the disk when the call returns. Several
    processes may use one directory at the same time.
    """

    def __init__(
        self,
        directory: Path,
        anchors: Sequence[x509.Certificate],
        issuer: x509.Certificate,
        retired: Sequence[x509.Certificate],
    ):
        self.directory = directory
        self.anchors = tuple(anchors)
        """What gateways and clients trust: one root, or two while one is replaced by the other."""
        self.anchor = anchors[0]
        """The root that issues, or that stands above the CA that does."""
        self.issuer = issuer
        self.retired = tuple(retired)
        """Issuing CAs below the same root that were replaced."""
        self.trust_domain = ca_certificates.trust_domain(self.anchor, self.ca_path)
        self.store = Store(directory / STORE)
        self.passphrase: bytes | None = None
        """What opens its keys, once `unlock` has read one. None: nothing, or nothing yet."""
        self._key: keys.PrivateKey | None = None

    @classmethod
    def create(
        cls,
        directory: str | os.PathLike[str],
        *,
        trust_domain: str,
        at: datetime,
        valid_for: timedelta = AUTHORITY_VALID_FOR,
        key_type: KeyType = KeyType.EC,
        passphrase: bytes | None = None,
        root_directory: str | os.PathLike[str] | None = None,
        root_passphrase: bytes | None = None,
    ) -> "Authority":
        """Make an authority in `directory`, which is new or empty, and open it.

        With `root_directory` the root's key goes there and an issuing CA works in its place. `passphrase` encrypts
        the key that issues, `root_passphrase` the key in the root directory (None: the same passphrase).

        Of two that do this at once, one succeeds. Raises UsageError, and PkiError; then nothing was changed.
        """
        directory = Path(directory)
        root_directory = None if root_directory is None else Path(root_directory)
        if root_directory is not None and _same(directory, root_directory):
            raise UsageError(f"root directory: expected another one than the authority's, got {str(root_directory)!r}")
        names.trust_domain(trust_domain)
        validity = Validity.starting(at, valid_for)
        with contextlib.ExitStack() as claims:
            undo = claims.enter_context(claimed(directory, must_be_empty=True))
            root_key = keys.generate(key_type)
            root = profiles.root(root_key, trust_domain, validity, path_length=0 if root_directory is None else 1)
            store = Store(directory / STORE)
            undo.callback(store.path.unlink, missing_ok=True)
            store.create()
            if root_directory is None:
                issuer = Issuer(root, root_key)
                mine = [_key_file(directory / "ca.key", root_key, passphrase)]
            else:
                key = keys.generate(key_type)
                issuer = Issuer(profiles.issuing(key, trust_domain, validity, Issuer(root, root_key)), key)
                mine = [
                    _key_file(directory / "issuing.key", key, passphrase),
                    certificate_file(directory / ISSUING, issuer.certificate),
                ]
            # The first lists, without entries: a gateway can name the file from the beginning.
            number = store.begin_list(at, LIST_VALID_FOR)
            lists = list_pem([], number, Validity.starting(at, LIST_VALID_FOR, issuer.certificate), issuer)
            if root_directory is not None:
                # The root's key is in a drawer from now on, so its list lasts as long as the root.
                root_list = list_pem([], number, validity, Issuer(root, root_key))
                mine.append(NewFile(directory / "root.crl", root_list, PUBLIC))
                lists += root_list
            mine.append(NewFile(directory / "ca.crl", lists, PUBLIC))
            if root_directory is not None:
                secret = passphrase if root_passphrase is None else root_passphrase
                theirs = [
                    _key_file(root_directory / "root.key", root_key, secret),
                    certificate_file(root_directory / "root.crt", root),
                ]
                undo = claims.enter_context(claimed(root_directory, must_be_empty=False))
                files.publish(theirs)
                for file in theirs:
                    undo.callback(file.path.unlink)
            # ca.crt comes last: its presence is what makes this directory an authority.
            files.publish([*mine, certificate_file(directory / ROOTS, root)])
        return cls.open(directory, passphrase=passphrase)

    @classmethod
    def open(cls, directory: str | os.PathLike[str], *, passphrase: bytes | None = None) -> "Authority":
        """Open what `create` made. Raises PkiError, WrongPassphrase if `passphrase` does not open the key.

        The key is read when a passphrase is given, else when it is first needed: to look at certificates takes none.
        """
        directory = Path(directory)
        anchors = ca_certificates.read_anchors(directory / ROOTS)
        issuer, retired = anchors[0], []
        if (directory / ISSUING).exists():
            if len(anchors) > 1:
                raise PkiError(directory / ROOTS, f"one CA certificate, beside {ISSUING}", f"{len(anchors)}")
            issuer = ca_certificates.read_issuing(directory / ISSUING, anchors[0])
            pattern = f"issuing-{'[0-9a-f]' * 8}.crt"
            every = (ca_certificates.read_issuing(path, anchors[0]) for path in sorted(directory.glob(pattern)))
            # A rotation that was interrupted leaves a copy of the one in force.
            retired = [each for each in every if each != issuer]
        authority = cls(directory, anchors, issuer, retired)
        if passphrase is not None:
            authority.unlock(passphrase)
        return authority

    @property
    def certificate_pem(self) -> bytes:
        """The roots in PEM: what gateways and clients trust."""
        return pem(*self.anchors)

    @property
    def ca_path(self) -> Path:
        """Where the roots are."""
        return self.directory / ROOTS

    @property
    def key_path(self) -> Path:
        """Where the key that issues is."""
        return self.key_path_of(self.issuer)

    def key_path_of(self, certificate: x509.Certificate) -> Path:
        """Where the key of one of this authority's CAs is."""
        stem = "ca" if certificate in self.anchors else "issuing"
        later = self.directory / f"{stem}-{profiles.key_id(certificate)}.key"
        return later if later.exists() else self.directory / f"{stem}.key"

    @property
    def two_tier(self) -> bool:
        """Whether an issuing CA works in the place of a root whose key is elsewhere."""
        return self.issuer != self.anchor

    @property
    def crl_path(self) -> Path:
        """Where the lists for gateways are."""
        return self.directory / "ca.crl"

    @property
    def root_crl_path(self) -> Path | None:
        """Where the root's own list is. None where the root issues, and signs `crl_path` itself."""
        return self.directory / "root.crl" if self.two_tier else None

    @property
    def key_is_encrypted(self) -> bool:
        """Say whether issuing takes a passphrase. Raises PkiError when the key cannot be read."""
        return keys.is_encrypted(files.read(self.key_path, "the key of the authority"))

    def unlock(self, passphrase: bytes | None) -> None:
        """Read the key that issues. Raises WrongPassphrase, PkiError."""
        self._key = self._read_key(self.issuer, passphrase)
        self.passphrase = passphrase

    def reopened(self) -> "Authority":
        """Return the authority as it is on the disk now, with the same passphrase. Raises PkiError."""
        authority = Authority.open(self.directory)
        authority.unlock(self.passphrase)
        return authority

    def signer_of(self, certificate: x509.Certificate) -> Issuer:
        """Return one of this authority's CAs with its key. All keys have one passphrase. Raises as `signer` does."""
        return Issuer(certificate, self._read_key(certificate, self.passphrase))

    def new_ca_key(self, stem: str, key_type: KeyType | None) -> tuple[keys.PrivateKey, NewFile]:
        """Make a key, of the type of the one that issues where None, and the file for it, with the same passphrase."""
        key = self._new_key(key_type)
        path = self.directory / f"{stem}-{profiles.key_id_of(key.public_key())}.key"
        return key, _key_file(path, key, self.passphrase)

    def _read_key(self, certificate: x509.Certificate, passphrase: bytes | None) -> keys.PrivateKey:
        path = self.key_path_of(certificate)
        key = keys.from_pem(files.read(path, "the key of the authority"), passphrase, str(path))
        if key.public_key() != certificate.public_key():
            raise PkiError(path, "the key of the authority's certificate", "the key of another one")
        return key

    def signer(self) -> Issuer:
        """Return the CA that issues, with its key. Raises WrongPassphrase when that is locked, PkiError."""
        if self._key is None:
            self.unlock(None)
        assert self._key is not None
        return Issuer(self.issuer, self._key)

    def issue_client(
        self,
        name: str,
        *,
        at: datetime,
        valid_for: timedelta = CLIENT_VALID_FOR,
        key_type: KeyType | None = None,
    ) -> IssuedCertificate:
        """Issue a client certificate for the identity `name`. A key of the authority's own type where None.

        Raises UsageError for a name that cannot be one, WrongPassphrase when the key is locked, PkiError.
        """
        names.client(name)
        key = self._new_key(key_type)
        return _with_key(self.sign_client(key.public_key(), name, at=at, valid_for=valid_for), key)

    def issue_gateway(
        self,
        gateway_names: Iterable[str],
        *,
        at: datetime,
        valid_for: timedelta = GATEWAY_VALID_FOR,
        key_type: KeyType | None = None,
    ) -> IssuedCertificate:
        """Issue a server certificate for DNS names, wildcards and IP addresses. Raises as `issue_client` does."""
        gateway_names = list(gateway_names)
        names.gateway(gateway_names)
        key = self._new_key(key_type)
        return _with_key(self.sign_gateway(key.public_key(), gateway_names, at=at, valid_for=valid_for), key)

    def invite(self, name: str, *, at: datetime, valid_for: timedelta = INVITATION_VALID_FOR) -> IssuedCertificate:
        """Issue a certificate, without a name, by which `enrolment.enroll` issues one for the identity `name`, once.

        Raises as `issue_client` does.
        """
        names.client(name)
        key = keys.generate(KeyType.EC)
        validity, issuer = self._prepare(key.public_key(), at, valid_for)
        certificate = profiles.invitation(key.public_key(), validity, issuer)
        return _with_key(self._signed(Kind.INVITATION, name, certificate, at), key)

    def sign_client(
        self,
        public_key: CertificatePublicKeyTypes,
        name: str,
        *,
        at: datetime,
        valid_for: timedelta = CLIENT_VALID_FOR,
        renews: x509.Certificate | None = None,
        invitation: x509.Certificate | None = None,
    ) -> SignedCertificate:
        """Issue a client certificate for the identity `name` and a key of its own. Raises as `issue_client` does.

        `renews` is the certificate whose successor it is: raises Refused as `Store.add` does. `invitation` is what it
        is issued by, and issued by once: answers and raises Refused as `Store.enroll` does.

        That whoever asks has the private key is for the caller to find out, as `request.read_request` does. *Fails
        closed*: raises PkiError for a key of a kind that it does not take.
        """
        spiffe = names.spiffe_id(self.trust_domain, names.client(name))
        validity, issuer = self._prepare(public_key, at, valid_for)
        certificate = profiles.client(public_key, spiffe, name, validity, issuer)
        return self._signed(Kind.CLIENT, name, certificate, at, renews, invitation)

    def sign_gateway(
        self,
        public_key: CertificatePublicKeyTypes,
        gateway_names: Iterable[str],
        *,
        at: datetime,
        valid_for: timedelta = GATEWAY_VALID_FOR,
    ) -> SignedCertificate:
        """Issue a server certificate for a gateway's own key. Raises as `sign_client` does."""
        general_names = names.gateway(gateway_names)
        validity, issuer = self._prepare(public_key, at, valid_for)
        certificate = profiles.gateway(public_key, general_names, validity, issuer)
        return self._signed(Kind.GATEWAY, str(general_names[0].value), certificate, at)

    def issuer_of(self, certificate: x509.Certificate) -> x509.Certificate | None:
        """Return which of this authority's CAs issued a certificate, by its name; None: none that is still there."""
        every = (self.issuer, *self.anchors, *self.retired)
        return next((each for each in every if each.subject == certificate.issuer), None)

    def _new_key(self, key_type: KeyType | None) -> keys.PrivateKey:
        return keys.generate(key_type or keys.type_of(self.signer().key))

    def _prepare(
        self, public_key: CertificatePublicKeyTypes, at: datetime, valid_for: timedelta
    ) -> tuple[Validity, Issuer]:
        check_public_key(public_key, "public key")
        return Validity.starting(at, valid_for, self.issuer), self.signer()

    def _signed(
        self,
        kind: Kind,
        name: str,
        certificate: x509.Certificate,
        at: datetime,
        renews: x509.Certificate | None = None,
        invitation: x509.Certificate | None = None,
    ) -> SignedCertificate:
        record = Record(
            serial=certificate.serial_number,
            kind=kind,
            name=name,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            issued_at=at.replace(microsecond=0),
            der=certificate.public_bytes(serialization.Encoding.DER),
        )
        # First the record, then the certificate: one that nobody recorded could never be revoked.
        if invitation is None:
            self.store.add(record, renews=renews)
        elif (record := self.store.enroll(invitation, record)).serial != certificate.serial_number:
            certificate = x509.load_der_x509_certificate(record.der)  # that of the first time
        issuer = self.issuer_of(certificate)
        chain = pem(certificate) if issuer is None or issuer in self.anchors else pem(certificate, issuer)
        return SignedCertificate(record, chain, self.certificate_pem)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def list_pem(revoked: Iterable[tuple[int, Revocation]], number: int, validity: Validity, issuer: Issuer) -> bytes:
    """Make a revocation list as `profiles.revocation_list` does, in PEM."""
    return profiles.revocation_list(revoked, number, validity, issuer).public_bytes(serialization.Encoding.PEM)


def _with_key(signed: SignedCertificate, key: keys.PrivateKey) -> IssuedCertificate:
    return IssuedCertificate(signed.record, signed.certificate_pem, signed.anchor_pem, keys.to_pem(key))


def _key_file(path: Path, key: keys.PrivateKey, passphrase: bytes | None) -> NewFile:
    return NewFile(path, keys.to_pem(key, passphrase), SECRET)


def certificate_file(path: Path, *certificates: x509.Certificate) -> NewFile:
    """Make a file of certificates in PEM, ready to be published."""
    return NewFile(path, pem(*certificates), PUBLIC)
