"""The sockets that listen, and how connections are taken from them: one by one, and not while there is no room."""

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence

from portguard.gateway.tcp_options import set_tcp_options
from portguard.observe import log

_PAUSE_S = 1.0  # when the host has no descriptor left

_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# What accept() tells of one connection that broke before it was accepted, accept(2).
_BROKEN_ALREADY = {
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENONET,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.EPERM,  # a firewall's rule
    errno.EPROTO,
    errno.ETIMEDOUT,
}


class Acceptor:
    """Takes connections from sockets that listen and do not block; they are its own. Belongs to the running loop.

    Connections have the options that the gateway wants of them, but for those that came before the sockets were here.
    `on_accepted(number, sock, address)` owns each connection's socket; `number` counts the sockets in their order here.
    Nothing is taken before `start()`. Clients that connect meanwhile wait in the kernel.
    """

    def __init__(
        self,
        listening: Sequence[socket.socket],
        on_accepted: Callable[[int, socket.socket, tuple[str, int]], None],
    ):
        self.active = False  # connections are taken
        self._listening = listening
        self._set_options()
        self._on_accepted = on_accepted
        self._loop = asyncio.get_running_loop()
        self._resuming: asyncio.TimerHandle | None = None  # the end of a pause
        self._over = False

    def start(self) -> None:
        """Take connections from now on, also when there was a pause."""
        self._forget_pause()
        if self.active:
            return
        self.active = True
        for number, sock in enumerate(self._listening):
            self._loop.add_reader(sock, self._on_acceptable, number, sock)

    def stop(self) -> None:
        """Take no more until `start()`."""
        self._forget_pause()
        if not self.active:
            return
        self.active = False
        for sock in self._listening:
            self._loop.remove_reader(sock)

    def replace(self, listening: Sequence[socket.socket]) -> None:
        """Take connections from other sockets; those that are not among them any more are closed."""
        goes_on = self.active or self._resuming is not None
        self.stop()
        for sock in self._listening:
            if sock not in listening:
                sock.close()
        self._listening = listening
        self._set_options()
        if self._over:
            self.close()  # or who connects would wait for ever
        elif goes_on:
            self.start()

    def close(self) -> None:
        """Take no more, ever: the kernel refuses who connects now. May be called twice."""
        self._over = True
        self.stop()
        for sock in self._listening:
            sock.close()

    def _set_options(self) -> None:
        """On all, wherever they come from: bound here, by systemd, or by another version of the program."""
        for sock in self._listening:
            set_tcp_options(sock)

    def _on_acceptable(self, number: int, listening: socket.socket) -> None:
        # One a turn: most often there is but one, and asking for a second costs more than another turn.
        try:
            sock, address = listening.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if error.errno in _BROKEN_ALREADY:
                return
            if error.errno not in _NO_DESCRIPTOR:
                raise
            # The listener stays readable: without a pause the loop would do nothing but fail.
            log.event("error", "gateway.accept_paused", message=error.strerror, seconds=_PAUSE_S)
            self.stop()
            self._resuming = self._loop.call_later(_PAUSE_S, self.start)
            return
        self._on_accepted(number, sock, address)

    def _forget_pause(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
