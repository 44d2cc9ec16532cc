"""What a process can still do once it has confined itself, tried in processes of their own."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from portguard.gateway import confinement
from portguard.gateway.confinement import is_confined, landlock
from tests import breaking_out
from tests.breaking_out import refusable, refused, refused_anyway
from tests.certificates import Authority
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
BREAKING_OUT = Path(breaking_out.__file__).read_text()
KERNEL = landlock()

needs_landlock = pytest.mark.skipif(KERNEL.abi is None, reason=str(KERNEL))


def run(code, *, root=None, folder="/"):
    """Run it in another process, and return what it prints, read as JSON."""
    environment = os.environ | ({"PYTHONPATH": str(root)} if root is not None else {})
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True, text=True, timeout=PATIENCE_S, cwd=folder, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


CONFINED = """
import json
from portguard.gateway import confinement
confinement.confine({abi}, confinement.needed_files())
"""


@pytest.fixture
def attempts(tmp_path):
    """`attempts(before)` makes them in a process that has executed `before`; this process is the one they are after."""
    (tmp_path / "folder").mkdir()
    for name in ("old", "gone"):
        (tmp_path / "folder" / name).touch()
    (tmp_path / "secret").touch()
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        unix.bind(str(tmp_path / "unix"))
        abstract.bind("")  # the kernel picks a name, unix(7)
        unix.listen()
        abstract.listen()
        given = {
            "folder": str(tmp_path / "folder"),
            "secrets": [str(tmp_path / "secret")],
            "supervisor": os.getpid(),
            "unix": str(tmp_path / "unix"),
            "abstract": abstract.getsockname(),
            "port": tcp.getsockname()[1],
        }
        yield lambda before: run(f"{BREAKING_OUT}\nimport json\n{before}\nprint(json.dumps(tried(**{given!r})))")


@needs_landlock
@pytest.mark.parametrize("abi", sorted({1, 2, 3, 5, KERNEL.abi or 1} & set(range((KERNEL.abi or 1) + 1))))
def test_a_confined_process_can_neither_read_nor_change_nor_disturb_what_is_not_its_own(attempts, abi):
    answers = attempts(CONFINED.format(abi=abi))
    expected = refusable(answers, abi)
    assert refused(answers) == expected
    assert {answers[name] for name in set(answers) - expected} == {"done"}


def test_a_process_that_is_not_confined_can_do_all_of_that(attempts):
    answers = attempts("")
    assert refused(answers) == refused_anyway()
    assert {answers[name] for name in set(answers) - refused_anyway()} == {"done"}


@needs_landlock
def test_threads_and_processes_that_come_later_are_confined_as_well(tmp_path):
    (tmp_path / "secret").touch()
    code = f"""
import os, threading
{CONFINED.format(abi=KERNEL.abi)}
tried = []

def read():
    try:
        open({str(tmp_path / "secret")!r})
        tried.append("done")
    except OSError as error:
        tried.append(error.errno)

thread = threading.Thread(target=read)
thread.start()
thread.join()
if child := os.fork():
    tried.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(tried))
else:
    read()
    os._exit(tried[-1])
"""
    assert run(code) == [errno.EACCES, errno.EACCES]


# Each is something that a worker may come to need only then: a module, names, authorities, a zone, a key, source lines.
NEEDS = """
import asyncio, linecache, os, socket, ssl, sys, zoneinfo
import uvloop
from portguard.gateway import worker
from portguard.policy import decide
from portguard.tls.chain import load_chain
from portguard.tls.context import new_context

{confine}
assert "wave" not in sys.modules
import wave
import portguard.pki.rotation

async def resolve():
    return await asyncio.get_running_loop().getaddrinfo("localhost", 1)

context = new_context(ssl.PROTOCOL_TLS_CLIENT)
context.load_default_certs(ssl.Purpose.SERVER_AUTH)
server = new_context(ssl.PROTOCOL_TLS_SERVER)
load_chain(server, {certificate!r}, {key!r})
print(json.dumps({{
    "names": bool(uvloop.run(resolve())),
    "authorities": context.cert_store_stats()["x509_ca"],
    "zone": str(zoneinfo.ZoneInfo("Pacific/Chatham")),
    "source": linecache.getline(decide.__file__, 1) != "",
    "hosts": os.path.getsize("/etc/hosts") == len(open("/etc/hosts", "rb").read()),
}}))
"""


@needs_landlock
def test_what_a_worker_comes_to_need_later_is_still_there():
    issued = Authority.root().issue("gateway")
    material = {"certificate": issued.pem, "key": issued.key_pem}
    free = run(NEEDS.format(confine="import json", **material))
    assert all(free.values())
    assert run(NEEDS.format(confine=CONFINED.format(abi=KERNEL.abi), **material)) == free


@needs_landlock
def test_what_is_started_from_a_checkout_reads_the_package_and_not_what_lies_beside_it(tmp_path):
    (tmp_path / "portguard").symlink_to(ROOT / "portguard")
    (tmp_path / "gateway.key").touch()
    code = """
import json
from portguard.gateway import confinement
print(json.dumps([*confinement.needed_files(), confinement.__file__]))
"""
    *paths, used = run(code, root=tmp_path, folder=tmp_path)
    assert used.startswith(f"{tmp_path}/")
    assert str(ROOT / "portguard") in paths
    for kept in (tmp_path, ROOT, Path.home(), Path("/etc/portguard"), Path("/var/lib/portguard"), Path("/proc")):
        assert [path for path in paths if f"{kept}/".startswith(f"{path}/")] == []


# What root may do by its powers alone, a limit that it may lift, and a file of somebody else's that it still reads.
POWERS = """
import json, os, resource, socket
from portguard.gateway import confinement
{confine}
tried = {{}}
for name, attempt in {{
    "groups": lambda: os.setgroups([]),
    "root": lambda: os.chroot("/"),
    "limit": lambda: resource.setrlimit(10, (1, 1)),
    "connect": lambda: socket.socket(socket.AF_UNIX).connect({unix!r}),
}}.items():
    try:
        attempt()
        tried[name] = "done"
    except (OSError, ValueError):  # ValueError: a limit is not to be raised
        tried[name] = "refused"
print(json.dumps(tried))
"""


@needs_landlock
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")
@pytest.mark.parametrize(
    ("confine", "others"),
    [("confinement.confine(1, ())", "refused"), ("resource.setrlimit(10, (0, 0))", "done")],
)
def test_a_confined_root_has_the_powers_over_files_and_no_other(tmp_path, confine, others):
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "unix"))
        unix.listen()
        os.chmod(tmp_path / "unix", 0o600)
        os.chown(tmp_path / "unix", 12345, 12345)
        tried = run(POWERS.format(confine=confine, unix=str(tmp_path / "unix")))
    if others == "done":
        tried["limit"] = "done"  # a container's root may be refused that anyway
    assert tried == {"groups": others, "root": others, "limit": others, "connect": "done"}


@needs_landlock
def test_who_has_confined_itself_is_known_by_it_and_so_are_its_children():
    code = """
import os, sys
from portguard.gateway import confinement
{confine}
print(os.getpid())
if not (child := os.fork()):
    sys.stdin.read()
    os._exit(0)
print(child, flush=True)
os.waitpid(child, 0)
"""
    for confine, confined in (("confinement.confine(1, ())", True), ("", False)):
        with subprocess.Popen(
            [sys.executable, "-P", "-c", code.format(confine=confine)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            pids = [int(process.stdout.readline()) for _ in range(2)]
            ours, theirs = socket.socketpair()
            with ours, theirs:
                assert [is_confined(pid, ours) for pid in pids] == [confined, confined]
                process.stdin.close()
                process.wait()
                assert is_confined(pids[1], ours)  # it is no more
                assert not is_confined(0, ours)


def test_who_has_connected_and_is_no_more_is_not_taken_for_who_has_its_number_now(tmp_path):
    """Numbers of processes and threads come again, and soon where somebody begins many."""
    code = "import socket, sys; sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1]); sys.stdin.read()"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "unix"))
        listening.listen()
        command = [sys.executable, "-c", code, str(tmp_path / "unix")]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            sock, _ = listening.accept()
            with sock:
                try:
                    os.close(sock.getsockopt(socket.SOL_SOCKET, confinement._SO_PEERPIDFD))
                except OSError:
                    pytest.skip("SO_PEERPIDFD: expected Linux 6.5 or newer, got one without it")
                assert not is_confined(process.pid, sock)
                process.stdin.close()
                process.wait()
                assert is_confined(os.getpid(), sock)  # as if this process had got the number


@needs_landlock
def test_a_process_with_another_thread_is_not_confined_as_the_other_would_stay_free():
    code = """
import threading
from portguard.gateway import confinement
done = threading.Event()
thread = threading.Thread(target=done.wait)
thread.start()
try:
    confinement.confine(1, ())
    print('"confined"')
except confinement.NotConfined as error:
    print(f'"{error}"')
done.set()
thread.join()
"""
    assert run(code) == "confinement: expected one thread, got 2"


@needs_landlock
def test_what_the_kernel_refuses_to_do_is_an_error_and_names_itself():
    code = """
from portguard.gateway import confinement
try:
    for _ in range(100):  # domains within domains; 16 are the most, or 64
        confinement.confine(1, ("/proc",))
    print('"confined"')
except confinement.NotConfined as error:
    print(f'"{error}"')
"""
    assert run(code) == (
        "confinement: expected to give up what is not needed, got Argument list too long (landlock_restrict_self)"
    )


@needs_landlock
@pytest.mark.skipif((KERNEL.abi or 0) < 6, reason="the kernel knows of no scopes")
def test_a_kernel_that_does_not_know_of_signals_confines_in_all_else(attempts):
    known = """
def create(files, ports, scoped, real=confinement._create):
    if scoped & 2:
        raise OSError(22, "as on Red Hat Enterprise Linux 9")
    return real(files, ports, scoped)

confinement._create = create
"""
    before, confine = CONFINED.format(abi=6).rsplit("\n", 2)[0], "confinement.confine(6, confinement.needed_files())"
    answers = attempts(f"{before}\n{known}\n{confine}")
    assert refused(answers) == refusable(answers, 6) - {"signal"}


def test_a_file_that_takes_the_place_of_another_is_told_from_what_its_folder_lets_be_read(tmp_path, monkeypatch):
    file, folder = tmp_path / "resolv.conf", tmp_path / "resolve"
    folder.mkdir()

    def replace(path):
        (tmp_path / "new").write_text("nameserver 192.0.2.1")
        (tmp_path / "new").rename(path)
        return confinement.resolver_files()

    monkeypatch.setattr(confinement, "_RESOLVER", (str(file),))
    monkeypatch.setattr(confinement, "_RESOLVER_FOLDERS", (str(folder), str(tmp_path / "missing")))
    answers = [confinement.resolver_files(), replace(file), replace(file)]
    assert len(set(answers)) == 3
    file.write_text("nameserver 192.0.2.2")  # which those who could read it still can
    assert confinement.resolver_files() == answers[-1]
    file.unlink()
    file.symlink_to(folder / "stub")
    answers.append(replace(folder / "stub"))
    assert replace(folder / "stub") == answers[-1]
    folder.rename(tmp_path / "old")  # a rule would keep its inode, too, and the number
    folder.mkdir()
    answers.append(replace(folder / "stub"))
    assert len(set(answers)) == 5


@pytest.mark.parametrize(
    ("number", "missing"),
    [
        (errno.ENOSYS, "the kernel has no Landlock, or a filter of system calls hides it"),
        (errno.EOPNOTSUPP, "Landlock is not enabled on this host (kernel parameter lsm=)"),
        (errno.EPERM, "a filter of system calls forbids Landlock (Operation not permitted)"),
    ],
)
def test_a_kernel_that_offers_none_says_why(monkeypatch, number, missing):
    def fail(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(confinement, "_call", fail)
    assert landlock() == confinement.Landlock(None, missing)
    assert str(landlock()) == missing


def test_a_kernel_that_offers_it_is_said_with_its_version(monkeypatch):
    monkeypatch.setattr(confinement, "_call", lambda *_arguments: 4)
    assert str(landlock()) == "Landlock (ABI 4)"
