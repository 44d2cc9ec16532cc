"""Sessions to an echo that transfer all the while, and notice every byte that is lost, doubled or late.

with Traffic(gateway, "carol", count=4) as traffic:
    ...  # what must not disturb them
    traffic.moves()  # all of them still do
traffic.longest_pause_s
"""

import contextlib
import hashlib
import random
import ssl
import threading
import time
from typing import Any, Self

from tests.patience import PATIENCE_S

_PIECE_BYTES = 16 * 1024
_NOISE = random.Random(4).randbytes(1_000_003)  # a prime length: whatever is lost or doubled shifts it


class _Stream:
    def __init__(self, session: ssl.SSLSocket):
        self.session = session
        self.rounds = 0
        self.longest_s = 0.0
        self.failure: BaseException | None = None
        self.digests = hashlib.sha256(), hashlib.sha256()  # of what went there, and of what came back

    def run(self, over: threading.Event) -> None:
        try:
            while not over.is_set():
                self._round()
        except (OSError, AssertionError) as error:
            self.failure = error

    def _round(self) -> None:
        start = self.rounds * _PIECE_BYTES % (len(_NOISE) - _PIECE_BYTES)
        piece, began_s = _NOISE[start : start + _PIECE_BYTES], time.monotonic()
        self.digests[0].update(piece)
        self.session.sendall(piece)
        left = len(piece)
        while left:
            data = self.session.recv(left)
            assert data, "expected an echo, got the end"
            self.digests[1].update(data)
            left -= len(data)
        self.longest_s = max(self.longest_s, time.monotonic() - began_s)
        self.rounds += 1


class Traffic:
    """The sessions, each in a thread of its own. `pause_s` is between two pieces."""

    def __init__(self, gateway: Any, name: str, *, count: int = 4, service: str = "echo"):
        self._gateway, self._name, self._count, self._service = gateway, name, count, service
        self._streams: list[_Stream] = []
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()

    def __enter__(self) -> Self:
        for _ in range(self._count):
            session = self._gateway.connect(self._service, self._name)
            session.settimeout(PATIENCE_S)
            self._streams.append(_Stream(session))
            thread = threading.Thread(target=self._streams[-1].run, args=(self._over,), daemon=True)
            self._threads.append(thread)
            thread.start()
        self.moves()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End all sessions in order. Fails for any that lost a byte, unless the block has failed."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        for stream in self._streams:
            with stream.session, contextlib.suppress(OSError):
                stream.session.unwrap()
        if kind is None:
            assert [stream.failure for stream in self._streams] == [None] * self._count
            assert all(there.digest() == back.digest() for there, back in (s.digests for s in self._streams))

    def moves(self) -> None:
        """Wait until each of them has gone round twice more."""
        aims = [stream.rounds + 2 for stream in self._streams]
        deadline_s = time.monotonic() + PATIENCE_S
        while any(stream.rounds < aim for stream, aim in zip(self._streams, aims, strict=True)):
            assert [stream.failure for stream in self._streams] == [None] * self._count
            assert time.monotonic() < deadline_s, "expected all sessions to go on, got one that stands still"
            time.sleep(0.005)

    @property
    def longest_pause_s(self) -> float:
        """How long the slowest piece took to go round."""
        return max(stream.longest_s for stream in self._streams)
