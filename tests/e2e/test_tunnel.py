"""The way of a connection: by name, by CONNECT and by port, and who is refused on it."""

import socket
import ssl
import threading
from collections.abc import Iterator

import pytest


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a service that sends back what it gets, until its client finishes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve(sock: socket.socket) -> None:
            with sock:
                while data := sock.recv(65536):
                    sock.sendall(data)

        def accept() -> None:
            while True:
                try:
                    sock, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(sock,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_client_with_a_role_reaches_the_service_by_name(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    with gateway.connect("echo") as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        client.unwrap()
    gateway.wait_for_log("session.close .*identity=alice .*received=5 sent=5 .*reason=client_closed")


def test_a_client_without_a_role_is_refused_and_the_log_says_why(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    with gateway.connect("echo", "bob") as client, pytest.raises(ssl.SSLError):
        client.recv(100)
    gateway.wait_for_log("session.refuse .*identity=bob .*service=echo reason=no_role")


def test_what_is_odd_is_told_at_the_start(start_gateway, echo):
    roles = "".join(
        f'[[roles]]\nname = "{name}"\nmembers = ["alice"]\nservices = ["echo"]\n' for name in ("first", "second")
    )
    gateway = start_gateway({"echo": echo}, policy=roles)
    gateway.wait_for_log("warning configuration.warning .*role second can never decide, role first covers it")
    assert gateway.log.index(" configuration.warning ") < gateway.log.index(" gateway.listen ")


def test_what_is_not_odd_is_not_told(start_gateway, echo):
    assert " configuration.warning " not in start_gateway({"echo": echo}).log
