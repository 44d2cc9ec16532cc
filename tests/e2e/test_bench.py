"""The bench measures real proxies, says what it could not, and leaves nothing running."""

import json
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.figures import FIGURES
from tests.patience import PATIENCE_S

_REPOSITORY = Path(__file__).parents[2]
_SMALL = ["--rounds=1", "--gib=0.01", "--sessions=5", "--round-trips=20", "--connects=5", "--rest=0"]


@pytest.mark.parametrize("peer", ["haproxy", "nginx", "stunnel"])
def test_every_figure_of_a_peer_is_measured(start: Callable, real_program: Callable, tmp_path: Path, peer: str) -> None:
    real_program(peer)
    report = tmp_path / "report.json"
    bench = start([sys.executable, "-m", "bench", f"--only={peer}", f"--json={report}", *_SMALL], cwd=_REPOSITORY)
    assert bench.process.wait(timeout=PATIENCE_S) == 0, bench.said
    figures = json.loads(report.read_text())["figures"]
    assert {key for key, figure in figures.items() if set(figure["median"]) == {peer}} == {f.key for f in FIGURES}
    # A memory figure of five sessions may be anything; work that costs nothing was not measured.
    for key in ("up_1", "up_8", "down_1", "down_8", "rtt_cpu", "connect_cpu", "base"):
        assert figures[key]["median"][peer] > 0


def test_a_peer_that_does_not_start_is_reported_and_fails_the_command(start: Callable, tmp_path: Path) -> None:
    program = tmp_path / "haproxy"
    program.write_text("#!/bin/sh\n[ \"$1\" = -v ] && echo HAProxy version 9 || { echo 'no such option'; exit 1; }\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    bench = start([sys.executable, "-m", "bench", "--only=haproxy", *_SMALL], cwd=_REPOSITORY, env=environment)
    assert bench.process.wait(timeout=PATIENCE_S) == 1
    assert "haproxy: ended; it said: no such option" in bench.said


def test_a_bench_that_is_told_to_end_leaves_no_proxy_behind(start: Callable, real_program: Callable) -> None:
    real_program("haproxy")
    bench = start([sys.executable, "-m", "bench", "--only=haproxy", *_SMALL, "--gib=100"], cwd=_REPOSITORY)
    bench.wait_until_it_says("up, 1 stream")
    children = Path(f"/proc/{bench.process.pid}/task/{bench.process.pid}/children").read_text().split()
    assert len(children) == 2
    watches = [os.pidfd_open(int(pid)) for pid in children]
    try:
        bench.process.send_signal(signal.SIGTERM)
        assert bench.process.wait(timeout=PATIENCE_S) == 1
        for watch in watches:
            assert select.select([watch], [], [], PATIENCE_S)[0]
    finally:
        for watch in watches:
            os.close(watch)


@pytest.mark.parametrize("wrong", ["--only=squid", "--rounds=0", "--gib=x"])
def test_wrong_usage_is_refused(start: Callable, wrong: str) -> None:
    bench = start([sys.executable, "-m", "bench", wrong], cwd=_REPOSITORY)
    assert bench.process.wait(timeout=PATIENCE_S) == 2
    assert "error: " in bench.said
