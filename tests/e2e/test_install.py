"""`make install` puts things where systemd and packagers look for them, and its units hold what they promise.

Dependencies are left out, so that nothing is fetched but what pip builds with.
"""

import dataclasses
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import portguard
from portguard.errors import ConfigurationError
from portguard.gateway.configuration import read_configuration
from portguard.gateway.credentials import (
    AUDIT_KEY,
    AUTHORITY_PASSPHRASE,
    GATEWAY_KEY_PASSPHRASE,
    LEDGER_PASSWORD,
)
from portguard.gateway.descriptors import raise_descriptor_limit

_REPOSITORY = Path(__file__).parents[2]
_IGNORED = shutil.ignore_patterns(
    ".venv", ".git", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "quickstart", "results"
)
_HOWTO = (_REPOSITORY / "docs/howto/run-under-systemd.md").read_text()


def _run(
    *command: str | Path, where: Path | None = None, umask: int = -1, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*map(str, command)],
        cwd=where,
        umask=umask,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C.UTF-8"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository: a build writes into the tree that it builds."""
    copy = tmp_path_factory.mktemp("source") / "tree"
    shutil.copytree(_REPOSITORY, copy, ignore=_IGNORED)
    return copy


@pytest.fixture(scope="module")
def make_install(tree: Path, real_program):
    """`make_install(PREFIX=…, …)`, by somebody who keeps files private; skips where pip cannot get setuptools."""

    def run(**variables: object) -> None:
        given = [f"{name}={value}" for name, value in variables.items()]
        done = _run(
            real_program("make"), "install", f"PYTHON={sys.executable}", "PIP_ARGS=--no-deps", *given,
            where=tree, umask=0o077,
            **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
        )  # fmt: skip
        if done.returncode and re.search(r"No matching distribution|Could not fetch|connection", done.stderr):
            message = f"setuptools: expected to install it from the package index, got: {done.stderr[-500:]}"
            if os.environ.get("PORTGUARD_REQUIRE_REAL") == "1":
                pytest.fail(message)
            pytest.skip(message)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(scope="module")
def package(make_install, tmp_path_factory) -> Path:
    """What a packager gets: DESTDIR with PREFIX=/usr."""
    folder = tmp_path_factory.mktemp("package")
    make_install(DESTDIR=folder, PREFIX="/usr")
    return folder


@pytest.fixture(scope="module")
def installed(make_install, tmp_path_factory) -> Path:
    """An installation that can be used where it is: the folder that stands for /usr/local."""
    folder = tmp_path_factory.mktemp("installed")
    make_install(PREFIX=folder / "local", SYSCONFDIR=folder / "etc")
    return folder


def unit(name: str, folder: Path = _REPOSITORY / "systemd") -> dict[str, list[str]]:
    """The settings of a unit file, each with its values in order."""
    settings: dict[str, list[str]] = {}
    for line in (folder / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(key, []).append(value)
    return settings


def test_everything_is_where_packagers_expect_it(package):
    names = {path.relative_to(package).as_posix() for path in package.rglob("*")}
    assert names >= {
        "usr/bin/portguard",
        "usr/lib/portguard/bin/python",
        "usr/lib/systemd/system/portguard.service",
        "usr/lib/systemd/system/portguard.socket",
        "usr/lib/sysusers.d/portguard.conf",
        "usr/share/doc/portguard/README.md",
        "usr/share/doc/portguard/docs/howto/run-under-systemd.md",
        "etc/portguard/portguard.toml",
        "etc/portguard/policy.toml",
        "etc/portguard/tls",
    }
    assert {name.partition("/")[0] for name in names} == {"usr", "etc"}


def test_no_script_and_no_unit_names_the_place_where_it_was_packed(package):
    texts = [package / "usr/lib/portguard/pyvenv.cfg", *(package / "usr/lib/systemd/system").iterdir()]
    texts += [path for path in (package / "usr/lib/portguard/bin").iterdir() if not path.is_symlink()]
    assert len(texts) > 5
    assert [path for path in texts if str(package) in path.read_text()] == []
    assert (package / "usr/lib/portguard/bin/portguard").read_text().startswith("#!/usr/lib/portguard/bin/python")
    assert os.readlink(package / "usr/bin/portguard") == "../lib/portguard/bin/portguard"
    assert unit("portguard.service", package / "usr/lib/systemd/system")["ExecStart"] == ["/usr/bin/portguard serve"]


def test_other_accounts_can_read_what_root_has_installed(package):
    everything = [path for path in package.rglob("*") if not path.is_symlink()]
    assert [path for path in everything if path.stat().st_mode & 0o044 != 0o044] == []
    assert [path for path in everything if path.is_dir() and path.stat().st_mode & 0o011 != 0o011] == []


def test_a_configuration_that_is_there_is_never_overwritten(make_install, package):
    mine = package / "etc/portguard/policy.toml"
    mine.write_text("# mine\n")
    (package / "etc/portguard/portguard.toml").unlink()
    make_install(DESTDIR=package, PREFIX="/usr")
    assert mine.read_text() == "# mine\n"
    assert (package / "etc/portguard/portguard.toml").exists()


def test_the_client_for_redis_is_installed_too(tree, real_program):
    assert " '.[fleet]'\n" in _run(real_program("make"), "--dry-run", "install", where=tree).stdout


def test_the_program_runs_and_takes_the_example(installed, tmp_path):
    program = installed / "local/bin/portguard"
    # Dependencies come from this environment; portguard itself cannot, since an editable install is not in a folder.
    libraries = sysconfig.get_path("purelib")
    said = _run(program, "--version", where=tmp_path, PYTHONPATH=libraries).stdout
    assert said.split() == ["portguard,", "version", portguard.__version__]
    checked = _run(program, "serve", "--check", "-c", installed / "etc/portguard/portguard.toml", PYTHONPATH=libraries)
    missing = {line.partition(": ")[2].partition(":")[0] for line in checked.stderr.splitlines()}
    tls = installed / "etc/portguard/tls"
    assert missing == {str(tls / name) for name in ("gateway.crt", "gateway.key", "ca.crt")}


def test_systemd_finds_nothing_wrong_with_the_units(installed, real_program):
    folder = installed / "local/lib/systemd/system"
    done = _run(real_program("systemd-analyze"), "verify", *sorted(folder.iterdir()))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_unit_with_a_mistake_in_it_is_found(installed, real_program, tmp_path):
    text = (installed / "local/lib/systemd/system/portguard.service").read_text()
    (tmp_path / "portguard.service").write_text(text.replace("KillMode=mixed", "KillMod=mixed"))
    assert "KillMod" in _run(real_program("systemd-analyze"), "verify", tmp_path / "portguard.service").stderr


@pytest.mark.parametrize("block", re.findall(r"^```ini\n(.*?)^```$", _HOWTO, re.MULTILINE | re.DOTALL))
def test_what_the_howto_adds_to_the_units_is_right(installed, real_program, tmp_path, block):
    name = "portguard.socket" if "[Socket]" in block else "portguard.service"
    for path in (installed / "local/lib/systemd/system").iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / f"{name}.d").mkdir()
    (tmp_path / f"{name}.d" / "override.conf").write_text(block)
    done = _run(real_program("systemd-analyze"), "verify", tmp_path / name)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_of_the_howto_can_be_called(installed, real_program):
    """What they would do to this machine is done by the other tests, to a folder."""
    commands = re.findall(r"^\$ (.+)$", _HOWTO, re.MULTILINE)
    assert len(commands) > 10
    for command in (part for line in commands for part in line.split(" | ")):
        words = re.sub(r"^sudo (-u \w+ )?([A-Z_]+=\S+ )*", "", command).split()
        if words[0] != "portguard":
            real_program(words[0])
        for word in words:
            if word.endswith((".service", ".socket")):
                assert (installed / "local/lib/systemd/system" / word).exists(), command


def test_every_place_that_the_howto_names_is_there(installed):
    [table] = re.findall(r"^\| what \| where \|\n((?:\|.*\n)+)", _HOWTO, re.MULTILINE)
    places = re.findall(r"`/(?:usr/)?([a-z./]+)`", table)
    assert len(places) >= 6
    assert [place for place in places if not (installed / place).exists()] == []


def exposure(real_program, path):
    done = _run(real_program("systemd-analyze"), "security", "--offline=true", "--no-pager", path)
    return float(re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)[1])


def test_the_exposure_of_the_service_is_small(real_program, tmp_path):
    service = _REPOSITORY / "systemd/portguard.service"
    assert exposure(real_program, service) <= 1.5
    (tmp_path / "portguard.service").write_text(service.read_text().replace("NoNewPrivileges=yes\n", ""))
    assert exposure(real_program, tmp_path / "portguard.service") > exposure(real_program, service)


def filtered(real_program, lines):
    """The system calls that lines of SystemCallFilter= leave, systemd.exec(5): the first allows, `~` takes away."""

    def calls(name: str) -> set[str]:
        listed = _run(real_program("systemd-analyze"), "syscall-filter", name).stdout.splitlines()[1:]
        words = {line.strip() for line in listed if not line.strip().startswith("#")} - {""}
        return {call for word in words for call in (calls(word) if word.startswith("@") else {word})}

    allowed: set[str] = set()
    for line in lines:
        words = line.removeprefix("~").split()
        named = {call for word in words for call in (calls(word) if word.startswith("@") else {word})}
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


def test_the_gateway_may_call_what_it_needs_and_not_what_it_does_not(real_program):
    allowed = filtered(real_program, unit("portguard.service")["SystemCallFilter"])
    # In turn: to give the control socket to its group, the limit of descriptors, bundles, another program in its place.
    assert {"fchownat", "prlimit64", "memfd_create", "execve"} <= allowed
    assert {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "capset"} <= allowed
    assert allowed.isdisjoint({"setuid", "mount", "ptrace", "bpf", "init_module", "reboot"})


def test_the_account_is_made(installed, real_program, tmp_path):
    (tmp_path / "etc").mkdir()
    conf = installed / "local/lib/sysusers.d/portguard.conf"
    done = _run(real_program("systemd-sysusers"), f"--root={tmp_path}", conf)
    if done.returncode and os.geteuid():
        pytest.skip(f"systemd-sysusers: expected to run as root, got uid {os.geteuid()}")
    [line] = (tmp_path / "etc/passwd").read_text().splitlines()
    assert line.startswith("portguard:")
    assert "portguard:" in (tmp_path / "etc/group").read_text()
    assert unit("portguard.service")["User"] == unit("portguard.service")["Group"] == ["portguard"]


def default_configuration():
    text = '[gateway]\nname = "gw.example.com"\n[trusts.local]\nca = "ca.crt"\nidentity = "cn"\n'
    problems = []
    configuration = read_configuration("/etc/portguard/portguard.toml", text.encode(), problems)
    assert problems == []
    return configuration


def seconds(span):
    return sum(int(number) * {"min": 60, "s": 1}[name] for number, name in re.findall(r"(\d+)(min|s)\b", span))


def test_the_unit_gives_a_drain_its_time():
    assert seconds(unit("portguard.service")["TimeoutStopSec"][0]) > default_configuration().timeouts.drain_s


def test_the_unit_has_descriptors_for_as_many_sessions_as_it_says(monkeypatch):
    limit = int(unit("portguard.service")["LimitNOFILE"][0])
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    capacity = default_configuration().capacity
    raise_descriptor_limit(capacity, "portguard.toml")
    raise_descriptor_limit(dataclasses.replace(capacity, max_sessions=31_000), "portguard.toml")
    with pytest.raises(ConfigurationError):
        raise_descriptor_limit(dataclasses.replace(capacity, max_sessions=32_000), "portguard.toml")
    assert "31,000" in _HOWTO


def test_the_unit_makes_the_folders_that_the_configuration_names():
    service, gateway = unit("portguard.service"), default_configuration().gateway
    assert gateway.state == f"/var/lib/{service['StateDirectory'][0]}"
    assert Path(gateway.control).parent == Path("/run", service["RuntimeDirectory"][0])
    assert int(service["StateDirectoryMode"][0], 8) & (stat.S_IRWXG | stat.S_IRWXO) == 0


def test_the_socket_unit_listens_where_the_gateway_does():
    socket, gateway = unit("portguard.socket"), default_configuration().gateway
    assert socket["ListenStream"] == [str(address) for address in gateway.listen]
    assert socket["FileDescriptorName"] == ["gateway"]


def test_the_credentials_that_the_unit_loads_are_those_that_the_code_reads():
    read = {AUDIT_KEY, AUTHORITY_PASSPHRASE, GATEWAY_KEY_PASSPHRASE, LEDGER_PASSWORD}
    assert set(unit("portguard.service")["LoadCredential"]) == read
    assert read <= set(re.findall(r"portguard\.[a-z-]+", _HOWTO))
