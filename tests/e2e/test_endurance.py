"""What a gateway goes through without losing count: workers killed again and again, and a clock that is put about."""

import contextlib
import os
import signal
import ssl
import subprocess
from datetime import UTC, datetime

import pytest

from tests.counting import metric, steady_zone
from tests.e2e.conftest import PORTGUARD
from tests.patience import PATIENCE_S
from tests.unharmed import descriptors, echoes, warm_up, workers

_KILLS = 4  # each worker twice; the gateway waits longer before each replacement

QUOTA = """
[[roles]]
name = "team"
members = ["alice"]
services = ["*"]
quota = ["10kB/hour"]
"""


def verified(gateway):
    command = [*PORTGUARD, "audit", "verify", "-c", str(gateway.folder / "portguard.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_workers_that_are_killed_again_and_again_leave_nothing_behind(start_gateway, echo):
    gateway = start_gateway({"echo": echo})
    warm_up(gateway)
    supervisor = gateway.program.process.pid
    before = descriptors(gateway)[supervisor]
    echoed = 4 * 1000
    for kill in range(_KILLS):
        os.kill(workers(gateway)[kill % 2], signal.SIGKILL)
        for _ in range(3):
            with contextlib.suppress(ConnectionError, ssl.SSLError, AssertionError):
                echoes(gateway)
                echoed += 1000
        gateway.wait_for_log("worker.exit .*status=-9", count=kill + 1)
        gateway.program.wait_until(lambda: len(workers(gateway)) == 2, "another worker came")
    gateway.program.wait_until(lambda: metric(gateway, "workers") == 2, "both workers served")
    warm_up(gateway)
    echoed += 4 * 1000
    gateway.program.wait_until(
        lambda: metric(gateway, "sessions_active", service="echo", role="team") == 0, "no session"
    )
    assert metric(gateway, "worker_restarts_total") == _KILLS
    # A session that was killed may have moved its bytes and not ended well.
    assert metric(gateway, "received_bytes_total", identity="alice", service="echo") >= echoed
    gateway.program.wait_until(lambda: descriptors(gateway)[supervisor] <= before, "no descriptor was left behind")
    assert "gateway.fault" not in gateway.log
    family = [supervisor, *workers(gateway)]
    assert gateway.program.stop() == 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in family)
    verified(gateway)


class Clock:
    """The clock of programs that have its `environment`."""

    def __init__(self, folder, library):
        self._setting = folder / "clock"
        self.put(hours=0)
        self.environment = os.environ | {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self._setting),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def put(self, *, hours):
        """Put it so many hours before the real one."""
        fresh = self._setting.with_suffix(".new")
        fresh.write_text(f"{hours * 3600:+d}\n")
        fresh.rename(self._setting)


@pytest.fixture
def clock(tmp_path, real_library):
    return Clock(tmp_path, real_library("*/faketime/libfaketimeMT.so.1"))


def used(gateway):
    return metric(gateway, "quota_used_bytes", role="team")


def hours_ahead(gateway):
    """How far the gateway's clock is ahead of ours, by what it logs now."""
    with contextlib.suppress(ssl.SSLError, ConnectionError), gateway.connect("echo", "bob") as client:
        client.recv(1)
    written = gateway.log.rstrip().rpartition("\n")[2].split()[0]
    return round((datetime.fromisoformat(written) - datetime.now(UTC)).total_seconds() / 3600)


def test_a_clock_put_forward_renews_quotas_and_one_put_back_does_not(start_gateway, echo, clock):
    gateway = start_gateway({"echo": echo}, policy=f'timezone = "{steady_zone()}"\n{QUOTA}', env=clock.environment)
    with gateway.connect("echo") as held:
        held.sendall(b"one")
        assert held.recv(10) == b"one"
        for _ in range(4):
            echoes(gateway)
        gateway.program.wait_until(lambda: used(gateway) == 8006, "all of it was counted")
        clock.put(hours=3)
        gateway.program.wait_until(lambda: used(gateway) == 0, "the quota of another hour")
        for _ in range(4):
            echoes(gateway)
        gateway.program.wait_until(lambda: used(gateway) == 8000, "all of it was counted again")
        clock.put(hours=0)
        gateway.program.wait_until(lambda: hours_ahead(gateway) == 0, "the clock was put back")
        echoes(gateway)
        gateway.program.wait_until(lambda: used(gateway) == 10_000, "all of it was counted as of the hour before")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            echoes(gateway)
        # Not the log: of as many refusals as bob's it writes only some.
        gateway.program.wait_until(
            lambda: metric(gateway, "sessions_refused_total", reason="quota_exhausted") == 1, "the refusal was counted"
        )
    assert "gateway.fault" not in gateway.log
    assert gateway.program.stop() == 0
    verified(gateway)
