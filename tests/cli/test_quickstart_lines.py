import shlex
import sys
from pathlib import Path

import psycopg
import pytest

from portguard.cli.quickstart_lines import Paste, own_command
from portguard.pki.starter import GATEWAY_NAME, StarterFolder
from portguard.policy.addresses import HostPort


@pytest.fixture(params=["plain", "with a space", "it's $HOME\\"])
def paste(request: pytest.FixtureRequest, tmp_path: Path) -> Paste:
    return Paste(StarterFolder(tmp_path / request.param), HostPort("127.0.0.1", 8443), GATEWAY_NAME)


def words_of(paste: Paste, program: str, **kind: bool) -> list[list[str]]:
    lines = paste.lines("web", port=8080, **{"http": False, "postgresql": False} | kind)
    return [words for line in lines if (words := shlex.split(line.text))[0] == program]


def test_paths_survive_the_shell(paste: Paste) -> None:
    by_name, by_connect, *_ = words_of(paste, "curl", http=True)
    assert by_name[by_name.index("--cacert") + 1] == str(paste.folder.ca)
    assert by_name[by_name.index("--key") + 1] == str(paste.folder.path / "alice.key")
    assert by_connect[by_connect.index("--proxy-cert") + 1] == str(paste.folder.path / "alice.crt")


def test_settings_survive_shell_and_libpq(paste: Paste) -> None:
    [[_, conninfo]] = words_of(paste, "psql", postgresql=True)
    settings = psycopg.conninfo.conninfo_to_dict(conninfo)
    assert settings["host"] == "web.gateway.localhost"
    assert settings["sslnegotiation"] == "direct"
    assert settings["sslkey"] == str(paste.folder.path / "alice.key")


def test_connect_is_asked_for_the_services_own_port(paste: Paste) -> None:
    targets = [words[-1] for words in words_of(paste, "curl", http=True)]
    assert targets == ["https://web.gateway.localhost:8443/", "http://web:8080/", "http://web:8080/"]
    lines = paste.lines("web", port=None, http=True, postgresql=False)
    assert any(line.text.endswith(" http://web/") for line in lines)


def test_a_service_of_another_kind_is_reached_by_openssl_and_connect(paste: Paste) -> None:
    [words] = words_of(paste, "openssl")
    assert words[words.index("-servername") + 1] == "web.gateway.localhost"
    assert words_of(paste, "curl") == []
    assert words_of(paste, "psql") == []


def test_the_certificate_that_is_revoked_is_found_in_the_folder(paste: Paste) -> None:
    words = shlex.split(paste.revoke().text)
    certificate, key = paste.folder.certificate("alice")
    assert words[-5:] == ["cert", "revoke", str(certificate), "--ca", str(paste.folder.path / "ca")]
    assert str(key) not in words


def test_portguard_is_called_by_its_name_where_that_leads_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "my bin" / "portguard"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", str(script.parent))
    assert own_command() == "portguard"
    monkeypatch.setenv("PATH", "/nowhere")
    assert own_command() == shlex.quote(str(script))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "__main__.py")])
    assert own_command() == f"{shlex.quote(sys.executable)} -m portguard"
