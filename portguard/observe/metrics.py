"""The metrics for Prometheus: their names, and how they are written. `docs/reference/metrics.md` says what they mean.

What one scrape shows is a `Reading`, plain values without a lock: whoever makes it copies what goes on changing.
"""

import platform
import ssl
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from portguard import __version__

_Labels = TypeVar("_Labels", bound=tuple[str, ...])
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

OTHER = "other"
"""The label of identities beyond those that have one of their own."""

# Of one metric that are written in one go.
_MOST_SERIES = 200
_END_OF_OPENMETRICS = b"# EOF\n"

_NETWORK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SESSION_S = (0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 8 * 3600.0, 24 * 3600.0)


class Histogram:
    """How often values fell between bounds. A value belongs to the first bound that it does not exceed."""

    def __init__(self, bounds: Sequence[float]):
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)  # the last one: beyond all bounds
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def copy(self) -> "Histogram":
        """Return one that stays as this one is now."""
        copy = Histogram(self._bounds)
        copy._counts, copy._sum = self._counts.copy(), self._sum
        return copy

    def state(self) -> list[float]:
        """All of it but the bounds: the counts, and the sum last."""
        return [*self._counts, self._sum]

    def restore(self, state: Sequence[float]) -> None:
        """Go on from a `state`, unless it is one with other bounds."""
        *counts, total = state
        if len(counts) == len(self._counts):
            self._counts, self._sum = list(map(int, counts)), total

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Write it into a family, whose buckets are cumulative."""
        total = 0
        buckets = []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
        family.add_metric(labels, buckets, self._sum)


def _of_network() -> Histogram:
    return Histogram(_NETWORK_S)


_COUNTERS = ("opened", "received", "sent", "closed", "refused", "quota_warnings")


@dataclass(slots=True)
class Totals:
    """What has been counted since the gateway started. Identities are labels, bounded in number."""

    opened: Counter[tuple[str, str]] = field(default_factory=Counter)  # by identity and service, and likewise below
    received: Counter[tuple[str, str]] = field(default_factory=Counter)
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    closed: Counter[tuple[str, str]] = field(default_factory=Counter)  # by service and reason
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)  # likewise; service "" is not known
    handshakes: Histogram = field(default_factory=_of_network)
    connects: dict[str, Histogram] = field(default_factory=dict)  # by service, and likewise below
    durations: dict[str, Histogram] = field(default_factory=dict)
    quota_warnings: Counter[tuple[str, str]] = field(default_factory=Counter)  # by role and period
    worker_restarts: int = 0

    def connect(self, service: str, seconds: float) -> None:
        """Count that connecting to a service took so long."""
        if service not in self.connects:
            self.connects[service] = _of_network()
        self.connects[service].observe(seconds)

    def duration(self, service: str, seconds: float) -> None:
        """Count that a session lasted so long."""
        if service not in self.durations:
            self.durations[service] = Histogram(_SESSION_S)
        self.durations[service].observe(seconds)

    def state(self) -> dict[str, Any]:
        """All of it, for another program that goes on counting: what json.dumps() takes."""
        return {
            "counters": {name: [[*key, count] for key, count in getattr(self, name).items()] for name in _COUNTERS},
            "handshakes": self.handshakes.state(),
            "connects": {service: histogram.state() for service, histogram in self.connects.items()},
            "durations": {service: histogram.state() for service, histogram in self.durations.items()},
            "worker_restarts": self.worker_restarts,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        for name, entries in state["counters"].items():
            if name in _COUNTERS:
                getattr(self, name).update({tuple(key): count for *key, count in entries})
        self.handshakes.restore(state["handshakes"])
        for service, histogram in state["connects"].items():
            self.connects[service] = _of_network()
            self.connects[service].restore(histogram)
        for service, histogram in state["durations"].items():
            self.durations[service] = Histogram(_SESSION_S)
            self.durations[service].restore(histogram)
        self.worker_restarts = state["worker_restarts"]

    def copy(self) -> "Totals":
        """Return totals that stay as these are now."""
        return Totals(
            opened=self.opened.copy(),
            received=self.received.copy(),
            sent=self.sent.copy(),
            closed=self.closed.copy(),
            refused=self.refused.copy(),
            handshakes=self.handshakes.copy(),
            connects={service: histogram.copy() for service, histogram in self.connects.items()},
            durations={service: histogram.copy() for service, histogram in self.durations.items()},
            quota_warnings=self.quota_warnings.copy(),
            worker_restarts=self.worker_restarts,
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """All that one scrape shows. Times are seconds since the epoch."""

    totals: Totals  # live sessions included
    active: Mapping[tuple[str, str], int]  # sessions by service and role
    sessions_limit: int
    upstreams: Mapping[tuple[str, str], bool]  # by service and upstream: did the last attempt reach it?
    certificates: Mapping[str, float]  # by use: when the first one of it expires
    crls: Mapping[str, float]  # by trust: when the first of its lists is out of date
    last_load_successful: bool
    loaded_s: float
    revision: str
    workers: int  # those that serve
    draining: bool
    quotas: "QuotaUse"
    audit_failures: int  # attempts to write
    ledger_errors: int  # likewise


@dataclass(slots=True)
class QuotaUse:
    """Quotas of the running periods, in bytes. `pooled` are those that a whole role shares."""

    limits: dict[tuple[str, str], int] = field(default_factory=dict)  # by role and period, for each identity
    used: dict[tuple[str, str, str], int] = field(default_factory=dict)  # by identity, role and period
    pooled_limits: dict[tuple[str, str], int] = field(default_factory=dict)  # by role and period
    pooled_used: dict[tuple[str, str], int] = field(default_factory=dict)  # by role and period


def render(reading: Reading, accept: str) -> tuple[Iterator[bytes], str]:
    """Return the exposition in pieces, and its content type, in the format that `accept` (the HTTP header) prefers.

    A piece takes a millisecond or two to make. Between them whoever has an event loop lets others run: the whole, for
    10,000 identities, takes a quarter of a second.
    """
    encode, content_type = choose_encoder(accept)
    return _pieces(reading, encode), content_type


def _pieces(reading: Reading, encode: Callable[[Collector], bytes]) -> Iterator[bytes]:
    before = None
    end = b""
    for metric in _metrics(reading):
        piece = encode(_Only(metric))
        if piece.endswith(_END_OF_OPENMETRICS):
            piece, end = piece.removesuffix(_END_OF_OPENMETRICS), _END_OF_OPENMETRICS
        if metric.name == before:
            _help, _type, piece = piece.split(b"\n", 2)
        before = metric.name
        yield piece
    yield end


class _Only(Collector):
    def __init__(self, metric: Metric):
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def _metrics(reading: Reading) -> Iterator[Metric]:
    """All metrics; one with many series comes in several parts, one after the other."""
    totals = reading.totals
    yield _info(
        "build",
        "The program that runs.",
        {"version": __version__, "python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION},
    )
    yield from _gauges("sessions_active", "Sessions that are open.", ("service", "role"), reading.active)
    yield _gauge("sessions_limit", "Sessions that may be open at the same time.", reading.sessions_limit)
    who = ("identity", "service")
    yield from _counters("sessions_opened", "Sessions whose service was reached.", who, totals.opened)
    yield from _counters("sessions_closed", "Sessions that have ended.", ("service", "reason"), totals.closed)
    yield from _counters(
        "sessions_refused",
        "Connections that did not become a session, those that failed in the handshake included.",
        ("service", "reason"),
        totals.refused,
    )
    yield from _counters("received_bytes", "Bytes from clients that were passed on.", who, totals.received)
    yield from _counters("sent_bytes", "Bytes to clients that were passed on.", who, totals.sent)
    yield from _histograms("handshake_seconds", "TLS handshakes that clients completed.", (), {"": totals.handshakes})
    yield from _histograms("upstream_connect_seconds", "Reaching a service.", ("service",), totals.connects)
    yield from _gauges(
        "upstream_up",
        "Whether the last attempt to connect reached the upstream.",
        ("service", "upstream"),
        reading.upstreams,
    )
    yield from _histograms("session_duration_seconds", "Sessions that have ended.", ("service",), totals.durations)
    yield from _gauges(
        "certificate_not_after_timestamp_seconds",
        "When the first certificate of this use expires.",
        ("use",),
        {(use,): at_s for use, at_s in reading.certificates.items()},
    )
    yield from _gauges(
        "crl_next_update_timestamp_seconds",
        "When the first revocation list of the trust is out of date.",
        ("trust",),
        {(trust,): at_s for trust, at_s in reading.crls.items()},
    )
    yield _gauge(
        "policy_last_load_successful",
        "Whether the configuration and policy read last are in force.",
        reading.last_load_successful,
    )
    yield _gauge(
        "policy_loaded_timestamp_seconds",
        "When the configuration and policy in force were read.",
        reading.loaded_s,
    )
    yield _info("policy", "The configuration and policy in force.", {"revision": reading.revision})
    yield _gauge("workers", "Worker processes that serve.", reading.workers)
    yield CounterMetricFamily(
        "portguard_worker_restarts", "Worker processes that ended and were replaced.", value=totals.worker_restarts
    )
    yield _gauge("draining", "Whether the gateway takes no new sessions.", reading.draining)
    per_role = ("role", "period")
    quotas = reading.quotas
    yield from _gauges("quota_limit_bytes", "What each identity may move in the period.", per_role, quotas.limits)
    yield from _gauges(
        "quota_used_bytes", "What the identity has moved of its quota.", ("identity", *per_role), quotas.used
    )
    yield from _gauges(
        "pooled_quota_limit_bytes", "What all of the role may move together.", per_role, quotas.pooled_limits
    )
    yield from _gauges(
        "pooled_quota_used_bytes", "What all of the role have moved of its quota.", per_role, quotas.pooled_used
    )
    yield from _counters("quota_warnings", "Times that most of a quota was used.", per_role, totals.quota_warnings)
    yield CounterMetricFamily(
        "portguard_audit_failures", "Attempts to write the audit that failed.", value=reading.audit_failures
    )
    yield CounterMetricFamily(
        "portguard_ledger_errors", "Attempts to write the ledger that failed.", value=reading.ledger_errors
    )


def _info(name: str, documentation: str, values: dict[str, str]) -> Metric:
    return InfoMetricFamily(f"portguard_{name}", documentation, value=values)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"portguard_{name}", documentation, value=float(value))


def _gauges(name: str, documentation: str, labels: Sequence[str], values: Mapping[_Labels, float]) -> Iterator[Metric]:
    for part in _parts(values):
        family = GaugeMetricFamily(f"portguard_{name}", documentation, labels=labels)
        for own, value in part:
            family.add_metric(own, float(value))
        yield family


def _counters(name: str, documentation: str, labels: Sequence[str], values: Mapping[_Labels, int]) -> Iterator[Metric]:
    for part in _parts(values):
        family = CounterMetricFamily(f"portguard_{name}", documentation, labels=labels)
        for own, value in part:
            family.add_metric(own, value)
        yield family


def _histograms(
    name: str, documentation: str, labels: Sequence[str], values: Mapping[str, Histogram]
) -> Iterator[Metric]:
    """`values` by the one label; where there is none the key does not matter."""
    for part in _parts(values, _MOST_SERIES // 10):
        family = HistogramMetricFamily(f"portguard_{name}", documentation, labels=labels)
        for own, histogram in part:
            histogram.add_to(family, (own,) if labels else ())
        yield family


def _parts(values: Mapping[_Key, _Value], most: int = _MOST_SERIES) -> Iterator[Iterable[tuple[_Key, _Value]]]:
    """Slices of the items; a single empty one when there are none, as a metric without series has its name."""
    items = iter(values.items())
    yield islice(items, most)
    for _ in range(most, len(values), most):
        yield islice(items, most)
