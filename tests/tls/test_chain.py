import os
import ssl
import stat
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from portguard.tls.chain import UnusableChain, load_chain
from portguard.tls.context import new_context
from tests.descriptors import open_descriptors
from tests.trusting import trusting

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def certificate(key: PrivateKey, name: str = "gateway.test") -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def pem(key: PrivateKey, encryption: KeySerializationEncryption | None = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes | None:
    """Handshake in memory; the certificate that the client got."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname="gateway.test"),
    ]
    for _ in range(5):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[1].getpeercert(binary_form=True)


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def context() -> ssl.SSLContext:
    return new_context(ssl.PROTOCOL_TLS_SERVER)


@pytest.fixture(params=["memory", "folder"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Where the PEM passes through; the platform without memory files is one where memfd_create is missing."""
    if request.param == "folder":
        monkeypatch.delattr(os, "memfd_create", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return str(request.param)


def test_a_client_is_shown_the_certificate_that_was_loaded(
    context: ssl.SSLContext, key: ec.EllipticCurvePrivateKey, place: str
) -> None:
    chain = certificate(key)
    load_chain(context, chain, pem(key))
    shown = handshake(context, trusting(cadata=chain.decode()))
    assert shown == ssl.PEM_cert_to_DER_cert(chain.decode())


def test_no_descriptor_and_no_file_is_left_behind(
    context: ssl.SSLContext, key: ec.EllipticCurvePrivateKey, place: str, tmp_path: Path
) -> None:
    before = open_descriptors()
    load_chain(context, certificate(key), pem(key))
    with pytest.raises(UnusableChain):
        load_chain(context, certificate(key), b"")
    assert open_descriptors() == before
    assert list(tmp_path.iterdir()) == []


class _WatchedContext(ssl.SSLContext):
    """Notes what the files that OpenSSL is given look like while it reads them."""

    seen: dict[str, list[str]]

    def load_cert_chain(self, certfile, keyfile=None, password=None):  # type: ignore[no-untyped-def]  # as in typeshed
        self.seen = {
            "real": [os.path.realpath(path) for path in (certfile, keyfile)],
            "modes": [stat.filemode(os.stat(path).st_mode) for path in (certfile, keyfile)],
            "folders": [stat.filemode(os.stat(os.path.dirname(path)).st_mode) for path in (certfile, keyfile)],
        }
        super().load_cert_chain(certfile, keyfile, password)


def test_the_key_is_in_memory_only(key: ec.EllipticCurvePrivateKey) -> None:
    context = _WatchedContext(ssl.PROTOCOL_TLS_SERVER)
    load_chain(context, certificate(key), pem(key))
    assert all(path.startswith("/memfd:portguard") for path in context.seen["real"])


def test_without_memory_files_nobody_else_can_read_the_key(
    key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    context = _WatchedContext(ssl.PROTOCOL_TLS_SERVER)
    load_chain(context, certificate(key), pem(key))
    assert context.seen["modes"] == ["-rw-------"] * 2
    assert context.seen["folders"] == ["drwx------"] * 2


def test_a_sandbox_without_proc_takes_the_folder(
    context: ssl.SSLContext, key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def without_proc(path: str, *args: int, **kwargs: int) -> int:
        if str(path).startswith("/proc/"):
            raise FileNotFoundError(path)
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", without_proc)
    load_chain(context, certificate(key), pem(key))


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(
    context: ssl.SSLContext, key: ec.EllipticCurvePrivateKey
) -> None:
    with pytest.raises(UnusableChain) as caught:
        load_chain(context, certificate(key), pem(key, BestAvailableEncryption(b"secret")))
    assert str(caught.value) == "key: expected a private key without a passphrase, got an encrypted one"
    assert caught.value.part == "key"


def test_another_certificates_key_is_refused(context: ssl.SSLContext, key: ec.EllipticCurvePrivateKey) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(
        UnusableChain, match=r"^key: expected the certificate's key, got the key of another certificate"
    ):
        load_chain(context, certificate(key), pem(other))


@pytest.mark.parametrize("rubbish", [b"", b"\0\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_rubbish_is_refused_with_the_part_at_fault(
    context: ssl.SSLContext, key: ec.EllipticCurvePrivateKey, rubbish: bytes
) -> None:
    with pytest.raises(UnusableChain, match=r"^certificate: expected a PEM certificate chain, got something else"):
        load_chain(context, rubbish, pem(key))
    with pytest.raises(UnusableChain, match=r"^key: expected a PEM private key, got something else"):
        load_chain(context, certificate(key), rubbish)


def test_a_key_too_weak_for_openssl_is_refused_with_its_word(context: ssl.SSLContext) -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.raises(UnusableChain, match="its refusal, EE_KEY_TOO_SMALL"):
        load_chain(context, certificate(weak), pem(weak))


def test_a_passphrase_opens_the_key(context: ssl.SSLContext, key: ec.EllipticCurvePrivateKey, place: str) -> None:
    chain = certificate(key)
    load_chain(context, chain, pem(key, BestAvailableEncryption(b"secret")), b"secret")
    assert handshake(context, trusting(cadata=chain.decode())) is not None


def test_another_passphrase_does_not_open_the_key(context: ssl.SSLContext, key: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(UnusableChain, match=r"^key: expected a PEM private key that the passphrase opens") as caught:
        load_chain(context, certificate(key), pem(key, BestAvailableEncryption(b"secret")), b"wrong-one")
    assert "wrong-one" not in str(caught.value)
