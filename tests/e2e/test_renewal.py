"""Certificates renewed at a real gateway: with curl and openssl, and by `portguard cert renew`."""

import json
import re
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from portguard.pki.authority import Authority
from portguard.pki.proof import Purpose, make_proof
from tests.certificates import Authority as Holders
from tests.curl import curl
from tests.e2e.conftest import PORTGUARD
from tests.held import portguard
from tests.patience import PATIENCE_S
from tests.profiles import write_profile

RENEWS = 'authority = "ca"\nrenew_for = "20d"\n'
OTHER = """
[trusts.other]
ca = "other/ca.crt"
identity = "spiffe"
trust_domain = "other.test"
default = false
"""
DOCS = Path(__file__).parents[2] / "docs"
PKCS10 = ("--header", "Content-Type: application/pkcs10")


@pytest.fixture
def gateway(start_gateway, echo, real_program):
    real_program("curl")
    return start_gateway({"echo": echo}, configuration=RENEWS, workers=1)


def request(key):
    """A request for this key, which asks for another name."""
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mallory")])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, digest).public_bytes(Encoding.DER)


def key_of(gateway, name):
    return load_pem_private_key(gateway.certificate(name)[1].read_bytes(), None)


def certificate_of(gateway, name):
    return x509.load_pem_x509_certificates(gateway.certificate(name)[0].read_bytes())[0]


def proof_of(gateway, name, wanted, at_s=None):
    certificate = certificate_of(gateway, name).public_bytes(Encoding.DER)
    at_s = int(time.time()) if at_s is None else at_s
    return make_proof(Purpose.RENEWAL, key_of(gateway, name), certificate, wanted, at_s)


def post(gateway, name, body, *options):
    """Post a body to /v1/renew; the status, and the answer."""
    path = gateway.folder / "body"
    path.write_bytes(body)
    url = "https://gw.localhost:{port}/v1/renew"
    answer = curl(gateway, name, url, "--data-binary", f"@{path}", *options, "--write-out", "%{stderr}%{http_code}")
    return int(answer.stderr), answer.stdout


def refusal(gateway, name, body, *options):
    status, answer = post(gateway, name, body, *PKCS10, *options)
    document = json.loads(answer)
    return status, document["reason"], document["message"]


def audited(gateway):
    lines = (gateway.folder / "state/audit/audit.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == "certificate.issue"]


def echoes(gateway, name):
    """Whether a client gets through to the service."""
    with gateway.connect("echo", name) as client:
        client.sendall(b"x")
        return client.recv(1) == b"x"


# With curl and openssl.


def test_a_certificate_is_renewed_for_the_same_key(gateway):
    before = certificate_of(gateway, "alice")
    status, chain = post(gateway, "alice", request(key_of(gateway, "alice")), *PKCS10)
    assert status == 200
    renewed = x509.load_pem_x509_certificate(chain.encode())
    renewed.verify_directly_issued_by(gateway.authority.anchor)
    assert renewed.public_key() == before.public_key()
    assert renewed.subject.rfc4514_string() == "CN=alice"
    assert timedelta(days=19) < renewed.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=20)
    [record] = [each for each in gateway.authority.store.records() if each.serial == renewed.serial_number]
    assert (record.kind, record.name) == ("client", "alice")
    [line] = audited(gateway)
    assert line | {"seq": 0, "time": "", "prev": "", "session": ""} == {
        "seq": 0,
        "time": "",
        "prev": "",
        "session": "",
        "event": "certificate.issue",
        "trust": "local",
        "identity": "alice",
        "source": "127.0.0.1",
        "serial": f"{before.serial_number:x}",
        "fingerprint": before.fingerprint(hashes.SHA256()).hex(),
        "issued_serial": f"{renewed.serial_number:x}",
        "issued_fingerprint": renewed.fingerprint(hashes.SHA256()).hex(),
        "not_after": renewed.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    gateway.certificate("alice")[0].write_text(chain)
    assert echoes(gateway, "alice")


def run_page(gateway, name):
    """Run the one block of a page that posts to /v1/renew, as alice, in a folder with her files."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (DOCS / name).read_text(), re.MULTILINE | re.DOTALL)
    [block] = [block for block in blocks if "/v1/renew" in block]
    gateway.certificate("alice")
    gateway.folder.joinpath("ca.crt").write_bytes(gateway.ca.read_bytes())
    script = block.replace("bastion.example.com:8443", f"gw.localhost:{gateway.port}")
    return subprocess.run(["bash", "-euc", script], cwd=gateway.folder, capture_output=True, text=True, check=True)


def test_what_the_howto_shows_renews_the_certificate(gateway, real_program):
    real_program("openssl")
    before = certificate_of(gateway, "alice")
    run_page(gateway, "howto/issue-certificates.md")
    after = certificate_of(gateway, "alice")
    assert after.serial_number != before.serial_number
    assert after.public_key() == before.public_key()
    assert echoes(gateway, "alice")


def test_what_the_reference_shows_gets_a_certificate_for_a_new_key(gateway, real_program):
    real_program("openssl")
    run_page(gateway, "reference/http-api.md")
    folder = gateway.folder
    context = gateway.context(None)
    context.load_cert_chain(folder / "new.crt", folder / "new.key")
    with gateway.connect_with(context, "echo") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-384", "RSA", "Ed25519"],
)
def test_a_new_key_with_a_proof_by_the_old_one_gets_a_certificate_that_renews_again(gateway, key):
    certificate, key_path = gateway.certificate("alice")
    for _ in range(2):  # the second time it is this key that proves
        wanted = request(key)
        status, chain = post(
            gateway, "alice", wanted, *PKCS10, "--header", f"Portguard-Proof: {proof_of(gateway, 'alice', wanted)}"
        )
        assert status == 200, chain
        assert x509.load_pem_x509_certificate(chain.encode()).public_key() == key.public_key()
        certificate.write_text(chain)
        key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        assert echoes(gateway, "alice")
        key = ec.generate_private_key(ec.SECP256R1())


# By `portguard cert renew`.


def renew(gateway, name, *options, more=""):
    """Run `portguard cert renew` as a client; the exit code, standard output and standard error."""
    profile = write_profile(gateway, name, gateway.folder)
    profile.write_text(profile.read_text() + more)
    command = [*PORTGUARD, "cert", "renew", "--profile", profile, *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_client_renews_and_connects_with_the_new_certificate_while_the_old_one_lasts(gateway):
    paths = gateway.certificate("alice")
    before, old_key = certificate_of(gateway, "alice"), key_of(gateway, "alice")
    old = gateway.context("alice")
    code, out, err = renew(gateway, "alice", "--json")
    assert (code, err) == (0, "")
    after = certificate_of(gateway, "alice")
    assert json.loads(out) == {
        "renewed": True,
        "identity": "spiffe://gateway.test/alice",
        "certificate": str(paths[0]),
        "not_after": after.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "serial": f"{after.serial_number:x}",
        "key": str(paths[1]),
        "new_key": True,
    }
    assert after.serial_number != before.serial_number
    assert key_of(gateway, "alice").public_key() == after.public_key() != old_key.public_key()
    assert paths[1].stat().st_mode & 0o777 == 0o600
    assert not list(gateway.folder.glob("*.new"))
    assert echoes(gateway, "alice")
    with gateway.connect_with(old, "echo") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    [line] = audited(gateway)
    assert (line["serial"], line["issued_serial"]) == (f"{before.serial_number:x}", f"{after.serial_number:x}")


def test_a_client_keeps_its_key_if_it_likes(gateway):
    before, key = certificate_of(gateway, "alice"), gateway.certificate("alice")[1].read_bytes()
    code, out, err = renew(gateway, "alice", "--keep-key")
    assert (code, err) == (0, "")
    shown = [line[:13].rstrip() for line in out.splitlines()]
    assert shown == ["identity", "certificate", "key", "new key", "not after", "serial"]  # as `cert issue` has them
    assert "new key      no\n" in out
    assert gateway.certificate("alice")[1].read_bytes() == key
    after = certificate_of(gateway, "alice")
    assert after.serial_number != before.serial_number
    assert after.public_key() == before.public_key()
    assert echoes(gateway, "alice")


def test_a_client_renews_only_when_it_is_time(gateway):
    path = gateway.certificate("alice")[0]
    before = path.read_bytes()
    code, out, err = renew(gateway, "alice", "--if-within", "10d")
    assert (code, err) == (0, "")
    assert out.startswith(f"not renewed  {path} is valid until 20")
    code, out, _ = renew(gateway, "alice", "--if-within", "10d", "--json")
    assert code == 0
    assert json.loads(out)["renewed"] is False
    assert path.read_bytes() == before
    assert audited(gateway) == []
    assert renew(gateway, "alice", "--if-within", "31d")[0] == 0
    assert path.read_bytes() != before


def test_a_key_with_a_passphrase_gets_one_with_the_same(gateway):
    key = gateway.certificate("alice")[1]
    form = Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"correct horse")
    key.write_bytes(key_of(gateway, "alice").private_bytes(*form))
    (gateway.folder / "secret").write_text("correct horse\n")
    (gateway.folder / "secret").chmod(0o600)
    before = key.read_bytes()
    # Whether it is time is found out without it.
    assert renew(gateway, "alice", "--if-within", "10d")[0] == 0
    assert renew(gateway, "alice")[0] == 2
    code, out, err = renew(gateway, "alice", more='key_passphrase_file = "secret"\n')
    assert (code, err) == (0, "")
    assert key.read_bytes() != before
    opened = load_pem_private_key(key.read_bytes(), b"correct horse")
    assert opened.public_key() == certificate_of(gateway, "alice").public_key()
    assert "horse" not in out


@pytest.mark.parametrize("command", [["whoami"], ["cert", "renew", "--if-within", "10d"]])
def test_a_renewal_that_a_crash_has_interrupted_is_finished_by_the_next_command(gateway, command):
    ending = gateway.authority.issue_client("alice", at=datetime.now(UTC), valid_for=timedelta(days=1))
    certificate, _ = ending.write(gateway.folder, "alice")
    old = certificate.read_bytes()
    assert renew(gateway, "alice")[0] == 0
    new = certificate.read_bytes()
    # As it is when the key has its name, and the certificate does not yet.
    certificate.with_name("alice.crt.new").write_bytes(new)
    certificate.write_bytes(old)
    profile = write_profile(gateway, "alice", gateway.folder)
    subprocess.run([*PORTGUARD, *command, "--profile", profile], capture_output=True, check=True, timeout=PATIENCE_S)
    assert len(audited(gateway)) == 1
    assert certificate.read_bytes() == new
    assert not list(gateway.folder.glob("*.new"))


def test_a_client_that_is_refused_keeps_what_it_has_and_is_told_why(gateway):
    files = [path.read_bytes() for path in gateway.certificate("alice")]
    portguard(gateway, "lock", "alice", "--reason", "INC-1")
    code, out, err = renew(gateway, "alice")
    assert (code, out) == (3, "")
    assert err.startswith("portguard: renew: locked: the identity is locked (session ")
    assert [path.read_bytes() for path in gateway.certificate("alice")] == files
    gateway.program.stop()
    code, _, err = renew(gateway, "alice")
    assert code == 4
    assert "expected a connection, got" in err
    assert renew(gateway, "alice", more="nonsense = 1\n")[0] == 2
    assert [path.read_bytes() for path in gateway.certificate("alice")] == files
    assert not list(gateway.folder.glob("*.new"))


def test_the_commands_of_the_howto_run(gateway, tmp_path):
    """Those for a shell, for cron and for systemd; the last two by what stands in the files."""
    page = (DOCS / "howto/issue-certificates.md").read_text()
    blocks = re.findall(r"^```(sh|text|ini)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    commands = [re.search(r"portguard cert renew .*", block) for _, block in blocks]
    profile = write_profile(gateway, "alice", gateway.folder)
    environment = {"PORTGUARD_PROFILE": str(profile), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    (tmp_path / "portguard").write_text(f'#!/bin/sh\nexec {" ".join(PORTGUARD)} "$@"\n')
    (tmp_path / "portguard").chmod(0o755)
    ran = [
        subprocess.run(["sh", "-euc", command[0]], env=environment, capture_output=True, check=True, timeout=PATIENCE_S)
        for command in commands
        if command is not None
    ]
    assert [done.stdout[:11] for done in ran] == [b"not renewed", b"", b"not renewed"]


# Who does not get one.


def test_another_key_needs_a_proof_of_this_certificate_for_this_request_of_now(gateway):
    wanted, other = (request(ec.generate_private_key(ec.SECP256R1())) for _ in range(2))
    now = int(time.time())
    refused = (
        400,
        "bad_request",
        "request: expected the key of the certificate, or a proof by it, got another key without one",
    )
    assert refusal(gateway, "alice", wanted) == refused
    for name, proof in {
        "another request": proof_of(gateway, "alice", other),
        "another client": proof_of(gateway, "bob", wanted),
        "too old": proof_of(gateway, "alice", wanted, now - 400),
        "too early": proof_of(gateway, "alice", wanted, now + 400),
        "nonsense": "nonsense",
        "too long": f"1:{'A' * 1100}",
    }.items():
        status, reason, message = refusal(gateway, "alice", wanted, "--header", f"Portguard-Proof: {proof}")
        assert (status, reason) == (400, "bad_request"), name
        assert "roof: expected" in message, name
    assert audited(gateway) == []
    assert {record.kind for record in gateway.authority.store.records()} == {"client", "gateway"}
    assert len(gateway.authority.store.records()) == 3  # the gateway's, alice's and bob's
    good = proof_of(gateway, "alice", wanted)
    assert post(gateway, "alice", wanted, *PKCS10, "--header", f"Portguard-Proof: {good}")[0] == 200
    # Nor does it help anybody else.
    assert refusal(gateway, "bob", wanted, "--header", f"Portguard-Proof: {good}")[0] == 400


def test_a_request_that_is_none_is_refused(gateway):
    wanted = request(key_of(gateway, "alice"))
    for body, fragment in {
        b"garbage": "body: expected one certificate request (PKCS #10) in PEM or DER, got something else",
        b"": "got nothing",
        wanted.replace(b"mallory", b"Mallory"): "expected a request that its own key has signed",
        request(rsa.generate_private_key(65537, 1024)): "got RSA 1024",
        b"0" * 20_000: "at most 16384 bytes",
    }.items():
        status, reason, message = refusal(gateway, "alice", body)
        assert (status, reason) == (400, "bad_request")
        assert fragment in message
    assert refusal(gateway, "alice", b"0" * 70_000)[0] == 413
    assert post(gateway, "alice", wanted)[0] == 415
    assert post(gateway, "alice", wanted, *PKCS10, "--request", "PUT")[0] == 400  # only POST has a body
    assert audited(gateway) == []


def test_who_is_locked_or_revoked_gets_none(gateway):
    alice, bob = request(key_of(gateway, "alice")), request(key_of(gateway, "bob"))
    assert post(gateway, "alice", alice, *PKCS10)[0] == 200
    portguard(gateway, "lock", "alice", "--reason", "INC-1")
    assert refusal(gateway, "alice", alice)[:2] == (403, "locked")
    key = load_pem_private_key((gateway.folder / "ca/ca.key").read_bytes(), None)
    revoked = Holders(gateway.authority.anchor, key).crl([certificate_of(gateway, "bob").serial_number])
    (gateway.folder / "ca.crl").write_bytes(revoked.public_bytes(Encoding.PEM))
    change(gateway, 'authority = "ca"', 'authority = "ca"\ncrl = ["ca.crl"]')
    portguard(gateway, "reload")
    assert refusal(gateway, "bob", bob)[:2] == (403, "certificate_revoked")
    assert [line["identity"] for line in audited(gateway)] == ["alice"]


def test_a_revocation_that_has_not_reached_the_gateway_holds_for_renewal(gateway):
    wanted = request(key_of(gateway, "alice"))
    status, chain = post(gateway, "alice", wanted, *PKCS10)
    assert status == 200
    renewed = x509.load_pem_x509_certificate(chain.encode())
    command = [*PORTGUARD, "cert", "revoke", "--identity", "alice", "--ca", str(gateway.folder / "ca"), "--json"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S).stdout)
    serials = {f"{each.serial_number:x}" for each in (certificate_of(gateway, "alice"), renewed)}
    assert {each["serial"] for each in answer["revoked"]} == serials
    assert echoes(gateway, "alice")  # it has no list
    assert refusal(gateway, "alice", wanted)[:2] == (403, "certificate_revoked")
    gateway.certificate("alice")[0].write_text(chain)
    assert refusal(gateway, "alice", wanted)[:2] == (403, "certificate_revoked")
    assert len(audited(gateway)) == 1
    assert post(gateway, "bob", request(key_of(gateway, "bob")), *PKCS10)[0] == 200


def test_who_is_of_another_trust_gets_none(gateway):
    gateway.authority = Authority.create(gateway.folder / "other", trust_domain="other.test", at=datetime.now(UTC))
    path = gateway.folder / "portguard.toml"
    path.write_text(path.read_text().replace(RENEWS, f"{RENEWS}default = true\n{OTHER}"))
    portguard(gateway, "reload")
    status, _, message = refusal(gateway, "eve", request(key_of(gateway, "eve")))
    assert (status, message) == (404, "certificates of trust other are not renewed here")
    assert refusal(gateway, "eve", b"")[0] == 404


def test_of_a_trust_without_an_authority_none_is_renewed(start_gateway, echo, real_program):
    real_program("curl")
    gateway = start_gateway({"echo": echo}, workers=1)
    status, reason, message = refusal(gateway, "alice", request(key_of(gateway, "alice")))
    assert (status, reason) == (404, "bad_request")
    assert message == "certificates of trust local are not renewed here"


def test_a_client_fills_no_authority(gateway):
    wanted = request(key_of(gateway, "alice"))
    statuses = [post(gateway, "alice", wanted, *PKCS10)[0] for _ in range(10)]
    assert statuses == [200] * 10
    status, head = post(gateway, "alice", wanted, *PKCS10, "--include")
    assert status == 429
    assert "Portguard-Reason: connect_rate" in head
    assert 86_000 < int(head.partition("Retry-After: ")[2].split()[0]) <= 86_401
    assert post(gateway, "bob", request(key_of(gateway, "bob")), *PKCS10)[0] == 200


def test_an_identity_that_no_role_lets_in_renews_and_so_does_one_while_the_gateway_drains(gateway):
    portguard(gateway, "drain")
    assert post(gateway, "nobody", request(key_of(gateway, "nobody")), *PKCS10)[0] == 200


def test_a_reload_switches_renewal_on_and_off(start_gateway, echo, real_program):
    real_program("curl")
    gateway = start_gateway({"echo": echo}, workers=1)
    path = gateway.folder / "portguard.toml"
    without = path.read_text()
    wanted = request(key_of(gateway, "alice"))
    for configuration, expected in ((without + RENEWS, 200), (without, 404)):
        path.write_text(configuration)
        portguard(gateway, "reload")
        assert post(gateway, "alice", wanted, *PKCS10)[0] == expected


def test_an_authority_that_cannot_issue_is_told_to_the_operator_and_not_to_clients(gateway):
    wanted = request(key_of(gateway, "alice"))
    (gateway.folder / "ca/certificates.db").rename(gateway.folder / "moved.db")
    status, reason, message = refusal(gateway, "alice", wanted)
    assert (status, reason) == (503, "ledger_unavailable")
    assert message == "the authority cannot issue certificates now"
    gateway.wait_for_log(r"error certificate\.issue_failed message=.*certificates\.db: expected the record of issued")


def test_an_intermediate_renews_and_comes_with_the_certificate(gateway):
    two_tiers = Authority.create(
        gateway.folder / "two",
        trust_domain="gateway.test",
        at=datetime.now(UTC),
        root_directory=gateway.folder / "stick",
    )
    change(gateway, 'ca = "ca/ca.crt"', 'ca = "two/ca.crt"')
    change(gateway, 'authority = "ca"', 'authority = "two"')
    portguard(gateway, "reload")
    gateway.authority = two_tiers
    status, chain = post(gateway, "alice", request(key_of(gateway, "alice")), *PKCS10)
    assert status == 200
    leaf, issuing = x509.load_pem_x509_certificates(chain.encode())
    leaf.verify_directly_issued_by(issuing)
    assert issuing == two_tiers.issuer
    gateway.certificate("alice")[0].write_text(chain)
    assert echoes(gateway, "alice")


def change(gateway, old, new):
    path = gateway.folder / "portguard.toml"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
