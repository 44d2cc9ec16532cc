"""What the supervisor makes of a worker's wish for a certificate, be the worker ours or in somebody else's hands."""

import asyncio
import contextlib
import hashlib
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from portguard.gateway import certificate_desk
from portguard.gateway.bundle import read_bundle
from portguard.gateway.certificate_desk import MOST_AT_ONCE, MOST_OF_ONE, CertificateDesk
from portguard.gateway.messages import LARGEST_CHAIN_BYTES, EnrolmentWanted, Issued, Misconduct, Refusal, RenewalWanted
from portguard.gateway.snapshot import build
from portguard.limits.ledger import LockRow, LockTarget
from portguard.limits.locks import Locks
from portguard.pki.authority import Authority
from portguard.pki.proof import Purpose, make_proof
from portguard.pki.revocation import revoke
from portguard.pki.rotation import replace_issuing
from portguard.reasons import Reason
from tests.certificates import Authority as Strangers
from tests.certificates import common_name
from tests.gateway_folder import CONFIGURATION, GatewayFolder
from tests.patience import PATIENCE_S

SESSION = "aa" * 16
WORKER = SimpleNamespace(number=1)


class Trail:
    """An audit that answers at once, as the test says, or when it says so."""

    def __init__(self):
        self.refuses = False
        self.may = True
        self.issued = []
        self.refused = []

    def invitation_refused(self, refusal, now_s):
        self.refused.append(refusal)

    def issues(self, serial, fields, on_decided):
        self.issued.append(fields)
        if self.may is not None:
            on_decided(self.may)


class Admission:
    """Connection 1 and so on are worker 1's, 0 is another's."""

    def check_pending(self, connection, worker):
        if not connection:
            raise Misconduct("not yours")


def request(key):
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


class Client:
    def __init__(self, authority, name, at=None, **keywords):
        self.issued = authority.issue_client(name, at=at or datetime.now(UTC), **keywords)
        self.key = load_pem_private_key(self.issued.key_pem, None)
        self.der = self.issued.record.der
        self.chain = [self.der, authority.anchor.public_bytes(Encoding.DER)]

    def wanted(self, connection=1, *, key=None, proof=None, chain=None):
        return RenewalWanted(connection, SESSION, "192.0.2.7", chain or self.chain, request(key or self.key), proof)


class Invited(Client):
    """Who has an invitation, and keys of its own."""

    def __init__(self, authority, name="team/alice", at=None, **keywords):
        self.issued = authority.invite(name, at=at or datetime.now(UTC), **keywords)
        self.key = load_pem_private_key(self.issued.key_pem, None)
        self.der = self.issued.record.der
        self.chain = [self.der, authority.anchor.public_bytes(Encoding.DER)]
        self.own = ec.generate_private_key(ec.SECP256R1())
        self.serial = f"{self.issued.serial:x}"

    def wanted(self, connection=1, *, key=None, proof="its own", purpose=Purpose.ENROLMENT):
        asked = request(key or self.own)
        if proof == "its own":
            proof = make_proof(purpose, self.key, self.der, asked, int(datetime.now(UTC).timestamp()))
        return EnrolmentWanted(connection, SESSION, "192.0.2.7", self.chain, asked, proof)


@pytest.fixture
def folder(tmp_path):
    folder = GatewayFolder(tmp_path)
    folder.ca = Authority.create(tmp_path / "ca", trust_domain="gateway.test", at=datetime.now(UTC))
    folder.write(
        "portguard.toml",
        CONFIGURATION.replace('ca = "ca.crt"', 'ca = "ca/ca.crt"\nauthority = "ca"\nrenew_for = "2h"'),
    )
    return folder


@contextlib.asynccontextmanager
async def desk_of(folder):
    locks, trail, answers, turned_away = Locks(), Trail(), asyncio.Queue(), []
    desk = CertificateDesk(
        build(read_bundle(folder.configuration)),
        locks=locks,
        admission=Admission(),
        trail=trail,
        send=lambda worker, message: answers.put_nowait((worker, message)),
        on_turned_away=turned_away.append,
    )
    desk.test = SimpleNamespace(locks=locks, trail=trail, answers=answers, turned_away=turned_away)
    yield desk
    await desk.stop()


@pytest.fixture
async def desk(folder):
    async with desk_of(folder) as desk:
        yield desk


async def ask(desk, wanted):
    desk.ask(WORKER, wanted)
    worker, answer = await asyncio.wait_for(desk.test.answers.get(), PATIENCE_S)
    assert (worker, answer.connection) == (1, wanted.connection)
    await asyncio.gather(*desk._tasks.values())
    await asyncio.sleep(0)  # the task is forgotten a turn after its end
    return answer


async def renewed(desk, wanted):
    answer = await ask(desk, wanted)
    assert isinstance(answer, Issued), answer
    return x509.load_pem_x509_certificates(answer.chain.encode())


async def refused(desk, wanted):
    answer = await ask(desk, wanted)
    assert isinstance(answer, Refusal), answer
    return answer


@pytest.fixture
def alice(folder):
    return Client(folder.ca, "team/alice")


async def test_the_holder_of_a_certificate_gets_another_for_the_same_identity(desk, folder, alice):
    [certificate] = await renewed(desk, alice.wanted())
    assert certificate.public_key() == alice.key.public_key()
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in san] == ["spiffe://gateway.test/team/alice"]
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(hours=2, minutes=5)
    [fields] = desk.test.trail.issued
    assert (fields["session"], fields["source"], fields["identity"]) == (SESSION, "192.0.2.7", "team/alice")
    assert fields["issued_serial"] == f"{certificate.serial_number:x}"
    assert folder.ca.store.get(certificate.serial_number) is not None


async def test_a_worker_cannot_have_one_for_a_key_that_the_client_does_not_vouch_for(desk, folder, alice):
    """What it has is what clients sent: certificates, requests and proofs."""
    mine = ec.generate_private_key(ec.SECP256R1())
    bob = Client(folder.ca, "bob")
    now = int(datetime.now(UTC).timestamp())
    earlier = make_proof(Purpose.RENEWAL, alice.key, alice.der, request(alice.key), now)
    for proof in (
        None,
        earlier,
        make_proof(Purpose.RENEWAL, mine, alice.der, request(mine), now),
        make_proof(Purpose.RENEWAL, bob.key, bob.der, b"", now),
    ):
        refusal = await refused(desk, alice.wanted(key=mine, proof=proof))
        assert refusal.reason is Reason.BAD_REQUEST
    # A request of bob's with alice's certificate is of another key.
    assert (await refused(desk, alice.wanted(key=bob.key))).reason is Reason.BAD_REQUEST
    assert len(folder.ca.store.records()) == 2
    wanted = request(mine)
    proof = make_proof(Purpose.RENEWAL, alice.key, alice.der, wanted, now)
    mixed = RenewalWanted(1, SESSION, None, alice.chain, wanted, proof)
    [certificate] = await renewed(desk, mixed)
    assert certificate.public_key() == mine.public_key()


async def test_a_worker_cannot_make_up_certificates(desk, folder, alice):
    forger = Strangers.root()
    forged = forger.issue("team/alice")
    anchor = alice.chain[-1]
    for holder, chain in (
        (forged, [forged.der, forger.der]),
        (forged, [forged.der, anchor]),
        (alice, [alice.der, alice.der]),
    ):
        wanted = RenewalWanted(1, SESSION, None, chain, request(holder.key), None)
        assert (await refused(desk, wanted)).reason is Reason.CERTIFICATE_UNTRUSTED
    # Nor is what alice may sign with her key an authority's.
    own = Strangers(x509.load_der_x509_certificate(alice.der), alice.key).issue("bob")
    wanted = RenewalWanted(1, SESSION, None, [own.der, alice.der, anchor], request(own.key), None)
    assert (await refused(desk, wanted)).reason is Reason.CERTIFICATE_UNTRUSTED
    assert desk.test.trail.issued == []


async def test_an_expired_certificate_is_not_renewed(desk, folder):
    old = Client(folder.ca, "alice", valid_for=timedelta(seconds=1))
    chain, wanted = old.chain, old.wanted()
    later = datetime.now(UTC) + timedelta(minutes=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate_desk, "datetime", SimpleNamespace(now=lambda _: later))
        assert chain == wanted.chain
        assert (await refused(desk, wanted)).reason is Reason.CERTIFICATE_EXPIRED


@pytest.mark.parametrize("kind", ["identity", "serial", "fingerprint"])
async def test_who_is_locked_out_gets_none(desk, folder, alice, kind):
    certificate = x509.load_der_x509_certificate(alice.der)
    value = {
        "identity": "team/alice",
        "serial": f"{certificate.serial_number:x}",
        "fingerprint": certificate.fingerprint(hashes.SHA256()).hex(),
    }[kind]
    desk.test.locks.add(LockRow(LockTarget(kind, "" if kind == "fingerprint" else "local", value), "", "", 0, None))
    assert (await refused(desk, alice.wanted())).reason is Reason.LOCKED
    await renewed(desk, Client(folder.ca, "bob").wanted())


async def test_what_the_record_has_as_revoked_gets_no_successor_though_no_list_says_so(desk, folder, alice):
    revoke(folder.ca, [alice.issued.serial], reason=None, at=datetime.now(UTC))
    assert (await refused(desk, alice.wanted())).reason is Reason.CERTIFICATE_REVOKED
    assert len(folder.ca.store.records()) == 1
    assert desk.test.trail.issued == []
    await renewed(desk, Client(folder.ca, "team/alice").wanted())


async def test_what_the_record_does_not_have_gets_no_successor(desk, folder, alice, tmp_path):
    """Issued after the backup was made that was put back, or by a copy of the authority elsewhere."""
    backup = folder.ca.store.path.read_bytes()
    later = Client(folder.ca, "bob")
    folder.ca.store.path.write_bytes(backup)
    refusal = await refused(desk, later.wanted())
    assert refusal.reason is Reason.CERTIFICATE_UNTRUSTED
    assert refusal.message == "the authority has no record of the client certificate, and does not renew it"
    assert desk.test.trail.issued == []
    await renewed(desk, alice.wanted())


async def test_what_would_not_be_taken_here_is_not_issued(folder, tmp_path):
    """After `ca rotate`, until the new list is here, what the old CA issued is taken, and of the new one nothing."""
    now = datetime.now(UTC)
    stick = tmp_path / "stick"
    ca = folder.ca = Authority.create(tmp_path / "two", trust_domain="gateway.test", at=now, root_directory=stick)
    folder.write("crl.pem", ca.crl_path.read_bytes())
    trust = 'ca = "two/ca.crt"\ncrl = ["crl.pem"]\nauthority = "two"\nrenew_for = "2h"'
    folder.write("portguard.toml", CONFIGURATION.replace('ca = "ca.crt"', trust))
    async with desk_of(folder) as desk:
        clients = Client(ca, "team/alice"), Invited(ca, "bob")
        for client in clients:
            client.chain.insert(1, ca.issuer.public_bytes(Encoding.DER))
        await renewed(desk, clients[0].wanted())
        rotated = replace_issuing(ca, stick, at=now)
        recorded = len(ca.store.records())
        for client in clients:
            refusal = await refused(desk, client.wanted())
            name = rotated.issuer.subject.rfc4514_string()
            assert refusal.reason is Reason.CRL_EXPIRED
            assert refusal.message == f"{name}: expected a revocation list for what it issued, got none"
        assert len(ca.store.records()) == recorded
        assert desk.test.trail.refused[-1].name == "bob"
        folder.write("crl.pem", ca.crl_path.read_bytes())
        desk.configure(build(read_bundle(folder.configuration)))
        for client in clients:
            await renewed(desk, client.wanted())


async def test_no_certificate_leaves_without_its_line(desk, alice):
    desk.test.trail.may = False
    assert (await refused(desk, alice.wanted())).reason is Reason.AUDIT_UNAVAILABLE
    desk.test.trail.refuses = True
    assert (await refused(desk, alice.wanted())).reason is Reason.AUDIT_UNAVAILABLE
    assert len(desk.test.trail.issued) == 1  # not even tried


async def test_an_identity_renews_so_often_and_no_more(desk, folder, alice):
    for _ in range(MOST_OF_ONE):
        await renewed(desk, alice.wanted())
    refusal = await refused(desk, alice.wanted())
    assert (refusal.reason, refusal.message) == (Reason.CONNECT_RATE, "a certificate may be renewed 10 times in 2h")
    assert 7000 < refusal.retry_after_s <= 7201
    assert len(folder.ca.store.records()) == 1 + MOST_OF_ONE
    await renewed(desk, Client(folder.ca, "bob").wanted())


async def test_what_is_refused_does_not_count(desk, folder, alice):
    for _ in range(MOST_OF_ONE + 1):
        await refused(desk, alice.wanted(key=ec.generate_private_key(ec.SECP256R1())))
    await renewed(desk, alice.wanted())


async def test_what_the_authority_could_not_issue_does_not_count(desk, folder, alice, tmp_path):
    (tmp_path / "ca/ca.key").rename(tmp_path / "away.key")
    for _ in range(MOST_OF_ONE + 1):
        assert (await refused(desk, alice.wanted())).reason is Reason.LEDGER_UNAVAILABLE
    (tmp_path / "away.key").rename(tmp_path / "ca/ca.key")
    await renewed(desk, alice.wanted())


async def test_of_several_at_once_an_identity_gets_one(desk, folder, alice):
    for connection in (1, 2, 3):
        desk.ask(WORKER, alice.wanted(connection))
    answers = [(await asyncio.wait_for(desk.test.answers.get(), PATIENCE_S))[1] for _ in range(3)]
    refusals = [answer for answer in answers if isinstance(answer, Refusal)]
    assert {(each.reason, each.message) for each in refusals} == {
        (Reason.CONNECT_RATE, "a certificate is being issued already")
    }
    assert len(folder.ca.store.records()) == 1 + len(answers) - len(refusals) < 4


async def test_only_so_many_are_under_way(desk, folder, alice):
    desk.test.trail.may = None
    clients = [Client(folder.ca, f"client{number}") for number in range(MOST_AT_ONCE)]
    for number, client in enumerate(clients, start=1):
        desk.ask(WORKER, client.wanted(number))
    desk.ask(WORKER, alice.wanted(99))
    _, refusal = desk.test.answers.get_nowait()
    assert (refusal.connection, refusal.reason) == (99, Reason.GATEWAY_FULL)


async def test_the_holder_of_one_certificate_does_not_keep_others_out(desk, folder, alice, invited):
    desk.test.trail.may = None
    for number in range(1, 2 * MOST_AT_ONCE, 2):
        desk.ask(WORKER, alice.wanted(number))
        desk.ask(WORKER, invited.wanted(number + 1))
    refusals = [desk.test.answers.get_nowait()[1] for _ in range(2 * MOST_AT_ONCE - 2)]
    assert {(each.reason, each.message) for each in refusals} == {
        (Reason.CONNECT_RATE, "a certificate is being issued already")
    }
    desk.ask(WORKER, Client(folder.ca, "bob").wanted(99))
    assert desk.test.answers.empty()


async def test_a_worker_asks_for_connections_of_its_own_and_once(desk, folder, alice):
    with pytest.raises(Misconduct, match="not yours"):
        desk.ask(WORKER, alice.wanted(0))
    desk.ask(WORKER, alice.wanted(1))
    with pytest.raises(Misconduct, match="one request for a certificate at a time"):
        desk.ask(WORKER, alice.wanted(1))
    with pytest.raises(Misconduct, match=f"a chain of {LARGEST_CHAIN_BYTES} bytes, got more"):
        desk.ask(WORKER, alice.wanted(2, chain=[b"x" * 4096] * 3))
    assert isinstance((await desk.test.answers.get())[1], Issued)


async def test_an_authority_of_another_trust_domain_or_key_does_not_issue(desk, folder, alice, tmp_path):
    """It may have been put in the other's place since the configuration was read."""
    for domain in ("gateway.test", "other.test"):
        (tmp_path / "ca").rename(tmp_path / f"not {domain}")
        Authority.create(tmp_path / "ca", trust_domain=domain, at=datetime.now(UTC))
        assert (await refused(desk, alice.wanted())).reason is Reason.LEDGER_UNAVAILABLE
    assert desk.test.trail.issued == []


# By an invitation.


@pytest.fixture
def invited(folder):
    return Invited(folder.ca)


def kinds(folder):
    return [record.kind for record in folder.ca.store.records()]


async def turned_away(desk, wanted):
    """The refusal, and what is recorded of it."""
    answer = await refused(desk, wanted)
    recorded = desk.test.trail.refused[-1]
    assert len(desk.test.trail.refused) == len(desk.test.turned_away)
    assert (answer.reason, answer.message) == (recorded.reason, recorded.message)
    assert desk.test.turned_away[-1] is answer.reason
    assert (recorded.session, recorded.source) == (SESSION, "192.0.2.7")
    return answer, recorded


async def test_who_was_invited_gets_a_certificate_and_its_line_tells_of_the_invitation(desk, folder, invited):
    [certificate] = await renewed(desk, invited.wanted())
    assert certificate.public_key() == invited.own.public_key()
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in san] == ["spiffe://gateway.test/team/alice"]
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(hours=2, minutes=5)
    [fields] = desk.test.trail.issued
    assert (fields["identity"], fields["invitation"], fields["serial"]) == ("team/alice", True, invited.serial)
    assert fields["issued_serial"] == f"{certificate.serial_number:x}"
    assert (desk.test.trail.refused, desk.test.turned_away) == ([], [])
    holder = Client(folder.ca, "unused")
    holder.key, holder.der = invited.own, certificate.public_bytes(Encoding.DER)
    holder.chain = [holder.der, invited.chain[-1]]
    await renewed(desk, holder.wanted())
    assert desk.test.trail.issued[-1]["invitation"] is None


async def test_the_same_key_gets_the_same_again_and_another_none(desk, folder, invited):
    first = await renewed(desk, invited.wanted())
    assert await renewed(desk, invited.wanted()) == first
    thief = ec.generate_private_key(ec.SECP256R1())
    answer, recorded = await turned_away(desk, invited.wanted(key=thief))
    assert answer.reason is Reason.INVITATION_USED
    assert (recorded.trust, recorded.name, recorded.serial) == ("local", "team/alice", invited.serial)
    assert recorded.fingerprint == hashlib.sha256(invited.der).hexdigest()
    assert recorded.claim is None
    assert kinds(folder) == ["invitation", "client"]
    assert len(desk.test.trail.issued) == 2


async def test_a_worker_cannot_have_one_for_a_key_that_the_invitation_does_not_vouch_for(desk, folder, invited):
    mine, other = ec.generate_private_key(ec.SECP256R1()), Invited(folder.ca, "bob")
    now = int(datetime.now(UTC).timestamp())
    for proof in (
        None,
        invited.wanted().proof,
        make_proof(Purpose.RENEWAL, invited.key, invited.der, request(mine), now),
        make_proof(Purpose.ENROLMENT, mine, invited.der, request(mine), now),
        make_proof(Purpose.ENROLMENT, other.key, other.der, request(mine), now),
        make_proof(Purpose.ENROLMENT, invited.key, invited.der, request(mine), now - 400),
    ):
        answer, recorded = await turned_away(desk, invited.wanted(key=mine, proof=proof))
        assert answer.reason is Reason.BAD_REQUEST
        # Nothing that a worker says by itself looks as if somebody had the invitation.
        assert (recorded.trust, recorded.name, recorded.serial) == (None, None, None)
        assert recorded.claim.serial == invited.serial
    answer, recorded = await turned_away(desk, invited.wanted(key=invited.key))
    assert answer.message == "request: expected a key of your own, got that of the invitation"
    assert kinds(folder) == ["invitation", "invitation"]


async def test_a_worker_cannot_make_up_invitations(desk, folder, invited, alice):
    forger = Strangers.root()
    forged = forger.issue(subject=common_name(), sans=())
    asked = request(invited.own)
    now = int(datetime.now(UTC).timestamp())
    for chain in ([forged.der, forger.der], [forged.der, invited.chain[-1]]):
        proof = make_proof(Purpose.ENROLMENT, forged.key, forged.der, asked, now)
        wanted = EnrolmentWanted(1, SESSION, "192.0.2.7", chain, asked, proof)
        answer, _ = await turned_away(desk, wanted)
        assert answer.reason is Reason.CERTIFICATE_UNTRUSTED
        assert "chain: expected" in answer.message  # nobody had to ask the record
    proof = make_proof(Purpose.ENROLMENT, alice.key, alice.der, asked, now)
    answer, _ = await turned_away(desk, EnrolmentWanted(1, SESSION, "192.0.2.7", alice.chain, asked, proof))
    assert answer.message == "client certificate: expected that of an invitation, got that of team/alice"
    assert kinds(folder) == ["invitation", "client"]
    assert desk.test.trail.issued == []


async def test_an_invitation_renews_nothing(desk, folder, invited):
    wanted = RenewalWanted(1, SESSION, None, invited.chain, request(invited.key), None)
    assert (await refused(desk, wanted)).reason is Reason.NO_IDENTITY
    assert desk.test.trail.refused == []  # its worker tells of it
    assert kinds(folder) == ["invitation"]


async def test_one_that_the_record_does_not_have_as_good_is_refused(desk, folder, invited, tmp_path):
    store = tmp_path / "ca/certificates.db"
    record = store.read_bytes()
    revoke(folder.ca, [invited.issued.serial], reason=None, at=datetime.now(UTC))
    answer, recorded = await turned_away(desk, invited.wanted())
    assert (answer.reason, recorded.name) == (Reason.CERTIFICATE_REVOKED, "team/alice")
    store.write_bytes(record)
    later = Invited(folder.ca)
    store.write_bytes(record)
    answer, recorded = await turned_away(desk, later.wanted())
    assert (answer.reason, recorded.name) == (Reason.CERTIFICATE_UNTRUSTED, None)
    await renewed(desk, invited.wanted())


async def test_one_that_has_ended_is_refused(desk, folder, invited):
    later = datetime.now(UTC) + timedelta(days=4)
    proof = make_proof(Purpose.ENROLMENT, invited.key, invited.der, request(invited.own), int(later.timestamp()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate_desk, "datetime", SimpleNamespace(now=lambda _: later))
        assert (await turned_away(desk, invited.wanted(proof=proof)))[0].reason is Reason.CERTIFICATE_EXPIRED
    await renewed(desk, invited.wanted())


@pytest.mark.parametrize("what", ["identity", "fingerprint", "serial"])
async def test_who_is_locked_out_does_not_enroll(desk, folder, invited, what):
    target = {
        "identity": LockTarget("identity", "local", "team/alice"),
        "fingerprint": LockTarget("fingerprint", "", hashlib.sha256(invited.der).hexdigest()),
        "serial": LockTarget("serial", "local", invited.serial),
    }[what]
    desk.test.locks.add(LockRow(target, "INC-1", "uid 0", 0, None))
    answer, recorded = await turned_away(desk, invited.wanted())
    assert (answer.reason, recorded.name) == (Reason.LOCKED, "team/alice")
    assert kinds(folder) == ["invitation"]
    desk.test.locks.remove(target)
    await renewed(desk, invited.wanted())


async def test_what_the_audit_did_not_take_is_given_when_it_does(desk, folder, invited):
    desk.test.trail.may = False
    assert (await turned_away(desk, invited.wanted()))[0].reason is Reason.AUDIT_UNAVAILABLE
    desk.test.trail.may = True
    await renewed(desk, invited.wanted())
    assert kinds(folder) == ["invitation", "client"]


async def test_the_lost_answer_is_given_so_often_and_no_more(desk, folder, invited):
    for _ in range(MOST_OF_ONE):
        await renewed(desk, invited.wanted())
    answer, _ = await turned_away(desk, invited.wanted())
    assert (answer.reason, answer.message) == (Reason.CONNECT_RATE, "an invitation may be used again 10 times in 2h")
    assert kinds(folder) == ["invitation", "client"]
    await renewed(desk, Client(folder.ca, "team/alice").wanted())  # renewals are counted apart
    await renewed(desk, Invited(folder.ca, "bob").wanted())


async def test_what_one_invitation_was_used_for_keeps_no_other_to_the_same_identity_out(desk, folder, invited):
    """Whoever has stolen one, and used it, asks again and again, while its rightful holder was given another."""
    for _ in range(MOST_OF_ONE):
        await renewed(desk, invited.wanted())
    assert (await turned_away(desk, invited.wanted()))[0].reason is Reason.CONNECT_RATE
    await renewed(desk, Invited(folder.ca).wanted())
    assert kinds(folder) == ["invitation", "client", "invitation", "client"]


async def test_an_authority_that_cannot_issue_and_a_gateway_that_is_busy_refuse_who_was_invited(
    desk, folder, invited, tmp_path
):
    (tmp_path / "ca/certificates.db").rename(tmp_path / "away.db")
    answer, _ = await turned_away(desk, invited.wanted())
    assert (answer.reason, answer.message) == (
        Reason.LEDGER_UNAVAILABLE,
        "the authority cannot issue certificates now",
    )
    (tmp_path / "away.db").rename(tmp_path / "ca/certificates.db")
    desk.test.trail.may = None
    for number in range(MOST_AT_ONCE):
        desk.ask(WORKER, Client(folder.ca, f"client{number}").wanted(number + 1))
    desk.ask(WORKER, invited.wanted(99))
    _, refusal = desk.test.answers.get_nowait()
    assert (refusal.connection, refusal.reason) == (99, Reason.GATEWAY_FULL)
    assert desk.test.turned_away[-1] is Reason.GATEWAY_FULL


async def test_where_the_trust_has_no_authority_nobody_enrolls(desk, folder, invited):
    path = folder.path / "portguard.toml"
    folder.write("portguard.toml", path.read_text().replace('authority = "ca"\nrenew_for = "2h"', ""))
    desk.configure(build(read_bundle(folder.configuration)))
    answer, _ = await turned_away(desk, invited.wanted())
    assert (answer.reason, answer.message) == (Reason.BAD_REQUEST, "invitations to trust local are not taken here")
    assert kinds(folder) == ["invitation"]
