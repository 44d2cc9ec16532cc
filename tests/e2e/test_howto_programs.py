"""Every recipe of `docs/howto/reach-services.md`, run as it stands: as alice, and as bob, who has no role.

The page's hosts, ports and people give way to those of the test. Names that would take DNS are those that curl finds by
itself (below .localhost); libpq is told the address by its environment, as DNS would.
"""

import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from tests.haproxy import start_haproxy
from tests.nginx import start_nginx
from tests.patience import PATIENCE_S
from tests.profiles import write_profile
from tests.transcripts import expected, run, transcript

_HOWTO = Path(__file__).parents[2] / "docs" / "howto"
_PAGE = (_HOWTO / "reach-services.md").read_text()
_SSH = "ssh, scp, sftp, rsync, git"

# The section, and the programs whose steps are run.
_RECIPES = [
    ("PostgreSQL 17 and newer", "psql"),
    ("PostgreSQL of any version", "psql"),
    ("Redis", "redis-cli"),
    (_SSH, "ssh scp sftp git"),
    (_SSH, "rsync"),
    ("curl", "curl"),
    ("Anything else", ""),
    ("To see for yourself", "openssl"),
]
_STANDING = ["PostgreSQL of any version", "Browsers", "Anything else"]
# Each has a test of its own; that of the CI jobs is in test_howto_ci_jobs.py.
_OF_THEIR_OWN = ["CI jobs", "When it does not work", "Without wildcard DNS", "A certificate that has ended"]


def section(text, title):
    [found] = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found


def is_standing(command):
    """Whether it goes on until Ctrl-C."""
    return command.startswith("portguard connect ") and " -- " not in command


def steps_of(text, title, programs):
    """The steps of a recipe, each with the words that the page has for a refusal: those that come next below it."""
    steps = []
    for part, refusal in re.findall(r"(.*?)^Refused: `([^`]+)`", section(text, title), re.MULTILINE | re.DOTALL):
        for command, shown in transcript(part):
            if not is_standing(command) and command.split()[0] in {*programs.split(), "printf", "portguard"}:
                steps.append((command, shown, refusal))
    return steps


@pytest.fixture(scope="module")
def ports(free_port):
    """The page's local ports, and free ones for them."""
    return {port: str(free_port()) for port in ("5432", "8080", "5901", "5672")}


@pytest.fixture(scope="module")
def nginx(start_for_module, free_port, real_program, tmp_path_factory):
    root, port = tmp_path_factory.mktemp("www"), free_port()
    root.joinpath("hello.txt").write_text("what we know\n")
    http = f"  server {{ listen 127.0.0.1:{port}; root {root}; }}"
    server = start_nginx(start_for_module, real_program("nginx"), tmp_path_factory.mktemp("nginx") / "files", http)
    server.wait_until_it_listens(("127.0.0.1", port))
    return f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, postgresql, redis, sshd, nginx, ports):
    for name in ("alice", "bob", "ended"):
        postgresql.query(f"create role {name} login")
    postgresql.query("create database orders")
    database = f'upstream = ["127.0.0.1:{postgresql.port}"]'
    services = {
        "orders-db": f'{database}\nalpn = ["postgresql"]\nlocal_port = {ports["5432"]}',
        "no-alpn": database,
        "cache": redis,
        "web1": sshd,
        "wiki": f'upstream = ["{nginx}"]\nlocal_port = {ports["8080"]}',
        "desktop": nginx,
        "queue": f'upstream = ["{nginx}"]\nlocal_port = {ports["5672"]}',
    }
    role = '[[roles]]\nname = "team"\nmembers = ["alice", "ci"]\nservices = ["*"]'
    return start_gateway_for_module(services, policy=role)


@pytest.fixture
def gateway(shared):
    return shared.from_now()


@dataclass
class Desk:
    """Where somebody sits: the page with their name and this gateway's, and the home that it takes for granted."""

    page: str
    home: Path
    srv: Path

    @property
    def folder(self):
        return self.home / ".config" / "portguard"

    def run(self, *commands, hostaddr="127.0.0.1"):
        """What each printed, with its exit status on a line of its own below."""
        path = shlex.quote(str(self.home / "bin"))
        setup = f"cd ~/.config/portguard; export PATH={path}:$PATH"
        setup += f"; export PGHOSTADDR={hostaddr}" if hostaddr else ""
        _, *outputs = run([setup, *(f"{command}\necho $?" for command in commands)], self.home)
        return outputs

    def check(self, steps, **options):
        """Assert that the steps print what the page shows, and succeed."""
        for (command, shown), output in zip(steps, self.run(*(step[0] for step in steps), **options), strict=True):
            assert expected([*shown, "0"]).fullmatch(output), f"$ {command}\nprinted:\n{output}\nnot:\n{shown}"


def _write_program(path, *lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


@pytest.fixture
def desk(gateway, ports, ssh_keys, tmp_path):
    """`desk("alice")` is hers."""

    def sit(name):
        home, srv = tmp_path / name, tmp_path / "srv"
        page = _PAGE.replace("connected to bastion.example.com:8443", f"connected to 127.0.0.1:{gateway.port}")
        # These two have no way of their own to find a name.
        page = page.replace(" -h bastion.example.com", " -h 127.0.0.1")
        page = page.replace(" -connect bastion.example.com:", " -connect 127.0.0.1:")
        page = re.sub(r"\b(5432|8080|5901|5672)\b", lambda found: ports[found[0]], page)
        page = re.sub(r"\b8443\b", str(gateway.port), page).replace("bastion.example.com", gateway.name)
        page = page.replace("192.0.2.10", "127.0.0.1").replace("/srv/", f"{srv}/")
        page = page.replace("/home/alice/", f"{home}/").replace("alice", name)
        srv.mkdir(exist_ok=True)
        made = Desk(page, home, srv)
        made.folder.mkdir(parents=True)
        for path in (gateway.ca, *gateway.certificate(name)):
            shutil.copy(path, made.folder)
        write_profile(gateway, name, made.folder).rename(made.folder / "default.toml")
        [entry] = re.findall(r"^```ini\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        home.joinpath(".pg_service.conf").write_text(entry)
        _with_ssh(made, ssh_keys, gateway)
        return made

    return sit


def _with_ssh(desk, keys, gateway):
    """Have ssh read the page's configuration: it looks for one in the home that the system knows, not in $HOME."""
    [entry] = re.findall(r"^```text\n(Host .*?)^```$", desk.page, re.MULTILINE | re.DOTALL)
    known_hosts = desk.home / "known_hosts"
    known_hosts.write_text(f"web1.{gateway.name} {keys.joinpath('host.pub').read_text()}")
    desk.home.joinpath("ssh_config").write_text(
        f"""{entry}
Host *
  User {pwd.getpwuid(os.geteuid()).pw_name}
  IdentityFile {keys}/user
  IdentitiesOnly yes
  IdentityAgent none
  BatchMode yes
  UserKnownHostsFile {known_hosts}
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""
    )
    for program in ("ssh", "scp", "sftp"):
        found = shutil.which(program) or program
        _write_program(desk.home / "bin" / program, f'exec {found} -F "$HOME/ssh_config" "$@"')
    desk.folder.joinpath("notes.txt").write_text("what we know\n")


@pytest.fixture
def new_psql(real_program):
    """`new_psql(desk)`: psql there has the libpq that psycopg brings, which may be newer than its own."""

    def put(desk):
        psql = Path(real_program("psql"))
        # Debian's psql in PATH is a script, which looks for the newest of these.
        psql = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/psql"), reverse=True)), psql)
        libraries = Path(psycopg.__file__).parents[1] / "psycopg_binary.libs"
        libpq = next(libraries.glob("libpq-*.so*"), None)
        if libpq is None or psycopg.pq.version() < 170000:
            pytest.skip("psycopg[binary]: expected it to bring libpq 17 or newer")
        folder = desk.home / "lib"
        folder.mkdir()
        folder.joinpath("libpq.so.5").symlink_to(libpq)
        _write_program(desk.home / "bin" / "psql", f'LD_LIBRARY_PATH={folder}:{libraries} exec {psql} "$@"')

    return put


def _make_repository(path):
    subprocess.run(["git", "init", "--quiet", "--bare", path], check=True, timeout=PATIENCE_S)


@pytest.fixture
def recipe(request, desk, real_program, new_psql, tmp_path):
    """`recipe(name)`: the desk, and the steps of the recipe with the words of their refusals."""
    title, programs = request.param
    for program in programs.split():
        real_program(program)
    if "git" in programs.split():
        _make_repository(tmp_path / "srv" / "orders.git")

    def sit(name):
        sitting = desk(name)
        if title == "PostgreSQL 17 and newer":
            new_psql(sitting)
        steps = steps_of(sitting.page, title, programs)
        return sitting, [step for step in steps if programs != "rsync" or step[0].startswith("rsync")]

    return sit


_ids = {"ids": lambda recipe: recipe[1] or recipe[0]}


@pytest.mark.parametrize("recipe", _RECIPES, indirect=True, **_ids)
def test_a_recipe_does_what_the_page_shows(recipe):
    desk, steps = recipe("alice")
    assert steps
    desk.check([step[:2] for step in steps])


@pytest.mark.parametrize("recipe", _RECIPES, indirect=True, **_ids)
def test_without_a_role_a_recipe_fails_as_the_page_says(gateway, recipe):
    desk, steps = recipe("bob")
    outputs = desk.run(*(step[0] for step in steps))
    for (command, _, refusal), output in zip(steps, outputs, strict=True):
        assert refusal in output, f"$ {command}\nprinted:\n{output}"
        assert output.splitlines()[-1] != "0", command
    assert list(desk.srv.glob("notes*")) == []
    gateway.wait_for_log("session.refuse .*identity=bob .*reason=no_role", count=len(steps))


def test_files_and_repositories_arrive(desk, real_program, tmp_path):
    real_program("git")
    _make_repository(tmp_path / "srv" / "orders.git")
    alice = desk("alice")
    alice.run(*(command for command, _, _ in steps_of(alice.page, _SSH, "scp sftp git")))
    assert alice.srv.joinpath("notes.txt").read_text() == "what we know\n"
    assert alice.folder.joinpath("copy.txt").read_text() == "what we know\n"
    assert alice.folder.joinpath("orders", ".git").is_dir()


def test_ssh_lets_no_host_name_run_a_command(desk, real_program, tmp_path):
    real_program("ssh")
    alice = desk("alice")
    [output] = alice.run(f"ssh 'x$(touch {tmp_path}/owned).gw.localhost' true")
    assert output.endswith("\n255\n")
    assert not tmp_path.joinpath("owned").exists()


# Ports that stay.


def _standing(desk, title):
    [(command, shown)] = [step for step in transcript(section(desk.page, title)) if is_standing(step[0])]
    environment = {**os.environ, "HOME": str(desk.home)}
    environment.pop("XDG_CONFIG_HOME", None)
    return [sys.executable, "-P", "-m", *shlex.split(command)], shown, environment


def _fetch(port):
    with urllib.request.urlopen(f"http://localhost:{port}/hello.txt", timeout=PATIENCE_S) as answer:
        return answer.read()


@pytest.mark.parametrize("title", _STANDING)
def test_a_local_port_leads_to_the_service_until_it_is_ended(desk, start, real_program, title):
    psql = real_program("psql") if "PostgreSQL" in title else None
    words, shown, environment = _standing(desk("alice"), title)
    program = start(words, env=environment)
    program.wait_until(lambda: expected(shown).fullmatch(program.said), "the lines of the page")
    for service, port in re.findall(r"^(\S+): 127\.0\.0\.1:(\d+)$", program.said, re.MULTILINE):
        if service == "orders-db":
            where = ["-h", "127.0.0.1", "-p", port, "-U", "alice", "-d", "orders"]
            query = [psql, *where, "-Atc", "select 6 * 7"]
            assert subprocess.check_output(query, timeout=PATIENCE_S) == b"42\n"
        else:
            assert _fetch(port) == b"what we know\n"
    assert program.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("title", _STANDING)
def test_without_a_role_no_local_port_opens(desk, title):
    bob = desk("bob")
    words, _, environment = _standing(bob, title)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    [refusal] = re.findall(r"^Refused: `([^`]+)`", section(bob.page, title), re.MULTILINE)
    assert refusal in done.stderr
    assert (done.returncode, done.stdout) == (3, "")


# What the page says besides.


def test_every_command_of_the_page_is_run_here():
    run_here = {step[0] for title, programs in _RECIPES for step in steps_of(_PAGE, title, programs)}
    for title in (*_STANDING, *_OF_THEIR_OWN):
        steps = transcript(section(_PAGE, title))
        run_here |= {command for command, _ in steps if title in _OF_THEIR_OWN or is_standing(command)}
    assert [command for command, _ in transcript(_PAGE) if command not in run_here] == []


def test_an_older_psql_says_that_it_is_too_old(desk, real_program):
    version = subprocess.run([real_program("psql"), "--version"], capture_output=True, text=True, check=True).stdout
    if int(re.search(r"\d+", version)[0]) >= 17:
        pytest.skip(f"psql: expected one before 17, found {version.strip()}")
    alice = desk("alice")
    [(command, _, _), _] = steps_of(alice.page, "PostgreSQL 17 and newer", "psql")
    [output] = alice.run(command)
    [words] = re.findall(r"An older psql says `([^`]+)`", alice.page)
    assert words in output


def test_psql_says_when_the_service_has_no_alpn(desk, new_psql):
    alice = desk("alice")
    new_psql(alice)
    [(command, _, _), _] = steps_of(alice.page, "PostgreSQL 17 and newer", "psql")
    [output] = alice.run(command.replace("orders-db", "no-alpn"))
    [words] = re.findall(r"without the ALPN, `([^`]+)`", alice.page)
    assert words in output


def test_redis_cli_does_not_compare_names(gateway, desk, real_program):
    real_program("redis-cli")
    alice = desk("alice")
    [(command, _, _), _] = steps_of(alice.page, "Redis", "redis-cli")
    [output] = alice.run(command.replace("cache.gw.localhost", "elsewhere.example.com"))
    assert "Server closed the connection" in output
    # Who compares names ends the handshake: the gateway would know of no client.
    gateway.wait_for_log("session.refuse .*identity=alice .*reason=unknown_service")


def test_the_gateway_tells_why(desk):
    bob = desk("bob")
    bob.run("portguard connect orders-db -- true")
    bob.check(transcript(section(bob.page, "When it does not work")))


@pytest.mark.parametrize("program", ["psql", "curl"])
def test_without_wildcard_dns_a_program_is_told_the_address(gateway, desk, new_psql, real_program, program):
    real_program("curl")
    for name in ("alice", "bob"):
        sitting = desk(name)
        new_psql(sitting)
        steps = transcript(section(sitting.page, "Without wildcard DNS"))
        [step] = [step for step in steps if step[0].startswith(program)]
        if name == "alice":
            sitting.check([step], hostaddr=None)
        else:
            [output] = sitting.run(step[0], hostaddr=None)
            assert "42" not in output.split()
            assert "what we know" not in output
    gateway.wait_for_log("session.refuse .*identity=bob .*reason=no_role")


@pytest.fixture
def balancer(start, free_port, real_program, gateway, tmp_path):
    """The port of an HAProxy that passes TCP on to the gateway."""
    port = free_port()
    sections = f"listen front\n  bind 127.0.0.1:{port}\n  server gateway 127.0.0.1:{gateway.port}\n"
    program = start_haproxy(start, real_program("haproxy"), tmp_path / "haproxy", sections)
    program.wait_until_it_listens(("127.0.0.1", port))
    return port


def test_through_a_balancer_programs_have_its_address_and_the_gateway_s_name(
    gateway, desk, balancer, new_psql, real_program
):
    for program in ("curl", "redis-cli"):
        real_program(program)
    alice = desk("alice")
    new_psql(alice)
    behind = section(alice.page, "Behind a balancer").replace("balancer.example.com:443", f"127.0.0.1:{balancer}")
    [profile] = re.findall(r"^```toml\n(.*?)^```$", behind, re.MULTILINE | re.DOTALL)
    rest = alice.folder.joinpath("default.toml").read_text().splitlines()
    rest = [line for line in rest if line.split(" ")[0] not in {"gateway", "server_name"}]
    alice.folder.joinpath("default.toml").write_text("\n".join([profile, *rest]))
    [by_curl] = re.findall(r"`(--connect-to [^`]+)`", behind)
    [(curl, _, _), _] = steps_of(alice.page, "curl", "curl")
    [(redis_cli, _, _), _] = steps_of(alice.page, "Redis", "redis-cli")
    outputs = alice.run(
        "portguard connect wiki -- curl -sS http://{host}:{port}/hello.txt",
        curl.replace(f":{gateway.port}", "").replace("curl ", f"curl {by_curl} ", 1),
        f"psql 'service=orders-db hostaddr=127.0.0.1 port={balancer}' -Atc 'select 6 * 7'",
        redis_cli.replace(f"-p {gateway.port}", f"-p {balancer}"),
        hostaddr=None,
    )
    assert outputs == ["what we know\n0\n", "what we know\n0\n", "42\n0\n", "PONG\n0\n"]


def test_a_certificate_that_has_ended_is_named(gateway, desk, new_psql, real_program):
    for program in ("curl", "redis-cli"):
        real_program(program)
    # Certificates begin five minutes before they are made.
    before = datetime.now(UTC) - timedelta(minutes=4)
    certificate = gateway.authority.issue_client("ended", at=before, valid_for=timedelta(minutes=1))
    certificate.write(gateway.folder, "ended")
    ended = desk("ended")
    new_psql(ended)
    steps = transcript(section(ended.page, "A certificate that has ended"))
    for (command, shown), output in zip(steps, ended.run(*(command for command, _ in steps)), strict=True):
        assert expected([*shown, "…"]).fullmatch(output), f"$ {command}\nprinted:\n{output}"
        assert not output.endswith("\n0\n")
    for title, program, words in (
        ("PostgreSQL 17 and newer", "psql", "certificate expired"),
        ("curl", "curl", "certificate expired"),
        ("Redis", "redis-cli", "Server closed the connection"),
    ):
        assert f"`{words}`" in section(ended.page, "A certificate that has ended")
        [output] = ended.run(steps_of(ended.page, title, program)[0][0])
        assert words in output
