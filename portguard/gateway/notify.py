"""What the gateway tells systemd: its state, sd_notify(3), and that it is alive, sd_watchdog_enabled(3).

The protocol is datagrams of `KEY=value` lines to the socket that `$NOTIFY_SOCKET` names. No library: python-systemd
wants libsystemd's headers and a compiler wherever it is installed, and there is little more to it than sendto().

Nothing here raises or waits: a gateway whose manager does not listen serves as before.
"""

import os
import socket
from collections import deque
from collections.abc import MutableMapping

from portguard.observe import log

# Messages that the manager's full socket did not take yet. Each says all, so what is older than these is of no use.
_MOST_WAITING = 8
_STATUS_S = 5.0  # the manager tells others of every new text
_EXTENSION_S = 60.0
_EXTEND_EVERY_S = 10.0


class Notifier:
    """The service manager, as one may talk to it. Nobody listens when the environment names no socket.

    Times are seconds of CLOCK_MONOTONIC, `time.monotonic()`.
    """

    def __init__(self, address: str | None = None, watchdog_s: float | None = None):
        """`address` as in `$NOTIFY_SOCKET`. `watchdog_s`: keep-alives are expected so often; None: never."""
        self._given = address, watchdog_s
        self._watchdog_s = watchdog_s if address is not None else None
        self._alive_s: float | None = None  # when the last keep-alive went out
        self._extended_s: float | None = None
        self._status = ""
        self._status_s: float | None = None
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._failed = False
        self._address: bytes | None = None
        if address is None:
            return
        if not address.startswith(("/", "@")):
            log.event(
                "warning", "systemd.unreachable", message=f"NOTIFY_SOCKET: expected a path or @name, got {address}"
            )
            return
        # An abstract name is written with "@" for its leading NUL, unix(7).
        self._address = os.fsencode("\0" + address[1:] if address.startswith("@") else address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    @classmethod
    def take(cls, environment: MutableMapping[str, str], pid: int) -> "Notifier":
        """What `environment` says for the process `pid`. It is removed there: no child process is to speak for us."""
        address = environment.pop("NOTIFY_SOCKET", None)
        usec, meant = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", None)
        watched = usec.isascii() and usec.isdigit() and int(usec) > 0 and meant in (None, str(pid))
        return cls(address or None, int(usec) / 1e6 if watched else None)

    @property
    def passed_on(self) -> tuple[str | None, float | None]:
        """What another program is to be made with that takes this one's place."""
        return self._given

    def close(self) -> None:
        """Say no more."""
        if self._address is not None:
            self._address = None
            self._socket.close()

    def ready(self, status: str) -> None:
        """The gateway serves, for the first time."""
        self._status = status
        self._send("READY=1", f"STATUS={status}")

    def reloaded(self) -> None:
        """What `reloading` has begun is over."""
        self._send("READY=1")

    def reloading(self, now_s: float) -> None:
        """A reload begins, which `reloaded` ends, whatever came of it."""
        # In one message: systemd compares the time with that of its own request, systemd.service(5), notify-reload.
        self._send("RELOADING=1", f"MONOTONIC_USEC={int(now_s * 1e6)}")

    def stopping(self, status: str) -> None:
        """The gateway has begun to end."""
        self._status = status
        self._send("STOPPING=1", f"STATUS={status}")

    def tick(self, now_s: float, *, status: str, healthy: bool, stopping: bool) -> None:
        """To be called about once a second: sends what has become due.

        `status` is one line for people. A keep-alive is due at half the interval that is watched, and goes out only
        while the gateway is `healthy`; what is overdue goes out as soon as it is so again. While `stopping`, more time
        is asked for, so that `timeouts.drain` and not TimeoutStopSec= decides how long sessions get.
        """
        while self._waiting and self._send_now(self._waiting[0]):
            self._waiting.popleft()
        if status != self._status and _due(self._status_s, _STATUS_S, now_s):
            self._status, self._status_s = status, now_s
            self._send(f"STATUS={status}")
        if self._watchdog_s is not None and healthy and _due(self._alive_s, self._watchdog_s / 2, now_s):
            self._alive_s = now_s
            self._send("WATCHDOG=1")
        if stopping and _due(self._extended_s, _EXTEND_EVERY_S, now_s):
            self._extended_s = now_s
            self._send(f"EXTEND_TIMEOUT_USEC={int(_EXTENSION_S * 1e6)}")

    def _send(self, *lines: str) -> None:
        # A text with a line end in it could say anything, such as another MAINPID=.
        message = "\n".join(line.replace("\n", " ") for line in lines).encode(errors="replace")
        if self._waiting or not self._send_now(message):
            self._waiting.append(message)

    def _send_now(self, message: bytes) -> bool:
        """Whether that is done with: sent, or nobody will ever take it."""
        if self._address is None:
            return True
        try:
            self._socket.sendto(message, self._address)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if not self._failed:
                log.event("warning", "systemd.unreachable", message=error.strerror)
            self._failed = True
            return True
        self._failed = False
        return True


def _due(last_s: float | None, every_s: float, now_s: float) -> bool:
    return last_s is None or now_s - last_s >= every_s
