"""What supervisor and workers say to each other, and the channel they say it on.

A channel is one end of a SOCK_SEQPACKET pair: a packet is one message, a JSON array of the name of the message's type
and its fields, and may carry one file descriptor. Both ends are of one version, since the supervisor starts the
workers; `Hello` says so all the same, because a supervisor may be replaced under workers that finish their sessions.
"""

import asyncio
import errno
import json
import os
import socket
import struct
import typing
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

from portguard.reasons import Reason

VERSION = 1

MOST_ROLES = 10
"""In one `StandingWanted`: its answer has up to eight quotas for each."""

_LARGEST = 16384  # a name of 2048 bytes, 3000 of groups and 200 characters of a message, each escaped, and room
_INT = struct.Struct("i")
_DESCRIPTOR_SPACE = socket.CMSG_SPACE(_INT.size)

# What a send fails with although the other side is there: too much is under way between all processes of the host.
_FULL = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
_RETRY_S = 0.05


# What the supervisor says.


class Configure(NamedTuple):
    """Work by this configuration from now on. Carries the memory file of the bundle."""


class Prepare(NamedTuple):
    """Make ready to work by this configuration. Carries the memory file of the bundle.

    `reload` numbers it: an answer that came too late must not be taken for that to the next one.
    """

    reload: int


class Apply(NamedTuple):
    """Work from now on by the configuration that was made ready so, and look at every live session again."""

    reload: int


class Accepted(NamedTuple):
    """A client has connected. Carries the socket; `listener` counts the listeners in the configuration's order."""

    connection: int
    listener: int
    source_address: str
    source_port: int


class Ticket(NamedTuple):
    """The session is admitted. Its bytes are counted in `slot`.

    `leased`: it may move only what is leased to its `account`; `paced`: only its share of the account's bandwidth.
    """

    connection: int
    slot: int
    account: int
    leased: bool
    paced: bool


class Refusal(NamedTuple):
    """The session is not admitted."""

    connection: int
    reason: str
    message: str
    retry_after_s: float | None


class End(NamedTuple):
    """The session in `slot` ends now, for `reason`."""

    slot: int
    reason: str


class Regranted(NamedTuple):
    """The session in `slot` goes on under other limits; the fields are those of `Ticket`."""

    slot: int
    account: int
    leased: bool
    paced: bool


class QuotaStanding(NamedTuple):
    """How an identity, or its role's pool, stands in one period, which ends at `end_s` (since the epoch)."""

    period: str
    pooled: bool
    limit_bytes: int
    granted_bytes: int
    used_bytes: int
    end_s: int


class RoleStanding(NamedTuple):
    """How an identity stands in one role: sessions that are open, and the time until it may connect again."""

    sessions: int
    connect_wait_s: float
    quotas: list[QuotaStanding]


class Standing(NamedTuple):
    """How the identity of a `StandingWanted` stands, in each of its roles."""

    connection: int
    roles: list[RoleStanding]


class PastRefusal(NamedTuple):
    """An identity was refused, or its session was ended, at `time_s` since the epoch."""

    time_s: float
    service: str | None
    reason: str
    message: str
    session: str


class PastRefusals(NamedTuple):
    """What the identity of a `PastRefusalsWanted` was refused of late, the latest one first."""

    connection: int
    refusals: list[PastRefusal]


class Leased(NamedTuple):
    """The account's sessions may move so many bytes more, in both directions together."""

    account: int
    lease_bytes: int


class Recalled(NamedTuple):
    """What the account's sessions have not used of their leases is wanted back, even if that is nothing."""

    account: int


class Closed(NamedTuple):
    """The account's sessions end now, for `reason`."""

    account: int
    reason: str


class Share(NamedTuple):
    """The account's sessions may move so many bytes more in one direction: 0 from clients, 1 to them."""

    account: int
    direction: int
    share_bytes: int


class Locked(NamedTuple):
    """Whom this names is locked out, until `until_s` since the epoch; None: until further notice. See `LockTarget`."""

    kind: Literal["identity", "fingerprint", "serial"]
    trust: str
    value: str
    until_s: int | None


class Unlocked(NamedTuple):
    """Whom this names is not locked out by that any more."""

    kind: Literal["identity", "fingerprint", "serial"]
    trust: str
    value: str


class Drain(NamedTuple):
    """No more connections will come. End when the last session has."""


class Stop(NamedTuple):
    """End all sessions now, for `reason`, and then yourself."""

    reason: str


# What a worker says.


class Hello(NamedTuple):
    """The worker is there."""

    version: int


class Configured(NamedTuple):
    """The worker works by the configuration that it was sent last."""


class Prepared(NamedTuple):
    """The worker is ready to work by the configuration of that reload; or it is not, because of `failure`."""

    reload: int
    failure: str | None


class Rechecked(NamedTuple):
    """All live sessions were looked at by the new configuration; those that lost their right are being closed."""

    reload: int
    closed: int


class Regrant(NamedTuple):
    """The session in `slot` goes on in `role`, another one or under other kinds of limits. It is held meanwhile."""

    slot: int
    role: str


class Admit(NamedTuple):
    """May this session begin? The policy has said yes."""

    connection: int
    session: str
    trust: str
    name: str
    service: str
    role: str
    groups: list[str]
    serial: str
    fingerprint: str
    source: str | None
    handshake_s: float  # how long the TLS handshake took
    policy: str  # the revision that has said yes


class StandingWanted(NamedTuple):
    """How does this identity stand in these roles? At most `MOST_ROLES` of them."""

    connection: int
    trust: str
    name: str
    roles: list[str]


class PastRefusalsWanted(NamedTuple):
    """What was this identity refused of late?"""

    connection: int
    trust: str
    name: str


class TurnedAway(NamedTuple):
    """Somebody was refused a session, or the handshake. What is not known is None."""

    session: str
    trust: str | None
    name: str | None
    groups: list[str] | None
    serial: str | None
    fingerprint: str | None
    source: str | None
    service: str | None
    reason: str
    message: str


class Gone(NamedTuple):
    """The connection ended without becoming a session. `handshake_s` is None when there was no whole handshake."""

    connection: int
    handshake_s: float | None


class Ended(NamedTuple):
    """The session ended. `upstream` is the address that it reached, None when it reached none."""

    slot: int
    reason: str
    upstream: str | None


class LeaseWanted(NamedTuple):
    """The account's lease is half used, or `empty`: sessions wait."""

    account: int
    empty: bool


class LeaseReturned(NamedTuple):
    """The account's sessions will not use so many bytes of their leases."""

    account: int
    lease_bytes: int


class ShareWanted(NamedTuple):
    """The account's share in one direction is used up, and sessions wait."""

    account: int
    direction: int


class Beat(NamedTuple):
    """The worker's loop turns."""


class Tried(NamedTuple):
    """Which upstreams were dialled of late, and whether the last attempt reached them: [["10.0.3.7:5432", true], …]."""

    upstreams: list[tuple[str, bool]]


Message = (
    Configure
    | Prepare
    | Apply
    | Accepted
    | Ticket
    | Refusal
    | End
    | Regranted
    | Standing
    | PastRefusals
    | Leased
    | Recalled
    | Closed
    | Share
    | Locked
    | Unlocked
    | Drain
    | Stop
    | Hello
    | Configured
    | Prepared
    | Rechecked
    | Regrant
    | Admit
    | StandingWanted
    | PastRefusalsWanted
    | TurnedAway
    | Gone
    | Ended
    | LeaseWanted
    | LeaseReturned
    | ShareWanted
    | Beat
    | Tried
)
_TYPES = {kind.__name__: kind for kind in typing.get_args(Message)}

_to_json = json.JSONEncoder(separators=(",", ":")).encode


def encode(message: Message) -> bytes:
    """Return the message as a packet. Raises ValueError for one that the other side would not receive whole."""
    packet = _to_json((type(message).__name__, *message)).encode()
    if len(packet) > _LARGEST:
        raise ValueError(f"channel: expected a message of at most {_LARGEST} bytes, got {len(packet)}")
    return packet


def decode(packet: bytes) -> Message:
    """Return the message in a packet. Raises ValueError for one that this version does not know."""
    tag, *fields = json.loads(packet.decode())
    try:
        message: Message = _TYPES[tag](*fields)
    except (KeyError, TypeError):
        raise ValueError(f"channel: expected a message of version {VERSION}, got {packet[:100]!r}") from None
    return message


def refused(refusal: Refusal) -> tuple[Reason, str, float | None]:
    """Return the parts of a refusal, its reason as one again."""
    return Reason(refusal.reason), refusal.message, refusal.retry_after_s


def role_standings(standing: Standing) -> list[RoleStanding]:
    """Return the parts of a standing, each as what it is again."""
    return [
        RoleStanding(sessions, wait_s, [QuotaStanding(*quota) for quota in quotas])
        for sessions, wait_s, quotas in standing.roles
    ]


def past_refusals(past: PastRefusals) -> list[PastRefusal]:
    """Return the refusals, each as one again."""
    return [PastRefusal(*refusal) for refusal in past.refusals]


class Channel:
    """One end of a channel, watched by the running loop.

    `on_message(message, descriptor)` gets each message; it owns the descriptor, which is None when none came.
    `on_closed()` is called once, when the other side has gone, after the last message that it sent.
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
        self._flushed: asyncio.Future[None] | None = None  # somebody waits for the queue to be empty
        self._broken = False  # the other side has gone; what it sent before is still being read
        sock.setblocking(False)
        self._loop.add_reader(sock, self._on_readable)

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        """Return the two sockets of a new channel."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def pause(self) -> None:
        """Hear nothing until resume(); what is said meanwhile waits in the kernel."""
        self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        """Hear again."""
        if not self._closed:
            self._loop.add_reader(self._sock, self._on_readable)

    @property
    def descriptor(self) -> int:
        """The socket's; -1 when it is closed."""
        return self._sock.fileno()

    def send(self, message: Message, descriptor: int | None = None) -> None:
        """Send a message, now or as soon as the other side takes it. Owns the descriptor, and closes it here."""
        self._queue.append((encode(message), descriptor))
        if len(self._queue) == 1:
            self._send_queued()

    async def flush(self) -> None:
        """Wait until all that was sent is on its way. Without end when the other side neither reads nor goes."""
        while self._queue:
            self._flushed = self._loop.create_future()
            await self._flushed

    def close(self) -> None:
        """Stop watching and close; on_closed() is not called."""
        if self._closed:
            return
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for _, descriptor in self._queue:
            if descriptor is not None:
                os.close(descriptor)
        self._queue.clear()
        self._tell_flushed()

    @property
    def _closed(self) -> bool:
        return self._sock.fileno() < 0

    def _send_queued(self) -> None:
        while self._queue:
            packet, descriptor = self._queue[0]
            try:
                if descriptor is None:
                    self._sock.send(packet)
                else:
                    self._sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.pack(descriptor))])
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock, self._on_writable)
                return
            except OSError as error:
                if error.errno in _FULL:
                    # The socket is writable all the same: to wait for that would be to spin.
                    self._loop.call_later(_RETRY_S, self._on_writable)
                    return
                # It has gone, and the reader must know: the error that it would have met was met here.
                self._broken = True
            self._queue.popleft()
            if descriptor is not None:
                os.close(descriptor)
        self._tell_flushed()

    def _on_writable(self) -> None:
        if self._closed:
            return
        self._loop.remove_writer(self._sock)
        self._send_queued()

    def _tell_flushed(self) -> None:
        if self._flushed is not None and not self._flushed.done():
            self._flushed.set_result(None)

    def _on_readable(self) -> None:
        if self._closed:
            return
        # One message a turn: most often there is but one, and asking for a second costs more than another turn.
        try:
            packet, ancillary, _, _ = self._sock.recvmsg(_LARGEST, _DESCRIPTOR_SPACE, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionResetError:  # it left messages unread; what it sent itself comes after this
            self._broken = True
            self._loop.call_soon(self._on_readable)
            return
        if not packet:
            self.close()
            self._on_closed()
            return
        if self._broken:
            # uvloop reports the error of a socket once and then watches it no more: read on to the end without it.
            self._loop.call_soon(self._on_readable)
        # With the table of descriptors full, the kernel drops what the packet carried and says nothing.
        descriptor: int | None = _INT.unpack(ancillary[0][2])[0] if ancillary else None
        try:
            message = decode(packet)
        except ValueError:
            if descriptor is not None:
                os.close(descriptor)
            raise
        self._on_message(message, descriptor)
