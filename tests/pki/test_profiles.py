"""Every extension and its critical flag, and what openssl says of them."""

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from portguard.errors import UsageError
from portguard.pki.authority import Authority
from portguard.pki.errors import PkiError
from portguard.pki.profiles import CLOCK_SKEW, Validity


def _flags(certificate: x509.Certificate) -> dict[str, bool]:
    return {type(extension.value).__name__: extension.critical for extension in certificate.extensions}


def _usages(certificate: x509.Certificate) -> set[str]:
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    names = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    return {name for name in [*names, "key_cert_sign", "crl_sign"] if getattr(usage, name)}


def _san(certificate: x509.Certificate) -> list[x509.GeneralName]:
    return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def _path_length(certificate: x509.Certificate) -> int | None:
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert constraints.ca
    return constraints.path_length


def _leaf(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pem)[0]


@pytest.fixture
def two_tiers(tmp_path: Path, now: datetime) -> Authority:
    return Authority.create(
        tmp_path / "two", trust_domain="bastion.example.com", at=now, root_directory=tmp_path / "stick"
    )


def test_the_root(authority: Authority) -> None:
    root = authority.anchor
    assert _flags(root) == {
        "SubjectKeyIdentifier": False,
        "BasicConstraints": True,
        "KeyUsage": True,
        "SubjectAlternativeName": False,
    }
    assert _path_length(root) == 0
    assert _usages(root) == {"key_cert_sign", "crl_sign"}
    assert _san(root) == [x509.UniformResourceIdentifier("spiffe://bastion.example.com")]
    assert isinstance(root.signature_hash_algorithm, hashes.SHA256)
    root.verify_directly_issued_by(root)


def test_a_root_above_an_issuing_ca_leaves_room_for_exactly_that(two_tiers: Authority) -> None:
    assert _path_length(two_tiers.anchor) == 1
    assert _path_length(two_tiers.issuer) == 0
    assert _usages(two_tiers.issuer) == {"key_cert_sign", "crl_sign"}
    assert _flags(two_tiers.issuer) == {**_flags(two_tiers.anchor), "AuthorityKeyIdentifier": False}
    assert two_tiers.issuer.subject != two_tiers.anchor.subject
    two_tiers.issuer.verify_directly_issued_by(two_tiers.anchor)


def test_a_client(authority: Authority, now: datetime) -> None:
    client = _leaf(authority.issue_client("ci/deploy", at=now).certificate_pem)
    assert _flags(client) == {
        "SubjectKeyIdentifier": False,
        "BasicConstraints": True,
        "KeyUsage": True,
        "ExtendedKeyUsage": False,
        "SubjectAlternativeName": False,
        "AuthorityKeyIdentifier": False,
    }
    assert client.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(False, None)
    assert _usages(client) == {"digital_signature"}
    assert list(client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert _san(client) == [x509.UniformResourceIdentifier("spiffe://bastion.example.com/ci/deploy")]
    assert client.subject.rfc4514_string() == "CN=ci/deploy"
    aki = client.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    ski = authority.anchor.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert aki.key_identifier == ski.digest


def test_a_gateway(authority: Authority, now: datetime) -> None:
    names = ["bastion.example.com", "*.bastion.example.com", "127.0.0.1", "::1"]
    gateway = _leaf(authority.issue_gateway(names, at=now).certificate_pem)
    assert _flags(gateway) == _flags(_leaf(authority.issue_client("a", at=now).certificate_pem))
    assert _usages(gateway) == {"digital_signature"}
    assert list(gateway.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    assert _san(gateway) == [
        x509.DNSName("bastion.example.com"),
        x509.DNSName("*.bastion.example.com"),
        x509.IPAddress(ip_address("127.0.0.1")),
        x509.IPAddress(ip_address("::1")),
    ]
    assert gateway.subject.rfc4514_string() == "CN=bastion.example.com"


@pytest.mark.parametrize(("length", "fits"), [(64, True), (65, False)])
def test_a_name_too_long_for_a_cn_is_left_out_and_never_cut(
    authority: Authority, now: datetime, length: int, fits: bool
) -> None:
    client = _leaf(authority.issue_client("x" * length, at=now).certificate_pem)
    assert client.subject.rfc4514_string() == ("CN=" + "x" * length if fits else "")
    assert _flags(client)["SubjectAlternativeName"] is not fits
    assert _san(client) == [x509.UniformResourceIdentifier("spiffe://bastion.example.com/" + "x" * length)]


def test_a_long_trust_domain_still_gives_an_authority(tmp_path: Path, now: datetime) -> None:
    domain = ".".join(["x" * 60] * 4)
    assert Authority.create(tmp_path / "long", trust_domain=domain, at=now).trust_domain == domain


@pytest.mark.parametrize("tiers", ["authority", "two_tiers"])
@pytest.mark.parametrize("name", ["alice", "x" * 65])
def test_openssl_accepts_a_client_as_a_client_and_as_nothing_else(
    request: pytest.FixtureRequest, tmp_path: Path, now: datetime, openssl: Callable, tiers: str, name: str
) -> None:
    authority: Authority = request.getfixturevalue(tiers)
    path, _ = authority.issue_client(name, at=now).write(tmp_path, "leaf")
    anchor = authority.directory / "ca.crt"
    time = int(now.timestamp())
    verify = ["verify", "-x509_strict", "-attime", time, "-CAfile", anchor, "-untrusted", path]
    accepted = openssl(*verify, "-purpose", "sslclient", path)
    assert accepted.returncode == 0, accepted.stderr
    assert "unsuitable certificate purpose" in openssl(*verify, "-purpose", "sslserver", path).stderr


@pytest.mark.parametrize("tiers", ["authority", "two_tiers"])
def test_openssl_accepts_a_gateway_for_its_names_and_no_other(
    request: pytest.FixtureRequest, tmp_path: Path, now: datetime, openssl: Callable, tiers: str
) -> None:
    authority: Authority = request.getfixturevalue(tiers)
    names = ["bastion.example.com", "*.bastion.example.com", "127.0.0.1"]
    path, _ = authority.issue_gateway(names, at=now).write(tmp_path, "leaf")
    time = int(now.timestamp())
    verify = ["verify", "-x509_strict", "-attime", time, "-CAfile", authority.directory / "ca.crt", "-untrusted", path]
    for option, good, bad in [
        ("-verify_hostname", "bastion.example.com", "example.com"),
        ("-verify_hostname", "orders-db.bastion.example.com", "a.b.bastion.example.com"),
        ("-verify_ip", "127.0.0.1", "127.0.0.2"),
    ]:
        accepted = openssl(*verify, "-purpose", "sslserver", option, good, path)
        assert accepted.returncode == 0, accepted.stderr
        assert "mismatch" in openssl(*verify, "-purpose", "sslserver", option, bad, path).stderr
    assert "unsuitable certificate purpose" in openssl(*verify, "-purpose", "sslclient", path).stderr


def test_openssl_does_not_accept_what_another_authority_of_the_same_domain_issued(
    authority: Authority, tmp_path: Path, now: datetime, openssl: Callable
) -> None:
    other = Authority.create(tmp_path / "other", trust_domain="bastion.example.com", at=now)
    path, _ = other.issue_client("alice", at=now).write(tmp_path, "alice")
    time = int(now.timestamp())
    refused = openssl("verify", "-attime", time, "-CAfile", authority.directory / "ca.crt", path)
    assert "unable to get local issuer certificate" in refused.stderr
    assert openssl("verify", "-attime", time, "-CAfile", other.directory / "ca.crt", path).returncode == 0


def test_a_client_that_poses_as_a_ca_is_not_believed(
    authority: Authority, tmp_path: Path, now: datetime, openssl: Callable
) -> None:
    alice, key_path = authority.issue_client("alice", at=now).write(tmp_path, "alice")
    request = openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
                      tmp_path / "m.key", "-subj", "/CN=mallory", "-out", tmp_path / "m.csr")  # fmt: skip
    assert request.returncode == 0, request.stderr
    signed = openssl("x509", "-req", "-in", tmp_path / "m.csr", "-CA", alice, "-CAkey", key_path, "-out",
                     tmp_path / "m.crt", "-days", 3650)  # fmt: skip
    assert signed.returncode == 0, signed.stderr
    refused = openssl("verify", "-CAfile", authority.directory / "ca.crt", "-untrusted", alice, "-no_check_time",
                      tmp_path / "m.crt")  # fmt: skip
    assert "invalid CA certificate" in refused.stderr


def test_a_certificate_begins_a_little_earlier_and_ends_when_asked(authority: Authority, now: datetime) -> None:
    later = now + timedelta(days=1)
    issued = authority.issue_client("alice", at=later, valid_for=timedelta(hours=12))
    assert (issued.not_before, issued.not_after) == (later - CLOCK_SKEW, later + timedelta(hours=12))
    assert _leaf(issued.certificate_pem).not_valid_after_utc == issued.not_after


@pytest.mark.parametrize(("kind", "days"), [("client", 30), ("gateway", 365)])
def test_the_usual_validity(authority: Authority, now: datetime, kind: str, days: int) -> None:
    if kind == "client":
        issued = authority.issue_client("alice", at=now)
    else:
        issued = authority.issue_gateway(["bastion"], at=now)
    assert issued.not_after == now + timedelta(days=days)


def test_a_certificate_stays_within_the_validity_of_its_authority(authority: Authority, now: datetime) -> None:
    issued = authority.issue_client("alice", at=now, valid_for=timedelta(days=5000))
    assert issued.not_after == authority.anchor.not_valid_after_utc
    first = authority.anchor.not_valid_before_utc
    assert authority.issue_client("bob", at=first).not_before == first


@pytest.mark.parametrize("offset", [timedelta(minutes=-6), timedelta(days=3650)])
def test_an_authority_that_is_not_valid_issues_nothing(authority: Authority, now: datetime, offset: timedelta) -> None:
    with pytest.raises(PkiError, match="validity of the authority: expected a time from 2026-07-01 11:55:00 to"):
        authority.issue_client("alice", at=now + offset)
    assert authority.store.records() == []


@pytest.mark.parametrize("valid_for", [timedelta(0), timedelta(days=-1), timedelta(days=36526), timedelta.max])
def test_a_validity_out_of_range_is_refused(now: datetime, valid_for: timedelta) -> None:
    with pytest.raises(UsageError, match="validity: expected 1 second to 36525 days"):
        Validity.starting(now, valid_for)


def test_a_time_without_a_zone_is_a_mistake_of_the_caller(now: datetime) -> None:
    with pytest.raises(ValueError, match="expected an aware datetime"):
        Validity.starting(now.replace(tzinfo=None), timedelta(days=1))


def test_any_zone_and_fractions_of_seconds_are_taken(now: datetime) -> None:
    east = now.astimezone(timezone(timedelta(hours=9))).replace(microsecond=999_999)
    assert Validity.starting(east, timedelta(days=1)) == Validity.starting(now, timedelta(days=1))


def test_serials_are_large_and_never_the_same(authority: Authority, now: datetime) -> None:
    serials = [authority.issue_client("alice", at=now).serial for _ in range(8)]
    assert len(set(serials)) == 8
    assert all(0 < serial < 2**159 for serial in serials)
    assert max(serials) > 2**127


def test_the_key_belongs_to_the_certificate_and_to_no_other(authority: Authority, now: datetime) -> None:
    one, other = (authority.issue_client("alice", at=now) for _ in range(2))
    assert one.key_pem != other.key_pem
    assert isinstance(_leaf(one.certificate_pem).public_key(), ec.EllipticCurvePublicKey)
