"""Which worker a connection goes to, and what becomes of one for which there is no room."""

import io
import socket
from types import SimpleNamespace

import pytest

from portguard.gateway.admission import Admission
from portguard.gateway.assigning import Assigner
from portguard.gateway.messages import Accepted
from portguard.gateway.meter import Meter
from portguard.observe import log
from tests.patience import PATIENCE_S
from tests.slots import Slots

ADDRESS = ("192.0.2.1", 50000)


class Gateway:
    """An assigner, and workers that serve. `passed` is what they got: the worker, the message, and where it came to."""

    def __init__(self, *, workers=2, max_pending=9):
        slots = Slots(1, *range(workers))
        self.admission = Admission(slots, max_pending=max_pending, max_pending_per_address=9)
        self.meter = Meter(slots, self.admission.sessions, written=lambda trust, name: name, max_identities=9)
        self.passed, self.recorded, self.far_ends = [], [], []
        self.assigner = Assigner(
            {number: self._worker(number) for number in range(workers)},
            admission=self.admission,
            meter=self.meter,
            trail=SimpleNamespace(refused_at_once=lambda source, reason, now_s: self.recorded.append((source, reason))),
            floods=log.Floods(),
        )

    def _worker(self, number):
        def send(message, descriptor):
            sock = socket.socket(fileno=descriptor)
            self.passed.append((number, message, sock))

        return SimpleNamespace(number=number, channel=SimpleNamespace(send=send))

    def connect(self, listener=0, address=ADDRESS):
        """Have a connection assigned; return the client's end of it."""
        near, far = socket.socketpair()
        self.far_ends.append(far)
        far.settimeout(PATIENCE_S)
        self.assigner.assign(listener, near, address)
        return far

    def close(self):
        for sock in (*self.far_ends, *(sock for _, _, sock in self.passed)):
            sock.close()


@pytest.fixture
def gateway():
    gateway = Gateway()
    yield gateway
    gateway.close()


@pytest.fixture
def full(monkeypatch):
    """A gateway with room for one, whose log is `full.stderr`."""
    gateway = Gateway(max_pending=1)
    gateway.stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", gateway.stderr)
    log.configure(json_lines=False, level="info")
    yield gateway
    gateway.close()


def test_a_connection_goes_on_with_its_number_and_where_it_came_from_and_to(gateway):
    client = gateway.connect(listener=3)
    [(_, message, sock)] = gateway.passed
    assert message == Accepted(1, 3, "192.0.2.1", 50000)
    client.sendall(b"hello")
    assert sock.recv(100) == b"hello"


def test_each_goes_to_the_worker_with_the_fewest(gateway):
    for _ in range(4):
        gateway.connect()
    assert [worker for worker, _, _ in gateway.passed] == [0, 1, 0, 1]
    for worker, message, _ in gateway.passed:
        if worker == 1:
            gateway.admission.gone(message.connection, worker)
    gateway.connect()
    gateway.connect()
    assert [worker for worker, _, _ in gateway.passed[4:]] == [1, 1]


def test_without_room_it_is_closed_counted_logged_and_recorded(full):
    full.connect()
    refused = full.connect(address=("192.0.2.7", 50000))
    assert refused.recv(1) == b""
    assert len(full.passed) == 1
    assert full.meter.totals.refused == {("", "gateway_full"): 1}
    assert full.recorded == [("192.0.2.7", "gateway_full")]
    [line] = full.stderr.getvalue().splitlines()
    assert "connection.refuse source=192.0.2.7 reason=gateway_full" in line


def test_with_room_again_the_next_is_passed_on(full):
    full.connect()
    [(worker, message, _)] = full.passed
    full.admission.gone(message.connection, worker)
    full.connect()
    assert len(full.passed) == 2
    assert full.meter.totals.refused == {}
