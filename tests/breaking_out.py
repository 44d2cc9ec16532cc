"""What somebody tries who has taken a process over: run in it, as the text of this file followed by a call.

    answers = tried(folder=…, secrets=[…], supervisor=…, unix=…, abstract=…, port=…)

Nothing is imported later than here: the process may not be able to by then.
"""

import ctypes
import errno
import os
import socket
from functools import partial

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace


def _read(path):
    with open(path, "rb", buffering=0) as file:
        file.read(1)


def _write(path):
    with open(path, "r+b", buffering=0):
        pass


def _bind():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))


def _connect(family, address):
    with socket.socket(family) as sock:
        sock.settimeout(10.0)
        sock.connect(address)


def _in_a_child(attempt):
    """Make it where its success disturbs nobody: the end of a process lets go of what it traces."""
    child = os.fork()
    if not child:
        number = 0
        try:
            attempt()
        except OSError as error:
            number = error.errno
        os._exit(number)
    if number := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise OSError(number, "")


def _trace(pid):
    if _ptrace(0x4206, pid, None, None) < 0:  # PTRACE_SEIZE, which does not stop it
        raise OSError(ctypes.get_errno(), "")


def _ask(control):
    """Ask the gateway for its status, as an operator would."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10.0)
        sock.connect(control)
        try:
            sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: portguard\r\n\r\n")
            answer = sock.recv(12)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
    if answer != b"HTTP/1.1 200":
        raise PermissionError(errno.EACCES, "")


def tried(*, folder, secrets, supervisor, unix, abstract, port, control=None):
    """Each attempt by its name, with "done" or the name of the error. `folder` has the files `old` and `gone`.

    `supervisor` is a process, and `control` the path of its control socket. Somebody listens at `unix`, a path, at
    `abstract`, an address, and at `port` of 127.0.0.1.
    """
    attempts = {
        **{f"read {os.path.basename(secret)}": partial(_read, secret) for secret in secrets},
        "list": lambda: os.listdir(folder),
        "write": lambda: _write(f"{folder}/old"),
        "make": lambda: os.close(os.open(f"{folder}/new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)),
        "mkdir": lambda: os.mkdir(f"{folder}/dir"),
        "symlink": lambda: os.symlink("old", f"{folder}/symlink"),
        "fifo": lambda: os.mkfifo(f"{folder}/fifo"),
        "remove": lambda: os.unlink(f"{folder}/gone"),
        "truncate": lambda: os.truncate(f"{folder}/old", 0),
        "rename": lambda: os.rename(f"{folder}/old", f"{folder}/older"),
        "memory": lambda: os.close(os.open(f"/proc/{supervisor}/mem", os.O_RDONLY)),
        "environment": lambda: _read(f"/proc/{supervisor}/environ"),
        "descriptors": lambda: os.readlink(f"/proc/{supervisor}/fd/0"),
        "trace": lambda: _in_a_child(lambda: _trace(supervisor)),
        "execute": lambda: _in_a_child(lambda: os.execv("/bin/true", ["true"])),
        "bind": _bind,
        "signal": lambda: os.kill(supervisor, 0),
        "abstract": lambda: _connect(socket.AF_UNIX, abstract),
        "connect": lambda: _connect(socket.AF_INET, ("127.0.0.1", port)),
        "unix": lambda: _connect(socket.AF_UNIX, unix),
    }
    if control is not None:
        attempts["control"] = lambda: _ask(control)
        attempts["control, by a child"] = lambda: _in_a_child(lambda: _ask(control))
    answers = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            answers[name] = "done"
        except OSError as error:
            answers[name] = errno.errorcode[error.errno]
    return answers


REFUSED_SINCE = {"truncate": 3, "bind": 4, "signal": 6, "abstract": 6}
"""From which version of Landlock's interface on the kernel can refuse it; all else from the first one on."""

NEVER_REFUSED = {"connect", "unix"}


def refused(answers):
    """The attempts that the kernel has refused."""
    return {name for name, answer in answers.items() if answer in {"EACCES", "EPERM"}}


def refused_anyway():
    """Those that the host refuses to every process: the Yama module lets none but root trace what it has not begun."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope") as file:
            restricted = os.geteuid() and int(file.read())
    except FileNotFoundError:
        restricted = False
    return {"memory", "trace"} if restricted else set()


def refusable(answers, abi):
    """Those of these attempts that a kernel with this version of Landlock refuses to a worker."""
    return {name for name in answers if REFUSED_SINCE.get(name, 1) <= abi} - NEVER_REFUSED
