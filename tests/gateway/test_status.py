"""What the status says of parts that the test has broken."""

import json
import re
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from portguard.control.access import Level, Peer
from portguard.control.routes import BadArgument
from portguard.gateway.condition import Failing, State
from portguard.gateway.confinement import Landlock
from portguard.gateway.draining import Drained
from portguard.gateway.meter import Loaded
from portguard.gateway.reloading import FailedReload
from portguard.gateway.status import StatusDesk, Watched
from portguard.observe.metrics import Totals

ROOT = Peer(0, 0, 1, "root")
NOW_S = 1_795_000_000.0
DAY_S = 86_400


class Workers:
    def __init__(self):
        self.all = [
            SimpleNamespace(number=number, process=SimpleNamespace(pid=100 + number), retiring=False, started_s=0.0)
            for number in range(2)
        ]
        self.serving = {worker.number: worker for worker in self.all}

    def __iter__(self):
        return iter(self.all)


class Desk:
    def __init__(self):
        self.workers = Workers()
        self.acceptor = SimpleNamespace(active=True)
        self.admission = SimpleNamespace(sessions=dict.fromkeys(range(3)), load=lambda number: 10 + number)
        self.ledger = SimpleNamespace(failing=None, refuses=False, errors=0)
        self.trail = SimpleNamespace(failing=None, refuses=False, failures=4)
        self.drain = SimpleNamespace(drained=None)
        self.reloader = SimpleNamespace(failed=None, loaded_by="uid 0 (root)", loaded_message="CHG-7", needs_restart=())
        self.meter = SimpleNamespace(totals=Totals())
        self.certificates = {"gateway": NOW_S + DAY_S, "trust:local": NOW_S + 9 * DAY_S}
        self.crls = {"local": NOW_S + 2 * DAY_S}
        self.accept_stale = set()
        self.ending_s = None
        self.desk = StatusDesk(
            Watched(
                workers=self.workers,
                workers_wanted=2,
                confinement=Landlock(None, "no kernel"),
                acceptor=self.acceptor,
                admission=self.admission,
                accounting=SimpleNamespace(health=self.ledger),
                trail=self.trail,
                drain=self.drain,
                reloader=self.reloader,
                meter=self.meter,
                loaded=lambda: Loaded(
                    5, (), self.certificates, self.crls, NOW_S - 60, "ab" * 32, frozenset(self.accept_stale)
                ),
                ending_s=lambda: self.ending_s,
                generation=lambda: 7,
            ),
            lambda: NOW_S,
        )

    async def show(self, **given):
        [route] = self.desk.routes
        return json.loads(json.dumps(await route.handler(ROOT, given)))

    @property
    def codes(self):
        return [trouble.code for trouble, _ in self.desk.condition().troubles]

    @property
    def verdict(self):
        return self.desk.condition().verdict(datetime.fromtimestamp(NOW_S, UTC))


@pytest.fixture
def desk():
    return Desk()


async def test_viewers_see_it_all(desk):
    [route] = desk.desk.routes
    assert (route.method, route.path, route.level) == ("GET", "/v1/status", Level.VIEWER)
    desk.meter.totals.refused["db", "no_role"] += 2
    document = await desk.show()
    up = [worker.pop("uptime") for worker in document["workers"]]
    assert all(seconds > 0 for seconds in up)
    assert document.pop("pid") > 0
    assert re.fullmatch(r"[0-9.]+", document.pop("version"))
    stored = {"ok": True, "failing": None, "message": None}
    assert document == {
        "verdict": "SERVING",
        "state": "serving",
        "since": None,
        "problems": [],
        "sessions": 3,
        "sessions_limit": 5,
        "workers": [
            {"worker": 0, "pid": 100, "serving": True, "retiring": False, "connections": 10},
            {"worker": 1, "pid": 101, "serving": True, "retiring": False, "connections": 11},
        ],
        "workers_wanted": 2,
        "worker_restarts": 0,
        "confinement": {"by": None, "abi": None, "message": "no kernel"},
        "policy": "ab" * 32,
        "loaded": {"at": "2026-11-18T11:05:40Z", "by": "uid 0 (root)", "message": "CHG-7"},
        "needs_restart": [],
        "expires": {"use": "gateway", "at": "2026-11-19T11:06:40Z", "seconds": DAY_S},
        "refusals": {"seconds": 300.0, "reasons": [{"reason": "no_role", "count": 2}]},
        "audit": {**stored, "errors": 4},
        "ledger": {**stored, "errors": 0},
        "generation": 7,
    }
    with pytest.raises(BadArgument):
        await desk.show(x="1")


async def test_what_needs_a_restart_is_told_and_is_no_trouble(desk):
    desk.reloader.needs_restart = ("gateway.state", "gateway.workers")
    document = await desk.show()
    assert document["needs_restart"] == ["gateway.state", "gateway.workers"]
    assert document["verdict"] == "SERVING"


def lose(count):
    def act(desk):
        for number in range(count):
            del desk.workers.serving[number]

    return act


def put(part, **values):
    def act(desk):
        vars(getattr(desk, part)).update(values)

    return act


FULL = Failing(63.0, "no space left on device: /srv/audit.jsonl")


@pytest.mark.parametrize(
    ("breaks", "code", "state", "verdict"),
    [
        (lose(1), "workers_missing", State.DEGRADED, "DEGRADED since 11:06: 1 of 2 workers serve"),
        (lose(2), "no_worker", State.REFUSING, "REFUSING ALL since 11:06: no_worker (0 of 2 workers serve)"),
        (
            put("acceptor", active=False),
            "no_descriptor",
            State.REFUSING,
            "REFUSING ALL since 11:06: no_descriptor (the host has no descriptor left for connections)",
        ),
        (
            put("trail", failing=FULL, refuses=True),
            "audit_unavailable",
            State.REFUSING,
            "REFUSING ALL since 11:05: audit_unavailable (no space left on device: /srv/audit.jsonl)",
        ),
        (
            put("trail", failing=FULL),
            "audit_unavailable",
            State.DEGRADED,
            "DEGRADED since 11:05: audit lines are not written: no space left on device: /srv/audit.jsonl",
        ),
        (
            put("ledger", failing=FULL, refuses=True),
            "ledger_unavailable",
            State.REFUSING,
            "REFUSING ALL since 11:05: ledger_unavailable (no space left on device: /srv/audit.jsonl)",
        ),
        (
            put("ledger", failing=FULL),
            "ledger_unavailable",
            State.DEGRADED,
            "DEGRADED since 11:05: use is not written to the ledger: no space left on device: /srv/audit.jsonl",
        ),
        (
            put("reloader", failed=FailedReload(NOW_S - 120, "policy.toml: roles: expected one")),
            "reload_failed",
            State.DEGRADED,
            "DEGRADED since 11:04: the last reload failed, and what was in force stays so: "
            "policy.toml: roles: expected one",
        ),
        (
            put("admission", sessions=dict.fromkeys(range(5))),
            "gateway_full",
            State.DEGRADED,
            "DEGRADED since 11:06: all 5 sessions are taken (capacity.max_sessions)",
        ),
        (
            lambda desk: desk.certificates.update(gateway=NOW_S),
            "certificate_expired gateway",
            State.DEGRADED,
            "DEGRADED since 11:06: a certificate has expired: gateway",
        ),
        (
            lambda desk: desk.crls.update(local=NOW_S - 60),
            "crl_expired local",
            State.DEGRADED,
            "DEGRADED since 11:05: a revocation list of the trust local is out of date, and its clients are refused",
        ),
        (
            lambda desk: (desk.crls.update(local=NOW_S - 60), desk.accept_stale.add("local")),
            "crl_expired local",
            State.DEGRADED,
            "DEGRADED since 11:05: a revocation list of the trust local is out of date, "
            "and what was revoked since is not known",
        ),
        (
            put("drain", drained=Drained(NOW_S - 60, "uid 0 (root)")),
            "draining",
            State.DRAINING,
            "DRAINING since 11:05: new sessions are refused, by uid 0 (root), 3 sessions left",
        ),
    ],
)
def test_one_thing_that_is_wrong_is_told(desk, breaks, code, state, verdict):
    assert desk.codes == []
    breaks(desk)
    assert desk.codes == [code]
    assert desk.desk.condition().state is state
    assert desk.verdict == verdict


@pytest.mark.parametrize("part", ["trail", "ledger"])
def test_a_disk_that_is_slow_for_a_moment_is_no_trouble(desk, part):
    put(part, failing=Failing(2.0, "slow"))(desk)
    assert desk.codes == []
    put(part, failing=Failing(2.1, "slow"))(desk)
    assert len(desk.codes) == 1


def test_a_gateway_that_ends_says_that_and_not_that_its_workers_are_leaving(desk):
    desk.ending_s = NOW_S - 60
    desk.acceptor.active = False
    assert desk.codes == ["draining"]
    lose(2)(desk)
    assert desk.codes == ["draining"]
    assert desk.verdict == "DRAINING since 11:05: the gateway is ending, 3 sessions left"
    assert desk.desk.line() == "draining, 3 sessions left"


def test_systemd_is_told_in_a_line(desk):
    assert desk.desk.line() == "serving, 3 sessions, 2 of 2 workers"
    lose(1)(desk)
    assert desk.desk.line() == "degraded, 3 sessions, 1 of 2 workers"
    put("trail", failing=FULL, refuses=True)(desk)
    assert desk.desk.line() == "not ready: audit: its lines cannot be written; the log says why"


async def test_what_was_refused_before_another_program_took_over_is_not_of_late(desk):
    desk.meter.totals.refused["db", "no_role"] += 2
    desk.desk.forget_refusals()
    assert (await desk.show())["refusals"]["reasons"] == []


async def test_a_store_that_fails_says_for_how_long_and_why(desk):
    desk.trail.failing = FULL
    assert (await desk.show())["audit"] == {"ok": False, "failing": 63.0, "message": FULL.why, "errors": 4}


async def test_without_anything_that_expires_nothing_does(desk):
    desk.certificates.clear()
    desk.crls.clear()
    assert (await desk.show())["expires"] is None
