"""The copy of each line to systemd's journal, by its native protocol.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: one datagram an entry, a field a line; no field here holds a newline.
"""

import socket
from collections.abc import Sequence

from portguard.observe import log

SOCKET = "/run/systemd/journal/socket"


class Journal:
    """Sends lines to the journal. It is a copy: what it does not take is lost to it, and the log says so once."""

    def __init__(self, path: str = SOCKET):
        self._path = path
        self._failing = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # A journal that hangs must not hold the audit itself up.
        self._socket.setblocking(False)

    def send(self, lines: Sequence[bytes]) -> None:
        """Send lines of the audit, which are ASCII without newlines."""
        try:
            for line in lines:
                entry = b"MESSAGE=" + line + b"\nPRIORITY=6\nSYSLOG_IDENTIFIER=portguard-audit\n"
                self._socket.sendto(entry, self._path)
        except OSError as error:
            if not self._failing:
                log.event("error", "audit.copy_failed", file=self._path, message=error.strerror or str(error))
            self._failing = True
            return
        if self._failing and lines:
            self._failing = False
            log.event("info", "audit.copy_resumed", file=self._path)

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
