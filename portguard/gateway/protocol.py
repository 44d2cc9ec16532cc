"""What supervisor and workers say to each other, and the channel they say it on.

A channel is one end of a SOCK_SEQPACKET pair: a packet is one message, a JSON array of the message's tag and its
fields, and may carry one file descriptor. Both ends are of one version, since the supervisor starts the workers;
`Hello` says so all the same, because a supervisor may be replaced under workers that finish their sessions.
"""

import array
import asyncio
import dataclasses
import json
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from portguard.reasons import Reason

VERSION = 1
_LARGEST = 8192
_DESCRIPTOR_SPACE = socket.CMSG_SPACE(array.array("i", [0]).itemsize)


@dataclass(frozen=True, slots=True)
class Message:
    """Anything that is said. `tag` is what stands for the type on the channel."""

    tag: ClassVar[str]


# What the supervisor says.


@dataclass(frozen=True, slots=True)
class Configure(Message):
    """Work by this configuration from now on. Carries the memory file of the bundle."""

    tag = "configure"


@dataclass(frozen=True, slots=True)
class Accepted(Message):
    """A client has connected. Carries the socket; `listener` counts the listeners in the configuration's order."""

    tag = "accepted"
    connection: int
    listener: int
    source_address: str
    source_port: int


@dataclass(frozen=True, slots=True)
class Ticket(Message):
    """The session is admitted. Its bytes are counted in `slot`."""

    tag = "ticket"
    connection: int
    slot: int


@dataclass(frozen=True, slots=True)
class Refusal(Message):
    """The session is not admitted."""

    tag = "refusal"
    connection: int
    reason: str
    message: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Drain(Message):
    """No more connections will come. End when the last session has."""

    tag = "drain"


@dataclass(frozen=True, slots=True)
class Stop(Message):
    """End all sessions now, for `reason`, and then yourself."""

    tag = "stop"
    reason: str


# What a worker says.


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """The worker is there."""

    tag = "hello"
    version: int


@dataclass(frozen=True, slots=True)
class Configured(Message):
    """The worker works by the configuration that it was sent last."""

    tag = "configured"


@dataclass(frozen=True, slots=True)
class Admit(Message):
    """May this session begin? The policy has said yes."""

    tag = "admit"
    connection: int
    session: str
    trust: str
    name: str
    service: str
    role: str


@dataclass(frozen=True, slots=True)
class Gone(Message):
    """The connection ended without becoming a session."""

    tag = "gone"
    connection: int


@dataclass(frozen=True, slots=True)
class Ended(Message):
    """The session ended."""

    tag = "ended"
    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class Beat(Message):
    """The worker's loop turns."""

    tag = "beat"


_TYPES: dict[str, type[Message]] = {
    kind.tag: kind
    for kind in (Configure, Accepted, Ticket, Refusal, Drain, Stop, Hello, Configured, Admit, Gone, Ended, Beat)
}
_FIELDS = {kind: tuple(field.name for field in dataclasses.fields(kind)) for kind in _TYPES.values()}


def encode(message: Message) -> bytes:
    """Return the message as a packet."""
    kind = type(message)
    return json.dumps([kind.tag, *(getattr(message, name) for name in _FIELDS[kind])]).encode()


def decode(packet: bytes) -> Message:
    """Return the message in a packet. Raises ValueError for one that this version does not know."""
    tag, *fields = json.loads(packet)
    kind = _TYPES.get(tag)
    if kind is None or len(fields) != len(_FIELDS[kind]):
        raise ValueError(f"channel: expected a message of version {VERSION}, got {packet[:100]!r}")
    return kind(*fields)


def refused(refusal: Refusal) -> tuple[Reason, str, float | None]:
    """Return the parts of a refusal, its reason as one again."""
    return Reason(refusal.reason), refusal.message, refusal.retry_after_s


class Channel:
    """One end of a channel, watched by the running loop.

    `on_message(message, descriptor)` gets each message; it owns the descriptor, which is None when none came.
    `on_closed()` is called once, when the other side has gone.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_message: Callable[[Message, int | None], None],
        on_closed: Callable[[], None],
    ):
        self._sock = sock
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, int | None]] = deque()
        sock.setblocking(False)
        self._loop.add_reader(sock, self._on_readable)

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Return the two sockets of a new channel."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send(self, message: Message, descriptor: int | None = None) -> None:
        """Send a message, now or as soon as the other side takes it. Owns the descriptor, and closes it here."""
        item = (encode(message), descriptor)
        if self._queue:
            self._queue.append(item)
        elif not self._send(*item):
            self._queue.append(item)
            self._loop.add_writer(self._sock, self._on_writable)

    def close(self) -> None:
        """Stop watching and close; on_closed() is not called."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for _, descriptor in self._queue:
            if descriptor is not None:
                os.close(descriptor)
        self._queue.clear()

    def _send(self, packet: bytes, descriptor: int | None) -> bool:
        """Return False when the other side must catch up first."""
        try:
            if descriptor is None:
                self._sock.send(packet)
            else:
                socket.send_fds(self._sock, [packet], [descriptor])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            pass  # the other side has gone, which reading tells
        if descriptor is not None:
            os.close(descriptor)
        return True

    def _on_writable(self) -> None:
        while self._queue and self._send(*self._queue[0]):
            self._queue.popleft()
        if not self._queue:
            self._loop.remove_writer(self._sock)

    def _on_readable(self) -> None:
        while self._sock.fileno() >= 0:
            try:
                packet, ancillary, _, _ = self._sock.recvmsg(_LARGEST, _DESCRIPTOR_SPACE, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                packet, ancillary = b"", []
            if not packet:
                self.close()
                self._on_closed()
                return
            descriptors = array.array("i")
            for _, _, data in ancillary:
                descriptors.frombytes(data)
            # With the table of descriptors full, the kernel drops what the packet carried and says nothing.
            self._on_message(decode(packet), descriptors[0] if descriptors else None)
