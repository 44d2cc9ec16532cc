"""What is measured: each figure with its unit, its way of measuring, and what portguard wants to reach."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.load import Crowd, Void, connects, is_refused_without_certificate, pull, push, round_trips
from bench.peers import Running

_GIB = 1024**3
_MIB = 1024**2
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Size:
    """How much load each figure gets in one round."""

    gib: float
    round_trips: int
    connects: int
    sessions: int
    rest_s: float
    """How long the sessions are left alone before their memory is read."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number about a peer; less is better, unless it is only `context`."""

    key: str
    title: str
    unit: str
    goal: str = ""
    reached: Callable[[Mapping[str, float]], bool] | None = None
    """Whether portguard reaches `goal`, given every peer's value; portguard's own is among them."""
    context: bool = False


def _below_all(values: Mapping[str, float]) -> bool:
    others = {name: value for name, value in values.items() if name not in ("portguard", "unaccounted")}
    return all(values["portguard"] < value for value in others.values()) and _accounting_costs(values, 1.05)


def _no_worse_than_haproxy(values: Mapping[str, float]) -> bool:
    ours = values["portguard"]
    return ours <= values.get("haproxy", ours) and _accounting_costs(values, 1.15)


def _accounting_costs(values: Mapping[str, float], most: float) -> bool:
    """Whether portguard takes at most so many times what it takes without limits and a required audit."""
    return values["portguard"] <= most * values.get("unaccounted", values["portguard"])


def _at_most(limit: float) -> Callable[[Mapping[str, float]], bool]:
    return lambda values: values["portguard"] <= limit


_BELOW_ALL = "below all peers, and 1.05 times itself without accounting"
_HAPROXY = "at most HAProxy's, and 1.15 times itself without accounting"

FIGURES = (
    Figure("up_1", "client to service, 1 stream", "CPU s/GiB", _BELOW_ALL, _below_all),
    Figure("up_8", "client to service, 8 streams", "CPU s/GiB", _BELOW_ALL, _below_all),
    Figure("down_1", "service to client, 1 stream", "CPU s/GiB", _BELOW_ALL, _below_all),
    Figure("down_8", "service to client, 8 streams", "CPU s/GiB", _BELOW_ALL, _below_all),
    Figure("rtt_cpu", "round trip of 100 bytes", "CPU µs"),
    Figure("connect_cpu", "connect, 100 bytes, close", "CPU ms", _HAPROXY, _no_worse_than_haproxy),
    Figure("idle", "idle session, fresh", "KiB", "at most 30", _at_most(30)),
    Figure("busy", "idle session after 1 MiB", "KiB", "at most 200", _at_most(200)),
    Figure("base", "memory without sessions", "MiB", context=True),
    Figure("up_1_rate", "client to service, 1 stream", "MiB/s", context=True),
    Figure("up_8_rate", "client to service, 8 streams", "MiB/s", context=True),
    Figure("down_1_rate", "service to client, 1 stream", "MiB/s", context=True),
    Figure("down_8_rate", "service to client, 8 streams", "MiB/s", context=True),
    Figure("rtt", "round trip, median", "µs", context=True),
    Figure("rtt_p99", "round trip, 99th percentile", "µs", context=True),
    Figure("connect", "connect to first answer", "ms", context=True),
)

Measured = dict[str, float]


def _admission(proxy: Running, size: Size) -> Measured:
    """Not a figure, but without it none counts: bytes arrive as they were sent, and strangers stay outside."""
    amount = round(min(size.gib, 1 / 16) * _GIB)
    push(proxy.doors, amount, 2, hashed=True)
    pull(proxy.doors, amount, 2, hashed=True)
    if not is_refused_without_certificate(proxy.doors):
        raise Void("a client without a certificate was let in")
    return {}


def _memory(proxy: Running, size: Size) -> Measured:
    # What is made once, at the first sessions, is not memory of a session.
    with Crowd(proxy.doors) as warm_up:
        warm_up.grow(16)
        warm_up.exchange(64 * _KIB)
    proxy.family.settled_cpu_s()
    before = proxy.family.memory().pss
    with Crowd(proxy.doors) as crowd:
        crowd.grow(size.sessions)
        proxy.family.settled_cpu_s()
        time.sleep(size.rest_s)
        fresh = proxy.family.memory().pss
        crowd.exchange(_MIB)
        proxy.family.settled_cpu_s()
        time.sleep(size.rest_s)
        busy = proxy.family.memory().pss
    return {
        "base": before / _MIB,
        "idle": (fresh - before) / size.sessions / _KIB,
        "busy": (busy - before) / size.sessions / _KIB,
    }


def _bulk(key: str, streams: int) -> Callable[[Running, Size], Measured]:
    transfer = push if key.startswith("up") else pull

    def measure(proxy: Running, size: Size) -> Measured:
        before = proxy.family.settled_cpu_s()
        elapsed_s = transfer(proxy.doors, round(size.gib * _GIB), streams)
        used_s = proxy.family.settled_cpu_s() - before
        return {key: used_s / size.gib, f"{key}_rate": size.gib * 1024 / elapsed_s}

    return measure


def _round_trips(proxy: Running, size: Size) -> Measured:
    before = proxy.family.settled_cpu_s()
    latency = round_trips(proxy.doors, size.round_trips)
    used_s = proxy.family.settled_cpu_s() - before
    return {"rtt_cpu": used_s / size.round_trips * 1e6, "rtt": latency.median_s * 1e6, "rtt_p99": latency.p99_s * 1e6}


def _connects(proxy: Running, size: Size) -> Measured:
    before = proxy.family.settled_cpu_s()
    latency = connects(proxy.doors, size.connects)
    used_s = proxy.family.settled_cpu_s() - before
    return {"connect_cpu": used_s / size.connects * 1e3, "connect": latency.median_s * 1e3}


# In this order: memory comes first, while nothing that a process keeps from earlier work can hide what a session takes.
STEPS: Mapping[str, Callable[[Running, Size], Measured]] = {
    "memory": _memory,
    "admission": _admission,
    "up, 1 stream": _bulk("up_1", 1),
    "up, 8 streams": _bulk("up_8", 8),
    "down, 1 stream": _bulk("down_1", 1),
    "down, 8 streams": _bulk("down_8", 8),
    "round trips": _round_trips,
    "connects": _connects,
}
