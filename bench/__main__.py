"""The command `python -m bench`: rounds in which every peer takes its turn at every figure."""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench.figures import STEPS, Size
from bench.load import Void
from bench.measure import machine
from bench.peers import PEERS, Credentials, Peer, Running, Unavailable, running, upstream
from bench.report import Results

# Data goes to standard output, everything else to standard error.
_notes = Console(stderr=True, highlight=False, markup=False)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure portguard beside its peers.")
    names = [peer.name for peer in PEERS]
    parser.add_argument("--only", metavar="NAME,…", help=f"these peers: {', '.join(names)}; default all installed")
    parser.add_argument("--rounds", type=int, default=3, help="medians are over so many rounds (%(default)s)")
    parser.add_argument("--gib", type=float, default=1.0, help="GiB per bulk figure and round (%(default)s)")
    parser.add_argument("--sessions", type=int, default=500, help="sessions that stay, for memory (%(default)s)")
    parser.add_argument("--round-trips", type=int, default=10_000, help="round trips a round (%(default)s)")
    parser.add_argument("--connects", type=int, default=500, help="connects a round (%(default)s)")
    parser.add_argument("--rest", type=float, default=2.0, help="seconds that sessions rest before memory is read")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the figures as SVG")
    parser.add_argument("--goals", action="store_true", help="fail when portguard misses one of its goals")
    chosen = parser.parse_args(words)
    chosen.only = None if chosen.only is None else chosen.only.split(",")
    if unknown := set(chosen.only or ()) - set(names):
        parser.error(f"--only: expected some of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    if min(chosen.rounds, chosen.sessions, chosen.round_trips, chosen.connects, chosen.gib) <= 0 or chosen.rest < 0:
        parser.error("expected positive numbers")
    return chosen


def _installed(names: Sequence[str] | None, troubles: list[str]) -> dict[Peer, str]:
    """Find who takes part. A peer that is not installed is trouble only when it was asked for by name."""
    versions = {}
    for peer in PEERS:
        if names is None or peer.name in names:
            try:
                versions[peer] = peer.version()
            except Unavailable as reason:
                if names is None:
                    _notes.print(str(reason))
                else:
                    troubles.append(str(reason))
    return versions


def _round(proxies: Sequence[Running], results: Results, number: int) -> None:
    """Go through the figures, and at each through the proxies; every round another one is first."""
    measured = {proxy.peer.name: results.rounds[proxy.peer.name][-1] for proxy in proxies}
    for title, step in STEPS.items():
        shift = number % len(proxies)
        for proxy in [*proxies[shift:], *proxies[:shift]]:
            _notes.print(f"round {number + 1}: {title}: {proxy.peer.name}")
            try:
                measured[proxy.peer.name].update(step(proxy, results.size))
            except Void as reason:
                results.troubles.append(f"{proxy.peer.name}, round {number + 1}, {title}: void: {reason}")
                if title == "admission":
                    # Whoever loses bytes or lets strangers in is not compared at all.
                    measured[proxy.peer.name].clear()


def _measure(chosen: argparse.Namespace) -> Results:
    troubles: list[str] = []
    versions = _installed(chosen.only, troubles)
    size = Size(chosen.gib, chosen.round_trips, chosen.connects, chosen.sessions, chosen.rest)
    results = Results(machine(), size, {peer.name: version for peer, version in versions.items()}, troubles=troubles)
    if results.machine.busy:
        _notes.print(f"warning: the load average is {results.machine.load_average:.1f}; others share the CPUs")
    results.rounds.update({peer.name: [] for peer in versions})
    with tempfile.TemporaryDirectory(prefix="portguard-bench-") as name, upstream() as upstreams:
        folder = Path(name)
        folder.chmod(0o755)
        credentials = Credentials.make(folder)
        for number in range(chosen.rounds):
            with contextlib.ExitStack() as stack:
                proxies = []
                for peer in versions:
                    results.rounds[peer.name].append({})
                    place = folder / f"{peer.name}-{number}"
                    try:
                        proxies.append(stack.enter_context(running(peer, place, credentials, upstreams)))
                    except Unavailable as reason:
                        troubles.append(str(reason))
                if proxies:
                    _round(proxies, results, number)
    return results


def _end(_sign: int, _frame: FrameType | None) -> None:
    # Unwinds the stack, so that every program that was started is ended.
    raise SystemExit(1)


def main(words: Sequence[str]) -> int:
    """Exit codes: 0 all was measured; 1 something was void or missing, or a goal was missed and --goals was given."""
    chosen = _arguments(words)
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, _end)
    results = _measure(chosen)
    for path, text in [
        (chosen.json, json.dumps(results.as_json(), indent=2) + "\n"),
        (chosen.picture, results.picture()),
    ]:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    facts = results.machine
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    console.print(results.table())
    for line in [
        f"{facts.cpu}, {facts.cores} CPUs, Linux {facts.kernel}, load average {facts.load_average:.2f} at start",
        f"{', '.join(results.peers.values())}; client: Python {facts.python}, {facts.openssl}",
        *(f"goal {line}" for line in results.goals()),
    ]:
        console.print(line, soft_wrap=True)
    for line in results.troubles:
        _notes.print(line, soft_wrap=True)
    missed = any(line.startswith("missed") for line in results.goals())
    return 1 if results.troubles or (missed and chosen.goals) else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
