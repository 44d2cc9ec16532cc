"""A client's next certificate, with a gateway that the test plays: what is asked for, and what is not taken."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from portguard.client.credentials import read_credentials
from portguard.client.profile import read_profile
from portguard.client.renewal import renew
from portguard.errors import ConfigurationError, Unreachable
from portguard.pki.proof import Purpose, check_proof
from portguard.pki.request import read_request
from tests.certificates import Authority, spiffe

ROOT = Authority.root("Root")
KEYS = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "RSA": rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}


class Gateway:
    """Issues what the test says, by default what was asked for."""

    address = "gateway.test:8443"

    def __init__(self, authority=ROOT):
        self.authority = authority
        self.more = {}
        self.answer = None
        self.asked = []

    async def renew(self, request, proof):
        self.asked.append((request, proof))
        if self.answer is not None:
            return self.answer
        key = read_request(request, "request").public_key
        holder = type("", (), {"public_key": lambda _: key})()
        return self.authority.issue("alice", **({"key": holder} | self.more)).pem


@pytest.fixture
def gateway():
    return Gateway()


@pytest.fixture
def credentials(tmp_path):
    def make(key=KEYS["P-256"], *, authority=ROOT, anchors=ROOT, holder=None):
        holder = holder or authority.issue("alice", key=key)
        (tmp_path / "ca.crt").write_bytes(anchors.pem)
        (tmp_path / "alice.crt").write_bytes(holder.pem)
        (tmp_path / "alice.key").write_bytes(holder.key_pem)
        (tmp_path / "alice.key").chmod(0o600)
        profile = tmp_path / "profile.toml"
        profile.write_text(
            'gateway = "gateway.test:8443"\nca = "ca.crt"\ncertificate = "alice.crt"\nkey = "alice.key"\n'
        )
        return read_credentials(read_profile(profile), lambda _: "")

    return make


def ask(gateway, credentials, *, keep_key=False, at=None):
    return renew(gateway, credentials, keep_key=keep_key, at=at or datetime.now(UTC))


@pytest.mark.parametrize("kind", KEYS)
async def test_a_new_key_is_of_the_same_type_and_the_old_one_proves_it(gateway, credentials, kind):
    old = KEYS[kind]
    mine = credentials(old)
    new = await ask(gateway, mine)
    assert type(new.key) is type(old)
    assert new.key.public_key() != old.public_key()
    assert getattr(new.key, "key_size", 0) == getattr(old, "key_size", 0)
    assert new.certificate.public_key() == new.key.public_key()
    [(request, proof)] = gateway.asked
    old = mine.certificate.public_bytes(Encoding.DER)
    check_proof(Purpose.RENEWAL, proof, old, request, datetime.now(UTC).timestamp())


@pytest.mark.parametrize("kind", KEYS)
async def test_a_key_that_is_kept_needs_no_proof(gateway, credentials, kind):
    new = await ask(gateway, credentials(KEYS[kind]), keep_key=True)
    assert new.certificate.public_key() == new.key.public_key() == KEYS[kind].public_key()
    [(_, proof)] = gateway.asked
    assert proof is None


async def test_the_chain_is_kept_and_nothing_else_of_the_answer(gateway, credentials):
    issuing = ROOT.intermediate()
    gateway.authority = issuing
    gateway.answer = b"hello\n" + issuing.issue("alice", key=KEYS["P-256"]).pem + issuing.pem
    new = await ask(gateway, credentials(), keep_key=True)
    assert x509.load_pem_x509_certificates(new.certificate_pem) == [new.certificate, issuing.certificate]
    assert b"hello" not in new.certificate_pem


async def refused(gateway, credentials, message, **keywords):
    with pytest.raises(Unreachable) as caught:
        await ask(gateway, credentials, **keywords)
    assert message in str(caught.value)
    assert str(caught.value).endswith("; nothing was replaced")


async def test_a_certificate_for_another_key_or_name_or_time_is_not_taken(gateway, credentials):
    mine = credentials()
    gateway.more = {"key": ec.generate_private_key(ec.SECP256R1())}
    await refused(gateway, mine, "expected a certificate for the key in the request, got one for another key")
    gateway.more = {"sans": [spiffe("bob")]}
    expected = "expected a certificate for spiffe://gateway.test/alice, got one for spiffe://gateway.test/bob"
    await refused(gateway, mine, expected)
    gateway.more = {"sans": ()}
    await refused(gateway, mine, "got one for nobody")
    gateway.more = {"sans": [spiffe("alice"), spiffe("bob")]}
    await refused(gateway, mine, "got one for spiffe://gateway.test/alice, spiffe://gateway.test/bob")
    gateway.more = {}
    for days in (-2, 40):
        await refused(gateway, mine, "valid now, by", at=datetime.now(UTC) + timedelta(days=days))


@pytest.mark.parametrize("answer", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"])
async def test_an_answer_that_is_no_certificate_is_not_taken(gateway, credentials, answer):
    gateway.answer = answer
    await refused(gateway, credentials(), "gateway.test:8443: expected a certificate in PEM, got something else")


async def test_one_of_another_authority_is_not_taken_where_the_old_one_was_of_the_profiles(gateway, credentials):
    other = Authority.root("Root")
    gateway.authority = other
    await refused(gateway, credentials(), "expected a certificate of the authority in")
    # Where gateways and clients have different ones, nobody can tell.
    await ask(gateway, credentials(authority=other))
    # A chain that does not hold together reaches nothing.
    gateway.answer = other.issue("alice", key=KEYS["P-256"]).pem + ROOT.pem
    await refused(gateway, credentials(), "expected a certificate of the authority in", keep_key=True)


async def test_a_key_that_makes_no_request_is_told_of(gateway, credentials):
    mine = credentials(ed448.Ed448PrivateKey.generate())
    with pytest.raises(ConfigurationError, match=r"key: expected an EC, RSA or Ed25519 key in PEM in .*, got "):
        await ask(gateway, mine)
    assert gateway.asked == []


async def test_a_new_key_has_the_passphrase_of_the_old_one(credentials):
    mine = credentials()
    assert load_pem_private_key(mine.key_file(KEYS["RSA"]), None).public_key() == KEYS["RSA"].public_key()
    locked = type(mine)(mine.profile, mine.certificate, "", b"", b"", b"correct horse")
    pem = locked.key_file(KEYS["RSA"])
    assert b"ENCRYPTED" in pem
    assert load_pem_private_key(pem, b"correct horse").public_key() == KEYS["RSA"].public_key()
