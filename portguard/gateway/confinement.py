"""What a worker takes from itself before it hears of anybody: Landlock, landlock(7) and landlock.rst of the kernel.

A worker parses what strangers send. It has what it needs from the supervisor, in memory, and needs next to nothing of
the host. So it gives up, for ever and for all threads and processes that come after it: to write, make, remove or
execute any file; to read any but those of Python, and those by which names are resolved and certificates verified; to
bind TCP ports; to send signals to processes that are not its own; to use root's powers, should it be root. By that the
kernel keeps it from looking into the memory of others, too. What it holds already stays usable, and it still connects
to where it likes, as services change.

Each version of the kernel's interface (ABI) can do more than the one before. What a kernel cannot do is left out:

ABI 1, Linux 5.13: files                     ABI 4, Linux 6.7: TCP ports
ABI 2, Linux 5.19: move between folders      ABI 5, Linux 6.10: ioctl(2) of devices
ABI 3, Linux 6.2: truncate(2)                ABI 6, Linux 6.12: signals, abstract unix sockets
"""

import ctypes
import errno
import os
import resource
import select
import socket
import ssl
import stat
import struct
import sys
import zoneinfo
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from portguard.errors import PortguardError

# The same on every architecture but alpha, which Python's packages are not built for.
_NUMBERS = {"landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446}
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

# <linux/landlock.h>: struct landlock_ruleset_attr, and landlock_path_beneath_attr, which is packed.
_RULESET = struct.Struct("=QQQ")
_PATH_BENEATH = struct.Struct("=Qi")
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_EVERY_FILE_RIGHT = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # from that ABI on
_BIND_TCP = 1 << 0
_ABSTRACT_UNIX_SOCKET, _SIGNAL = 1 << 0, 1 << 1

# <linux/capability.h>: effective, permitted and inheritable ones, the lower 32 bits of each before the upper.
_CAPABILITY_VERSION = 0x20080522
_CAPABILITY_HEADER = struct.Struct("=Ii")
_CAPABILITIES = struct.Struct("=6I")
_KEPT_CAPABILITIES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: sockets and modules that others own

# A limit that does nothing since Linux 2.4 (getrlimit(2)), that children get, and that is not to be raised again: by it
# those who have confined themselves are known from outside. Python has no name for it.
_RLIMIT_LOCKS = 10

_SO_PEERPIDFD = 77  # <asm-generic/socket.h>, which Python has no name for: pidfd_open(2) of who has connected

# Parts of the C library that resolve names are loaded with the first name that they are asked for.
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
# Certificates of authorities, and what their folders link to.
_AUTHORITIES = (
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/etc/pki/ca-trust/extracted",
    "/etc/ca-certificates",
    "/var/lib/ca-certificates",
)
_RESOLVER = ("/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf")
# Where resolv.conf leads to on many hosts. As folders: the file there is replaced whenever the network changes.
_RESOLVER_FOLDERS = ("/run/systemd/resolve", "/run/resolvconf")


class NotConfined(PortguardError):
    """The kernel offers Landlock, and yet it could not be used. The text says why."""


@dataclass(frozen=True, slots=True)
class Landlock:
    """What the kernel offers: `abi` is the version of the interface, 1 or more; None: none, as `missing` says."""

    abi: int | None
    missing: str = ""

    def __str__(self) -> str:
        return self.missing if self.abi is None else f"Landlock (ABI {self.abi})"


def landlock() -> Landlock:
    """Ask the kernel what it offers to this process."""
    try:
        return Landlock(_call("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return Landlock(None, "Landlock is not enabled on this host (kernel parameter lsm=)")
        if error.errno == errno.ENOSYS:
            return Landlock(None, "the kernel has no Landlock, or a filter of system calls hides it")
        return Landlock(None, f"a filter of system calls forbids Landlock ({error.strerror})")


def confine(abi: int, readable: Iterable[str]) -> None:
    """Give up all but to read files at or below `readable`, as far as `abi` can say it; for good.

    Paths that are missing are left out. To be called before there are other threads, which would stay as they are.

    *Fails closed*: raises NotConfined, and the process may have lost some rights, or none.
    """
    try:
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:
            raise NotConfined(f"confinement: expected one thread, got {threads}")
        ruleset = _ruleset(abi)
        try:
            for path in readable:
                _allow(ruleset, path)
            resource.setrlimit(_RLIMIT_LOCKS, (0, 0))
            _drop_capabilities()  # one of root's lifts limits
            _call_prctl(_PR_SET_NO_NEW_PRIVS, 1)  # which the kernel wants first
            _call("landlock_restrict_self", ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as error:
        where = f" ({error.filename})" if error.filename is not None else ""
        raise NotConfined(
            f"confinement: expected to give up what is not needed, got {error.strerror}{where}"
        ) from error


def is_confined(pid: int, sock: socket.socket) -> bool:
    """Whether a process of this user, which has connected to `sock`, has confined itself, or comes from one that has.

    *Fails closed*: also when the kernel does not say, as of a process that is no more; its number may be another's by
    now, which shows from Linux 6.5 on. 0 stands for one that has no number here, SO_PEERCRED of unix(7): it is no
    descendant of this process.
    """
    try:
        return pid != 0 and (resource.prlimit(pid, _RLIMIT_LOCKS)[1] == 0 or _has_ended(sock))
    except OSError:
        return True


def _has_ended(sock: socket.socket) -> bool:
    """Whether the process that has connected is no more; False where the kernel cannot say. Raises OSError."""
    try:
        descriptor = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return False
        raise
    try:
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        return bool(ended.poll(0))
    finally:
        os.close(descriptor)


def needed_files() -> tuple[str, ...]:
    """Files and folders that a worker may come to read after its start, none within another. Some may be missing.

    Never the folder that programs are started in, nor that of a checkout: keys may lie there.
    """
    verify = ssl.get_default_verify_paths()
    authorities = (verify.cafile, verify.capath, verify.openssl_cafile, verify.openssl_capath)
    found = {
        *_LIBRARIES,
        *_python(),
        *(path for path in authorities if path),
        *_AUTHORITIES,
        *_RESOLVER,
        *_RESOLVER_FOLDERS,
        *zoneinfo.TZPATH,
        "/etc/localtime",
        "/dev/urandom",
    }
    outermost: list[str] = []
    for path in sorted(map(os.path.realpath, found)):
        if not (outermost and f"{path}/".startswith(f"{outermost[-1]}/")):
            outermost.append(path)
    return tuple(outermost)


def resolver_files() -> tuple[object, ...]:
    """Which files names are resolved by, as far as a confined process is bound to the very ones that were there.

    A rule is about a file, not about its path: who confined itself when this was another answer does not see what took
    a file's place. What is replaced within a folder that may be read is no change.
    """
    folders = [os.path.realpath(folder) for folder in _RESOLVER_FOLDERS]
    files = (os.path.realpath(path) for path in _RESOLVER)
    bound = (path for path in files if os.path.dirname(path) not in folders)
    return tuple(map(_identity, (*folders, *bound)))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    # No other file gets that number while there is a rule: it keeps the inode.
    return status.st_dev, status.st_ino


def _python() -> Iterator[str]:
    """Where modules may yet be imported from: Python's own, what is installed beside it, and packages in use."""
    yield os.path.dirname(os.__file__)
    for path in sys.path:
        if os.path.basename(path) in {"site-packages", "dist-packages", "lib-dynload"}:
            yield path
    # As from a checkout. Not by getattr(): some modules import others when they are looked at.
    for name, module in list(sys.modules.items()):
        found = getattr(module, "__dict__", {})
        if "." not in name:
            yield from (path for path in found.get("__path__", ()) if os.path.isabs(path))


def _ruleset(abi: int) -> int:
    """Return the descriptor of a ruleset without rules, which forbids all that `abi` knows of and we do not need."""
    files = next(rights for since, rights in reversed(_EVERY_FILE_RIGHT.items()) if abi >= since)
    ports = _BIND_TCP if abi >= 4 else 0  # see above
    if abi >= 6:
        try:
            return _create(files, ports, _ABSTRACT_UNIX_SOCKET | _SIGNAL)
        except OSError as error:
            # Kernels of Red Hat Enterprise Linux 9 say 6, and know of unix sockets but not of signals.
            if error.errno != errno.EINVAL:
                raise
            return _create(files, ports, _ABSTRACT_UNIX_SOCKET)
    return _create(files, ports, 0)


def _create(files: int, ports: int, scoped: int) -> int:
    attributes = _RULESET.pack(files, ports, scoped)
    return _call("landlock_create_ruleset", attributes, len(attributes), 0)


def _allow(ruleset: int, path: str) -> None:
    """Let a file, or what is in a folder, be read."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # it could not be read before either
    try:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        rule = _PATH_BENEATH.pack(_READ_FILE | (_READ_DIR if is_folder else 0), descriptor)
        _call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


def _drop_capabilities() -> None:
    """Keep of root's powers, if there are any, only those over files: others are no file's, and not Landlock's."""
    header = ctypes.create_string_buffer(_CAPABILITY_HEADER.pack(_CAPABILITY_VERSION, 0))
    data = ctypes.create_string_buffer(_CAPABILITIES.size)
    _checked("capget", _libc.capget(header, data))
    _, permitted, _, _, permitted_above, _ = _CAPABILITIES.unpack(data.raw)
    if permitted | permitted_above:
        kept = permitted & _KEPT_CAPABILITIES
        _checked("capset", _libc.capset(header, _CAPABILITIES.pack(kept, kept, 0, 0, 0, 0)))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(name: str, *arguments: int | bytes | None) -> int:
    """Make a system call that the C library has no function for. Raises OSError, as the two below, with its name."""
    # A Python integer would be passed as an int, where the kernel takes the whole of a register.
    words = (ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)
    return _checked(name, _libc.syscall(ctypes.c_long(_NUMBERS[name]), *words))


def _call_prctl(option: int, value: int) -> None:
    _checked("prctl", _libc.prctl(option, *(ctypes.c_ulong(each) for each in (value, 0, 0, 0))))


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result
