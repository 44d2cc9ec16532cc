"""`portguard cert sign`, through the program's own entry point."""

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from portguard.cli.main import main
from portguard.pki.authority import Authority
from tests.certificates import dns

DOMAIN = "bastion.example.com"

Sign = Callable[..., tuple[int, str, str]]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=datetime.now(UTC))


@pytest.fixture
def key(tmp_path: Path) -> ec.EllipticCurvePrivateKey:
    """Whose request `alice.csr` is, in which she asks for more than she gets."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")]))
        .add_extension(x509.SubjectAlternativeName([dns("evil.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "alice.csr").write_bytes(request.public_bytes(Encoding.PEM))
    return key


@pytest.fixture
def sign(
    tmp_path: Path,
    authority: Authority,
    key: ec.EllipticCurvePrivateKey,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Sign:
    """Run `portguard cert sign` with arguments; the exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORTGUARD_CA", "ca")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["portguard", "cert", "sign", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run


def _load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


def _extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.ExtensionType:
    return certificate.extensions.get_extension_for_class(kind).value


def test_a_client_gets_a_certificate_for_its_key_and_the_name_that_the_operator_gives(
    sign: Sign, key: ec.EllipticCurvePrivateKey, authority: Authority, tmp_path: Path
) -> None:
    code, out, err = sign("alice.csr", "--name", "ci/alice", "--out", "out", "--json")
    assert (code, err) == (0, "")
    certificate = _load(tmp_path / "out" / "ci+alice.crt")
    assert os.listdir(tmp_path / "out") == ["ci+alice.crt"]
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rfc4514_string() == "CN=ci/alice"
    assert list(_extension(certificate, x509.SubjectAlternativeName)) == [
        x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/ci/alice")
    ]
    assert _extension(certificate, x509.BasicConstraints) == x509.BasicConstraints(ca=False, path_length=None)
    assert list(_extension(certificate, x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate.verify_directly_issued_by(authority.issuer)
    assert json.loads(out) == {
        "identity": f"spiffe://{DOMAIN}/ci/alice",
        "certificate": "out/ci+alice.crt",
        "ca": "ca/ca.crt",
        "not_after": certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "serial": f"{certificate.serial_number:x}",
    }
    assert timedelta(days=29) < certificate.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=30)
    [record] = authority.store.records()
    assert (record.serial, record.kind, record.name) == (certificate.serial_number, "client", "ci/alice")


def test_a_gateway_gets_one_for_its_names(sign: Sign, key: ec.EllipticCurvePrivateKey, tmp_path: Path) -> None:
    code, out, _ = sign("alice.csr", "--gateway", DOMAIN, "--gateway", f"*.{DOMAIN}", "--out", "gw.pem")
    assert code == 0
    assert f"names        {DOMAIN}\n             *.{DOMAIN}\ncertificate  gw.pem\n" in out
    certificate = _load(tmp_path / "gw.pem")
    assert certificate.public_key() == key.public_key()
    assert list(_extension(certificate, x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert list(_extension(certificate, x509.SubjectAlternativeName)) == [dns(DOMAIN), dns(f"*.{DOMAIN}")]
    assert timedelta(days=364) < certificate.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=365)


def test_the_intermediate_comes_with_it(sign: Sign, tmp_path: Path) -> None:
    two_tiers = Authority.create(
        tmp_path / "two", trust_domain=DOMAIN, at=datetime.now(UTC), root_directory=tmp_path / "stick"
    )
    assert sign("alice.csr", "--name", "alice", "--ca", "two", "--valid-for", "12h")[0] == 0
    leaf, issuing = x509.load_pem_x509_certificates((tmp_path / "alice.crt").read_bytes())
    assert issuing == two_tiers.issuer
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(hours=12, minutes=5)


def test_a_file_that_exists_stays_unless_told_otherwise(sign: Sign, authority: Authority, tmp_path: Path) -> None:
    assert sign("alice.csr", "--name", "alice")[0] == 0
    before = (tmp_path / "alice.crt").read_bytes()
    code, out, err = sign("alice.csr", "--name", "alice")
    assert (code, out, err) == (1, "", "portguard: alice.crt: expected no file of this name, got one that exists\n")
    assert (tmp_path / "alice.crt").read_bytes() == before
    assert len(authority.store.records()) == 1
    assert sign("alice.csr", "--name", "alice", "--force")[0] == 0
    assert (tmp_path / "alice.crt").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["alice.csr"], 2, "--name, --gateway: expected one of them, got none"),
        (["alice.csr", "--name", "a", "--gateway", "b"], 2, "--name, --gateway: expected one of them, got both"),
        (["alice.csr", "--name", "../a"], 2, "client name: expected a SPIFFE path"),
        (["alice.csr", "--gateway", "a_b"], 2, "gateway name: expected a DNS name"),
        (["alice.csr", "--name", "a", "--valid-for", "0s"], 2, "validity: expected 1 second to"),
        (["alice.csr", "--name", "a", "--valid-for", "30"], 2, "Invalid value for '--valid-for': expected a duration"),
        (["gone.csr", "--name", "a"], 1, "gone.csr: expected a certificate request, got “No such file"),
        (["ca/ca.key", "--name", "a"], 1, "ca/ca.key: expected one certificate request (PKCS #10) in PEM or DER, got"),
        (["alice.csr", "--name", "a", "--ca", "none"], 1, "; `portguard ca init` makes an authority"),
    ],
)
def test_called_wrongly_it_issues_nothing(
    sign: Sign, authority: Authority, arguments: list[str], code: int, message: str
) -> None:
    ended, out, err = sign(*arguments)
    assert (ended, out) == (code, "")
    assert message in err
    assert authority.store.records() == []


def test_a_key_with_a_passphrase_is_opened(sign: Sign, tmp_path: Path) -> None:
    Authority.create(tmp_path / "locked", trust_domain=DOMAIN, at=datetime.now(UTC), passphrase=b"correct horse")
    (tmp_path / "secret").write_text("correct horse\n")
    (tmp_path / "secret").chmod(0o600)
    assert sign("alice.csr", "--name", "alice", "--ca", "locked")[0] == 2
    assert sign("alice.csr", "--name", "alice", "--ca", "locked", "--passphrase-file", "secret")[0] == 0
