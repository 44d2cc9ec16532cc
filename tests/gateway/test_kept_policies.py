import shutil
from datetime import UTC, datetime, timedelta

import pytest

from portguard.gateway.bundle import read_bundle
from portguard.gateway.kept_policies import (
    NotKept,
    in_force,
    keep_policy,
    kept_files,
    kept_revision,
    record_load,
    recorded_loads,
)
from portguard.gateway.snapshot import build
from tests.gateway_folder import GatewayFolder

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


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


# When they were loaded


def load(folder, at, **keywords):
    """Keep the policy, as loaded at `at`; returns its revision."""
    bundle = read_bundle(folder.configuration)
    configuration = build(bundle).configuration
    keep_policy(bundle, configuration)
    record_load(configuration, bundle.revision, at, **keywords)
    return bundle.revision


def test_every_load_is_recorded_with_who_and_why(folder):
    state = str(folder.path / "state")
    assert recorded_loads(state) == ()
    first = load(folder, NOON)
    folder.add("policy.toml", "# changed\n")
    second = load(folder, NOON + HOUR, by="user:anna", message="CHG-1\n\u202e")
    assert [(each.at, each.revision, each.by, each.message) for each in recorded_loads(state)] == [
        (NOON, first, None, None),
        (NOON + HOUR, second, "user:anna", "CHG-1\n\u202e"),
    ]
    assert (folder.path / "state/policies/loads.jsonl").stat().st_mode & 0o777 == 0o600


def test_what_names_meant_is_recorded(folder):
    load(folder, NOON)
    (found,) = recorded_loads(str(folder.path / "state"))
    assert found.namespace == build(read_bundle(folder.configuration)).configuration.namespace
    assert found.gateway_name == "bastion.example.com"


def test_the_policy_in_force_is_the_last_that_was_loaded_by_then(folder):
    first = load(folder, NOON)
    load(folder, NOON + 2 * HOUR)
    load(folder, NOON + HOUR)  # the clock was set back
    loads = recorded_loads(str(folder.path / "state"))
    assert [each.at for each in loads] == [NOON, NOON + HOUR, NOON + 2 * HOUR]
    assert in_force(loads, NOON).revision == first
    assert in_force(loads, NOON + 1.5 * HOUR).at == NOON + HOUR
    assert in_force(loads, NOON - HOUR) is None


@pytest.mark.parametrize(
    "line",
    [
        b'{"time": "2026-11-23T12:00:00+00:00", "rev',
        b"\xff\xfe",
        b"[1]",
        b'{"time": "2026-11-23T12:00:00", "revision": "%s"}' % (b"0" * 64),
        b'{"time": "2026-11-23T12:00:00Z", "revision": "../../x"}',
    ],
)
def test_half_a_line_is_passed_over_and_spoils_none_after_it(folder, line):
    first = load(folder, NOON)
    with (folder.path / "state/policies/loads.jsonl").open("ab") as file:
        file.write(line)
    second = load(folder, NOON + HOUR)
    assert [each.revision for each in recorded_loads(str(folder.path / "state"))] == [first, second]


def test_a_namespace_that_makes_no_sense_is_not_used(folder):
    load(folder, NOON)
    path = folder.path / "state/policies/loads.jsonl"
    path.write_text(path.read_text().replace('"spiffe"', '"nose"'))
    (found,) = recorded_loads(str(folder.path / "state"))
    assert found.namespace is None


def test_a_kept_policy_is_found_by_the_beginning_of_its_revision(folder):
    state = str(folder.path / "state")
    revision = load(folder, NOON)
    assert kept_revision(state, revision[:6]) == kept_revision(state, revision) == revision
    for text in revision[:5], "policy.toml", revision.upper(), "../" + revision:
        assert kept_revision(state, text) is None
    with pytest.raises(NotKept, match="expected the revision of one kept policy, got that of 0"):
        kept_revision(state, "0" * 64)
    (folder.path / "state/policies" / f"{revision}.bak").mkdir()
    assert kept_revision(state, revision[:6]) == revision
    (folder.path / "state/policies" / (revision[:6] + "0" * 58)).mkdir()
    with pytest.raises(NotKept, match="got that of 2"):
        kept_revision(state, revision[:6])
    with pytest.raises(NotKept, match="expected kept policies, got no such file"):
        kept_revision(str(folder.path / "nowhere"), revision)


def test_the_files_of_a_kept_policy_are_those_that_were_loaded(folder):
    state = str(folder.path / "state")
    revision = load(folder, NOON)
    content = (folder.path / "policy.toml").read_bytes()
    assert kept_files(state, revision) == ((f"{state}/policies/{revision}/policy.toml", content),)
    with pytest.raises(NotKept, match="expected a kept policy, got no such file"):
        kept_files(state, "0" * 64)
