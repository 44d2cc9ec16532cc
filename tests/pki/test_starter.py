import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from portguard.client.profile import read_profile
from portguard.errors import UsageError
from portguard.gateway.bundle import read_bundle
from portguard.gateway.snapshot import build
from portguard.pki.authority import Authority
from portguard.pki.errors import PkiError
from portguard.pki.revocation import revoke
from portguard.pki.starter import GATEWAY_NAME, StarterFolder, StarterService
from portguard.policy.addresses import HostPort

WEB = StarterService("web", HostPort("127.0.0.1", 8000), 8080, "built in")
DB = StarterService("orders-db", HostPort("::1", 5432), 5432, alpn=("postgresql",))
EVERYTHING = ["authority", "gateway", "alice", "bob"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "quickstart"


def now() -> datetime:
    return datetime.now(UTC)


def test_a_new_folder_holds_a_gateway_that_can_serve(path: Path) -> None:
    with StarterFolder.claim(path) as folder:
        assert folder.issue(at=now()) == EVERYTHING
        assert folder.write((WEB, DB), port=8443) == []
        snapshot = build(read_bundle(str(folder.configuration)))
    assert snapshot.warnings == ()
    assert snapshot.configuration.gateway.name == GATEWAY_NAME
    assert [str(address) for address in snapshot.configuration.gateway.listen] == ["127.0.0.1:8443"]
    web, db = snapshot.policy.services["web"], snapshot.policy.services["orders-db"]
    assert [str(upstream) for upstream in web.upstreams] == ["127.0.0.1:8000"]
    assert (web.local_port, web.alpn) == (8080, ())
    assert [str(upstream) for upstream in db.upstreams] == ["[::1]:5432"]
    assert (db.local_port, db.alpn) == (5432, ("postgresql",))


def test_what_is_secret_is_for_its_owner_only(path: Path) -> None:
    with StarterFolder.claim(path) as folder:
        folder.issue(at=now())
        folder.write((WEB,), port=8443)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    keys = [*path.rglob("*.key")]
    assert {key.name for key in keys} == {"ca.key", "gateway.key", "alice.key", "bob.key"}
    assert all(stat.S_IMODE(key.stat().st_mode) == 0o600 for key in keys)


def test_the_profiles_are_those_of_connect(path: Path) -> None:
    with StarterFolder.claim(path) as folder:
        assert folder.write_profiles(HostPort("127.0.0.1", 8443), GATEWAY_NAME) == []
        profile = read_profile(folder.profile("bob"))
        assert (profile.certificate, profile.key) == folder.certificate("bob")
    assert profile.gateway == HostPort("127.0.0.1", 8443)
    assert profile.server_name == GATEWAY_NAME


def test_what_an_earlier_run_made_is_used_again(path: Path) -> None:
    with StarterFolder.claim(path) as folder:
        folder.issue(at=now())
    before = {file: file.read_bytes() for file in path.rglob("*.crt")}
    with StarterFolder.claim(path) as folder:
        assert folder.issue(at=now()) == []
    assert {file: file.read_bytes() for file in path.rglob("*.crt")} == before


def test_a_certificate_that_ends_soon_is_made_anew(path: Path) -> None:
    with StarterFolder.claim(path) as folder:
        folder.issue(at=now())
        assert folder.issue(at=now() + timedelta(days=28)) == []
        assert folder.issue(at=now() + timedelta(days=29, minutes=1)) == ["alice", "bob", "revocation list"]


def test_a_certificate_that_was_revoked_is_made_anew(path: Path) -> None:
    with StarterFolder.claim(path) as folder:
        folder.issue(at=now())
        authority = Authority.open(path / "ca")
        alice = authority.store.records()[1]
        revoke(authority, [alice.serial], reason=None, at=now())
        assert folder.issue(at=now()) == ["alice"]
        assert folder.issue(at=now()) == []


def test_a_revocation_list_that_is_missing_is_made_anew(path: Path) -> None:
    with StarterFolder.claim(path) as folder:
        folder.issue(at=now())
        (path / "ca" / "ca.crl").unlink()
        assert folder.issue(at=now()) == ["revocation list"]
        folder.write((WEB,), port=8443)
        assert build(read_bundle(str(folder.configuration))).warnings == ()


def test_a_list_that_went_out_of_date_is_warned_of_and_the_configuration_says_what_to_do(path: Path) -> None:
    with StarterFolder.claim(path) as folder:
        folder.issue(at=now() - timedelta(days=40))
        folder.write((WEB,), port=8443)
        warnings = build(read_bundle(str(folder.configuration))).warnings
        assert any("trusts.local.crl: the list of " in line and "out of date since" in line for line in warnings)
        assert "`portguard ca crl --ca ca` makes it anew" in folder.configuration.read_text()
        assert folder.issue(at=now()) == ["alice", "bob", "revocation list"]
        assert build(read_bundle(str(folder.configuration))).warnings == ()


@pytest.mark.parametrize("name", ["alice.crt", "alice.key"])
def test_a_certificate_that_is_missing_in_part_is_made_anew(path: Path, name: str) -> None:
    with StarterFolder.claim(path) as folder:
        folder.issue(at=now())
        (path / name).unlink()
        assert folder.issue(at=now()) == ["alice"]


def test_a_certificate_of_another_authority_is_made_anew(path: Path, tmp_path: Path) -> None:
    with StarterFolder.claim(path) as folder:
        folder.issue(at=now())
        other = Authority.create(tmp_path / "other", trust_domain=GATEWAY_NAME, at=now())
        other.issue_client("alice", at=now()).write(path, "alice", overwrite=True)
        assert folder.issue(at=now()) == ["alice"]


def test_what_is_no_certificate_is_made_anew(path: Path) -> None:
    with StarterFolder.claim(path) as folder:
        folder.issue(at=now())
        (path / "bob.crt").write_text("hello")
        assert folder.issue(at=now()) == ["bob"]


def test_files_follow_what_they_are_written_for(path: Path) -> None:
    with StarterFolder.claim(path) as folder:
        folder.write((WEB,), port=8443)
        assert folder.write((DB,), port=9443) == []
        assert "127.0.0.1:9443" in folder.configuration.read_text()
        assert "orders-db" in folder.policy.read_text()


@pytest.mark.parametrize("change", [lambda text: text + "# mine\n", lambda text: text.partition("\n")[2], str.upper])
def test_a_file_that_was_changed_stays_as_it_is(path: Path, change) -> None:
    with StarterFolder.claim(path) as folder:
        folder.write((WEB,), port=8443)
        changed = change(folder.policy.read_text())
        folder.policy.write_text(changed)
        assert folder.write((DB,), port=9443) == [folder.policy]
        assert folder.policy.read_text() == changed
        assert "127.0.0.1:9443" in folder.configuration.read_text()


def test_a_folder_with_other_files_is_refused(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("")
    expected = "expected a new folder, or one of an earlier quickstart, got one with other"
    with pytest.raises(UsageError, match=expected), StarterFolder.claim(path):
        pass
    assert os.listdir(path) == ["thesis.tex"]


def test_an_empty_folder_is_taken(path: Path) -> None:
    path.mkdir()
    with StarterFolder.claim(path) as folder:
        assert folder.issue(at=now()) == EVERYTHING


def test_two_do_not_use_one_folder_at_once(path: Path) -> None:
    with StarterFolder.claim(path) as folder:
        folder.issue(at=now())
        expected = "expected a folder that no other quickstart uses, got one in use"
        with pytest.raises(UsageError, match=expected), StarterFolder.claim(path):
            pass
    with StarterFolder.claim(path) as folder:
        assert folder.issue(at=now()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PkiError, match="got a file in its place"), StarterFolder.claim(tmp_path / "file"):
        pass


def test_a_policy_that_cannot_be_read_is_told(path: Path) -> None:
    with StarterFolder.claim(path) as folder:
        folder.policy.mkdir()
        with pytest.raises(PkiError, match=r"policy\.toml: expected a file that can be read, got “Is a directory”"):
            folder.write((WEB,), port=8443)
