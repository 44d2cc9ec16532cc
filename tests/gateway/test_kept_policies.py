import shutil

import pytest

from portguard.gateway.bundle import read_bundle
from portguard.gateway.kept_policies import keep_policy
from portguard.gateway.snapshot import build
from tests.gateway_folder import GatewayFolder


@pytest.fixture
def folder(tmp_path):
    folder = GatewayFolder(tmp_path)
    text = (tmp_path / "portguard.toml").read_text()
    folder.write("portguard.toml", text.replace("[trusts", 'state = "state"\n[trusts', 1))
    return folder


def keep(folder):
    bundle = read_bundle(folder.configuration)
    return keep_policy(bundle, build(bundle).configuration)


def test_the_policy_is_kept_by_its_revision_and_nothing_secret_with_it(folder):
    kept = keep(folder)
    assert kept.name == read_bundle(folder.configuration).revision
    assert [path.name for path in kept.iterdir()] == ["policy.toml"]
    assert (kept / "policy.toml").read_text() == (folder.path / "policy.toml").read_text()
    assert [path.stat().st_mode & 0o777 for path in (kept.parent, kept, kept / "policy.toml")] == [0o700, 0o700, 0o600]


def test_what_is_kept_already_stays_and_another_revision_comes_beside_it(folder):
    first = keep(folder)
    assert keep(folder) == first
    folder.add("policy.toml", "# changed\n")
    second = keep(folder)
    assert sorted(path.name for path in first.parent.iterdir()) == sorted([first.name, second.name])


def test_all_files_of_a_folder_are_kept(folder):
    folder.write("policy.d/10-a.toml", (folder.path / "policy.toml").read_text())
    folder.write("policy.d/20-b.toml", "")
    text = (folder.path / "portguard.toml").read_text()
    folder.write("portguard.toml", text.replace("[trusts", 'policy = "policy.d"\n[trusts', 1))
    assert sorted(path.name for path in keep(folder).iterdir()) == ["10-a.toml", "20-b.toml"]


def test_where_it_cannot_be_kept_nothing_half_done_is_left(folder, monkeypatch):
    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.rename", fail)
    with pytest.raises(OSError, match="No space left"):
        keep(folder)
    assert list((folder.path / "state" / "policies").iterdir()) == []
    monkeypatch.undo()
    shutil.rmtree(folder.path / "state")
    keep(folder)
