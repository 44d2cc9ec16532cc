"""A Redis of a test's own, on a unix socket in a folder: nothing else can get in its way, and it can be had again."""

import contextlib
import re
import subprocess
from pathlib import Path

import redis

# On the unix socket: Redis until 7.0; Redis since then, and Valkey.
_READY = re.compile(r"ready to accept connections at /|Ready to accept connections unix$")


class RedisServer:
    """A redis-server for the length of a block, in which it is ended and started as often as wanted.

    It keeps its data on the disk if it `persists`.
    """

    def __init__(self, program: str, folder: Path, *options: str, persists: bool = True):
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        saving = ["--appendonly", "yes", "--appendfsync", "always"] if persists else []
        self._command = [program, "--port", "0", "--unixsocket", str(self.socket), "--dir", str(folder), "--save", ""]
        self._command += [*saving, "--daemonize", "no", *options]
        self._process: subprocess.Popen[str] | None = None
        folder.mkdir(exist_ok=True)

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Return once it answers."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if _READY.search(line):
                return
        raise AssertionError("".join(said))

    def stop(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
            self.socket.unlink(missing_ok=True)

    def client(self) -> contextlib.closing[redis.Redis]:
        """One for the test itself."""
        return contextlib.closing(redis.Redis(unix_socket_path=str(self.socket), decode_responses=True))
