"""A channel between supervisor and worker: a SOCK_SEQPACKET pair, on which a packet is one message.

A packet may carry one file descriptor.
"""

import asyncio
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable

from portguard.gateway.messages import LARGEST_BYTES, Message, Misconduct, decode, encode

_INT = struct.Struct("i")
_DESCRIPTOR_SPACE = socket.CMSG_SPACE(_INT.size)

# What a send fails with although the other side is there: too much is under way between all processes of the host.
_FULL = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
_RETRY_S = 0.05

MOST_WAITING_BYTES = 64 * 1024 * 1024
"""What the other side has not taken. All locks there can be, which a worker is told at its start, are a third of it."""


class Channel:
    """One end of a channel, watched by the running loop.

    `on_message(message, descriptor)` gets each message; it owns the descriptor, which is None when none came. Without
    `takes_descriptors` none comes: the kernel closes those that are sent. `on_closed()` is called once, when the other
    side has gone, after the last message that it sent. `on_misconduct(error)` is told of a packet that is no message,
    and of a side that leaves more than `MOST_WAITING_BYTES` of what it is sent; without it the one is an exception of
    the loop's callback, and the other is nothing.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_message: Callable[[Message, int | None], None],
        on_closed: Callable[[], None],
        on_misconduct: Callable[[Misconduct], None] | None = None,
        takes_descriptors: bool = True,
    ):
        self._sock = sock
        self._takes_descriptors = takes_descriptors
        self._on_message = on_message
        self._on_closed = on_closed
        self._on_misconduct = on_misconduct
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, int | None]] = deque()
        self._waiting_bytes = 0
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
        packet = encode(message)
        if self._queue or not self._sent(packet, descriptor):
            self._queue.append((packet, descriptor))
            self._waiting_bytes += len(packet)
            if self._waiting_bytes > MOST_WAITING_BYTES and self._on_misconduct is not None:
                # Who asks and does not listen could fill our memory with answers.
                self._on_misconduct(
                    Misconduct(f"channel: expected at most {MOST_WAITING_BYTES} bytes untaken, got more")
                )

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

    def _sent(self, packet: bytes, descriptor: int | None) -> bool:
        """Send, unless nobody is there any more; return False when that has to wait for _on_writable()."""
        try:
            if descriptor is None:
                self._sock.send(packet)
                return True
            self._sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.pack(descriptor))])
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._sock, self._on_writable)
            return False
        except OSError as error:
            if error.errno in _FULL:
                # The socket is writable all the same: to wait for that would be to spin.
                self._loop.call_later(_RETRY_S, self._on_writable)
                return False
            # It has gone, and the reader must know: the error that it would have met was met here.
            self._broken = True
        if descriptor is not None:
            os.close(descriptor)
        return True

    def _on_writable(self) -> None:
        if self._closed:
            return
        self._loop.remove_writer(self._sock)
        while self._queue and self._sent(*self._queue[0]):
            packet, _ = self._queue.popleft()
            self._waiting_bytes -= len(packet)
        if not self._queue:
            self._tell_flushed()

    def _tell_flushed(self) -> None:
        if self._flushed is not None and not self._flushed.done():
            self._flushed.set_result(None)

    def _on_readable(self) -> None:
        if self._closed:
            return
        # One message a turn: most often there is but one, and asking for a second costs more than another turn.
        descriptor: int | None = None
        try:
            if self._takes_descriptors:
                packet, ancillary, _, _ = self._sock.recvmsg(LARGEST_BYTES, _DESCRIPTOR_SPACE, socket.MSG_CMSG_CLOEXEC)
                # With the table of descriptors full, the kernel drops what the packet carried and says nothing.
                if ancillary:
                    (descriptor,) = _INT.unpack(ancillary[0][2])
            else:
                packet = self._sock.recv(LARGEST_BYTES)
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
        try:
            message = decode(packet)
        except Misconduct as error:
            if descriptor is not None:
                os.close(descriptor)
            if self._on_misconduct is None:
                raise
            self._on_misconduct(error)
            return
        self._on_message(message, descriptor)
