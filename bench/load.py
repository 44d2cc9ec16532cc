"""The client: it loads one proxy at a time, and checks every byte count that comes back."""

import contextlib
import hashlib
import selectors
import socket
import ssl
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from bench.upstream import HEADER, PATTERN, RECEIPT

_PATIENCE_S = 30.0
"""How long a single socket may stay silent before the measurement is given up."""

# One pass over a ready stream moves at most this much, so that one of eight cannot keep the others waiting.
_TURN_BYTES = 1024 * 1024
_PIECE_BYTES = 64 * 1024


class Void(Exception):
    """A measurement that must not be used: bytes got lost, or the proxy stopped to answer."""


@dataclass(frozen=True, slots=True)
class Doors:
    """Where a proxy's services are, and how to be let in. Names are `SERVICE.name`."""

    addresses: Mapping[str, tuple[str, int]]
    context: ssl.SSLContext
    name: str

    def enter(self, service: str) -> ssl.SSLSocket:
        """Connect and shake hands. Raises OSError."""
        plain = socket.create_connection(self.addresses[service], timeout=_PATIENCE_S)
        try:
            # Without it, the last piece of a write waits for a delayed acknowledgement: 40 ms a round trip.
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self.context.wrap_socket(plain, server_hostname=f"{service}.{self.name}")
        except BaseException:
            plain.close()
            raise


@dataclass(frozen=True, slots=True)
class Latency:
    """Of single operations, in seconds."""

    median_s: float
    p99_s: float


def push(doors: Doors, amount: int, streams: int, *, hashed: bool = False) -> float:
    """Send `amount` bytes to the sink, over `streams` sessions together; the seconds it took. Raises Void."""
    shares = _shares(amount, streams)
    with _failures_are_void(), contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(doors.enter("sink")) for _ in shares]
        began = time.perf_counter()
        for session, share in zip(sessions, shares, strict=True):
            session.sendall(HEADER.pack(share, hashed))
        _drive({session: _sending(session, share) for session, share in zip(sessions, shares, strict=True)})
        for session, share in zip(sessions, shares, strict=True):
            session.settimeout(_PATIENCE_S)
            arrived, digest = RECEIPT.unpack(_receive(session, RECEIPT.size))
            if arrived != share or (hashed and digest != _pattern_digest(share)):
                raise Void(f"sent {share} bytes, and {arrived} others arrived")
        elapsed = time.perf_counter() - began
        for session in sessions:
            _close(session)
    return elapsed


def pull(doors: Doors, amount: int, streams: int, *, hashed: bool = False) -> float:
    """Receive `amount` bytes from the source, over `streams` sessions together; the seconds it took. Raises Void."""
    shares = _shares(amount, streams)
    with _failures_are_void(), contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(doors.enter("source")) for _ in shares]
        digests = [hashlib.sha256() if hashed else None for _ in shares]
        began = time.perf_counter()
        for session, share in zip(sessions, shares, strict=True):
            session.sendall(HEADER.pack(share, False))
        work = zip(sessions, shares, digests, strict=True)
        _drive({session: _receiving(session, share, digest) for session, share, digest in work})
        elapsed = time.perf_counter() - began
        for digest, share in zip(digests, shares, strict=True):
            if digest and digest.digest() != _pattern_digest(share):
                raise Void(f"received {share} bytes, but not those that were sent")
        for session in sessions:
            _close(session)
    return elapsed


def round_trips(doors: Doors, count: int, size: int = 100) -> Latency:
    """Send `size` bytes and wait for their echo, `count` times over one session. Raises Void."""
    message = PATTERN[:size]
    took = []
    with _failures_are_void(), doors.enter("echo") as session:
        for _ in range(count):
            began = time.perf_counter()
            session.sendall(message)
            answer = _receive(session, size)
            took.append(time.perf_counter() - began)
            if answer != message:
                raise Void("an echo differs from what was sent")
        _close(session)
    return _latency(took)


def connects(doors: Doors, count: int, size: int = 100) -> Latency:
    """Connect, shake hands, have `size` bytes echoed and close, `count` times in sequence. Raises Void.

    The latency is from the first packet to the echo: that is when a person can work.
    """
    message = PATTERN[:size]
    took = []
    with _failures_are_void():
        for _ in range(count):
            began = time.perf_counter()
            with doors.enter("echo") as session:
                session.sendall(message)
                answer = _receive(session, size)
                took.append(time.perf_counter() - began)
                if answer != message:
                    raise Void("an echo differs from what was sent")
                _close(session)
    return _latency(took)


def is_refused_without_certificate(doors: Doors) -> bool:
    """Say whether a client that shows no certificate gets no byte through."""
    stranger = ssl.create_default_context(cadata=_authorities(doors.context))
    try:
        with Doors(doors.addresses, stranger, doors.name).enter("echo") as session:
            # In TLS 1.3 the client's handshake is over before the server has looked at its certificate.
            session.sendall(b"x")
            return session.recv(1) == b""
    except OSError:
        return True


class Crowd:
    """Sessions to the echo that stay open."""

    def __init__(self, doors: Doors):
        self.doors = doors
        self.sessions: list[ssl.SSLSocket] = []

    def grow(self, count: int) -> None:
        """Open `count` more sessions, each proven with one byte to the upstream and back. Raises Void."""
        with _failures_are_void():
            for _ in range(count):
                session = self.doors.enter("echo")
                self.sessions.append(session)
                session.sendall(b"x")
                if _receive(session, 1) != b"x":
                    raise Void("an echo differs from what was sent")

    def exchange(self, amount: int, at_once: int = 16) -> None:
        """Each session sends `amount` bytes and gets them back, `at_once` sessions at a time. Raises Void."""
        with _failures_are_void():
            for first in range(0, len(self.sessions), at_once):
                batch = self.sessions[first : first + at_once]
                _drive({session: _echoing(session, amount) for session in batch})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all sessions, in order."""
        for session in self.sessions:
            with session:
                _close(session)
        self.sessions.clear()


_Work = Iterator[int]
"""Moves some bytes each time it is asked for the next: yields the events to wait for, 0 to be asked again soon."""


def _drive(work: Mapping[ssl.SSLSocket, _Work]) -> None:
    """Do all `work` until each is done, over non-blocking sockets. Raises TimeoutError when nothing moves."""
    with selectors.DefaultSelector() as selector:
        for session in work:
            session.setblocking(False)
            selector.register(session, selectors.EVENT_WRITE | selectors.EVENT_READ, session)
        soon = set(work)
        while selector.get_map():
            ready = {key.data for key, _ in selector.select(0 if soon else _PATIENCE_S)} | soon
            if not ready:
                raise TimeoutError(f"nothing moved for {_PATIENCE_S:.0f} s")
            soon = set()
            for session in ready:
                events = next(work[session], None)
                if events is None:
                    selector.unregister(session)
                elif events == 0:
                    soon.add(session)
                elif selector.get_key(session).events != events:
                    selector.modify(session, events, session)


def _sending(session: ssl.SSLSocket, amount: int) -> _Work:
    pattern = memoryview(PATTERN)
    sent = 0
    while sent < amount:
        turn = sent + _TURN_BYTES
        try:
            while sent < min(amount, turn):
                start = sent % len(PATTERN)
                sent += session.send(pattern[start : start + min(_PIECE_BYTES, amount - sent)])
        except ssl.SSLWantWriteError:
            yield selectors.EVENT_WRITE
        else:
            yield 0


def _receiving(session: ssl.SSLSocket, amount: int, digest: "hashlib._Hash | None") -> _Work:
    buffer = memoryview(bytearray(_PIECE_BYTES))
    arrived = 0
    while arrived < amount:
        turn = arrived + _TURN_BYTES
        try:
            while arrived < min(amount, turn):
                count = session.recv_into(buffer)
                if count == 0:
                    raise Void(f"expected {amount} bytes, got {arrived} and the end")
                arrived += count
                if digest:
                    digest.update(buffer[:count])
        except ssl.SSLWantReadError:
            yield selectors.EVENT_READ
        else:
            yield 0
    if arrived > amount:
        raise Void(f"expected {amount} bytes, got {arrived}")


def _echoing(session: ssl.SSLSocket, amount: int) -> _Work:
    """Send and receive by turns, so that neither direction can fill up and block the other."""
    digest = hashlib.sha256()
    sending = _sending(session, amount)
    receiving = _receiving(session, amount, digest)
    waiting: int | None = 0
    while waiting is not None:
        out, into = next(sending, None), next(receiving, None)
        waiting = into if out is None else out if into is None else 0 if 0 in {out, into} else out | into
        if waiting is not None:
            yield waiting
    if digest.digest() != _pattern_digest(amount):
        raise Void("an echo differs from what was sent")


def _receive(session: ssl.SSLSocket, size: int) -> bytes:
    answer = session.recv(size)
    while len(answer) < size:
        more = session.recv(size - len(answer))
        if not more:
            raise Void(f"expected {size} bytes, got {len(answer)} and the end")
        answer += more
    return answer


def _close(session: ssl.SSLSocket) -> None:
    """Send close_notify and wait for the proxy's: that the session ended is part of what it costs."""
    with contextlib.suppress(OSError, ValueError):
        session.settimeout(_PATIENCE_S)
        session.unwrap()


def _pattern_digest(amount: int) -> bytes:
    whole, rest = divmod(amount, len(PATTERN))
    digest = hashlib.sha256()
    for _ in range(whole):
        digest.update(PATTERN)
    digest.update(PATTERN[:rest])
    return digest.digest()


def _shares(amount: int, streams: int) -> list[int]:
    return [amount // streams + (1 if n < amount % streams else 0) for n in range(streams)]


def _latency(took_s: list[float]) -> Latency:
    ordered = sorted(took_s)
    return Latency(statistics.median(ordered), ordered[int(len(ordered) * 0.99)])


def _authorities(context: ssl.SSLContext) -> str:
    return "".join(map(ssl.DER_cert_to_PEM_cert, context.get_ca_certs(binary_form=True)))


@contextlib.contextmanager
def _failures_are_void() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Void(f"the connection failed: {error}") from error
