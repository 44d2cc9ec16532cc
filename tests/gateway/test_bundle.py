"""Reading every file once: which ones, what is said of those that cannot be used, and passing them on."""

import os
import stat
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from portguard.errors import Problem
from portguard.gateway import bundle as bundle_module
from portguard.gateway.bundle import Bundle, policy_files, read_bundle, read_policy_bundle
from portguard.gateway.configuration import read_configuration
from tests.gateway_folder import GatewayFolder

AT = datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path):
    return GatewayFolder(tmp_path)


def problems_of(folder):
    """What is wrong, as text with paths from the folder."""
    problems = read_bundle(folder.configuration, AT).problems
    return [str(problem).removeprefix(f"{folder.path}/") for problem in problems]


def files_of(folder):
    bundle = read_bundle(folder.configuration, AT)
    assert bundle.problems == ()
    return {os.path.relpath(path, folder.path): content for path, content in bundle.files.items()}


def status(mode, uid):
    return os.stat_result((stat.S_IFREG | mode, 0, 0, 1, uid, 0, 1, 0, 0, 0))


def test_everything_that_is_named_is_read(folder):
    folder.add("portguard.toml", 'crl = ["a.crl", "b.crl"]\n[trusts.corp]\nca = "corp.crt"\nidentity = "cn"\n')
    folder.add(
        "policy.toml",
        '[services.tls]\nupstream = ["db:1"]\ntls = { ca = "up/ca.crt", certificate = "up/a.crt", key = "up/a.key" }\n',
    )
    for name in ("a.crl", "b.crl", "corp.crt", "up/ca.crt", "up/a.crt", "up/a.key", "unused"):
        folder.write(name, name)
    files = files_of(folder)
    assert sorted(files) == [
        "a.crl",
        "b.crl",
        "ca.crt",
        "corp.crt",
        "policy.toml",
        "portguard.toml",
        "tls/gateway.crt",
        "tls/gateway.key",
        "up/a.crt",
        "up/a.key",
        "up/ca.crt",
    ]
    assert all(content == (folder.path / name).read_bytes() for name, content in files.items())


def test_paths_are_absolute_whatever_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder.path)
    bundle = read_bundle("portguard.toml", AT)
    assert bundle.configuration_path == folder.configuration
    assert bundle.problems == ()
    assert all(map(os.path.isabs, bundle.files))


def test_the_clock_is_read_once(folder):
    assert read_bundle(folder.configuration, AT).read_at == AT
    assert read_bundle(folder.configuration).read_at.utcoffset() is not None


def test_a_policy_can_be_read_without_anything_secret(folder):
    (folder.path / "tls/gateway.key").unlink()
    bundle = read_policy_bundle(folder.configuration, AT)
    assert bundle.problems == ()
    assert sorted(map(os.path.basename, bundle.files)) == ["policy.toml", "portguard.toml"]


def test_a_policy_folder_is_read_in_name_order(folder):
    folder.write(
        "portguard.toml", (folder.path / "portguard.toml").read_text().replace("listen", 'policy = "p"\nlisten')
    )
    for name in ("20.toml", "10.toml", ".hidden.toml", "10.toml~", "readme"):
        folder.write(f"p/{name}", "")
    bundle = read_bundle(folder.configuration, AT)
    configuration = read_configuration(folder.configuration, bundle.files[folder.configuration], [])
    names = [os.path.relpath(path, folder.path) for path, _ in policy_files(configuration, bundle.files)]
    assert names == ["p/10.toml", "p/20.toml"]
    assert bundle.problems == ()


def test_a_policy_folder_without_files_is_a_problem(folder):
    folder.write(
        "portguard.toml", (folder.path / "portguard.toml").read_text().replace("listen", 'policy = "p"\nlisten')
    )
    folder.write("p/readme", "")
    assert problems_of(folder) == ["p: expected at least one *.toml (gateway.policy), got none"]


def test_a_missing_configuration_is_the_only_problem(folder):
    (folder.path / "portguard.toml").unlink()
    assert problems_of(folder) == [
        "portguard.toml: expected a file that can be read (the configuration), got no such file or directory"
    ]


def test_all_missing_files_are_reported_in_one_go(folder):
    folder.add("portguard.toml", 'crl = ["a.crl"]\n')
    folder.add("policy.toml", '[services.tls]\nupstream = ["db:1"]\ntls = { ca = "up.crt" }\n')
    for name in ("tls/gateway.crt", "tls/gateway.key", "ca.crt"):
        (folder.path / name).unlink()
    assert problems_of(folder) == [
        "tls/gateway.crt: expected a file that can be read (gateway.certificate), got no such file or directory",
        "tls/gateway.key: expected a file that can be read (gateway.key), got no such file or directory",
        "ca.crt: expected a file that can be read (trusts.local.ca), got no such file or directory",
        "a.crl: expected a file that can be read (trusts.local.crl[0]), got no such file or directory",
        "up.crt: expected a file that can be read (tls of a service), got no such file or directory",
    ]


def test_files_are_looked_for_even_when_the_configuration_is_wrong(folder):
    folder.add("portguard.toml", "[log]\nlevel = 1\n")
    (folder.path / "ca.crt").unlink()
    (problem,) = problems_of(folder)
    assert problem.startswith("ca.crt: ")


def test_only_regular_files_of_a_sane_size_are_read(folder, monkeypatch):
    (folder.path / "ca.crt").unlink()
    os.mkfifo(folder.path / "ca.crt")
    (folder.path / "tls/gateway.crt").unlink()
    (folder.path / "tls/gateway.crt").mkdir()
    folder.write("policy.toml", "#" * 1001)
    monkeypatch.setattr(bundle_module, "LARGEST_FILE_BYTES", 1000)
    assert problems_of(folder) == [
        "tls/gateway.crt: expected a regular file, got a folder",
        "ca.crt: expected a regular file, got something else",
        "policy.toml: expected a file of at most 1000 bytes, got a larger one",
    ]


def test_a_file_of_exactly_the_largest_size_is_read(folder, monkeypatch):
    folder.write("policy.toml", "#" * 1000)
    monkeypatch.setattr(bundle_module, "LARGEST_FILE_BYTES", 1000)
    assert problems_of(folder) == []


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o660])
def test_a_key_that_others_may_read_or_change_is_refused(folder, mode):
    (folder.path / "tls/gateway.key").chmod(mode)
    (problem,) = problems_of(folder)
    assert problem.startswith("tls/gateway.key: expected a private key of mode 0600 or less, or 0640 or less if root")
    assert f"got mode {mode:04o}, owner" in problem


def test_a_refused_key_is_not_in_the_bundle(folder):
    (folder.path / "tls/gateway.key").chmod(0o644)
    assert str(folder.path / "tls/gateway.key") not in read_bundle(folder.configuration, AT).files


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_that_only_its_owner_may_read_is_taken(folder, mode):
    (folder.path / "tls/gateway.key").chmod(mode)
    assert problems_of(folder) == []


def test_any_file_with_a_private_key_in_it_must_be_private(folder):
    folder.write("tls/gateway.crt", folder.gateway.pem + folder.gateway.key_pem)
    (problem,) = problems_of(folder)
    assert problem.startswith("tls/gateway.crt: expected a private key of mode 0600 or less")


@pytest.mark.parametrize(("mode", "uid"), [(0o640, 0), (0o600, 1000), (0o700, 1000), (0o440, 0)])
def test_a_group_may_read_only_the_keys_of_root(mode, uid):
    assert bundle_module.too_open(status(mode, uid)) is None


@pytest.mark.parametrize(("mode", "uid"), [(0o640, 1000), (0o644, 0), (0o660, 0), (0o650, 0), (0o601, 1000)])
def test_a_key_open_to_more_is_refused_whoever_owns_it(mode, uid):
    assert bundle_module.too_open(status(mode, uid)).startswith(f"mode {mode:04o}, owner ")


@pytest.fixture
def locked(folder, tmp_path, monkeypatch):
    """The folder with a passphrase on the gateway's key; `hand_over(text)` makes that the credential."""
    form = Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"six random words")
    folder.write("tls/gateway.key", folder.gateway.key.private_bytes(*form))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    folder.hand_over = lambda text: folder.write("credentials/portguard.gateway-key-passphrase", text)
    return folder


def opened(folder):
    return load_pem_private_key(files_of(folder)["tls/gateway.key"], None)


@pytest.mark.parametrize("text", ["six random words", "six random words\n"])
def test_a_passphrase_that_is_handed_over_opens_the_key(locked, text):
    locked.hand_over(text)
    assert opened(locked).private_numbers() == locked.gateway.key.private_numbers()


def test_a_passphrase_for_a_key_that_has_none_changes_nothing(locked):
    locked.hand_over("six random words")
    locked.write("tls/gateway.key", locked.gateway.key_pem)
    assert files_of(locked)["tls/gateway.key"] == locked.gateway.key_pem


@pytest.mark.parametrize("text", ["five other words", " six random words"])
def test_another_passphrase_is_a_problem_and_is_not_shown(locked, text):
    locked.hand_over(text)
    assert problems_of(locked) == [
        "tls/gateway.key: expected a private key that portguard.gateway-key-passphrase opens, "
        "got another passphrase, or no such key"
    ]


@pytest.mark.parametrize(("text", "found"), [("", "nothing"), ("six random words\n\n", "several lines")])
def test_a_passphrase_that_is_not_one_line_is_a_problem(locked, text, found):
    locked.hand_over(text)
    assert problems_of(locked) == [
        f"credentials/portguard.gateway-key-passphrase: expected one line with a passphrase, got {found}"
    ]


def test_a_passphrase_that_cannot_be_read_is_a_problem(locked):
    (locked.path / "credentials/portguard.gateway-key-passphrase").mkdir(parents=True)
    (problem,) = problems_of(locked)
    assert (
        problem
        == "credentials/portguard.gateway-key-passphrase: expected a credential that can be read, got is a directory"
    )


@pytest.mark.parametrize("variable", [None, ""])
def test_without_credentials_the_key_stays_as_it_is(locked, monkeypatch, variable):
    locked.hand_over("six random words")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    if variable is not None:
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", variable)
    assert b"ENCRYPTED" in files_of(locked)["tls/gateway.key"]


def test_no_content_is_in_the_repr(folder):
    text = repr(read_bundle(folder.configuration, AT))
    assert "PRIVATE" not in text
    assert "orders-db" not in text


def test_a_bundle_is_the_same_after_a_round_trip(folder):
    bundle = read_bundle(folder.configuration, AT)
    assert Bundle.from_bytes(bundle.to_bytes()) == bundle


def test_a_round_trip_keeps_odd_paths_contents_and_problems():
    bundle = Bundle(
        "/etc/portguard.toml",
        {"/ä\n": b"\0\n\xff", "/b\udcff": b"", "/a": b"portguard bundle 1\n"},
        AT,
        (Problem("/x", "k", "this", "that"),),
    )
    again = Bundle.from_bytes(bundle.to_bytes())
    assert again == bundle
    assert again.revision == bundle.revision


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"x" + data,
        lambda data: b"",
        lambda data: data.replace(b"bundle 1", b"bundle 2", 1),
        lambda data: data[:30],
    ],
)
def test_spoilt_bytes_are_no_bundle(folder, spoil):
    with pytest.raises(ValueError, match=r"."):
        Bundle.from_bytes(spoil(read_bundle(folder.configuration, AT).to_bytes()))


def test_the_revision_changes_with_any_content_and_with_nothing_else(folder):
    one = read_bundle(folder.configuration, AT)
    later = read_bundle(folder.configuration, datetime(2027, 1, 1, tzinfo=UTC))
    assert len(one.revision) == 64
    assert later.revision == one.revision
    for path, content in one.files.items():
        changed = Bundle(one.configuration_path, {**one.files, path: content + b"\n"}, AT)
        assert changed.revision != one.revision
    moved = Bundle("/p", {"/a": b"bc"}, AT)
    assert moved.revision != Bundle("/p", {"/ab": b"c"}, AT).revision
