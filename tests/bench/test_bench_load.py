"""The load notices when bytes are not the ones that were sent: each check against an honest and a lying server."""

import contextlib
import hashlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.load import Crowd, Doors, Void, connects, is_refused_without_certificate, pull, push, round_trips
from bench.peers import NAME, Credentials
from bench.upstream import HEADER, PATTERN, RECEIPT, SERVICES

Handler = Callable[[ssl.SSLSocket], None]
Serve = Callable[..., Doors]


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return Credentials.make(tmp_path_factory.mktemp("credentials"))


@pytest.fixture
def serve(credentials: Credentials) -> Iterator[Serve]:
    """`serve(handler)` runs a TLS server that gives each connection to `handler`, and returns the doors to it."""
    with contextlib.ExitStack() as stack:

        def start(handler: Handler, verify: ssl.VerifyMode = ssl.CERT_REQUIRED) -> Doors:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(credentials.certificate, credentials.key)
            context.load_verify_locations(credentials.authority)
            context.verify_mode = verify
            context.num_tickets = 0
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def accept() -> None:
                while True:
                    try:
                        plain, _ = listener.accept()
                    except OSError:
                        return
                    threads.append(threading.Thread(target=talk, args=(plain,)))
                    threads[-1].start()

            def talk(plain: socket.socket) -> None:
                with plain, contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as session:
                    handler(session)
                    session.unwrap().close()

            threads = [threading.Thread(target=accept)]
            threads[0].start()
            stack.callback(lambda: [thread.join() for thread in list(threads)])
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            address = listener.getsockname()
            return Doors(dict.fromkeys(SERVICES, address), credentials.client_context(), NAME)

        yield start


def _read(session: ssl.SSLSocket, amount: int) -> bytes:
    data = b""
    while len(data) < amount and (more := session.recv(amount - len(data))):
        data += more
    return data


def _sink(*, lost: int = 0, damage: bytes = b"") -> Handler:
    def handle(session: ssl.SSLSocket) -> None:
        amount, _ = HEADER.unpack(_read(session, HEADER.size))
        data = damage + _read(session, amount)[len(damage) :]
        session.sendall(RECEIPT.pack(len(data) - lost, hashlib.sha256(data).digest()))
        session.recv(1)

    return handle


def _source(change: Callable[[bytes], bytes] = lambda data: data) -> Handler:
    def handle(session: ssl.SSLSocket) -> None:
        amount, _ = HEADER.unpack(_read(session, HEADER.size))
        session.sendall(change((PATTERN * (amount // len(PATTERN) + 1))[:amount]))

    return handle


def _echo(change: Callable[[bytes], bytes] = lambda data: data) -> Handler:
    def handle(session: ssl.SSLSocket) -> None:
        while data := session.recv(65536):
            session.sendall(change(data))

    return handle


def _damaged(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_pushed_bytes_that_arrive_count(serve: Serve) -> None:
    assert push(serve(_sink()), 1_500_000, 3, hashed=True) > 0


def test_pushed_bytes_that_get_lost_make_it_void(serve: Serve) -> None:
    with pytest.raises(Void, match="sent 1000 bytes, and 999 others arrived"):
        push(serve(_sink(lost=1)), 1000, 1)


def test_pushed_bytes_that_change_make_it_void(serve: Serve) -> None:
    with pytest.raises(Void):
        push(serve(_sink(damage=b"!")), 1000, 1, hashed=True)


def test_pulled_bytes_that_arrive_count(serve: Serve) -> None:
    assert pull(serve(_source()), 1_500_000, 3, hashed=True) > 0


def test_pulled_bytes_that_end_early_make_it_void(serve: Serve) -> None:
    with pytest.raises(Void, match="expected 1000 bytes, got 999 and the end"):
        pull(serve(_source(lambda data: data[:-1])), 1000, 1)


def test_pulled_bytes_that_are_too_many_make_it_void(serve: Serve) -> None:
    with pytest.raises(Void, match="expected 1000 bytes, got 1001"):
        pull(serve(_source(lambda data: data + b"!")), 1000, 1)


def test_pulled_bytes_that_change_make_it_void(serve: Serve) -> None:
    with pytest.raises(Void, match="not those that were sent"):
        pull(serve(_source(_damaged)), 1000, 1, hashed=True)


def test_an_echo_counts_as_round_trip_and_as_connect(serve: Serve) -> None:
    doors = serve(_echo())
    assert round_trips(doors, 3).median_s > 0
    assert connects(doors, 3).median_s > 0


@pytest.mark.parametrize("measure", [round_trips, connects])
def test_an_echo_that_differs_makes_it_void(serve: Serve, measure: Callable) -> None:
    with pytest.raises(Void, match="an echo differs"):
        measure(serve(_echo(_damaged)), 3)


def test_a_crowd_exchanges_bytes_both_ways_at_once(serve: Serve) -> None:
    with Crowd(serve(_echo())) as crowd:
        crowd.grow(3)
        # More than any socket buffer holds: sending without receiving would block for good.
        crowd.exchange(8_000_000, at_once=2)


def test_a_crowd_notices_an_exchange_that_differs(serve: Serve) -> None:
    doors = serve(_echo(lambda data: data if len(data) == 1 else _damaged(data)))
    with Crowd(doors) as crowd:
        crowd.grow(1)
        with pytest.raises(Void, match="an echo differs"):
            crowd.exchange(1000)


def test_a_proxy_that_wants_a_certificate_refuses_a_stranger(serve: Serve) -> None:
    assert is_refused_without_certificate(serve(_echo()))


def test_a_proxy_that_wants_none_is_found_out(serve: Serve) -> None:
    assert not is_refused_without_certificate(serve(_echo(), ssl.CERT_NONE))


def test_a_proxy_that_is_not_there_makes_it_void(credentials: Credentials, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(Void, match="the connection failed"):
        push(Doors({"sink": address}, credentials.client_context(), NAME), 1, 1)
