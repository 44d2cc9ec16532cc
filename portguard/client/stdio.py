"""Standard input and output as a socket, for programs that talk to a tunnel over pipes, such as ssh.

Two threads do the copying: they are the one thing that works for pipes, terminals, files and on Windows alike, and
unlike O_NONBLOCK they change nothing for the programs that share these files.
"""

import asyncio
import contextlib
import os
import select
import socket
import threading

_READ = 64 * 1024
_LOOK_S = 0.01
_CAN_LOOK = os.name != "nt"  # whether a file has something to read: Windows tells it of sockets only


class StandardStreams:
    """What standard input sends comes out of `sock`, and what is sent there goes to standard output.

    The end of either goes through on its own: the end of the input ends one direction of `sock`, and the end of the
    other direction closes the output.
    """

    def __init__(self, input_fd: int = 0, output_fd: int = 1):
        self.sock, self._inner = socket.socketpair()
        self._loop = asyncio.get_running_loop()
        self._written: asyncio.Future[None] = self._loop.create_future()
        self._input = input_fd
        self._input_over = False
        self._moving = False  # what was read of the input may not have gone on yet
        self._copying = 2
        self._lock = threading.Lock()
        # Daemons, because a read of a terminal cannot be interrupted: it must not keep the process.
        for name, copy, descriptor in (
            ("standard input", self._copy_input, input_fd),
            ("standard output", self._copy_output, output_fd),
        ):
            threading.Thread(target=copy, args=(descriptor,), name=name, daemon=True).start()

    async def written(self) -> None:
        """Return when all that was sent to `sock` is written and the output closed. Raises OSError if it was not."""
        await self._written

    async def end_input(self) -> None:
        """Take what is there of the input, to its end if that is there too, and then no more: end it.

        May take for ever where more and more comes, or the session takes nothing. On Windows what has not been read yet
        is left.
        """
        # In this order: what is not there any more is moving, or has gone on.
        while not self._input_over and (_is_readable(self._input) or self._moving):  # noqa: ASYNC110  # a thread tells
            await asyncio.sleep(_LOOK_S)
        self._end_input()

    def _copy_input(self, descriptor: int) -> None:
        with contextlib.suppress(OSError):  # the session has ended, or the terminal has gone: the end, either way
            while data := self._read_input(descriptor):
                self._inner.sendall(data)
                self._moving = False
        self._end_input()
        self._input_over = True
        self._leave()

    def _read_input(self, descriptor: int) -> bytes:
        if _CAN_LOOK:
            select.select([descriptor], [], [])
            self._moving = True  # before anything is taken out, or end_input() could miss it
        return os.read(descriptor, _READ)

    def _end_input(self) -> None:
        with self._lock, contextlib.suppress(OSError):  # it has ended already, or the session has
            self._inner.shutdown(socket.SHUT_WR)

    def _copy_output(self, descriptor: int) -> None:
        failure = None
        try:
            while data := self._received():
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
        except OSError as error:
            failure = error
            # Nobody takes the output any more. The session learns it as from a program that ended.
            with contextlib.suppress(OSError):
                self._inner.shutdown(socket.SHUT_RDWR)
        self._leave()
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            # The loop closes the output, because how the session ended comes first there, and is told first: ssh
            # ends its ProxyCommand as soon as that has closed its output.
            self._loop.call_soon_threadsafe(self._on_written, descriptor, failure)

    def _leave(self) -> None:
        """Close the inner end with the last thread that uses it: closed earlier, its number could be another file's."""
        with self._lock:
            self._copying -= 1
            if not self._copying:
                self._inner.close()

    def _received(self) -> bytes:
        try:
            return self._inner.recv(_READ)
        except OSError:  # the session ended by force, which it reports itself
            return b""

    def _on_written(self, descriptor: int, failure: OSError | None) -> None:
        _close(descriptor)
        if self._written.done():
            return
        if failure is None:
            self._written.set_result(None)
        else:
            self._written.set_exception(failure)


def _is_readable(descriptor: int) -> bool:
    """Whether something, or the end, can be read now."""
    try:
        return _CAN_LOOK and bool(select.select([descriptor], [], [], 0)[0])
    except OSError:  # closed from the beginning
        return False


def _close(descriptor: int) -> None:
    """End the output. Its number leads nowhere from here on; freed, it would be the next socket's."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
