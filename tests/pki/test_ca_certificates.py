"""What is taken for the root of an authority, and what is not."""

from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.pki import keys
from portguard.pki.authority import Authority
from portguard.pki.errors import PkiError


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_damaged_certificate_is_an_error(authority: Authority, content: bytes) -> None:
    (authority.directory / "ca.crt").write_bytes(content)
    with pytest.raises(PkiError, match=r"ca\.crt: expected a CA certificate of portguard, got something else"):
        Authority.open(authority.directory)


def test_the_certificate_of_no_ca_is_an_error(authority: Authority, now: datetime) -> None:
    (authority.directory / "ca.crt").write_bytes(authority.issue_client("alice", at=now).certificate_pem)
    with pytest.raises(
        PkiError, match=r"ca\.crt: expected a CA certificate of portguard, got the certificate of no CA"
    ):
        Authority.open(authority.directory)


@pytest.mark.parametrize(
    "uris", [[], ["https://bastion.example.com"], ["spiffe://a", "spiffe://b"], ["spiffe://a/b"], ["spiffe://A"]]
)
def test_a_root_that_names_no_trust_domain_is_an_error(authority: Authority, now: datetime, uris: list[str]) -> None:
    _replace_root(authority, x509.SubjectAlternativeName(map(x509.UniformResourceIdentifier, [*uris])), now)
    with pytest.raises(PkiError, match=r"with one spiffe:// trust domain, got another certificate"):
        Authority.open(authority.directory)


def test_a_root_that_names_one_is_taken(authority: Authority, now: datetime) -> None:
    _replace_root(authority, x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://other")]), now)
    opened = Authority.open(authority.directory)
    assert opened.trust_domain == "other"
    opened.issue_client("alice", at=now)


def test_a_root_without_a_key_identifier_is_an_error(authority: Authority, now: datetime) -> None:
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://other")])
    _replace_root(authority, san, now, with_key_identifier=False)
    with pytest.raises(PkiError, match=r"ca\.crt: expected a CA certificate of portguard, got something else"):
        Authority.open(authority.directory)


def _replace_root(
    authority: Authority, san: x509.SubjectAlternativeName, now: datetime, *, with_key_identifier: bool = True
) -> None:
    """Put another root, made by hand with the authority's key, in the place of its own."""
    key = keys.from_pem(authority.key_path.read_bytes(), None, "ca.key")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "by hand")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=9))
    builder = builder.add_extension(x509.BasicConstraints(True, 0), critical=True).add_extension(san, critical=False)
    if with_key_identifier:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    (authority.directory / "ca.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
