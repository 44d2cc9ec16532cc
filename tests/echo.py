"""A service that sends back what it gets, until its client finishes. A thread a connection: for some hundreds.

with echo_service() as address: ...
"""

import contextlib
import socket
import threading
from collections.abc import Iterator


def _serve(sock: socket.socket) -> None:
    # The gateway resets the connection when its client does.
    with sock, contextlib.suppress(OSError):
        while data := sock.recv(65536):
            sock.sendall(data)


def _accept(listening: socket.socket) -> None:
    while True:
        try:
            sock, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(sock,), daemon=True).start()


@contextlib.contextmanager
def echo_service() -> Iterator[str]:
    """Yield its address, "127.0.0.1:PORT"."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        thread = threading.Thread(target=_accept, args=(listening,), daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
