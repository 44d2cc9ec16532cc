"""Ends the connection of a peer that would keep one read busy for ever.

A record without bytes for us, such as a KeyUpdate (RFC 8446, section 4.6.3), sends OpenSSL to the next one before it
answers, and there is no bound on how many. Who sends them as fast as they are read, some 3 MB a second, would hold the
event loop, and with it every session of the process. Nothing but another thread can see that.
"""

import contextlib
import errno
import socket
import threading
import time
from functools import cache
from typing import Protocol

LONGEST_READ_S = 0.1
"""Of processor time. What one read may take otherwise is a thousandth of a second."""

_MESSAGE = "expected the peer to send bytes, got nothing but records without any"


class Reader(Protocol):
    """What is watched. `failure` is set once its connection has been ended."""

    sock: socket.socket
    failure: OSError | None


class ReadWatch:
    """Watches the reads of the thread that makes it, which calls wait() after each if `cutting`.

    Before each, `reads` is raised and `reading` set; after it that is None. It keeps nothing that it watches alive.
    """

    def __init__(self, longest_read_s: float = LONGEST_READ_S):
        self.reads = 0
        self.reading: Reader | None = None
        self.cutting = False
        self._cut = threading.Lock()
        self._longest_read_s = longest_read_s
        self._before = 0  # the number of the read at the last look
        self._since_s = 0.0
        # Not the time on the wall: the process may be stopped, or the machine busy, in the middle of a read.
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._discarded = bytearray(64 * 1024)
        threading.Thread(target=self._watch, name="read watch", daemon=True).start()

    def _watch(self) -> None:
        # Not time.sleep(): that asks for an instant on a clock, and fails where somebody moves it about.
        never = threading.Event()
        while not never.wait(self._longest_read_s):
            self._look(time.clock_gettime(self._clock))

    def _look(self, now_s: float) -> None:
        reads, reading = self.reads, self.reading
        if reading is None or reads != self._before:
            self._before, self._since_s = reads, now_s
        elif now_s - self._since_s > self._longest_read_s / 2:
            with self._cut:
                self.cutting = True
                if self.reading is reading and self.reads == reads:
                    self._end(reading)
                self.cutting = False

    def wait(self) -> None:
        """Wait for the end of a cut: else its descriptor could by then be another connection's."""
        with self._cut:
            pass

    def _end(self, reader: Reader) -> None:
        reader.failure = ConnectionAbortedError(errno.ECONNABORTED, _MESSAGE)
        with contextlib.suppress(OSError):
            socket.socket.shutdown(reader.sock, socket.SHUT_RDWR)
            # The kernel may hold more than OpenSSL reads in seconds.
            while socket.socket.recv_into(reader.sock, self._discarded):
                pass


read_watch = cache(ReadWatch)
"""`read_watch()` is that of the process."""
