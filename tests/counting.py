"""A service that counts what it gets and sends what it is told to, and clients that move much through a gateway.

with counting(size) as service: ...  # service.address, service.received
"""

import contextlib
import http.client
import json
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from tests.patience import PATIENCE_S

MB = 1_000_000

_PIECE = bytes(1 << 20)


class Counting:
    """Make it with `counting`. `received` is how much all clients together have sent."""

    def __init__(self, size: int):
        self.received = 0
        self._size = size
        self._lock = threading.Lock()
        self._threads = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._threads.append(threading.Thread(target=self._accept))
        self._threads[0].start()

    def wait(self) -> int:
        """Wait for all clients to be gone; return how much they sent."""
        # They are taken in turn: once this one was, all those before it are known.
        with socket.create_connection(self._listening.getsockname(), PATIENCE_S) as last:
            last.shutdown(socket.SHUT_WR)
            while last.recv(1 << 20):
                pass
        for thread in self._threads[1:]:
            _join(thread)
        return self.received

    def close(self) -> None:
        """Wait for all clients to be gone, and take no more."""
        self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            _join(thread)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listening.accept()
                sock.settimeout(PATIENCE_S)
                thread = threading.Thread(target=self._serve, args=[sock])
                thread.start()
                self._threads.append(thread)  # only now: who waits joins all that are here

    def _serve(self, sock: socket.socket) -> None:
        left = self._size
        with sock, contextlib.suppress(OSError):
            while left:
                left -= sock.send(_PIECE[: min(left, len(_PIECE))])
            if self._size:
                sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(1 << 20):
                with self._lock:
                    self.received += len(data)


@contextlib.contextmanager
def counting(size: int = 0) -> Iterator[Counting]:
    """Run one that sends `size` bytes to whoever connects."""
    service = Counting(size)
    try:
        yield service
    finally:
        service.close()


def upload(gateway: Any, size: int, name: str = "alice", service: str = "sink") -> None:
    """Send `size` bytes, or as many as the gateway takes; say nothing of the outcome, which the service counts."""
    with contextlib.suppress(OSError, ssl.SSLError), gateway.connect(service, name) as client:
        client.settimeout(PATIENCE_S)
        left = size
        while left:
            left -= client.send(_PIECE[: min(left, len(_PIECE))])
        client.unwrap()


def download(gateway: Any, name: str = "alice", service: str = "source") -> int:
    """Receive until the end, and return how many bytes came."""
    received = 0
    with contextlib.suppress(OSError, ssl.SSLError), gateway.connect(service, name) as client:
        client.settimeout(PATIENCE_S)
        while data := client.recv(1 << 20):
            received += len(data)
    return received


class Transfers:
    """Transfers that go on at once. `received` is what each has answered."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._threads: list[threading.Thread] = []

    def begin(self, count: int, act: Callable[..., int | None], *arguments: object) -> None:
        """Run `act` so many times."""
        for _ in range(count):
            self._threads.append(threading.Thread(target=lambda: self.received.append(act(*arguments) or 0)))
            self._threads[-1].start()

    def wait(self) -> int:
        """Wait for the end of all; return how much was received altogether."""
        for thread in self._threads:
            _join(thread)
        return sum(self.received)


def _join(thread: threading.Thread) -> None:
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def get(gateway: Any, path: str) -> tuple[int, str]:
    """Status and text of a page for machines."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{gateway.metrics_port}{path}", timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metric(gateway: Any, name: str, **labels: str) -> float:
    """The sum of all series of a metric that have these labels, `portguard_` left out; 0 where there are none."""
    _, text = get(gateway, "/metrics")
    series = re.findall(rf"^portguard_{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
    wanted = {f'{key}="{value}"' for key, value in labels.items()}
    return sum(float(value) for found, value in series if wanted <= set(found.split(",")))


def moved(gateway: Any) -> float:
    """How many bytes have moved both ways, of live sessions too."""
    return metric(gateway, "received_bytes_total") + metric(gateway, "sent_bytes_total")


def counted(gateway: Any) -> int:
    """How many bytes both ways the sessions that have ended were accounted for, by the log."""
    ends = re.findall(r"session\.close .*received=(\d+) sent=(\d+) ", gateway.log)
    return sum(int(received) + int(sent) for received, sent in ends)


def steady_zone() -> str:
    """A time zone in which neither an hour nor a day ends within ten minutes: half the world is half an hour off."""
    return "UTC" if datetime.now(UTC).minute < 50 else "Asia/Kolkata"


def connect_answer(gateway: Any, service: str, name: str = "alice") -> tuple[int, http.client.HTTPMessage, Any]:
    """Status, headers and JSON (None for a tunnel, which is closed) of the answer to CONNECT."""
    with gateway.connect_with(gateway.context(name), None) as client:
        client.sendall(f"CONNECT {service} HTTP/1.1\r\nHost: {service}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(client, method="CONNECT")
        answer.begin()
        if answer.status == 200:
            client.unwrap()
            return 200, answer.headers, None
        return answer.status, answer.headers, json.loads(answer.read())
