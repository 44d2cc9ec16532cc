"""What comes out of a relay is what went in, however it is cut, whoever is ready first, and whoever finishes first.

A script of actions is played: a peer sends, receives or finishes; the loop runs what is ready. On the scripted loop
the script also picks which of the ready callbacks runs next. Unix sockets with tiny buffers force backlogs and have
no timers of their own, so that the same script always plays the same.
"""

import asyncio
import contextlib
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any, Literal

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from portguard.client.tls_end import BufferedTlsEnd
from portguard.gateway.ends import End, PlainEnd, TlsEnd
from portguard.gateway.lingering import Lingering
from portguard.gateway.relay import Relay
from portguard.gateway.slots import RECEIVED, SENT
from portguard.reasons import Reason
from portguard.tls.endpoint import Endpoint
from portguard.tls.tls_socket import prepare, wrap
from tests.peers import NAME, Kind, pki, shake_hands, shake_hands_on
from tests.relayed import noise

TINY = 2304  # SO_SNDBUF: the kernel makes it 4608
FINAL_STEPS = 200_000  # more than any script needs to come to rest

Side = Literal["client", "upstream"]


class ScriptedLoop:
    """The part of an event loop that a relay uses, one callback at a time."""

    def __init__(self) -> None:
        self._watched: dict[tuple[int, int], Callable[[], None]] = {}
        self._soon: list[Callable[[], None]] = []

    def step(self, choice: int) -> None:
        """Run one of the callbacks that are ready."""
        poll = select.poll()
        for descriptor in {descriptor for descriptor, _ in self._watched}:
            poll.register(descriptor, sum(event for other, event in self._watched if other == descriptor))
        ready = list(self._soon)
        for descriptor, events in poll.poll(0):
            broken = events & (select.POLLERR | select.POLLHUP)
            ready += [
                self._watched[descriptor, event]
                for event in (select.POLLIN, select.POLLOUT)
                if (events & event or broken) and (descriptor, event) in self._watched
            ]
        if ready:
            callback = ready[choice % len(ready)]
            if callback in self._soon:
                self._soon.remove(callback)
            callback()

    def close(self) -> None:
        assert not self._watched

    def time(self) -> float:
        return 0.0

    def call_later(self, _delay_s: float, _callback: Callable[[], None]) -> "ScriptedLoop":
        return self  # time stands still

    def cancel(self) -> None: ...

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        self._soon.append(lambda: callback(*args))

    def add_reader(self, sock: socket.socket, callback: Callable[..., None], *args: Any) -> None:
        self._watched[sock.fileno(), select.POLLIN] = lambda: callback(*args)

    def add_writer(self, sock: socket.socket, callback: Callable[..., None], *args: Any) -> None:
        self._watched[sock.fileno(), select.POLLOUT] = lambda: callback(*args)

    def remove_reader(self, sock: socket.socket) -> bool:
        return self._watched.pop((sock.fileno(), select.POLLIN), None) is not None

    def remove_writer(self, sock: socket.socket) -> bool:
        return self._watched.pop((sock.fileno(), select.POLLOUT), None) is not None


class RealLoop:
    """A real event loop, run for one turn a step."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop

    def step(self, _choice: int) -> None:
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def close(self) -> None:
        self.loop.close()


LOOPS: dict[str, Callable[[], Any]] = {
    "scripted": ScriptedLoop,
    "asyncio": lambda: RealLoop(asyncio.SelectorEventLoop()),
    "uvloop": lambda: RealLoop(uvloop.new_event_loop()),
}


class Peer:
    """The far side. Nothing in it waits: what the socket does not take is tried again at the next pump()."""

    def __init__(self, sock: socket.socket, tls: tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO] | None):
        self._sock = sock
        self._tls = tls
        self._unsent = b""
        self._shut = False
        self.given = b""  # to be sent, in plain text
        self.received = bytearray()
        self.finishing = False
        self.ending: str | None = None

    def send(self, data: bytes) -> None:
        if self.finishing:
            return
        self.given += data
        if self._tls is not None:
            self._tls[0].write(data)
            data = self._tls[2].read()
        self._unsent += data
        self.pump()

    def finish(self, *, clean: bool = True) -> None:
        if self.finishing:
            return
        self.finishing = True
        if self._tls is not None and clean:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls[0].unwrap()
            self._unsent += self._tls[2].read()
        self.pump()

    def pump(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
            if self.finishing and not self._shut:
                self._shut = True
                self._sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = b""

    def receive(self, limit: int) -> None:
        """Take at most `limit` bytes off the socket."""
        if self.ending is not None:
            return
        try:
            data = self._sock.recv(limit)
        except BlockingIOError:
            return
        except OSError:
            self.ending = "reset"
            return
        if self._tls is None:
            self.received += data
            if not data:
                self.ending = "end"
            return
        tls, incoming, _ = self._tls
        incoming.write(data)
        try:
            while plaintext := tls.read(65536):
                self.received += plaintext
            self.ending = "end"
        except ssl.SSLZeroReturnError:
            self.ending = "end"
        except ssl.SSLWantReadError:
            if not data:
                self.ending = "truncated"
        except ssl.SSLError as error:
            if error.reason != "TLSV1_ALERT_DECODE_ERROR":  # what OpenSSL says to who ends without close_notify
                raise
            self.ending = "truncated"

    def close(self) -> None:
        self._sock.close()


def joined(kind: Kind, side: Side, buffer: int | None, ahead: bytes) -> tuple[End, Peer]:
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setblocking(False)
    if kind == "plain":
        _size(near, far, buffer)
        return PlainEnd(near), Peer(far, None)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_side = side == "client"
    name = None if server_side else NAME
    tls = (CLIENT if server_side else SERVER).wrap_bio(
        incoming, outgoing, server_side=not server_side, server_hostname=NAME if server_side else None
    )
    context = SERVER if server_side else CLIENT
    peer = Peer(far, (tls, incoming, outgoing))
    if kind == "buffered":
        endpoint = Endpoint(context, server_side=server_side, server_hostname=name)
        shake_hands(endpoint, tls, incoming, outgoing)
        _size(near, far, buffer)
        if ahead:
            tls.write(ahead)
            endpoint.receive(outgoing.read())
            peer.given = ahead
        return BufferedTlsEnd(near, endpoint), peer
    sock = wrap(near, context, server_side=server_side, server_hostname=name)
    shake_hands_on(sock, far, tls, incoming, outgoing)
    _size(sock, far, buffer)
    if ahead:
        peer.send(ahead)
    return TlsEnd(sock), peer


def _size(near: socket.socket, far: socket.socket, buffer: int | None) -> None:
    if buffer is not None:
        for sock in (near, far):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)


CONTEXTS = pki().contexts()
CLIENT = pki().client_context()
prepare(CLIENT)
SERVER = CONTEXTS.by_name

kinds = st.sampled_from(["plain", "tls", "buffered"])
sides = st.sampled_from(["client", "upstream"])
amounts = st.one_of(st.integers(1, 40), st.integers(1, 40_000), st.just(140_000))
actions = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 7)),
    st.tuples(st.just("step"), st.integers(0, 7)),
    st.tuples(st.just("send"), sides, amounts),
    st.tuples(st.just("receive"), sides, amounts),
    st.tuples(st.just("finish"), sides),
)
endings = st.sampled_from(["finish", "finish", "close", "truncate client", "truncate upstream"])


@pytest.mark.parametrize("loop_name", LOOPS)
@given(
    client_kind=kinds,
    upstream_kind=kinds,
    client_buffer=st.sampled_from([None, TINY]),
    upstream_buffer=st.sampled_from([None, TINY]),
    early=st.sampled_from([0, 0, 1, 30_000]),
    ahead=st.tuples(st.sampled_from([0, 0, 9, 20_000]), st.sampled_from([0, 0, 9])),
    script=st.lists(actions, max_size=40),
    ending=endings,
    choices=st.lists(st.integers(0, 7), min_size=1, max_size=20),
)
def test_what_comes_out_is_what_went_in(
    loop_name: str,
    client_kind: Kind,
    upstream_kind: Kind,
    client_buffer: int | None,
    upstream_buffer: int | None,
    early: int,
    ahead: tuple[int, int],
    script: list[tuple[Any, ...]],
    ending: str,
    choices: list[int],
) -> None:
    stage = LOOPS[loop_name]()
    loop = stage.loop if isinstance(stage, RealLoop) else stage
    client_end, client = joined(client_kind, "client", client_buffer, noise(ahead[0]))
    upstream_end, upstream = joined(upstream_kind, "upstream", upstream_buffer, noise(ahead[1]))
    early_bytes = noise(early)[::-1]
    client.given = early_bytes + client.given
    peers = {"client": client, "upstream": upstream}
    cells, reasons, lingering = [0] * 8, list[Reason](), set[Lingering]()
    relay = Relay(
        loop,
        client_end,
        upstream_end,
        cells=cells,
        base=0,
        on_end=lambda _, reason: reasons.append(reason),
        lingering=lingering,
    )
    relay.start(early_bytes)
    for action in script:
        match action:
            case ("step", choice):
                stage.step(choice)
            case ("send", side, amount):
                peers[side].send(noise(amount + len(peers[side].given))[-amount:])
            case ("receive", side, amount):
                peers[side].receive(amount)
            case ("finish", side):
                peers[side].finish()

    counted = broken = None
    if ending == "close" and not relay.ended:
        relay.close(Reason.KILLED)
        counted = cells[RECEIVED], cells[SENT]
    elif ending.startswith("truncate"):
        side = ending.split()[1]
        if not peers[side].finishing and {"client": client_kind, "upstream": upstream_kind}[side] != "plain":
            peers[side].finish(clean=False)
            broken = side
    for peer in peers.values():
        peer.finish()
    steps = 0
    while not (relay.ended and client.ending and upstream.ending):
        stage.step(choices[steps % len(choices)])
        for peer in peers.values():
            peer.pump()
            peer.receive(65536)
        steps += 1
        assert steps < FINAL_STEPS
    for peer in peers.values():
        peer.close()
    while lingering:
        stage.step(0)
    stage.close()

    assert len(reasons) == 1
    assert client_end.sock.fileno() == upstream_end.sock.fileno() == -1
    up, down = bytes(upstream.received), bytes(client.received)
    assert client.given.startswith(up)
    assert upstream.given.startswith(down)
    if upstream_kind != "plain" and upstream.ending == "end":
        assert up == client.given
    if client_kind != "plain" and client.ending == "end":
        assert down == upstream.given
    if counted is not None:
        assert (len(up), len(down)) == counted
    elif broken == "client":
        assert upstream.ending != "end" or upstream_kind == "plain"
        assert reasons[0] in (Reason.CLIENT_TRUNCATED, Reason.UPSTREAM_CLOSED)
    elif broken == "upstream":
        assert client.ending == "truncated" or client_kind == "plain"
        assert down == upstream.given
        assert reasons[0] in (Reason.UPSTREAM_RESET, Reason.CLIENT_CLOSED)
    else:
        assert (up, down) == (client.given, upstream.given)
        assert (upstream.ending, client.ending) == ("end", "end")
        assert (cells[RECEIVED], cells[SENT]) == (len(up), len(down))
        assert reasons[0] in (Reason.CLIENT_CLOSED, Reason.UPSTREAM_CLOSED)
