"""The relay of one session: bytes both ways between two ends, each way ending on its own.

Each way, a flow, goes through these states; nothing but the table's events moves it:

    state     event                                   next       and
    OPEN      bytes came                              OPEN       written to the sink, counted
    OPEN      the sink did not take all               PAUSED     the source is not read
    PAUSED    the sink took the rest                  OPEN       the source is read again
    OPEN      its allowance is used up                WAITING    the source is not read, what was read is held
    WAITING   there is an allowance again             OPEN       what was held goes first
    OPEN      the source takes its own backlog first  BLOCKED    the source is not read
    BLOCKED   that backlog is out                     OPEN       the source is read again
    OPEN      the source finished                     FINISHED   the sink is told once its backlog is out
    OPEN      writing to the sink failed              BROKEN     the sink's own flow goes on: what it sent is wanted
    PAUSED    flushing to the sink failed             BROKEN     likewise
    FINISHED  flushing to the sink failed             BROKEN     likewise
    BROKEN    bytes came                              BROKEN     thrown away
    OPEN      reading the source failed               —          the session ends

A session ends when both flows are FINISHED or BROKEN and nothing is left to flush, when a source fails, or when
somebody calls close(). Its reason is the first thing that happened to it. Payload stays out of the table: the loop
below moves bytes and changes no state while they only flow.
"""

import asyncio
import time
from collections.abc import Callable, MutableSequence, MutableSet

from portguard.gateway.ends import READ_MAX, End, TruncatedError, WriteFirstError
from portguard.gateway.gates import Gate, unlimited
from portguard.gateway.lingering import Lingering
from portguard.gateway.slots import ACTIVITY, RECEIVED, SENT
from portguard.reasons import Reason

# How much is read at a time: little until a flow proves to be bulk, since a sink that blocks makes it backlog.
_READ_FIRST = 64 * 1024

_OPEN, _WAITING, _BLOCKED, _PAUSED, _FINISHED, _BROKEN = range(6)

_NS = 1_000_000_000

Cells = memoryview | MutableSequence[int]


class _Flow:
    """Bytes one way."""

    __slots__ = ("back", "counter", "gate", "limit", "sink", "source", "state")

    back: "_Flow"  # the other way

    def __init__(self, source: End, sink: End, counter: int, gate: Gate | None):
        self.source = source
        self.sink = sink
        self.counter = counter  # where in the cells its bytes are counted
        self.gate = gate  # None: it may move what it likes
        self.limit = _READ_FIRST
        self.state = _OPEN

    @property
    def over(self) -> bool:
        return self.state >= _FINISHED


class Relay:
    """The relay of one session. After start() has begun, `on_end(relay, reason)` is called exactly once.

    `cells[base + RECEIVED]` and `[base + SENT]` count the bytes from and to the client that were passed on, each
    before it is, so that a process that is killed has counted at least what it passed on. `gates` are those of the two;
    `[base + ACTIVITY]` is when a byte last moved or a side finished, in nanoseconds of the monotonic clock. The
    timeouts are seconds, None for never: `idle_s` without activity in either direction, `half_close_s` likewise once
    one side has finished, `session_s` altogether. They act when sweep() is called.
    """

    __slots__ = (
        "_base",
        "_cells",
        "_client",
        "_deadline_ns",
        "_down",
        "_half_close_ns",
        "_idle_ns",
        "_lingering",
        "_loop",
        "_on_end",
        "_reason",
        "_up",
        "_upstream",
        "ended",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: End,
        upstream: End,
        *,
        cells: Cells,
        base: int,
        on_end: Callable[["Relay", Reason], None],
        lingering: MutableSet[Lingering],
        idle_s: float | None = None,
        half_close_s: float | None = None,
        session_s: float | None = None,
        gates: tuple[Gate | None, Gate | None] = (None, None),
    ):
        self._loop = loop
        self._client = client
        self._upstream = upstream
        self._cells = cells
        self._base = base
        self._on_end = on_end
        self._lingering = lingering
        self._up = _Flow(client, upstream, base + RECEIVED, gates[0])
        self._down = _Flow(upstream, client, base + SENT, gates[1])
        self._up.back, self._down.back = self._down, self._up
        self._reason: Reason | None = None
        self.ended = False
        now_ns = time.monotonic_ns()
        cells[base + ACTIVITY] = now_ns
        self._idle_ns = None if idle_s is None else int(idle_s * _NS)
        self._half_close_ns = None if half_close_s is None else int(half_close_s * _NS)
        self._deadline_ns = None if session_s is None else now_ns + int(session_s * _NS)

    def start(self, early: bytes = b"") -> None:
        """Begin. `early` is what the client sent already for the service; it goes first. It may end at once."""
        for flow in (self._up, self._down):
            self._loop.add_reader(flow.source.sock, self._on_readable, flow)
        if early:
            self._deliver(self._up, memoryview(early))
        for flow in (self._up, self._down):
            # Also when paused: no event will ever tell of what is here already.
            if not flow.over and not self.ended:
                self._read_ahead(flow)

    def limit(
        self, *, idle_s: float | None, half_close_s: float | None, session_s: float | None, began_ns: int
    ) -> None:
        """Go on with other timeouts; `session_s` counts from `began_ns`, of the monotonic clock."""
        self._idle_ns = None if idle_s is None else int(idle_s * _NS)
        self._half_close_ns = None if half_close_s is None else int(half_close_s * _NS)
        self._deadline_ns = None if session_s is None else began_ns + int(session_s * _NS)

    def pass_through(self, gates: tuple[Gate | None, Gate | None]) -> None:
        """Go on with other gates, up and down. What is held goes first."""
        for flow, gate in zip((self._up, self._down), gates, strict=True):
            held = flow.gate.held if flow.gate is not None else b""
            flow.gate = unlimited() if gate is None and held else gate
            if flow.gate is not None:
                flow.gate.held = held
            if flow.state == _WAITING and not self.ended:
                self._open(flow)

    def close(self, reason: Reason) -> None:
        """End the session now. Both sides get what was counted; where there is TLS, they can tell it was not all."""
        self._end(reason, clean=False)

    def sweep(self, now_ns: int) -> None:
        """End the session if one of its timeouts has passed."""
        silent_ns = now_ns - self._cells[self._base + ACTIVITY]
        half_closed = self._up.over or self._down.over
        if half_closed and self._half_close_ns is not None and silent_ns > self._half_close_ns:
            self.close(Reason.HALF_CLOSE_TIMEOUT)
        elif self._idle_ns is not None and silent_ns > self._idle_ns:
            self.close(Reason.IDLE_TIMEOUT)
        elif self._deadline_ns is not None and now_ns > self._deadline_ns:
            self.close(Reason.SESSION_TIMEOUT)

    # The way of the bytes.

    def _on_readable(self, flow: _Flow) -> None:
        source, gate = flow.source, flow.gate
        try:
            data = source.read(flow.limit if gate is None else gate.clip(flow.limit))
            # A reset takes nothing from a good end: who has said all and closes with something unread resets too.
            broken = not source.eof and source.broken()
        except WriteFirstError:
            flow.state = _BLOCKED
            self._block(flow)
            return
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._source_failed(flow, error)
            return
        if broken:
            self._loop.call_soon(self._watch_again, flow)
        self._deliver(flow, data)

    def _block(self, flow: _Flow) -> None:
        """Read the source no more until its backlog is out: it would stay readable for ever."""
        self._loop.remove_reader(flow.source.sock)
        self._loop.add_writer(flow.source.sock, self._on_writable, flow.back)

    def _unblock(self, flow: _Flow) -> None:
        if self.ended:
            return
        if flow.state == _BLOCKED:
            self._open(flow)
        elif flow.state == _BROKEN and not flow.source.eof:
            self._loop.add_reader(flow.source.sock, self._on_unwanted, flow)

    def _watch_again(self, flow: _Flow) -> None:
        """Go on reading what came before a connection broke.

        uvloop reports a broken connection once and then watches it no more, however much is left to read.
        """
        if flow.state == _OPEN and not self.ended:
            self._loop.remove_reader(flow.source.sock)
            self._loop.add_reader(flow.source.sock, self._on_readable, flow)

    def _read_ahead(self, flow: _Flow) -> None:
        try:
            data = flow.source.read_ahead()
        except OSError as error:
            self._source_failed(flow, error)
            return
        self._deliver(flow, data)

    def _deliver(self, flow: _Flow, data: memoryview) -> None:
        count = len(data)
        source, sink = flow.source, flow.sink
        if source.backlog and flow.back.state < _PAUSED:  # a greeting that is not out yet, or an answer of TLS's own
            self._loop.add_writer(source.sock, self._on_writable, flow.back)
        if count and flow.gate is not None:
            data = flow.gate.take(data)
            count = len(data)
        if count:
            cells = self._cells
            cells[flow.counter] += count
            cells[self._base + ACTIVITY] = time.monotonic_ns()
            try:
                sink.write(data)
            except OSError as error:
                cells[flow.counter] -= count
                if flow.gate is not None:
                    flow.gate.give_back(count)
                self._sink_failed(flow, error)
                if flow.gate is not None:  # after it, as a flow that goes on may end this session too
                    flow.gate.wake()
                return
            if sink.backlog:
                self._pause(flow)
            elif flow.limit < READ_MAX and count > flow.limit - flow.limit // 8:  # of ciphertext, a little is lost
                flow.limit *= 2
        if flow.gate is not None and flow.gate.held:
            self._wait(flow)
        elif source.eof:
            self._source_ended(flow)

    def _wait(self, flow: _Flow) -> None:
        if flow.state == _OPEN:  # else it is paused, and will come by here once its sink takes more
            assert flow.gate is not None
            flow.state = _WAITING
            self._loop.remove_reader(flow.source.sock)
            flow.gate.wait(self._on_allowed, flow)

    def _on_allowed(self, flow: _Flow) -> None:
        if flow.state == _WAITING and not self.ended:
            self._open(flow)

    def _open(self, flow: _Flow) -> None:
        """Read the source again, and pass on first what was held."""
        flow.state = _OPEN
        self._loop.add_reader(flow.source.sock, self._on_readable, flow)
        if flow.gate is not None and flow.gate.held:
            self._deliver(flow, flow.gate.take_held())

    def _pause(self, flow: _Flow) -> None:
        flow.limit = _READ_FIRST
        if flow.state == _OPEN:
            flow.state = _PAUSED
            self._loop.remove_reader(flow.source.sock)
        self._loop.add_writer(flow.sink.sock, self._on_writable, flow)

    def _on_writable(self, flow: _Flow) -> None:
        back = flow.back
        try:
            flow.sink.flush()
        except OSError as error:
            self._sink_failed(flow, error)
            return
        # A slow reader is not a silent one: its session must not time out over what it still takes.
        self._cells[self._base + ACTIVITY] = time.monotonic_ns()
        if flow.sink.backlog:
            return
        self._loop.remove_writer(flow.sink.sock)
        if flow.state == _PAUSED:
            self._open(flow)
        self._unblock(back)
        self._end_if_over()

    # What ends a flow, and the session.

    def _source_ended(self, flow: _Flow) -> None:
        if flow.source.failure is not None:
            self._source_failed(flow, flow.source.failure)
            return
        if flow.state == _OPEN:
            self._loop.remove_reader(flow.source.sock)
        self._over(flow, _FINISHED, Reason.CLIENT_CLOSED if flow is self._up else Reason.UPSTREAM_CLOSED)
        try:
            flow.sink.finish()
        except OSError as error:
            self._sink_failed(flow, error)
            return
        if flow.sink.backlog:
            self._loop.add_writer(flow.sink.sock, self._on_writable, flow)
        self._end_if_over()

    def _sink_failed(self, flow: _Flow, error: OSError) -> None:
        back = flow.back
        if flow.state == _OPEN:
            self._loop.remove_reader(flow.source.sock)
        self._loop.remove_writer(flow.sink.sock)
        self._over(flow, _BROKEN, Reason.UPSTREAM_RESET if flow is self._up else Reason.CLIENT_RESET)
        flow.sink.failure = error
        self._end_if_over()
        if not self.ended and not flow.source.eof:
            # Who is stuck with sending this may take nothing either, and what is left for it would never get out.
            self._loop.add_reader(flow.source.sock, self._on_unwanted, flow)
        self._unblock(back)  # there is nothing left to take

    def _on_unwanted(self, flow: _Flow) -> None:
        source = flow.source
        try:
            source.read(_READ_FIRST)
            if not source.eof:
                source.broken()
        except WriteFirstError:
            self._block(flow)
            return
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._source_failed(flow, error)
            return
        if source.failure is not None:
            self._source_failed(flow, source.failure)
        elif source.eof:
            self._loop.remove_reader(source.sock)
        elif source.backlog and flow.back.state < _PAUSED:
            self._loop.add_writer(source.sock, self._on_writable, flow.back)

    def _over(self, flow: _Flow, state: int, reason: Reason) -> None:
        flow.state = state
        # From now on the half-close timeout counts, and not from a byte that may have moved an hour ago.
        self._cells[self._base + ACTIVITY] = time.monotonic_ns()
        if self._reason is None:
            self._reason = reason

    def _source_failed(self, flow: _Flow, error: OSError) -> None:
        from_client = flow is self._up
        if not from_client:
            reason = Reason.UPSTREAM_RESET
        elif isinstance(error, TruncatedError):
            reason = Reason.CLIENT_TRUNCATED
        else:
            reason = Reason.CLIENT_RESET
        self._end(self._reason or reason, clean=False, upstream_reset=from_client)

    def _end_if_over(self) -> None:
        if self._up.over and self._down.over and not self._client.backlog and not self._upstream.backlog:
            assert self._reason is not None
            self._end(self._reason, clean=True)

    def _end(self, reason: Reason, *, clean: bool, upstream_reset: bool = False) -> None:
        if self.ended:
            return
        self.ended = True
        for end in (self._client, self._upstream):
            self._loop.remove_reader(end.sock)
            self._loop.remove_writer(end.sock)
        if self._up.state == self._down.state == _FINISHED and clean:
            # Both sides have said that nothing follows: no input can come that would turn the close into a reset.
            self._client.sock.close()
            self._upstream.sock.close()
        else:
            self._linger(self._client, clean=clean)
            if upstream_reset:
                self._upstream.reset()
            else:
                self._linger(self._upstream, clean=clean)
        on_end = self._on_end
        # Cycles: they would keep both ends, and the memory of TLS with them, until the garbage collector comes by.
        del self._on_end, self._up.back, self._down.back
        on_end(self, reason)

    def _linger(self, end: End, *, clean: bool) -> None:
        lingering = Lingering(self._loop, end, self._lingering.discard, clean=clean)
        if not lingering.closed:
            self._lingering.add(lingering)
