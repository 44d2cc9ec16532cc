import os
from pathlib import Path

import pytest

from portguard.client.profile import profile_path, read_profile
from portguard.errors import ConfigurationError, UsageError
from portguard.policy.addresses import HostPort

WHOLE = """
gateway = "bastion.example.com:8443"
ca = "ca.crt"
certificate = "own/alice.crt"
key = "/etc/keys/alice.key"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write(folder: Path, text: str, name: str = "alice.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_profile_is_read_with_paths_relative_to_its_folder(tmp_path: Path) -> None:
    profile = read_profile(write(tmp_path, WHOLE))
    assert profile.gateway == HostPort("bastion.example.com", 8443)
    assert profile.server_name == "bastion.example.com"
    assert profile.ca == tmp_path / "ca.crt"
    assert profile.certificate == tmp_path / "own" / "alice.crt"
    assert profile.key == Path("/etc/keys/alice.key")
    assert profile.key_passphrase_file is None
    assert profile.local_ports == {}


def test_everything_optional_is_read(home: Path) -> None:
    more = 'server_name = "2001:db8::1"\nkey_passphrase_file = "~/word"\n[services.Orders-DB]\nlocal_port = 15432\n'
    profile = read_profile(write(home, WHOLE + more))
    assert profile.server_name == "2001:db8::1"
    assert profile.key_passphrase_file == home / "word"
    assert profile.local_ports == {"orders-db": 15432}


def test_all_problems_of_a_profile_are_reported_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'gateway = "bastion"\nserver_name = "a b"\nca = ""\ncertficate = "x"\n'
        '[services."a b"]\nlocal_port = 0\n[services.web]\n',
    )
    with pytest.raises(ConfigurationError) as caught:
        read_profile(path)
    problems = {problem.key: problem for problem in caught.value.problems}
    assert set(problems) == {
        *("gateway", "server_name", "ca", "certificate", "certficate", "key"),
        *('services."a b".local_port', "services", "services.web.local_port"),
    }
    assert problems["certficate"].expected == "a known key (did you mean certificate?)"
    assert str(problems["services"]) == f'{path}: services: expected names of services such as orders-db, got "a b"'


def test_a_mistyped_optional_key_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean key_passphrase_file"):
        read_profile(write(tmp_path, WHOLE + 'key_pasphrase_file = "x"'))


def test_a_missing_profile_names_those_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, WHOLE, "work.toml")
    write(tmp_path, WHOLE, "notes.txt")
    with pytest.raises(ConfigurationError, match=r"got “No such file or directory” \(there are work\)$"):
        read_profile(tmp_path / "wrok.toml")


def test_what_is_no_profile_is_not_offered_as_one(tmp_path: Path) -> None:
    write(tmp_path, '[gateway]\nname = "bastion.example.com"\n', "portguard.toml")
    write(tmp_path, "[tool.ruff]\nline-length = 120\n", "c1.toml")
    write(tmp_path, "gateway = ", "broken.toml")
    write(tmp_path, "gateway = " + "[" * 10_000, "nested.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(ConfigurationError, match=r"got “No such file or directory”$"):
        read_profile(tmp_path / "x.toml")


def test_a_missing_folder_is_no_other_error(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"expected a profile that can be read, got “No such file or directory”$"
    ):
        read_profile(tmp_path / "none" / "work.toml")


def test_who_has_named_no_profile_learns_how_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"directory”; --profile or \$PORTGUARD_PROFILE names another$"):
        read_profile(tmp_path / "default.toml")
    (tmp_path / "default.toml").mkdir()
    with pytest.raises(ConfigurationError, match=r"got “Is a directory”$"):
        read_profile(tmp_path / "default.toml")


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        (None, {}, "{home}/.config/portguard/default.toml"),
        ("work", {}, "{home}/.config/portguard/work.toml"),
        ("a.b", {}, "{home}/.config/portguard/a.b.toml"),
        (None, {"PORTGUARD_PROFILE": "work"}, "{home}/.config/portguard/work.toml"),
        (None, {"PORTGUARD_PROFILE": ""}, "{home}/.config/portguard/default.toml"),
        ("home", {"PORTGUARD_PROFILE": "work"}, "{home}/.config/portguard/home.toml"),
        ("work", {"XDG_CONFIG_HOME": "/xdg"}, "/xdg/portguard/work.toml"),
        ("work", {"XDG_CONFIG_HOME": "xdg"}, "{home}/.config/portguard/work.toml"),
        ("team.toml", {}, "team.toml"),
        ("./team", {}, "team"),
        ("~/team.toml", {}, "{home}/team.toml"),
    ],
)
def test_a_profile_is_a_name_or_a_file(
    home: Path, given: str | None, environment: dict[str, str], expected: str
) -> None:
    assert profile_path(given, environment) == Path(expected.format(home=home))


@pytest.mark.parametrize("given", ["..", ".hidden", "~root", "a\0b"])
def test_what_is_neither_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match=r"^profile: expected a name or a file"):
        profile_path(given, {})
