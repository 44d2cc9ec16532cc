"""Which ledger is opened, and where its password comes from."""

import sys

import pytest

from portguard.errors import ConfigurationError
from portguard.gateway.bundle import read_bundle
from portguard.gateway.configuration import read_configuration
from portguard.gateway.credentials import LEDGER_PASSWORD
from portguard.gateway.fleet_ledger import ledger_password, open_ledger, require_redis
from portguard.gateway.host import host_problems
from portguard.limits.sqlite import SqliteStore
from tests.gateway_folder import GatewayFolder
from tests.patience import PATIENCE_S


@pytest.fixture
def folder(tmp_path):
    folder = GatewayFolder(tmp_path)
    text = (tmp_path / "portguard.toml").read_text()
    folder.write("portguard.toml", text.replace("listen = ", 'state = "state"\ncontrol = "control.sock"\nlisten = '))
    return folder


def configured(folder, lines='url = "redis://127.0.0.1:1/0"'):
    content = f"{(folder.path / 'portguard.toml').read_text()}[ledger]\n{lines}\n"
    problems = []
    configuration = read_configuration(folder.configuration, content.encode(), problems)
    assert problems == []
    return configuration


def problem(act, *arguments):
    with pytest.raises(ConfigurationError) as error:
        act(*arguments)
    [problem] = error.value.problems
    return str(problem)


def test_without_a_url_the_ledger_is_a_file_and_needs_no_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    ledger = open_ledger(configured(folder, ""))
    assert isinstance(ledger, SqliteStore)
    assert ledger.flush_and_close(PATIENCE_S)
    assert (folder.path / "state/ledger.db").exists()


def test_without_the_package_a_redis_is_an_error_that_says_how_to_install_it(folder, monkeypatch):
    require_redis(configured(folder))
    monkeypatch.setitem(sys.modules, "redis", None)
    expected = "the package redis for such a ledger, as pip install 'portguard[fleet]' installs it"
    said = f"{folder.configuration}: ledger.url: expected {expected}, got none"
    assert problem(open_ledger, configured(folder)) == said
    folder.add("portguard.toml", '[ledger]\nurl = "redis://127.0.0.1:1/0"\n')
    assert said in map(str, host_problems(read_bundle(folder.configuration)))


def test_the_password_is_read_from_its_file(folder):
    folder.write("secret", "s3cret word\n").chmod(0o600)
    assert ledger_password(configured(folder, 'url = "redis://h"\npassword_file = "secret"')) == "s3cret word"
    assert ledger_password(configured(folder)) is None


def test_a_password_that_others_can_read_is_refused(folder):
    path = folder.write("secret", "s3cret word\n")
    content = 'url = "redis://h"\npassword_file = "secret"'
    expected = f"{path}: expected a password of mode 0600 or less, or 0640 or less if root owns it, got mode "
    for mode in (0o644, 0o604, 0o660):
        path.chmod(mode)
        assert problem(ledger_password, configured(folder, content)).startswith(f"{expected}{mode:04o}, owner ")
    path.chmod(0o400)
    assert ledger_password(configured(folder, content)) == "s3cret word"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "nothing"),
        ("s3cret\nword\n", "several lines"),
    ],
)
def test_what_is_no_password_is_refused_and_not_shown(folder, content, found):
    path = folder.write("secret", content)
    path.chmod(0o600)
    said = problem(ledger_password, configured(folder, 'url = "redis://h"\npassword_file = "secret"'))
    assert said.startswith(f"{path}: expected one line with a password, got {found}")
    assert "s3cret" not in said


def test_a_password_that_is_no_text_is_refused_and_not_shown(folder):
    path = folder.write("secret", b"s3cret\xff")
    path.chmod(0o600)
    said = problem(ledger_password, configured(folder, 'url = "redis://h"\npassword_file = "secret"'))
    assert said == f"{path}: expected a password in UTF-8, got other bytes"


def test_a_password_file_that_is_missing_is_told_by_the_check_too(folder):
    folder.add("portguard.toml", '[ledger]\nurl = "redis://127.0.0.1:1/0"\npassword_file = "secret"\n')
    said = f"{folder.path / 'secret'}: expected a readable file with a password, got no such file or directory"
    assert said in map(str, host_problems(read_bundle(folder.configuration)))
    folder.write("secret", "word").chmod(0o600)
    assert said not in map(str, host_problems(read_bundle(folder.configuration)))


def test_the_password_may_be_handed_over_if_it_is_nowhere_else(folder, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder.path))
    folder.write(LEDGER_PASSWORD, "s3cret\n").chmod(0o600)
    assert ledger_password(configured(folder)) == "s3cret"
    assert ledger_password(configured(folder, "")) is None
    for lines in ('url = "redis://:word@h"', 'url = "redis://h"\npassword_file = "secret"'):
        said = problem(ledger_password, configured(folder, lines))
        assert said.endswith(
            f"ledger: expected the password in one place, got one beside the credential {LEDGER_PASSWORD}"
        )
