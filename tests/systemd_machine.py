"""A systemd that manages nothing but what a test gives it: PID 1 of namespaces of its own, as in a container.

It sees the files of this machine through a layer in memory that takes all that is written, and has processes, network,
host name and control groups of its own. What no namespace keeps apart, `/proc/sys` above all, it cannot write. All of
it is gone when the standard input of the process that holds it ends: so also when the tests are killed.
"""

import contextlib
import ctypes
import os
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

# Holds the machine. The hierarchy of control groups is taken as it is: to mount it again would change it for all.
_HOLD = r"""
set -eu
groups=$(awk '/ - cgroup2 / { print $5; exit }' /proc/self/mountinfo)
group=${groups:?expected a cgroup2 hierarchy}$(sed -n 's/^0:://p' /proc/self/cgroup)/portguard-test-$$
mkdir "$group"
exec 3<&0
setpriv --pdeathsig KILL sh -c 'echo $$ > "$0/cgroup.procs" && exec "$@"' "$group" \
    unshare --cgroup --pid --fork --kill-child --mount --uts --ipc --net --propagation private \
    sh -c "$3" boot "$1" "$2" 3<&- &
machine=$!
( read -r _ <&3 || kill -KILL $machine ) &
watcher=$!
wait $machine || true
kill $watcher 2> /dev/null || true
# Its processes may not all have ended yet.
for _ in $(seq 300); do
    find "$group" -depth -type d -exec rmdir {} + 2> /dev/null || true
    [ -e "$group" ] || exit 0
    sleep 0.1
done
exit 1
"""

# Becomes the machine's first process. What fails before that leaves a line on standard error.
_BOOT = r"""
set -eu
folder=$1
root=$folder/root
mount -t tmpfs -o mode=755 tmpfs "$folder/memory"
mkdir "$folder/memory/upper" "$folder/memory/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/memory/upper,workdir=$folder/memory/work" "$root"

mount -t proc proc "$root/proc"
for name in sys irq bus fs sysrq-trigger; do
    [ -e "$root/proc/$name" ] || continue
    mount --bind "$root/proc/$name" "$root/proc/$name"
    mount -o remount,bind,ro "$root/proc/$name"
done
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for name in null zero full random urandom tty; do
    : > "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

# Nothing of these is this machine's: its units, logs, and a portguard that may be installed.
for name in run var/log etc/systemd/system etc/credstore etc/portguard var/lib/portguard; do
    mkdir -p "$root/$name"
    mount -t tmpfs -o mode=755 tmpfs "$root/$name"
done
cp -a "$folder/tree/." "$root"
while read -r to from; do
    mkdir -p "$root/$to"
    mount --bind "$from" "$root/$to"
    mount -o remount,bind,ro "$root/$to"
done < "$folder/binds"
mkdir "$root/run/host"
mount --bind "$folder/shared" "$root/run/host"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"

cd "$root"
pivot_root . .
umount -l .
cd /
# For credentials: they are mounted for the service by a process of systemd's, whose mounts have to come back to it.
mount --make-rshared /
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=test \
    NOTIFY_SOCKET=/run/host/notify SYSTEMD_UNIT_PATH=/etc/systemd/system:/usr/local/lib/systemd/system \
    SYSTEMD_GENERATOR_PATH=/run/host/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/host/none \
    setpriv --bounding-set=-sys_boot,-sys_module,-sys_time,-syslog,-sys_rawio,-audit_control \
    "$2" --system --unit=boot.target --show-status=no
"""

_TARGETS = {
    "boot.target": "Wants=sockets.target systemd-journald.service systemd-journald-dev-log.socket\n"
    "Requires=basic.target\nAfter=basic.target sockets.target systemd-journald.service",
    "basic.target": "Requires=sysinit.target\nAfter=sysinit.target",
    "sysinit.target": "",
    "sockets.target": "",
    "shutdown.target": "",
}
_UNITS = "/usr/lib/systemd/system"
_FROM_SYSTEMD = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")


@dataclass(frozen=True)
class Machine:
    """A machine whose systemd has started. `pid` is its first process, as seen from here."""

    pid: int

    @property
    def root(self) -> Path:
        """Its files."""
        return Path(f"/proc/{self.pid}/root")

    def start(self, *argv: str, **variables: str) -> "subprocess.Popen[str]":
        """Run a program there, as root. Its standard output and error are one."""
        environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"} | variables
        return subprocess.Popen(
            ["nsenter", f"--target={self.pid}", "--all", *argv],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *argv: str, status: int = 0, **variables: str) -> str:
        """What a program says; it is to end with `status`, else the test fails with that and the end of the log."""
        with self.start(*argv, **variables) as process:
            try:
                said, _ = process.communicate(timeout=PATIENCE_S)
            finally:
                process.kill()
        if process.returncode != status:
            log = "" if argv[0] == "journalctl" else self.log[-4000:]
            pytest.fail(f"{argv}: expected exit code {status}, got {process.returncode}: {said}\n{log}", pytrace=False)
        return said

    @property
    def log(self) -> str:
        """What services and systemd have said."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--output=cat")

    def shows(self, unit: str, name: str) -> str:
        """A property of a unit, as `systemctl show` has it."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).strip()

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Return once `ready()` is true; fail the test, with the end of the log, when that takes too long."""
        deadline = time.monotonic() + PATIENCE_S
        while not ready():
            if time.monotonic() > deadline:
                pytest.fail(f"expected {what} in time; the log ends with:\n{self.log[-4000:]}", pytrace=False)
            time.sleep(0.02)

    def connect(self, host: str, port: int) -> socket.socket:
        """A TCP connection inside its network."""
        made: list[socket.socket | OSError] = []

        def connect() -> None:
            try:
                # A socket belongs to the network that its thread was in; this thread goes nowhere else afterwards.
                _enter_network(self.pid)
                made.append(socket.create_connection((host, port), timeout=PATIENCE_S))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=connect, name="connect")
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        return made[0]


def _enter_network(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{pid}/ns/net") as network:
        if libc.setns(network.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def booted(folder: Path, tree: Path, binds: dict[Path, str], real_program: Callable[[str], str]) -> Iterator[Machine]:
    """A machine with the files of this one, over them those of `tree`, and at their places, read-only, the `binds`.

    `folder` has room for what is needed; units are added to `tree`. Skips the test where the kernel, or who runs it,
    does not allow that.
    """
    for name in ("unshare", "nsenter", "setpriv", "pivot_root", "mount"):
        real_program(name)
    systemd = real_program("systemd")
    if os.geteuid():
        pytest.skip(f"namespaces for systemd: expected to run as root, got uid {os.geteuid()}")
    units = tree / "etc/systemd/system"
    units.mkdir(parents=True, exist_ok=True)
    for name, lines in _TARGETS.items():
        (units / name).write_text(f"[Unit]\nDefaultDependencies=no\n{lines}\n")
    for name in _FROM_SYSTEMD:
        if not Path(_UNITS, name).exists():
            pytest.skip(f"{name}: expected it in {_UNITS}, found nothing")
        shutil.copy(Path(_UNITS, name), units)
    for name in ("memory", "root", "shared"):
        (folder / name).mkdir()
    (folder / "binds").write_text("".join(f"{place} {path}\n" for path, place in binds.items()))
    said = folder / "said"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, said.open("wb") as sink:
        notified.bind(str(folder / "shared/notify"))
        notified.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        held = subprocess.Popen(
            ["sh", "-c", _HOLD, "hold", str(folder), systemd, _BOOT],
            stdin=subprocess.PIPE, stdout=sink, stderr=sink, start_new_session=True,
        )  # fmt: skip
        try:
            pid = _until_ready(held, notified)
            if pid is None:
                got = said.read_text()[-1000:] or "no sign"
                pytest.skip(f"namespaces for systemd: expected it to start in them, got {got}")
            notified.close()  # or systemd would wait for somebody to read what else it says
            yield Machine(pid)
        finally:
            try:
                held.communicate(timeout=PATIENCE_S)
            finally:
                held.kill()
    assert held.returncode == 0, said.read_text()


def _until_ready(held: "subprocess.Popen[bytes]", notified: socket.socket) -> int | None:
    """The process that says that all is started; None when what holds it ended, or that was not said in time."""
    ended = os.pidfd_open(held.pid)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while notified in select.select([notified, ended], [], [], max(0.0, deadline - time.monotonic()))[0]:
            message, more, _, _ = notified.recvmsg(4096, socket.CMSG_SPACE(12))
            if b"READY=1" in message.split(b"\n"):
                [(_, _, credentials)] = more
                return int(struct.unpack("3i", credentials)[0])
    finally:
        os.close(ended)
    return None
