"""Invitations as files: read back whole, or refused, and never shown."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from portguard.client.invitation import LARGEST_BYTES, Invitation, Place, read_invitation
from portguard.errors import ConfigurationError, UsageError
from portguard.pki.authority import Authority
from portguard.policy.addresses import HostPort
from tests.certificates import new_key

OTHER_KEY = new_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def made(authority, name="team/alice"):
    issued = authority.invite(name, at=datetime.now(UTC))
    return Invitation(
        gateway=HostPort("bastion.example.com", 8443),
        server_name="gw.example.com",
        identity=f"spiffe://gateway.test/{name}",
        certificate_pem=issued.certificate_pem.decode(),
        key_pem=issued.key_pem.decode(),
        anchors_pem=issued.anchor_pem.decode(),
    )


@pytest.fixture(scope="module")
def invitation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("authority")
    return made(Authority.create(folder / "ca", trust_domain="gateway.test", at=datetime.now(UTC)))


@pytest.fixture
def write(tmp_path):
    def write(text, mode=0o600):
        path = tmp_path / "alice.invitation"
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


def refused(path):
    with pytest.raises(ConfigurationError) as caught:
        read_invitation(path)
    return str(caught.value).replace(f"{path.parent}/", "")


def test_what_was_written_is_read_back(invitation, write):
    path = write(invitation.text())
    assert read_invitation(path) == invitation
    assert invitation.text().isascii()


def test_one_of_an_intermediate_comes_with_it(tmp_path, write):
    authority = Authority.create(
        tmp_path / "two", trust_domain="gateway.test", at=datetime.now(UTC), root_directory=tmp_path / "stick"
    )
    invitation = made(authority)
    read = read_invitation(write(invitation.text()))
    assert read.credentials(tmp_path).chain()[1] == authority.issuer
    assert read.credentials(tmp_path).anchors() == [authority.anchor]
    without = replace(
        invitation, certificate_pem=invitation.certificate_pem[: invitation.certificate_pem.rindex("-----BEGIN")]
    )
    assert "certificate: expected one of the authority in ca, got" in refused(write(without.text()))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_one_that_others_can_read_is_refused(invitation, write, mode):
    expected = f"expected a file that only its owner can read, got mode {mode:04o} (chmod 600 "
    assert expected in refused(write(invitation.text(), mode))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("bastion.example.com:8443", "bastion.example.com"), 'gateway: expected a host and a port such as'),
        (('server_name = "', 'server_name = "x y'), 'server_name: expected a host name such as'),
        (("spiffe://gateway.test/team/alice", "spiffe://gateway.test/../alice"), "identity: expected the SPIFFE ID of"),
        (("spiffe://gateway.test/team/alice", "spiffe://gateway.test/ca"), "identity: expected the SPIFFE ID of"),
        (("spiffe://gateway.test/team/alice", "https://gateway.test/alice"), "identity: expected the SPIFFE ID of"),
        (("spiffe://gateway.test/team/alice", "spiffe://gateway.test/" + "a" * 201), "identity: expected the SP"),
        (("spiffe://gateway.test/team/alice", "spiffe://gateway.test"), "identity: expected the SPIFFE ID of a client"),
        (("identity =", "identify ="), "identity: expected the SPIFFE ID of a client"),
        (("gateway =", "more = 1\ngateway ="), "more: expected one of the keys gateway, server_name, identity"),
        (("certificate = '''", "certificate = '''x''' # "), "expected TOML, got an error at line"),
        (("ca = '''", "ca = ''\nrest = '''"), "ca: expected a string that is not empty"),
    ],
)  # fmt: skip
def test_what_is_not_one_whole_invitation_is_refused(invitation, write, change, message):
    text = invitation.text()
    assert text.count(change[0]) >= 1
    before, _, after = text.rpartition(change[0])
    assert message in refused(write(before + change[1] + after))


def test_parts_that_do_not_fit_are_told_of_without_the_key(invitation, write):
    secret = re.sub("-----.*-----|\n", "", invitation.key_pem)
    other = re.sub("-----.*-----|\n", "", OTHER_KEY)
    damaged = invitation.key_pem.replace("-----BEGIN PRIVATE", "-----BEGIN")
    no_key = "key: expected a private key in PEM, without a passphrase, got something else"
    no_anchor = "ca: expected certificates in PEM, got something else"
    for changed, message in (
        (replace(invitation, key_pem=OTHER_KEY), "key: expected the key of the certificate, got another one"),
        (replace(invitation, key_pem=damaged), no_key),
        (replace(invitation, key_pem=secret), no_key),
        (replace(invitation, anchors_pem="x\n"), no_anchor),
        (replace(invitation, anchors_pem=invitation.key_pem), no_anchor),
    ):
        told = refused(write(changed.text()))
        assert message in told
        assert secret[:20] not in told
        assert other[:20] not in told


def test_no_secret_is_in_the_repr(invitation, tmp_path):
    for shown in (repr(invitation), repr(invitation.credentials(tmp_path))):
        assert "BEGIN" not in shown


def test_what_is_too_large_is_not_read(write):
    assert f"expected an invitation of at most {LARGEST_BYTES} bytes" in refused(write("#" * (LARGEST_BYTES + 1)))


def test_a_key_that_it_would_take_hours_to_look_at_is_not_looked_at(invitation, write):
    """One of RSA with 21,000 bits took 158 s, in which there is no way to interrupt it."""
    for lines in (100, 2000):  # which are not part of the key
        text = replace(invitation, key_pem=lines * "x\n" + invitation.key_pem).text()
        if lines == 100:
            read_invitation(write(text))
        else:
            assert "key: expected a private key of at most 4096 bytes, got 4241" in refused(write(text))


def test_one_that_is_missing_is_told_of(tmp_path):
    assert "expected an invitation that can be read, got “No such file" in refused(tmp_path / "nope")


def test_a_client_has_its_files_in_one_folder_by_its_name():
    place = Place.of(Path("x"), "spiffe://gateway.test/ci/deploy")
    assert [str(path) for path in (place.profile, place.ca, place.certificate, place.key)] == [
        "x/ci+deploy.toml",
        "x/ca.crt",
        "x/ci+deploy.crt",
        "x/ci+deploy.key",
    ]


@pytest.mark.parametrize("path", ["", "/", "/..", "/../x", "/a//b", "/ca", "/CA", "/a*", "/a%2fb", "/" + "a" * 201])
def test_a_name_that_leads_elsewhere_has_no_place(path):
    with pytest.raises(UsageError):
        Place.of(Path("x"), f"spiffe://gateway.test{path}")
