"""Quotas by real transfers: counted at the service and at the clients, they end at exactly the last byte."""

import contextlib
import os
import re
import signal
import socket
import ssl
import threading
import time
import urllib.request

import pytest

from tests.unharmed import echoes, workers

_PATIENCE_S = 60
MB = 1_000_000
QUOTA = 200 * MB

POLICY = """
[[roles]]
name = "team"
members = ["alice"]
services = ["*"]
{limits}
"""


class Counting:
    """A service that sends `size` bytes to whoever connects, and counts what it gets."""

    def __init__(self, size):
        self.received = 0
        self._size = size
        self._lock = threading.Lock()
        self._threads = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._threads.append(threading.Thread(target=self._accept))
        self._threads[0].start()

    def close(self):
        self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_PATIENCE_S)
            assert not thread.is_alive()
        self._listening.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listening.accept()
                sock.settimeout(_PATIENCE_S)
                self._threads.append(threading.Thread(target=self._serve, args=[sock]))
                self._threads[-1].start()

    def _serve(self, sock):
        piece, left = bytes(1 << 20), self._size
        with sock, contextlib.suppress(OSError):
            while left:
                left -= sock.send(piece[: min(left, len(piece))])
            if self._size:
                sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(1 << 20):
                with self._lock:
                    self.received += len(data)


@contextlib.contextmanager
def counting(size=0):
    service = Counting(size)
    try:
        yield service
    finally:
        service.close()


def upload(gateway, size, name="alice"):
    """Send `size` bytes, or as many as the gateway takes; say nothing of the outcome, which the service counts."""
    piece = bytes(1 << 20)
    with contextlib.suppress(OSError, ssl.SSLError), gateway.connect("sink", name) as client:
        client.settimeout(_PATIENCE_S)
        left = size
        while left:
            left -= client.send(piece[: min(left, len(piece))])
        client.unwrap()


def download(gateway, name="alice"):
    """Receive until the end, and return how many bytes came."""
    received = 0
    with contextlib.suppress(OSError, ssl.SSLError), gateway.connect("source", name) as client:
        client.settimeout(_PATIENCE_S)
        while data := client.recv(1 << 20):
            received += len(data)
    return received


def in_parallel(count, act, *arguments):
    """Run `act` so many times at once; return what each answered."""
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(act(*arguments))) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, answers


def wait_for(threads):
    for thread in threads:
        thread.join(_PATIENCE_S)
        assert not thread.is_alive()


def metric(gateway, pattern):
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.metrics_port}/metrics", timeout=_PATIENCE_S) as answer:
        [value] = re.findall(rf"^portguard_{pattern} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(value)


def wait_until_closed(gateway, count):
    gateway.wait_for_log(r"session\.close ", count=count)


def closings(gateway, reason):
    return len(re.findall(rf"session\.close .*reason={reason}$", gateway.log, re.MULTILINE))


def start(start_gateway, services, limits='quota = ["200MB/month"]', **more):
    gateway = start_gateway(services, policy=POLICY.format(limits=limits), workers=4, **more)
    gateway.certificate("alice")  # before several threads would make it
    return gateway


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_quota_ends_eight_transfers_over_four_workers_at_its_last_byte(start_gateway, direction):
    size = 100 * MB
    with counting(size if direction == "down" else 0) as service:
        gateway = start(start_gateway, {"sink": service.address, "source": service.address})
        if direction == "up":
            threads, _ = in_parallel(8, upload, gateway, size)
            wait_for(threads)
            wait_until_closed(gateway, 8)
        else:
            threads, received = in_parallel(8, download, gateway)
            wait_for(threads)
            assert sum(received) == QUOTA
        wait_until_closed(gateway, 8)
        assert gateway.program.stop() == 0
    if direction == "up":
        assert service.received == QUOTA
    assert closings(gateway, "quota_exhausted") == 8
