"""A client's first certificate, with a gateway that the test plays: what is written, and what a crash leaves."""

import asyncio
import contextlib
import os
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from portguard.client import enrolment
from portguard.client.invitation import Invitation, Place
from portguard.client.profile import read_profile
from portguard.client.refusal import RefusedByGateway
from portguard.errors import PortguardError, Refused, Unreachable
from portguard.pki import files
from portguard.pki.proof import Purpose, check_proof
from portguard.pki.request import read_request
from portguard.policy.addresses import HostPort
from portguard.reasons import Reason
from tests.certificates import Authority, common_name, spiffe

ROOT = Authority.root("Root")
NOBODY = ROOT.issue(subject=common_name(), sans=())
INVITATION = Invitation(
    gateway=HostPort("bastion.example.com", 8443),
    server_name="gw.example.com",
    identity="spiffe://gateway.test/alice",
    certificate_pem=NOBODY.pem.decode(),
    key_pem=NOBODY.key_pem.decode(),
    anchors_pem=ROOT.pem.decode(),
)


class Gateway:
    """Issues what the test says, by default what was asked for; the same again for the same key."""

    address = "gateway.test:8443"

    def __init__(self):
        self.more = {}
        self.authority = ROOT
        self.answer = None
        self.issued = {}
        self.asked = []

    async def enroll(self, request, proof):
        self.asked.append((request, proof))
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        key = read_request(request, "request").public_key
        which = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if which not in self.issued:
            holder = type("", (), {"public_key": lambda _: key})()
            self.issued[which] = self.authority.issue("alice", **({"key": holder} | self.more)).pem
        return self.issued[which]


@pytest.fixture
def gateway():
    return Gateway()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "alice"
    folder.mkdir()
    return folder


@pytest.fixture
def place(folder):
    return Place.of(folder, INVITATION.identity)


def credentials(place):
    return INVITATION.credentials(place.profile.with_suffix(".invitation"))


def attempt(gateway, place, at=None):
    """What `portguard enroll` does, but for the network."""
    at = at or datetime.now(UTC)
    before = enrolment.enrolled_before(place, INVITATION, credentials(place), at)
    if before is not None:
        enrolment.finish(place, INVITATION)
        return before
    enrolment.expect_room(place, INVITATION)
    key = enrolment.keep_key(place)
    return asyncio.run(enrolment.enroll(gateway, INVITATION, credentials(place), place, key, at=at))


def names(place):
    return sorted(path.name for path in place.profile.parent.iterdir())


ALL = ["alice.crt", "alice.key", "alice.toml", "ca.crt"]


def test_a_key_is_made_and_what_goes_with_it_is_written(gateway, place):
    enrolled = attempt(gateway, place)
    assert names(place) == ALL
    assert [stat.S_IMODE(path.stat().st_mode) for path in (place.key, place.certificate)] == [0o600, 0o644]
    profile = read_profile(place.profile)
    assert (str(profile.gateway), profile.server_name) == ("bastion.example.com:8443", "gw.example.com")
    assert (profile.ca, profile.certificate, profile.key) == (place.ca, place.certificate, place.key)
    assert place.ca.read_bytes() == ROOT.pem
    key = enrolment.read_key(place)
    assert key.public_key() == enrolled.certificate.public_key() != NOBODY.key.public_key()
    [(request, proof)] = gateway.asked
    check_proof(Purpose.ENROLMENT, proof, NOBODY.der, request, datetime.now(UTC).timestamp())


def test_the_key_is_on_the_disk_before_anybody_is_asked(gateway, place):
    gateway.answer = Unreachable("the end of the connection")
    with pytest.raises(Unreachable):
        attempt(gateway, place)
    assert names(place) == ["alice.key"]


def test_an_answer_that_was_lost_is_had_for_the_same_key(gateway, place):
    lost = Unreachable("the end of the connection")
    gateway.answer = lost
    with pytest.raises(Unreachable):
        attempt(gateway, place)
    key = place.key.read_bytes()
    gateway.answer = None
    attempt(gateway, place)
    assert (names(place), place.key.read_bytes()) == (ALL, key)
    assert (len(gateway.asked), len(gateway.issued)) == (2, 1)


@pytest.mark.parametrize("done", range(4))
def test_after_a_crash_at_any_point_the_next_attempt_finishes(gateway, place, monkeypatch, done):
    """Each of the four files may be the last that got its name."""
    name, named = files._name_exclusively, []

    def crash_after(temporary, path):
        if len(named) > done:
            raise KeyboardInterrupt
        name(temporary, path)
        named.append(path)
        if len(named) > done:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "_name_exclusively", crash_after)
        # A process that is gone undoes nothing.
        patch.setattr(type(place.key), "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            attempt(gateway, place)
    assert [path.name for path in named] == ["alice.key", "ca.crt", "alice.toml", "alice.crt"][: done + 1]
    enrolled = attempt(gateway, place)
    assert [name for name in names(place) if not name.endswith(".tmp")] == ALL
    assert enrolled.certificate == x509.load_pem_x509_certificate(place.certificate.read_bytes())
    assert len(gateway.issued) == 1
    assert len(gateway.asked) == (1 if done in {0, 3} else 2)


def test_when_all_is_there_nobody_is_asked(gateway, place):
    first = attempt(gateway, place)
    assert attempt(gateway, place) == first
    place.profile.unlink()
    attempt(gateway, place)
    assert names(place) == ALL
    assert len(gateway.asked) == 1


def other_key():
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_a_certificate_of_another_key_or_name_or_time_is_not_replaced(gateway, place):
    attempt(gateway, place)
    good = place.certificate.read_bytes(), place.key.read_bytes()
    for certificate, key in (
        (good[0], other_key()),
        (ROOT.issue("bob", key=enrolment.read_key(place)).pem, good[1]),
        (Authority.root("Root").issue("alice", key=enrolment.read_key(place)).pem, good[1]),
        (b"nonsense", good[1]),
    ):
        place.certificate.write_bytes(certificate)
        place.key.write_bytes(key)
        with pytest.raises(PortguardError, match=r"alice\.crt: expected none, or that of this invitation, got another"):
            attempt(gateway, place)
        assert (place.certificate.read_bytes(), place.key.read_bytes()) == (certificate, key)
    place.certificate.write_bytes(good[0])
    place.key.write_bytes(good[1])
    with pytest.raises(PortguardError, match="got another one; --out DIR takes another folder"):
        attempt(gateway, place, datetime.now(UTC) + timedelta(days=40))
    place.key.unlink()
    with pytest.raises(PortguardError, match="got another one"):
        attempt(gateway, place)
    assert len(gateway.asked) == 1


@pytest.mark.parametrize("name", ["alice.toml", "ca.crt"])
def test_a_file_of_somebody_else_is_found_before_the_invitation_is_used(gateway, place, folder, name):
    (folder / name).write_text("mine\n")
    with pytest.raises(PortguardError, match=rf"{name}: expected no file of this name, got one that exists"):
        attempt(gateway, place)
    assert names(place) == [name]
    assert gateway.asked == []


@pytest.mark.parametrize("name", ["alice.toml", "ca.crt"])
def test_a_file_that_is_right_but_that_somebody_else_may_change_later_is_not_taken(
    gateway, place, folder, monkeypatch, name
):
    attempt(gateway, place)
    for path in (place.key, place.certificate):
        path.unlink()
    if os.geteuid() == 0:
        os.chown(folder / name, 12345, 12345)
    else:
        monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(PortguardError, match=rf"{name}: expected no file of this name, got one that exists"):
        attempt(gateway, place)
    assert len(gateway.asked) == 1


def test_a_key_that_is_there_is_used_unless_others_can_read_it(gateway, place):
    place.key.write_bytes(other_key())
    for mode in (0o644, 0o640):
        place.key.chmod(mode)
        with pytest.raises(PortguardError, match=f"alice.key: expected no file, or .*, with mode {mode:04o}"):
            attempt(gateway, place)
    place.key.chmod(0o600)
    key = enrolment.read_key(place)
    assert attempt(gateway, place).certificate.public_key() == key.public_key()


def test_a_key_that_somebody_else_has_put_there_is_not_used(gateway, place, monkeypatch):
    """As in a folder where all may write: its maker would get to know our certificate, and has its key."""
    place.key.write_bytes(other_key())
    place.key.chmod(0o640)  # which an access list makes of 0600 when it lets one more read, acl(5)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: place.key.stat().st_uid + 1)
        with pytest.raises(PortguardError, match=r"alice\.key: expected no file, or .*, got one of another user"):
            attempt(gateway, place)
    place.key.unlink()
    os.mkfifo(place.key)

    def write():
        with contextlib.suppress(BrokenPipeError):
            place.key.write_bytes(other_key())

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(PortguardError, match=r"alice\.key: expected no file, or .*, got one of another user"):
        attempt(gateway, place)
    writer.join()
    assert gateway.asked == []


def test_what_is_no_key_is_not_replaced(gateway, place):
    other = ed448.Ed448PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (b"", b"nonsense", ROOT.pem, other):
        place.key.write_bytes(content)
        place.key.chmod(0o600)
        with pytest.raises(PortguardError, match=r"alice\.key: expected no file, or the key of an earlier"):
            attempt(gateway, place)
        assert place.key.read_bytes() == content
    assert gateway.asked == []


# What a gateway may say.


def test_an_answer_that_is_not_what_was_asked_for_is_not_taken(gateway, place):
    for more, found in (
        ({"key": ec.generate_private_key(ec.SECP256R1())}, "one for another key"),
        ({"sans": [spiffe("bob")]}, "one for spiffe://gateway.test/bob"),
        ({"sans": [spiffe("alice"), spiffe("bob")]}, "one for spiffe://gateway.test/alice, spiffe://gateway.test/bob"),
        ({"sans": [spiffe("alice", "other.test")]}, "one for spiffe://other.test/alice"),
        ({"sans": ()}, "one for nobody"),
        ({"not_after": datetime.now(UTC) - timedelta(hours=1)}, "one of another time"),
    ):
        gateway.issued, gateway.more = {}, more
        with pytest.raises(Unreachable, match=f"got {found}; no certificate was written"):
            attempt(gateway, place)
    gateway.issued, gateway.more = {}, {}
    gateway.authority = Authority.root("Root")
    with pytest.raises(Unreachable, match=r"of the authority in .*alice\.invitation, got one of another authority"):
        attempt(gateway, place)
    for answer in (b"", b"hello", b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"):
        gateway.answer = answer
        with pytest.raises(Unreachable, match="expected a certificate in PEM, got something else"):
            attempt(gateway, place)
    assert names(place) == ["alice.key"]


def test_nothing_of_the_answer_is_kept_but_certificates(gateway, place):
    issuing = ROOT.intermediate()
    key = enrolment.keep_key(place)
    gateway.answer = b"\x1b[2J\n" + issuing.issue("alice", key=key).pem + b"more\n" + issuing.pem
    attempt(gateway, place)
    assert b"\x1b" not in place.certificate.read_bytes()
    assert len(x509.load_pem_x509_certificates(place.certificate.read_bytes())) == 2


def test_a_refusal_says_what_to_do(gateway, place):
    gateway.answer = RefusedByGateway("enroll", "invitation_used", "used", session="ab")
    with pytest.raises(RefusedByGateway, match="used; if that was not you, somebody else has it: tell who invited you"):
        attempt(gateway, place)
    gateway.answer = RefusedByGateway("enroll", "crl_expired", "got none")
    with pytest.raises(RefusedByGateway, match="got none; tell who runs the gateway: it needs a new revocation list"):
        attempt(gateway, place)
    gateway.answer = RefusedByGateway("enroll", "a_new_word", "of a later gateway", retry_after_s=5)
    with pytest.raises(RefusedByGateway, match=r"^enroll: a_new_word: of a later gateway \(try again in 5 s\)$"):
        attempt(gateway, place)


def test_an_invitation_has_its_time():
    first, last = NOBODY.certificate.not_valid_before_utc, NOBODY.certificate.not_valid_after_utc
    for at, reason, message in (
        (last + timedelta(seconds=1), Reason.CERTIFICATE_EXPIRED, r"clock says 20.*; if that is right, ask"),
        (
            first - timedelta(seconds=1),
            Reason.CERTIFICATE_NOT_YET_VALID,
            r"good from .*clock says 20.*; set the clock$",
        ),
    ):
        with pytest.raises(Refused, match=message) as caught:
            enrolment.check_dates(INVITATION, at)
        assert (caught.value.reason, caught.value.exit_code) == (reason, 3)
    enrolment.check_dates(INVITATION, first)
    enrolment.check_dates(INVITATION, last)
