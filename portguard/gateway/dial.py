"""Connections to services: to which address, in which order, for how long, and what to remember of failures.

Some services want to hear something first, a PROXY header or a TLS handshake: who does not answer to that has not been
reached. Upstreams of a service are tried one after the other, in order of preference or each in turn. An address that
failed rests, 5 s at first and twice as long at each further failure up to 60 s: it is then tried after the others, not
never. When a rest ends, one session tries the address while others still pass it by.

The timeout is for the whole dial. Each attempt gets an equal share of what is left, so that a first address that
swallows packets leaves time for the second; what an attempt does not use goes to those after it.
"""

import asyncio
import functools
import random
import socket
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar

import aiohappyeyeballs

from portguard.errors import Refused
from portguard.gateway.connecting import FailedAttempt, check_not_itself, connect, open_socket
from portguard.gateway.ends import End, PlainEnd
from portguard.gateway.resolve import FamilyAddress, Names, SocketAddress, Unresolved
from portguard.policy.model import ProxyProtocol, Service, Upstream, UpstreamTls
from portguard.reasons import Reason

_T = TypeVar("_T")
_K = TypeVar("_K")

REST_S = 5.0
LONGEST_REST_S = 60.0
_MOST_RESTS = 1024  # names may resolve to ever new addresses

_ATTEMPT_DELAY_S = 0.25  # RFC 8305, section 5: "Connection Attempt Delay"


@dataclass(frozen=True, slots=True)
class Dialed:
    """A connection to a service, the caller's to close; `address` is where it leads, "10.0.3.7:5432"."""

    end: End
    upstream: Upstream
    address: str


Greet = Callable[[socket.socket, Upstream], Awaitable[End]]
"""Says to an upstream what it wants to hear first. Raises FailedAttempt; then the socket is still the caller's."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One upstream that could not be reached."""

    upstream: Upstream
    reason: Reason
    found: str

    def __str__(self) -> str:
        return f"{self.upstream}: {self.found}"


class DialFailed(Refused):
    """No upstream of a service could be reached. `attempts` is for the log: its addresses are no client's business."""

    def __init__(self, attempts: Sequence[Attempt]):
        self.attempts = tuple(attempts)
        reasons = {attempt.reason for attempt in attempts}
        # "unresolved" and "timeout" are said only where that is the whole truth.
        super().__init__(reasons.pop() if len(reasons) == 1 else Reason.UPSTREAM_UNREACHABLE)

    @property
    def detail(self) -> str:
        """`10.0.3.7:5432: Connection refused; db.internal:5432: the resolver did not answer in time`."""
        return "; ".join(map(str, self.attempts))


class Dialer:
    """Dials services, and remembers which addresses failed. Belongs to one event loop.

    `clock` counts seconds, None is the loop's. `first` picks where round-robin begins among n upstreams: by chance, as
    each worker has its own dialer, and all would begin with the same one. `attempt_delay_s` is how long one address of
    a name has before the next one is tried beside it.
    """

    def __init__(
        self,
        *,
        names: Names | None = None,
        clock: Callable[[], float] | None = None,
        first: Callable[[int], int] = random.randrange,
        attempt_delay_s: float = _ATTEMPT_DELAY_S,
    ):
        self._names = names or Names(clock=clock)
        self._clock = clock
        self._first = first
        self._attempt_delay_s = attempt_delay_s
        self._turns: dict[str, int] = {}  # by service
        self._rests: dict[_Key, _Rest] = {}  # only what failed last time it was tried
        self._tried: dict[Upstream, bool] = {}  # those since they were taken; whether the last attempt reached them

    def take_tried(self) -> dict[Upstream, bool]:
        """Which upstreams were tried since the last call, and whether the last attempt reached them."""
        tried, self._tried = self._tried, {}
        return tried

    async def dial(self, service: Service, *, timeout_s: float, greet: Greet | None = None) -> Dialed:
        """Connect to an upstream of `service`, and greet it, in at most `timeout_s`. Cancelling it leaves nothing open.

        Raises DialFailed (upstream_unreachable, upstream_timeout, upstream_unresolved, upstream_tls), and Refused
        (gateway_full) when the gateway has no descriptor or memory left for a socket, for which no upstream is to
        blame.
        """
        loop = asyncio.get_running_loop()
        clock = self._clock or loop.time
        deadline = loop.time() + timeout_s
        order = self._in_order(service, clock())
        failed: list[Attempt] = []
        for position, upstream in enumerate(order):
            until_s = (now_s := loop.time()) + max(0.0, deadline - now_s) / (len(order) - position)
            way = _way(service, upstream)
            failures = self._begin(way, clock())
            connected = False
            try:
                sock, address = await self._attempt(loop, upstream, until_s - loop.time())
                connected = True
                end = PlainEnd(sock) if greet is None else await _greeted(sock, upstream, greet, until_s - loop.time())
            except FailedAttempt as attempt:
                self._tried[upstream] = connected
                self._rest(way, clock(), failures)
                failed.append(Attempt(upstream, attempt.reason, attempt.found))
                continue
            self._tried[upstream] = True
            self._rests.pop(way, None)
            return Dialed(end, upstream, address)
        raise DialFailed(failed)

    def retain(self, services: Iterable[Service]) -> None:
        """Forget what is remembered of upstreams and services other than these, after a reload."""
        services = list(services)
        _retain(self._rests, {_way(service, upstream) for service in services for upstream in service.upstreams})
        _retain(self._turns, {service.name for service in services})

    async def close(self) -> None:
        """Give up names that are being resolved. Dials under way are their callers' to cancel."""
        await self._names.close()

    # The order.

    def _in_order(self, service: Service, now_s: float) -> Sequence[Upstream]:
        upstreams = service.upstreams
        if len(upstreams) == 1:
            return upstreams
        if service.balance == "round-robin":
            turn = self._turns.get(service.name)
            if turn is None:
                turn = self._first(len(upstreams))
            self._turns[service.name] = turn + 1
            turn %= len(upstreams)
            upstreams = upstreams[turn:] + upstreams[:turn]
        return self._rested_first(upstreams, now_s, lambda upstream: _way(service, upstream))

    def _rested_first(self, items: Sequence[_T], now_s: float, key: "Callable[[_T], _Key]") -> Sequence[_T]:
        if not self._rests:
            return items
        return sorted(items, key=lambda item: self._is_resting(key(item), now_s))

    # Who rests.

    def _is_resting(self, key: "_Key", now_s: float) -> bool:
        rest = self._rests.get(key)
        return rest is not None and now_s < rest.until_s

    def _begin(self, key: "_Key", now_s: float) -> int:
        """Note that an attempt begins; the answer goes to _rest() if it fails."""
        rest = self._rests.get(key)
        if rest is None:
            return 0
        if now_s < rest.until_s:
            return -1
        # Its rest is over. Until this one knows more, the others go on passing it by.
        rest.until_s = now_s + rest.length_s
        return rest.failures

    def _rest(self, key: "_Key", now_s: float, failures: int) -> None:
        """Let an address rest. Of many attempts that fail together, one counts; those made during a rest do not."""
        rest = self._rests.get(key)
        if rest is None:
            if len(self._rests) >= _MOST_RESTS:
                self._rests = {key: rest for key, rest in self._rests.items() if now_s < rest.until_s}
            rest = self._rests[key] = _Rest()
        elif rest.failures == failures:
            rest.failures += 1
        rest.until_s = now_s + rest.length_s

    # One attempt.

    async def _attempt(
        self, loop: asyncio.AbstractEventLoop, upstream: Upstream, timeout_s: float
    ) -> tuple[socket.socket, str]:
        """Connect to one upstream. Raises FailedAttempt, or Refused when no socket can be had."""
        try:
            if upstream.path is not None:
                return await connect(loop, socket.AF_UNIX, upstream.path, timeout_s), str(upstream)
            deadline = loop.time() + timeout_s
            addresses = await self._addresses(upstream, timeout_s)
            if len(addresses) == 1:
                family, address = addresses[0]
                sock = await connect(loop, family, address, max(0.0, deadline - loop.time()))
            else:
                sock, address = await self._race(loop, addresses, max(0.0, deadline - loop.time()))
        except TimeoutError:  # also the kernel's own, ETIMEDOUT
            raise FailedAttempt(Reason.UPSTREAM_TIMEOUT, "no answer in time") from None
        except OSError as error:
            raise FailedAttempt(Reason.UPSTREAM_UNREACHABLE, error.strerror or str(error)) from None
        return sock, _written(address)

    async def _addresses(self, upstream: Upstream, timeout_s: float) -> tuple[FamilyAddress, ...]:
        host, port = upstream.host, upstream.port
        assert host is not None
        assert port is not None
        literal = _literal(host, port)
        if literal is not None:
            return literal
        try:
            async with asyncio.timeout(timeout_s):
                addresses = await self._names.resolve(host)
        except TimeoutError:
            raise FailedAttempt(Reason.UPSTREAM_UNRESOLVED, "the resolver did not answer in time") from None
        except Unresolved as error:
            raise FailedAttempt(Reason.UPSTREAM_UNRESOLVED, str(error)) from None
        return tuple((family, _with_port(address, port)) for family, address in addresses)

    async def _race(
        self, loop: asyncio.AbstractEventLoop, addresses: Sequence[FamilyAddress], timeout_s: float
    ) -> tuple[socket.socket, SocketAddress]:
        """Connect to whichever of a name's addresses answers first, with a head start for those before it (RFC 8305).

        Those that were tried in vain before the winner rest: the next session need not wait for them.
        """
        addresses = self._rested_first(addresses, (self._clock or loop.time)(), lambda item: item[1])
        opened: dict[socket.socket, SocketAddress] = {}
        refusals: list[Refused] = []

        def open_one(info: aiohappyeyeballs.AddrInfoType) -> socket.socket:
            try:
                sock = open_socket(info[0])
            except Refused as refused:
                refusals.append(refused)
                raise OSError(refused.message) from refused
            opened[sock] = info[4]
            return sock

        infos = [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for family, address in addresses]
        task = asyncio.current_task()
        assert task is not None
        cancellations = task.cancelling()
        try:
            async with asyncio.timeout(timeout_s):
                sock = await aiohappyeyeballs.start_connection(
                    infos, happy_eyeballs_delay=self._attempt_delay_s, interleave=0, socket_factory=open_one
                )
        except TimeoutError:
            raise
        except OSError:
            if refusals:
                raise refusals[0] from None
            raise
        try:
            if task.cancelling() > cancellations:
                # While it cancels the losers, the library takes a cancellation of its caller for one of theirs.
                raise asyncio.CancelledError
            check_not_itself(sock, opened[sock])
        except BaseException:
            sock.close()
            raise
        address = opened[sock]
        now_s = (self._clock or loop.time)()
        for _, before in addresses:
            if before == address:
                break
            rest = self._rests.get(before)
            self._rest(before, now_s, rest.failures if rest is not None else 0)
        self._rests.pop(address, None)
        return sock, address


_Way = tuple[Upstream, UpstreamTls | None, ProxyProtocol]
"""An upstream, and how it is spoken to: one that fails at TLS may be right for a service without."""

_Key = _Way | SocketAddress


def _way(service: Service, upstream: Upstream) -> _Way:
    return upstream, service.tls, service.proxy_protocol


def _retain(remembered: dict[_K, Any], kept: Container[object]) -> None:
    for key in [key for key in remembered if key not in kept]:
        del remembered[key]


class _Rest:
    __slots__ = ("failures", "until_s")

    def __init__(self) -> None:
        self.failures = 1
        self.until_s = 0.0

    @property
    def length_s(self) -> float:
        return min(REST_S * 2.0 ** min(self.failures - 1, 10), LONGEST_REST_S)


async def _greeted(sock: socket.socket, upstream: Upstream, greet: Greet, timeout_s: float) -> End:
    """Return the end of an upstream that was greeted. Raises FailedAttempt; then the socket is closed."""
    try:
        async with asyncio.timeout(timeout_s):
            return await greet(sock, upstream)
    except TimeoutError:
        sock.close()
        raise FailedAttempt(Reason.UPSTREAM_TIMEOUT, "connected, and then no answer in time") from None
    except BaseException:
        sock.close()
        raise


@functools.lru_cache(maxsize=4096)
def _literal(host: str, port: int) -> tuple[FamilyAddress, ...] | None:
    """The address that `host` spells out, None when it is a name."""
    try:
        version = ip_address(host).version
    except ValueError:
        return None
    return ((socket.AF_INET, (host, port)),) if version == 4 else ((socket.AF_INET6, (host, port, 0, 0)),)


def _with_port(address: SocketAddress, port: int) -> SocketAddress:
    return (address[0], port) if len(address) == 2 else (address[0], port, address[2], address[3])


def _written(address: SocketAddress) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
