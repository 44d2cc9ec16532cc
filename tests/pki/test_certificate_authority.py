import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from portguard.errors import UsageError
from portguard.pki import authority as module
from portguard.pki import keys
from portguard.pki.authority import Authority
from portguard.pki.errors import PkiError, WrongPassphrase
from portguard.pki.keys import KeyType

DOMAIN = "bastion.example.com"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def _at_once(count: int, act: Callable[[int], object]) -> tuple[list[object], list[PkiError]]:
    """Do `act(number)` in so many threads that start together; return the results and the refusals."""
    barrier = threading.Barrier(count)
    results: list[object] = []
    refusals: list[PkiError] = []

    def run(number: int) -> None:
        barrier.wait()
        try:
            results.append(act(number))
        except PkiError as error:
            refusals.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, refusals


# making one


def test_a_new_authority_is_for_its_owner_alone(tmp_path: Path, now: datetime) -> None:
    previous = os.umask(0)
    try:
        authority = Authority.create(tmp_path / "deep" / "ca", trust_domain=DOMAIN, at=now)
    finally:
        os.umask(previous)
    assert sorted(os.listdir(authority.directory)) == ["ca.crl", "ca.crt", "ca.key", "certificates.db"]
    assert _mode(authority.directory) == 0o700
    assert _mode(authority.directory / "ca.key") == 0o600
    assert _mode(authority.directory / "certificates.db") == 0o600


def test_an_empty_directory_becomes_one_and_is_closed_to_others(tmp_path: Path, now: datetime) -> None:
    (tmp_path / "ca" / "lost+found").mkdir(parents=True)
    (tmp_path / "ca").chmod(0o755)
    Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now)
    assert _mode(tmp_path / "ca") == 0o700


def test_an_authority_is_never_made_over_another(authority: Authority, now: datetime) -> None:
    before = _tree(authority.directory)
    with pytest.raises(PkiError, match="ca: expected no authority yet, got one that exists"):
        Authority.create(authority.directory, trust_domain="other.example", at=now)
    assert _tree(authority.directory) == before


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path, now: datetime) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    tmp_path.chmod(0o755)
    with pytest.raises(PkiError, match=r"expected a new or empty directory, got 1 entries, such as 'notes\.txt'"):
        Authority.create(tmp_path, trust_domain=DOMAIN, at=now)
    assert os.listdir(tmp_path) == ["notes.txt"]
    assert _mode(tmp_path) == 0o755


def test_a_file_in_its_place_is_an_error(tmp_path: Path, now: datetime) -> None:
    (tmp_path / "ca").write_text("mine")
    with pytest.raises(PkiError, match="ca: expected a directory, or room for one, got a file"):
        Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now)
    assert (tmp_path / "ca").read_text() == "mine"


@pytest.mark.parametrize("two_tiers", [False, True])
def test_of_many_that_make_one_at_once_one_wins(tmp_path: Path, now: datetime, two_tiers: bool) -> None:
    made, refusals = _at_once(
        6,
        lambda number: Authority.create(
            tmp_path / "ca",
            trust_domain=f"d{number}.example",
            at=now,
            root_directory=tmp_path / f"stick{number}" if two_tiers else None,
        ),
    )
    (winner,) = made
    assert isinstance(winner, Authority)
    assert len(refusals) == 5
    assert all("expected no " in str(refusal) for refusal in refusals)
    opened = Authority.open(tmp_path / "ca")
    assert opened.trust_domain == winner.trust_domain
    assert opened.issue_client("alice", at=now).serial == opened.store.records()[0].serial
    sticks = {path.name for path in tmp_path.glob("stick*")}
    assert sticks == ({"stick" + winner.trust_domain[1:2]} if two_tiers else set())


@pytest.mark.parametrize(
    "broken", ["issuing.key", "issuing.crt", "root.crl", "ca.crl", "ca.crt", "root.key", "root.crt"]
)
@pytest.mark.parametrize("directories_exist", [False, True])
def test_a_failure_on_the_way_leaves_nothing(
    tmp_path: Path, now: datetime, monkeypatch: pytest.MonkeyPatch, broken: str, directories_exist: bool
) -> None:
    if directories_exist:
        (tmp_path / "ca").mkdir()
        (tmp_path / "stick").mkdir()
        (tmp_path / "stick" / "holiday.jpg").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    link = os.link

    def interrupted(source: Path, target: Path, **keywords: bool) -> None:
        if target.name == broken:
            raise KeyboardInterrupt
        link(source, target, **keywords)

    monkeypatch.setattr(os, "link", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now, root_directory=tmp_path / "stick")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_crash_on_the_way_leaves_no_authority_and_is_told(tmp_path: Path, now: datetime) -> None:
    script = (
        "import datetime, os, sys\n"
        "from portguard.pki.authority import Authority\n"
        "link = os.link\n"
        "os.link = lambda a, b, **k: os._exit(9) if b.name == 'ca.crt' else link(a, b, **k)\n"
        "Authority.create(sys.argv[1], trust_domain='a.example', at=datetime.datetime.now(datetime.UTC))\n"
    )
    assert subprocess.run([sys.executable, "-c", script, tmp_path / "ca"], check=False).returncode == 9
    with pytest.raises(PkiError, match=r"ca\.crt: expected a CA certificate of portguard, got “No such file"):
        Authority.open(tmp_path / "ca")
    with pytest.raises(PkiError, match="expected a new or empty directory"):
        Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now)


def test_a_bad_trust_domain_makes_no_directory(tmp_path: Path, now: datetime) -> None:
    with pytest.raises(UsageError, match="trust domain: expected"):
        Authority.create(tmp_path / "ca", trust_domain="Bastion", at=now)
    assert os.listdir(tmp_path) == []


def test_rsa_by_choice_gives_rsa_to_what_it_issues(tmp_path: Path, now: datetime) -> None:
    authority = Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now, key_type=KeyType.RSA)
    assert isinstance(authority.anchor.public_key(), rsa.RSAPublicKey)
    issued = authority.issue_client("alice", at=now)
    assert isinstance(load_pem_private_key(issued.key_pem, None), rsa.RSAPrivateKey)
    issued = authority.issue_client("alice", at=now, key_type=KeyType.EC)
    assert isinstance(load_pem_private_key(issued.key_pem, None), ec.EllipticCurvePrivateKey)


# a root that is kept elsewhere


def test_the_root_key_is_only_in_the_root_directory(tmp_path: Path, now: datetime) -> None:
    authority = Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now, root_directory=tmp_path / "stick")
    mine = ["ca.crl", "ca.crt", "certificates.db", "issuing.crt", "issuing.key", "root.crl"]
    assert sorted(os.listdir(tmp_path / "ca")) == mine
    assert sorted(os.listdir(tmp_path / "stick")) == ["root.crt", "root.key"]
    assert _mode(tmp_path / "stick" / "root.key") == 0o600
    assert _mode(tmp_path / "stick") == 0o700
    root_key = load_pem_private_key((tmp_path / "stick" / "root.key").read_bytes(), None)
    assert root_key.public_key() == authority.anchor.public_key()
    issuing_key = load_pem_private_key((tmp_path / "ca" / "issuing.key").read_bytes(), None)
    assert issuing_key.public_key() == authority.issuer.public_key() != root_key.public_key()


def test_without_the_stick_it_issues_chains_below_the_root(tmp_path: Path, now: datetime) -> None:
    Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now, root_directory=tmp_path / "stick")
    shutil.rmtree(tmp_path / "stick")
    authority = Authority.open(tmp_path / "ca")
    assert authority.certificate_pem == (tmp_path / "ca" / "ca.crt").read_bytes()
    for issued in (authority.issue_client("alice", at=now), authority.issue_gateway(["bastion"], at=now)):
        leaf, intermediate = x509.load_pem_x509_certificates(issued.certificate_pem)
        leaf.verify_directly_issued_by(intermediate)
        intermediate.verify_directly_issued_by(authority.anchor)
        assert issued.anchor_pem == authority.certificate_pem


def test_without_a_root_directory_a_chain_is_the_leaf_alone(authority: Authority, now: datetime) -> None:
    (leaf,) = x509.load_pem_x509_certificates(authority.issue_client("alice", at=now).certificate_pem)
    leaf.verify_directly_issued_by(authority.anchor)


@pytest.mark.parametrize("root", ["ca", "./ca", "link"])
def test_the_root_directory_is_another_one(tmp_path: Path, now: datetime, root: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "ca")
    with pytest.raises(UsageError, match="root directory: expected another one than the authority's"):
        Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now, root_directory=tmp_path / root)


def test_a_stick_that_holds_a_root_keeps_it(tmp_path: Path, now: datetime) -> None:
    Authority.create(tmp_path / "one", trust_domain=DOMAIN, at=now, root_directory=tmp_path / "stick")
    before = _tree(tmp_path)
    with pytest.raises(PkiError, match=r"stick/root\.key: expected no file of this name"):
        Authority.create(tmp_path / "two", trust_domain=DOMAIN, at=now, root_directory=tmp_path / "stick")
    assert _tree(tmp_path) == before
    assert not (tmp_path / "two").exists()


def test_an_issuing_ca_of_another_root_is_refused(tmp_path: Path, now: datetime) -> None:
    for name in ("one", "two"):
        Authority.create(tmp_path / name, trust_domain=DOMAIN, at=now, root_directory=tmp_path / f"stick-{name}")
    shutil.copy(tmp_path / "two" / "issuing.crt", tmp_path / "one" / "issuing.crt")
    with pytest.raises(PkiError, match=r"issuing\.crt: expected a CA that ca\.crt signed, got another one"):
        Authority.open(tmp_path / "one")


# passphrases


def test_an_encrypted_key_takes_its_passphrase(tmp_path: Path, now: datetime) -> None:
    Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now, passphrase=b"correct horse")
    assert keys.is_encrypted((tmp_path / "ca" / "ca.key").read_bytes())
    authority = Authority.open(tmp_path / "ca", passphrase=b"correct horse")
    assert authority.key_is_encrypted
    authority.issue_client("alice", at=now)


def test_a_wrong_passphrase_opens_nothing(tmp_path: Path, now: datetime) -> None:
    Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now, passphrase=b"correct horse")
    with pytest.raises(WrongPassphrase, match=r"ca\.key: expected the passphrase of this key"):
        Authority.open(tmp_path / "ca", passphrase=b"battery staple")


def test_without_its_passphrase_a_locked_authority_shows_but_does_not_issue(tmp_path: Path, now: datetime) -> None:
    Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now, passphrase=b"correct horse")
    authority = Authority.open(tmp_path / "ca")
    assert authority.trust_domain == DOMAIN
    with pytest.raises(WrongPassphrase, match="expected a passphrase, because the key is encrypted, got none"):
        authority.issue_client("alice", at=now)
    assert authority.store.records() == []


@pytest.mark.parametrize(
    ("passphrase", "root_passphrase", "opens_issuing", "opens_root"),
    [
        (None, None, None, None),
        (b"one", None, b"one", b"one"),
        (b"one", b"two", b"one", b"two"),
        (None, b"two", None, b"two"),
    ],
)
def test_root_and_issuing_key_may_have_different_passphrases(
    tmp_path: Path,
    now: datetime,
    passphrase: bytes | None,
    root_passphrase: bytes | None,
    opens_issuing: bytes | None,
    opens_root: bytes | None,
) -> None:
    Authority.create(
        tmp_path / "ca",
        trust_domain=DOMAIN,
        at=now,
        passphrase=passphrase,
        root_directory=tmp_path / "stick",
        root_passphrase=root_passphrase,
    )
    keys.from_pem((tmp_path / "ca" / "issuing.key").read_bytes(), opens_issuing, "issuing.key")
    keys.from_pem((tmp_path / "stick" / "root.key").read_bytes(), opens_root, "root.key")


# opening one


def test_the_key_of_another_authority_is_an_error(authority: Authority, tmp_path: Path, now: datetime) -> None:
    other = Authority.create(tmp_path / "other", trust_domain=DOMAIN, at=now)
    shutil.copy(other.key_path, authority.key_path)
    with pytest.raises(PkiError, match="expected the key of the authority's certificate, got the key of another one"):
        Authority.open(authority.directory).issue_client("alice", at=now)


def test_a_missing_key_is_an_error_only_for_who_issues(authority: Authority, now: datetime) -> None:
    authority.key_path.unlink()
    opened = Authority.open(authority.directory)
    assert opened.store.records() == []
    with pytest.raises(PkiError, match=r"ca\.key: expected the key of the authority, got “No such file or directory”"):
        opened.issue_client("alice", at=now)


# issuing


def test_what_is_issued_is_on_record(authority: Authority, now: datetime) -> None:
    alice = authority.issue_client("alice", at=now)
    gateway = authority.issue_gateway(["*.bastion.example.com", "127.0.0.1"], at=now + timedelta(seconds=1))
    assert Authority.open(authority.directory).store.records() == [alice.record, gateway.record]
    assert (alice.record.kind, alice.record.name) == ("client", "alice")
    assert (gateway.record.kind, gateway.record.name) == ("gateway", "*.bastion.example.com")
    certificate = x509.load_der_x509_certificate(alice.record.der)
    assert certificate == x509.load_pem_x509_certificate(alice.certificate_pem)
    assert certificate.serial_number == alice.serial


def test_what_was_issued_is_told_from_another_certificate_with_its_serial(authority: Authority, now: datetime) -> None:
    issued = authority.issue_client("alice", at=now)
    own = x509.load_pem_x509_certificate(issued.certificate_pem)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder().subject_name(own.subject).issuer_name(own.issuer).public_key(key.public_key())
    builder = builder.serial_number(own.serial_number).not_valid_before(now).not_valid_after(now + timedelta(days=9))
    assert authority.store.record_of(own) == issued.record
    assert authority.store.record_of(builder.sign(key, hashes.SHA256())) is None


def test_a_bad_name_is_not_issued(authority: Authority, now: datetime) -> None:
    with pytest.raises(UsageError, match="client name: expected"):
        authority.issue_client("../alice", at=now)
    with pytest.raises(UsageError, match="gateway name: expected"):
        authority.issue_gateway(["bastion", "../alice"], at=now)
    assert authority.store.records() == []


def test_what_cannot_be_recorded_is_not_handed_out(authority: Authority, now: datetime) -> None:
    authority.store.path.write_bytes(b"nonsense" * 100)
    with pytest.raises(PkiError, match=r"certificates\.db: expected the record of issued certificates"):
        authority.issue_client("alice", at=now)


def test_many_that_issue_at_once_lose_no_record(authority: Authority, now: datetime) -> None:
    opened = [Authority.open(authority.directory) for _ in range(4)]
    results, refusals = _at_once(
        4, lambda number: [opened[number].issue_client(f"c{number}", at=now).serial for _ in range(4)]
    )
    assert refusals == []
    serials = {serial for result in results for serial in result}  # type: ignore[attr-defined]  # lists of int
    assert {record.serial for record in authority.store.records()} == serials
    assert len(serials) == 16


def test_no_key_is_in_a_repr(authority: Authority, now: datetime) -> None:
    issued = authority.issue_client("alice", at=now)
    shown = repr(issued) + repr(authority)
    assert "PRIVATE" not in shown
    assert issued.key_pem.split(b"\n")[1].decode() not in shown


# writing


def test_certificate_and_key_are_written_for_their_owner(authority: Authority, tmp_path: Path, now: datetime) -> None:
    issued = authority.issue_client("alice", at=now)
    certificate, key = issued.write(tmp_path / "new" / "out", "alice")
    assert (certificate, key) == (tmp_path / "new/out/alice.crt", tmp_path / "new/out/alice.key")
    assert certificate.read_bytes() == issued.certificate_pem
    assert key.read_bytes() == issued.key_pem
    assert _mode(key) == 0o600


@pytest.mark.parametrize("taken", ["alice.crt", "alice.key"])
def test_nothing_is_overwritten_unasked(authority: Authority, tmp_path: Path, now: datetime, taken: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / taken).write_text("mine")
    issued = authority.issue_client("alice", at=now)
    with pytest.raises(PkiError, match=f"{taken}: expected no file of this name, got one that exists"):
        issued.write(tmp_path / "out", "alice")
    assert _tree(tmp_path / "out") == {taken: b"mine"}
    issued.write(tmp_path / "out", "alice", overwrite=True)
    assert _tree(tmp_path / "out") == {"alice.crt": issued.certificate_pem, "alice.key": issued.key_pem}


def test_of_many_that_write_to_one_place_one_wins(authority: Authority, tmp_path: Path, now: datetime) -> None:
    issued = [authority.issue_client("alice", at=now) for _ in range(6)]
    results, refusals = _at_once(6, lambda number: issued[number].write(tmp_path / "out", "alice") and number)
    (winner,) = results
    assert isinstance(winner, int)
    assert len(refusals) == 5
    assert _tree(tmp_path / "out") == {"alice.crt": issued[winner].certificate_pem, "alice.key": issued[winner].key_pem}


@pytest.mark.parametrize("stem", ["", "../alice", "/etc/alice", "a/b", "a\0b"])
def test_a_stem_is_a_plain_file_name(authority: Authority, tmp_path: Path, now: datetime, stem: str) -> None:
    issued = authority.issue_client("alice", at=now)
    with pytest.raises(UsageError, match="file name: expected one without '/'"):
        issued.write(tmp_path / "out", stem)
    with pytest.raises(UsageError, match="file name: expected one without '/'"):
        issued.write_pkcs12(tmp_path / "out", stem, b"secret")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("two_tiers", [False, True])
def test_openssl_reads_a_pkcs12_file_with_its_passphrase_only(
    tmp_path: Path, now: datetime, openssl: Callable, two_tiers: bool
) -> None:
    root_directory = tmp_path / "stick" if two_tiers else None
    authority = Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now, root_directory=root_directory)
    issued = authority.issue_client("alice", at=now)
    path = issued.write_pkcs12(tmp_path, "alice", b"correct horse")
    assert _mode(path) == 0o600
    read = openssl("pkcs12", "-in", path, "-nodes", "-passin", "pass:correct horse")
    assert read.returncode == 0, read.stderr
    certificates = x509.load_pem_x509_certificates(read.stdout.encode())
    assert certificates == x509.load_pem_x509_certificates(issued.certificate_pem + issued.anchor_pem)
    assert len(certificates) == (3 if two_tiers else 2)
    key = load_pem_private_key(read.stdout.encode(), None)
    assert key.public_key() == certificates[0].public_key()
    assert openssl("pkcs12", "-in", path, "-nodes", "-passin", "pass:battery staple").returncode != 0
    with pytest.raises(PkiError, match=r"alice\.p12: expected no file of this name"):
        issued.write_pkcs12(tmp_path, "alice", b"correct horse")
    issued.write_pkcs12(tmp_path, "alice", b"another horse", overwrite=True)
    assert openssl("pkcs12", "-in", path, "-nodes", "-passin", "pass:correct horse").returncode != 0


def test_a_pkcs12_file_without_a_passphrase_is_refused(authority: Authority, tmp_path: Path, now: datetime) -> None:
    with pytest.raises(UsageError, match="passphrase: expected 1 to 1023 bytes, got 0"):
        authority.issue_client("alice", at=now).write_pkcs12(tmp_path, "alice", b"")


def test_the_docstring_names_every_file(authority: Authority) -> None:
    assert module.__doc__ is not None
    for name in os.listdir(authority.directory):
        assert name in module.__doc__


# keys that are somebody else's


def test_a_key_that_its_owner_keeps_gets_a_certificate(authority: Authority, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    client = authority.sign_client(key.public_key(), "alice", at=now)
    gateway = authority.sign_gateway(key.public_key(), ["g.example"], at=now)
    for signed, name in ((client, "alice"), (gateway, "g.example")):
        certificate = x509.load_pem_x509_certificate(signed.certificate_pem)
        assert certificate.public_key() == key.public_key()
        record = authority.store.get(signed.serial)
        assert record is not None
        assert (record.name, record.der) == (name, certificate.public_bytes(Encoding.DER))


def test_a_weak_key_gets_none(authority: Authority, now: datetime) -> None:
    weak = rsa.generate_private_key(65537, 1024).public_key()
    with pytest.raises(PkiError, match="public key: expected a key on P-256"):
        authority.sign_client(weak, "alice", at=now)
    with pytest.raises(PkiError, match="public key: expected a key on P-256"):
        authority.sign_gateway(weak, ["g.example"], at=now)
    assert authority.store.records() == []
