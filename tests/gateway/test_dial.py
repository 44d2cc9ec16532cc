import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import aiohappyeyeballs
import pytest
import uvloop

from portguard.errors import Refused
from portguard.gateway import connecting, dial
from portguard.gateway.connecting import FailedAttempt
from portguard.gateway.dial import Dialed, Dialer, DialFailed, Greet
from portguard.gateway.ends import End, PlainEnd
from portguard.gateway.resolve import AddressInfo, Names
from portguard.policy.model import Balance, Service, Upstream, UpstreamTls
from portguard.reasons import Reason
from tests.descriptors import open_descriptors

LONG_S = 30.0  # more than any test takes: what succeeds with it did not wait for a timeout
SHORT_S = 0.2  # what has to run into a timeout


def service(*upstreams: Upstream, balance: Balance = "failover", name: str = "orders-db") -> Service:
    return Service(name, upstreams, balance)


class Backend:
    """A port that refuses connections until it listens."""

    def __init__(self, host: str = "127.0.0.1"):
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.sock.bind((host, 0))
        self.host, self.port = self.sock.getsockname()[:2]

    def listen(self) -> "Backend":
        self.sock.listen(100)
        return self

    @property
    def upstream(self) -> Upstream:
        return Upstream(self.host, self.port)

    def accept(self) -> socket.socket:
        return self.sock.accept()[0]


@pytest.fixture
def backend() -> Iterator[Callable[..., Backend]]:
    made: list[Backend] = []

    def make(host: str = "127.0.0.1") -> Backend:
        made.append(Backend(host))
        return made[-1]

    yield make
    for one in made:
        one.sock.close()


@pytest.fixture
def black_hole() -> Iterator[Callable[..., Upstream]]:
    """An address that answers nothing: with a full backlog, Linux drops what else comes."""
    made: list[socket.socket] = []

    def make(host: str = "127.0.0.1", port: int = 0) -> Upstream:
        listener = socket.socket()
        made.append(listener)
        listener.bind((host, port))
        listener.listen(0)
        made.append(socket.create_connection(listener.getsockname()))
        return Upstream(*listener.getsockname())

    yield make
    for one in made:
        one.close()


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
async def nothing_stays_open() -> AsyncIterator[None]:
    await asyncio.sleep(0)  # the loop has its own sockets by now
    before = open_descriptors()
    yield
    for sock in _dialed:
        sock.close()
    _dialed.clear()
    # Not which: the loop has other sockets of its own each time it runs.
    assert len(open_descriptors()) == len(before)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Every descriptor that this process may have is taken."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, open_descriptors())) + 10, limits[1]))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)


_dialed: list[socket.socket] = []


async def dialed(dialer: Dialer, to: Service, timeout_s: float = LONG_S, greet: Greet | None = None) -> Dialed:
    answer = await dialer.dial(to, timeout_s=timeout_s, greet=greet)
    _dialed.append(answer.end.sock)
    return answer


async def failure(dialer: Dialer, to: Service, timeout_s: float = LONG_S, greet: Greet | None = None) -> DialFailed:
    with pytest.raises(DialFailed) as caught:
        await dialer.dial(to, timeout_s=timeout_s, greet=greet)
    return caught.value


def names(**known: list[str] | Exception) -> Names:
    async def lookup(host: str) -> list[AddressInfo]:
        answer = known[host]
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in answer]

    return Names(lookup=lookup)


async def moved(there: socket.socket, here: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(here, b"bytes")
    there.setblocking(False)
    with there:
        return await loop.sock_recv(there, 100)


async def test_the_gateways_tests_run_on_the_gateways_loop() -> None:
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)


# One upstream


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_address_is_reached(backend: Callable[..., Backend], host: str) -> None:
    there = backend(host).listen()
    answer = await dialed(Dialer(), service(there.upstream))
    assert answer.upstream is not None
    assert answer.address == str(answer.upstream) == str(there.upstream)
    assert await moved(there.accept(), answer.end.sock) == b"bytes"


async def test_a_unix_socket_is_reached(tmp_path: Path) -> None:
    path = str(tmp_path / "backend.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        answer = await dialed(Dialer(), service(Upstream(path=path)))
        assert answer.address == f"unix:{path}"
        assert not answer.end.sock.getblocking()
        assert await moved(listener.accept()[0], answer.end.sock) == b"bytes"


async def test_a_name_is_reached(backend: Callable[..., Backend]) -> None:
    there = backend().listen()
    # The real resolver; it may know ::1 too, where nobody listens.
    answer = await dialed(Dialer(), service(Upstream("localhost", there.port)))
    assert answer.address == f"127.0.0.1:{there.port}"
    assert str(answer.upstream) == f"localhost:{there.port}"
    assert await moved(there.accept(), answer.end.sock) == b"bytes"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_dialed_socket_does_not_block_or_wait_and_notices_a_dead_peer(
    backend: Callable[..., Backend], host: str
) -> None:
    sock = (await dialed(Dialer(), service(Upstream(host, backend().listen().port)))).end.sock
    assert not sock.getblocking()
    assert not sock.get_inheritable()
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


async def test_an_address_where_nobody_listens_is_unreachable(backend: Callable[..., Backend]) -> None:
    there = backend().upstream
    error = await failure(Dialer(), service(there))
    assert error.reason is Reason.UPSTREAM_UNREACHABLE
    assert error.detail == f"{there}: Connection refused"
    # What the client is told names no address.
    assert error.message == "the service cannot be reached"


async def test_a_unix_socket_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    error = await failure(Dialer(), service(Upstream(path=str(tmp_path / "nobody.sock"))))
    assert error.reason is Reason.UPSTREAM_UNREACHABLE
    assert error.detail.endswith("nobody.sock: No such file or directory")
    too_long = await failure(Dialer(), service(Upstream(path="/" + "x" * 200)))
    assert "too long" in too_long.detail


async def test_an_address_that_swallows_everything_times_out(black_hole: Callable[..., Upstream]) -> None:
    there = black_hole()
    error = await failure(Dialer(), service(there), SHORT_S)
    assert error.reason is Reason.UPSTREAM_TIMEOUT
    assert error.detail == f"{there}: no answer in time"


async def test_a_socket_that_connected_to_itself_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    real_open = connecting.open_socket

    def open_at_that_port(family: int) -> socket.socket:
        sock = real_open(family)
        sock.bind(("127.0.0.1", port))
        return sock

    monkeypatch.setattr(connecting, "open_socket", open_at_that_port)
    error = await failure(Dialer(), service(Upstream("127.0.0.1", port)))
    assert error.detail == f"127.0.0.1:{port}: Connection refused"


@pytest.mark.parametrize("host", ["127.0.0.1", "both.test"])
async def test_without_descriptors_the_gateway_is_full_and_no_upstream_is_to_blame(
    backend: Callable[..., Backend], host: str
) -> None:
    there = backend().listen()
    dialer = Dialer(names=names(**{"both.test": ["127.0.0.1", "127.0.0.2"]}))
    to = service(Upstream(host, there.port), there.upstream)
    with no_descriptors(), pytest.raises(Refused) as caught:
        await dialer.dial(to, timeout_s=LONG_S)
    assert caught.value.reason is Reason.GATEWAY_FULL
    assert dialer.take_tried() == {}
    assert (await dialed(dialer, to)).upstream == to.upstreams[0]


# Several upstreams


async def test_upstreams_are_tried_in_order_of_preference(backend: Callable[..., Backend]) -> None:
    first, second = backend().listen().upstream, backend().listen().upstream
    dialer = Dialer()
    assert [(await dialed(dialer, service(first, second))).upstream for _ in range(3)] == [first] * 3


async def test_the_next_upstream_takes_over_from_one_that_fails(backend: Callable[..., Backend]) -> None:
    dead, alive = backend().upstream, backend().listen().upstream
    assert (await dialed(Dialer(), service(dead, alive))).upstream == alive


async def test_an_upstream_that_swallows_everything_leaves_time_for_the_next(
    backend: Callable[..., Backend], black_hole: Callable[..., Upstream]
) -> None:
    # A name, because an address on this machine needs no time at all. The host's resolver may need more than there is.
    alive = Upstream("db.test", backend().listen().port)
    holes = [black_hole(), black_hole()]
    dialer = Dialer(names=names(**{"db.test": ["127.0.0.1"]}))
    assert (await dialed(dialer, service(*holes, alive), SHORT_S * 10)).upstream == alive


async def test_upstreams_take_turns_in_round_robin(backend: Callable[..., Backend]) -> None:
    upstreams = [backend().listen().upstream for _ in range(3)]
    dialer = Dialer(first=lambda count: count - 1)
    to = service(*upstreams, balance="round-robin")
    taken = [(await dialed(dialer, to)).upstream for _ in range(5)]
    assert taken == [upstreams[2], upstreams[0], upstreams[1], upstreams[2], upstreams[0]]
    # Another service has turns of its own.
    other = service(*upstreams, balance="round-robin", name="other")
    assert (await dialed(dialer, other)).upstream == upstreams[2]


async def test_round_robin_passes_by_one_that_rests(backend: Callable[..., Backend]) -> None:
    dead, alive = backend().upstream, backend().listen().upstream
    dialer = Dialer(first=lambda _: 0)
    to = service(dead, alive, balance="round-robin")
    assert [(await dialed(dialer, to)).upstream for _ in range(4)] == [alive] * 4


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (["unresolved"], Reason.UPSTREAM_UNRESOLVED),
        (["unresolved", "unresolved"], Reason.UPSTREAM_UNRESOLVED),
        (["timeout", "timeout"], Reason.UPSTREAM_TIMEOUT),
        (["refused", "refused"], Reason.UPSTREAM_UNREACHABLE),
        (["timeout", "refused"], Reason.UPSTREAM_UNREACHABLE),
        (["unresolved", "timeout"], Reason.UPSTREAM_UNREACHABLE),
    ],
)
async def test_the_reason_is_the_whole_truth(
    backend: Callable[..., Backend], black_hole: Callable[..., Upstream], found: list[str], reason: Reason
) -> None:
    make: dict[str, Callable[[], Upstream]] = {
        "unresolved": lambda: Upstream("nobody.test", 1),
        "timeout": black_hole,
        "refused": lambda: backend().upstream,
    }
    dialer = Dialer(names=names(**{"nobody.test": socket.gaierror(socket.EAI_NONAME, "Name or service not known")}))
    error = await failure(dialer, service(*(make[word]() for word in found)), SHORT_S)
    assert error.reason is reason
    assert len(error.attempts) == len(found)


async def test_a_resolver_that_does_not_answer_leaves_time_for_the_next(backend: Callable[..., Backend]) -> None:
    async def never(_: str) -> list[AddressInfo]:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # never answers

    dialer = Dialer(names=Names(lookup=never))
    alive = backend().listen().upstream
    assert (await dialed(dialer, service(Upstream("slow.test", 1), alive), SHORT_S)).upstream == alive
    error = await failure(dialer, service(Upstream("slow.test", 1)), SHORT_S)
    assert error.reason is Reason.UPSTREAM_UNRESOLVED
    assert error.detail == "slow.test:1: the resolver did not answer in time"
    await dialer.close()


# Rest


@pytest.mark.parametrize(("failures", "rest_s"), [(1, 5), (2, 10), (3, 20), (4, 40), (5, 60), (6, 60)])
async def test_an_address_that_failed_rests_for_longer_each_time(
    backend: Callable[..., Backend], clock: Clock, failures: int, rest_s: float
) -> None:
    primary, second = backend(), backend().listen()
    dialer, to = Dialer(clock=clock), service(primary.upstream, second.upstream)
    for _ in range(failures):
        clock.now_s += 60
        assert (await dialed(dialer, to)).upstream == second.upstream
    primary.listen()
    clock.now_s += rest_s - 0.1
    assert (await dialed(dialer, to)).upstream == second.upstream
    clock.now_s += 0.1
    assert (await dialed(dialer, to)).upstream == primary.upstream


async def test_one_success_ends_all_memory_of_failures(backend: Callable[..., Backend], clock: Clock) -> None:
    primary, second = backend(), backend().listen()
    dialer, to = Dialer(clock=clock), service(primary.upstream, second.upstream)
    for _ in range(4):
        await dialed(dialer, to)
        clock.now_s += 60
    primary.listen()
    assert (await dialed(dialer, to)).upstream == primary.upstream
    assert dialer._rests == {}


async def test_many_failures_at_once_count_as_one(backend: Callable[..., Backend], clock: Clock) -> None:
    primary, second = backend(), backend().listen()
    dialer, to = Dialer(clock=clock), service(primary.upstream, second.upstream)
    await asyncio.gather(*(dialed(dialer, to) for _ in range(20)))
    primary.listen()
    clock.now_s += 5
    assert (await dialed(dialer, to)).upstream == primary.upstream


async def test_attempts_during_a_rest_do_not_make_it_longer_each_time(
    backend: Callable[..., Backend], clock: Clock
) -> None:
    primary, second = backend(), backend()
    dialer, to = Dialer(clock=clock), service(primary.upstream, second.upstream)
    for _ in range(10):  # all rest, and all are tried nevertheless
        assert len((await failure(dialer, to)).attempts) == 2
    primary.listen()
    second.listen()
    await dialed(dialer, service(second.upstream))
    clock.now_s += 4.9
    assert (await dialed(dialer, to)).upstream == second.upstream
    clock.now_s += 0.1
    assert (await dialed(dialer, to)).upstream == primary.upstream


async def test_an_upstream_that_rests_is_tried_last_and_not_never(backend: Callable[..., Backend]) -> None:
    primary, second = backend(), backend().listen()
    dialer, to = Dialer(), service(primary.upstream, second.upstream)
    await dialed(dialer, to)
    primary.listen()
    second.sock.close()
    assert (await dialed(dialer, to)).upstream == primary.upstream


async def test_when_a_rest_ends_only_one_session_tries_the_address(
    backend: Callable[..., Backend], black_hole: Callable[..., Upstream], clock: Clock
) -> None:
    hole, alive = black_hole(), backend().listen().upstream
    dialer, to = Dialer(clock=clock), service(hole, alive)
    await dialed(dialer, to, SHORT_S)
    clock.now_s += 5
    trying = asyncio.ensure_future(dialed(dialer, to))
    await asyncio.sleep(0)
    # It would take half of the long timeout to find out.
    assert (await dialed(dialer, to)).upstream == alive
    assert not trying.done()
    trying.cancel()
    await asyncio.wait({trying})


async def test_what_was_tried_is_told_once(backend: Callable[..., Backend]) -> None:
    primary, second, unused = backend(), backend().listen(), backend()
    dialer = Dialer()
    await dialed(dialer, service(primary.upstream, second.upstream, unused.upstream))
    assert dialer.take_tried() == {primary.upstream: False, second.upstream: True}
    assert dialer.take_tried() == {}
    primary.listen()
    await dialed(dialer, service(primary.upstream))
    assert dialer.take_tried() == {primary.upstream: True}


async def test_what_is_no_longer_configured_is_forgotten(backend: Callable[..., Backend]) -> None:
    gone, kept, alive = backend(), backend(), backend().listen()
    dialer = Dialer(first=lambda _: 0)
    old = service(gone.upstream, kept.upstream, alive.upstream, balance="round-robin", name="old")
    new = service(kept.upstream, alive.upstream, balance="round-robin", name="new")
    await dialed(dialer, old)
    await dialed(dialer, new)
    dialer.retain([new])
    assert dialer._rests.keys() == {(kept.upstream, None, "off")}
    assert dialer._turns.keys() == {"new"}


# Several addresses of one name


async def test_the_first_address_of_a_name_is_preferred(backend: Callable[..., Backend]) -> None:
    there = backend("127.0.0.2").listen()
    other = socket.create_server(("127.0.0.3", there.port))
    with other:
        dialer = Dialer(names=names(**{"db.test": ["127.0.0.2", "127.0.0.3"]}))
        answer = await dialed(dialer, service(Upstream("db.test", there.port)))
        assert answer.address == f"127.0.0.2:{there.port}"


async def test_another_address_of_a_name_takes_over_and_the_next_session_begins_with_it(
    backend: Callable[..., Backend], black_hole: Callable[..., Upstream], clock: Clock
) -> None:
    there = backend("127.0.0.3").listen()
    black_hole("127.0.0.2", there.port)
    dialer = Dialer(
        names=names(**{"db.test": ["127.0.0.1", "127.0.0.2", "127.0.0.3"]}), attempt_delay_s=0.01, clock=clock
    )
    to = service(Upstream("db.test", there.port))
    assert (await dialed(dialer, to)).address == f"127.0.0.3:{there.port}"
    # With a delay that long it would run into the timeout if it began with another one.
    dialer._attempt_delay_s = 1000
    assert (await dialed(dialer, to)).address == f"127.0.0.3:{there.port}"
    clock.now_s += 5
    assert (await failure(dialer, to, SHORT_S)).reason is Reason.UPSTREAM_TIMEOUT


async def test_an_address_of_a_name_that_answers_again_is_as_good_as_before(
    backend: Callable[..., Backend], clock: Clock
) -> None:
    first = backend("127.0.0.2")
    with socket.create_server(("127.0.0.3", first.port)):
        dialer = Dialer(names=names(**{"db.test": ["127.0.0.2", "127.0.0.3"]}), clock=clock)
        to = service(Upstream("db.test", first.port))
        assert (await dialed(dialer, to)).address == f"127.0.0.3:{first.port}"
        first.listen()
        clock.now_s += 5
        assert (await dialed(dialer, to)).address == f"127.0.0.2:{first.port}"
        assert dialer._rests == {}


async def test_a_name_none_of_whose_addresses_answers_fails(
    backend: Callable[..., Backend], black_hole: Callable[..., Upstream]
) -> None:
    dialer = Dialer(names=names(**{"db.test": ["127.0.0.2", "127.0.0.3"]}), attempt_delay_s=0.01)
    refused = await failure(dialer, service(Upstream("db.test", backend().port)))
    assert refused.reason is Reason.UPSTREAM_UNREACHABLE
    assert "Connect call failed" in refused.detail or "refused" in refused.detail
    port = black_hole("127.0.0.2").port
    black_hole("127.0.0.3", port or 0)
    assert (await failure(dialer, service(Upstream("db.test", port)), SHORT_S)).reason is Reason.UPSTREAM_TIMEOUT


async def test_memory_of_addresses_that_failed_is_bounded(
    backend: Callable[..., Backend], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "_MOST_RESTS", 3)
    dialer = Dialer(clock=clock)
    for _ in range(10):
        await failure(dialer, service(backend().upstream))
        clock.now_s += 5
        assert len(dialer._rests) <= 3


# Greeting


class Greeter:
    """Greets all upstreams but those it has something against."""

    def __init__(self, refusals: dict[Upstream, Reason] | None = None):
        self.refusals = refusals or {}
        self.greeted: list[Upstream] = []

    async def __call__(self, sock: socket.socket, upstream: Upstream) -> End:
        self.greeted.append(upstream)
        if upstream in self.refusals:
            raise FailedAttempt(self.refusals[upstream], "hostname mismatch")
        return PlainEnd(sock)


async def test_the_next_upstream_takes_over_from_one_that_cannot_be_spoken_to(backend: Callable[..., Backend]) -> None:
    first, second = backend().listen().upstream, backend().listen().upstream
    greeter = Greeter({first: Reason.UPSTREAM_TLS})
    dialer = Dialer()
    assert (await dialed(dialer, service(first, second), greet=greeter)).upstream == second
    assert dialer.take_tried() == {first: True, second: True}, "expected what could be connected to to count as up"
    # It rests like one that cannot be reached.
    assert (await dialed(dialer, service(first, second), greet=greeter)).upstream == second
    assert greeter.greeted == [first, second, second]


async def test_one_that_fails_at_tls_does_not_rest_for_a_service_without(backend: Callable[..., Backend]) -> None:
    first, second = backend().listen().upstream, backend().listen().upstream
    dialer = Dialer()
    over_tls = replace(service(first, second), tls=UpstreamTls())
    assert (await dialed(dialer, over_tls, greet=Greeter({first: Reason.UPSTREAM_TLS}))).upstream == second
    assert (await dialed(dialer, service(first, second))).upstream == first
    assert (await dialed(dialer, over_tls)).upstream == second


async def test_one_that_can_be_spoken_to_again_is_taken_again(backend: Callable[..., Backend], clock: Clock) -> None:
    first, second = backend().listen().upstream, backend().listen().upstream
    greeter = Greeter({first: Reason.UPSTREAM_TLS})
    dialer = Dialer(clock=clock)
    await dialed(dialer, service(first, second), greet=greeter)
    greeter.refusals.clear()
    clock.now_s += dial.REST_S
    assert (await dialed(dialer, service(first, second), greet=greeter)).upstream == first
    assert dialer._rests == {}


async def test_when_none_can_be_spoken_to_that_is_the_reason(backend: Callable[..., Backend]) -> None:
    first, second, dead = backend().listen().upstream, backend().listen().upstream, backend().upstream
    greeter = Greeter(dict.fromkeys((first, second), Reason.UPSTREAM_TLS))
    error = await failure(Dialer(), service(first, second), greet=greeter)
    assert error.reason is Reason.UPSTREAM_TLS
    assert error.detail == f"{first}: hostname mismatch; {second}: hostname mismatch"
    assert (await failure(Dialer(), service(first, dead), greet=greeter)).reason is Reason.UPSTREAM_UNREACHABLE


async def test_one_that_is_silent_when_greeted_leaves_time_for_the_next(backend: Callable[..., Backend]) -> None:
    silent, second = backend().listen().upstream, backend().listen().upstream

    async def greet(sock: socket.socket, upstream: Upstream) -> End:
        if upstream == silent:
            await asyncio.get_running_loop().create_future()
        return PlainEnd(sock)

    assert (await dialed(Dialer(), service(silent, second), SHORT_S, greet=greet)).upstream == second
    error = await failure(Dialer(), service(silent), SHORT_S, greet=greet)
    assert error.reason is Reason.UPSTREAM_TIMEOUT
    assert error.detail == f"{silent}: connected, and then no answer in time"


async def test_cancelling_a_greeting_leaves_nothing_open(backend: Callable[..., Backend]) -> None:
    begun = asyncio.Event()

    async def greet(_sock: socket.socket, _upstream: Upstream) -> End:
        begun.set()
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # never answers

    there = backend().listen()
    before = open_descriptors()
    dialing = asyncio.ensure_future(dialed(Dialer(), service(there.upstream), greet=greet))
    await _cancel(dialing, begun.wait)
    assert len(open_descriptors()) == len(before)


# Cancelling


async def _cancel(dialing: "asyncio.Future[Dialed]", begun: Callable[[], Awaitable[object]]) -> None:
    await begun()
    dialing.cancel()
    await asyncio.wait({dialing})
    assert dialing.cancelled()


async def _a_few_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_cancelling_leaves_nothing_open(black_hole: Callable[..., Upstream], tmp_path: Path) -> None:
    hole = black_hole("127.0.0.2")
    black_hole("127.0.0.3", hole.port or 0)
    dialer = Dialer(names=names(**{"db.test": ["127.0.0.2", "127.0.0.3"]}), attempt_delay_s=0.001)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "busy.sock"))
        listener.listen(0)
        first.connect(str(tmp_path / "busy.sock"))
        for upstream in (hole, Upstream("db.test", hole.port), Upstream(path=str(tmp_path / "busy.sock"))):
            before = open_descriptors()
            dialing = asyncio.ensure_future(dialed(dialer, service(upstream)))
            await _cancel(dialing, _a_few_turns)
            await _a_few_turns()
            assert open_descriptors() <= before


async def test_a_cancellation_that_the_library_swallows_is_not_lost(
    backend: Callable[..., Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = backend().listen()
    real = aiohappyeyeballs.start_connection
    connected = asyncio.Event()

    async def swallowing(*args, **kwargs):  # type: ignore[no-untyped-def]  # as the library's
        sock = await real(*args, **kwargs)
        try:
            connected.set()
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return sock

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", swallowing)
    dialer = Dialer(names=names(**{"db.test": ["127.0.0.1", "127.0.0.2"]}))
    dialing = asyncio.ensure_future(dialer.dial(service(Upstream("db.test", there.port)), timeout_s=LONG_S))
    await connected.wait()
    before = open_descriptors()
    dialing.cancel()
    await asyncio.wait({dialing})
    assert dialing.cancelled()
    assert len(open_descriptors()) < len(before)
