"""The control socket as a file: made so that nobody gets in too early, told alive from stale, removed when ours."""

import contextlib
import errno
import grp
import os
import secrets
import socket
import stat
from dataclasses import dataclass

from portguard.errors import ConfigurationError, Problem

_BACKLOG = 64
_KEY = "gateway.control"
_EXPECTED = "a path of its own for the control socket"
_FOLDER = 0o755
_FOR_OWNER, _FOR_GROUP = 0o600, 0o660


@dataclass(frozen=True, slots=True)
class ControlSocket:
    """A socket that listens at `path`. `warning` says why others than its owner cannot use it; None when they can."""

    sock: socket.socket
    path: str
    device: int
    inode: int
    warning: str | None

    def close(self) -> None:
        """Listen no more, and remove the file, unless another one has taken its place by now."""
        self.sock.close()
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                os.unlink(self.path)


def listen(path: str, group: str, file: str) -> ControlSocket:
    """Listen at `path` (absolute), for the owner and, mode 0660, for `group`. *Fails closed.*

    Its folder is made (0755) when missing, those above it are not. Where the group does not exist, or the socket
    cannot be given to it, the mode is 0600. The file is in its place only when all that is done; a stale one is
    replaced. Raises ConfigurationError, naming `gateway.control` of `file`, when a gateway listens there already, when
    something else is there, and when there can be no socket.
    """
    folder, name = os.path.split(path)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, _FOLDER)
            os.chmod(folder, _FOLDER)  # whatever the umask: the group has to come through
        _refuse_taken(path, file)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(file, path, error) from error
    temporary = f".{secrets.token_hex(8)}.sock"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # Before it has a name, so that it has never been there with more; bind(2) takes this mode less the umask.
        os.fchmod(sock.fileno(), _FOR_OWNER)
        # By the folder's descriptor: with the path in front, the name could be too long for an address.
        sock.bind(f"/proc/self/fd/{directory}/{temporary}")
        try:
            warning = _give(temporary, directory, group)
            sock.listen(_BACKLOG)
            found = os.stat(temporary, dir_fd=directory, follow_symlinks=False)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            os.unlink(temporary, dir_fd=directory)
            raise
    except OSError as error:
        sock.close()
        raise _unusable(file, path, error) from error
    finally:
        os.close(directory)
    return ControlSocket(sock, path, found.st_dev, found.st_ino, warning)


def check_place(path: str, file: str) -> None:
    """See whether `listen` could make a socket at `path`, and make nothing. Raises ConfigurationError as it does.

    That a gateway listens there is no objection: it may be the one whose configuration is looked at.
    """
    folder = os.path.dirname(path)
    try:
        try:
            _require_folder(folder)
        except FileNotFoundError:
            _require_folder(os.path.dirname(folder))
        _is_socket(path, file)
    except PermissionError:
        pass  # the gateway's user may be let in where this one is not
    except OSError as error:
        raise _unusable(file, path, error) from error


def _require_folder(path: str) -> None:
    """Raise OSError unless it is one."""
    if not stat.S_ISDIR(os.stat(path).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _give(name: str, directory: int, group: str) -> str | None:
    """Open the socket to the group; return why that was not possible, None when it was. Raises OSError."""
    only = "the control socket is for its owner alone, mode 0600"
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        return f"control.group: expected a group of this host, got {group}: {only}"
    try:
        os.chown(name, -1, gid, dir_fd=directory, follow_symlinks=False)
    except PermissionError:
        return f"control.group: expected a group that the gateway's user is in, got {group}: {only}"
    os.chmod(name, _FOR_GROUP, dir_fd=directory)
    return None


def _refuse_taken(path: str, file: str) -> None:
    """Raise ConfigurationError unless nothing is at `path`, or a socket that nobody listens on. Raises OSError."""
    if not _is_socket(path, file):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # so many are waiting that no more fit: somebody listens
    raise ConfigurationError([Problem(file, _KEY, _EXPECTED, f"{path}, on which a gateway listens already")])


def _is_socket(path: str, file: str) -> bool:
    """Return False where nothing is. Raises ConfigurationError for anything else than a socket. Raises OSError."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError([Problem(file, _KEY, _EXPECTED, f"{path}, which is no socket")])
    return True


def _unusable(file: str, path: str, error: OSError) -> ConfigurationError:
    words = "no such folder" if error.errno == errno.ENOENT else (error.strerror or str(error)).lower()
    return ConfigurationError([Problem(file, _KEY, "a path where a socket can be made", f"{path}: {words}")])
