"""The authority by which a gateway renews certificates: what is checked of it when the configuration is read."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from portguard.errors import ConfigurationError
from portguard.gateway.bundle import read_bundle
from portguard.gateway.issuing import open_authority
from portguard.gateway.snapshot import build
from portguard.pki.authority import Authority
from portguard.pki.errors import PkiError
from tests.gateway_folder import CONFIGURATION, GatewayFolder

NOW = datetime.now(UTC)
RENEWS = CONFIGURATION.replace('ca = "ca.crt"', 'ca = "ca/ca.crt"\nauthority = "ca"')


def create(folder, name="ca", domain="gateway.test", **keywords):
    return Authority.create(folder.path / name, trust_domain=domain, at=NOW, **keywords)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose trust has an authority to come; `hand_over(text)` makes text the passphrase's credential."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    folder = GatewayFolder(tmp_path)
    folder.write("portguard.toml", RENEWS)
    folder.hand_over = lambda text: folder.write("credentials/portguard.authority-passphrase", text)
    return folder


def problems_of(folder):
    """What is wrong, as text with paths from the folder."""
    with pytest.raises(ConfigurationError) as caught:
        build(read_bundle(folder.configuration))
    return [str(problem).replace(f"{folder.path}/", "") for problem in caught.value.problems]


@pytest.mark.parametrize("two_tiers", [False, True])
def test_an_authority_is_taken_and_its_key_is_for_no_worker(folder, tmp_path, two_tiers):
    authority = create(folder, root_directory=tmp_path / "stick" if two_tiers else None)
    bundle = read_bundle(folder.configuration)
    assert build(bundle).warnings == ()
    assert os.path.join(tmp_path, "ca/ca.crt") in bundle.files
    assert (os.path.join(tmp_path, "ca/issuing.crt") in bundle.files) is two_tiers
    assert authority.key_path.read_bytes().splitlines()[1] not in bundle.to_bytes()
    assert folder.gateway.key_pem.splitlines()[1] in bundle.to_bytes()


def test_one_that_is_missing_is_told_of(folder):
    folder.write("portguard.toml", RENEWS.replace('"ca/ca.crt"', '"ca.crt"'))
    assert problems_of(folder) == [
        "ca/ca.crt: expected a file that can be read (trusts.local.authority), got no such file or directory"
    ]


def test_one_of_another_trust_is_told_of(folder):
    create(folder, "ca")
    folder.write("portguard.toml", RENEWS.replace('"ca/ca.crt"', '"ca.crt"'))
    [problem] = problems_of(folder)
    assert problem.startswith(
        "portguard.toml: trusts.local.authority: expected an authority whose certificate is in ca"
    )
    assert ", got CN=portguard root CA" in problem


def test_one_of_another_trust_domain_is_told_of(folder):
    create(folder, domain="other.test")
    assert problems_of(folder) == [
        "portguard.toml: trusts.local.authority: expected an authority of the trust domain gateway.test, got other.test"
    ]


def test_a_key_that_others_can_read_is_told_of(folder):
    create(folder).key_path.chmod(0o644)
    [problem] = problems_of(folder)
    assert problem.startswith("ca/ca.key: expected a private key of mode 0600 or less")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("ca.key", b"hello", "ca/ca.key: expected a private key in PEM, got something else"),
        ("ca.key", None, "ca/ca.key: expected the key of the authority, got “No such file or directory”"),
        ("ca.crt", b"hello", "ca/ca.crt: expected a CA certificate of portguard, got something else"),
        ("issuing.crt", b"hello", "ca/issuing.crt: expected a CA certificate of portguard, got something else"),
        ("certificates.db", None, "ca/certificates.db: expected the record of issued certificates, got no such file"),
    ],
)
def test_one_that_is_damaged_is_told_of(folder, name, content, problem):
    create(folder)
    path = folder.path / "ca" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert problem in problems_of(folder)


def test_a_passphrase_comes_from_systemd(folder):
    create(folder, passphrase=b"correct horse")
    assert problems_of(folder) == [
        "ca/ca.key: expected the credential portguard.authority-passphrase, as it has a passphrase, got none"
    ]
    folder.hand_over("battery staple")
    [problem] = problems_of(folder)
    assert problem == "ca/ca.key: expected the passphrase of this key, got another one, or a damaged file"
    folder.hand_over("correct horse\n\n")
    [problem] = problems_of(folder)
    assert (
        problem == "credentials/portguard.authority-passphrase: expected one line with a passphrase, got several lines"
    )
    folder.hand_over("correct horse\n")
    build(read_bundle(folder.configuration))


def test_a_passphrase_for_a_key_that_has_none_changes_nothing(folder):
    create(folder)
    folder.hand_over("correct horse")
    build(read_bundle(folder.configuration))


def test_an_intermediate_that_ends_soon_is_warned_of(folder, tmp_path):
    create(folder, root_directory=tmp_path / "stick", valid_for=timedelta(days=20))
    bundle = read_bundle(folder.configuration, NOW + timedelta(days=19))
    assert any("ca/issuing.crt: the certificate expires on" in warning for warning in build(bundle).warnings)


def test_what_was_renewed_by_is_part_of_the_revision(folder, tmp_path):
    """So that a reload takes another authority, or another validity."""
    create(folder)
    before = build(read_bundle(folder.configuration))
    folder.write("portguard.toml", RENEWS + 'renew_for = "12h"\n')
    after = build(read_bundle(folder.configuration))
    assert before.revision != after.revision
    assert after.configuration.trusts[0].renew_for_s == 43_200


def test_an_authority_without_its_record_issues_nothing(folder):
    create(folder).store.path.unlink()
    with pytest.raises(PkiError, match=r"certificates\.db: expected the record of issued certificates"):
        open_authority(str(folder.path / "ca"))
