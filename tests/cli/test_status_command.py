"""`portguard status`, `drain` and `resume`: what a person reads, and what a script goes by."""

import json
import time

import pytest

from portguard.control.access import Level
from portguard.control.routes import Route
from tests.control_double import ControlDouble

WELL = {
    "verdict": "SERVING",
    "state": "serving",
    "since": None,
    "problems": [],
    "sessions": 212,
    "sessions_limit": 8000,
    "workers": [
        {"worker": 3, "pid": 4712, "serving": True, "retiring": False, "connections": 104, "uptime": 93784.0},
        {"worker": 1, "pid": 4700, "serving": False, "retiring": True, "connections": 1, "uptime": 12.0},
    ],
    "workers_wanted": 2,
    "worker_restarts": 0,
    "confinement": {"by": "landlock", "abi": 7, "message": None},
    "policy": "5f2c0b91e7aa" + "0" * 52,
    "loaded": {"at": "2026-11-20T15:40:00Z", "by": None, "message": None},
    "needs_restart": [],
    "expires": {"use": "gateway", "at": "2027-02-01T11:00:00Z", "seconds": 5_912_000},
    "refusals": {"seconds": 300.0, "reasons": []},
    "audit": {"ok": True, "failing": None, "message": None, "errors": 0},
    "ledger": {"ok": True, "failing": None, "message": None, "errors": 0},
    "version": "0.1.0",
    "pid": 4711,
    "generation": 1,
}
ILL = {
    **WELL,
    "verdict": "REFUSING ALL since 02:51: audit_unavailable (no space left\x1b[2J); and 1 more",
    "state": "refusing",
    "problems": [
        {"code": "audit_unavailable", "state": "refusing", "detail": "no space left", "since": "2026-11-24T02:51:10Z"},
        {"code": "workers_missing", "state": "degraded", "detail": "1 of 2 serve", "since": "2026-11-24T02:52:00Z"},
    ],
    "worker_restarts": 3,
    "confinement": {"by": None, "abi": None, "message": "the kernel has none\x1b[2J"},
    "loaded": {"at": "2026-11-20T15:40:00Z", "by": "uid 1001 (anna)", "message": "CHG-123"},
    "expires": {"use": "crl:local", "at": "2026-11-01T00:00:00Z", "seconds": -5},
    "refusals": {
        "seconds": 300.0,
        "reasons": [{"reason": "audit_unavailable", "count": 48}, {"reason": "no_role", "count": 3}],
    },
    "audit": {"ok": False, "failing": 751.0, "message": "no space left", "errors": 9},
}  # fmt: skip


class Gateway:
    def __init__(self):
        self.status = WELL
        self.drained = False
        self.given = []
        self.routes = [
            Route("GET", "/v1/status", Level.VIEWER, self._status),
            Route("POST", "/v1/drain", Level.OPERATOR, self._drain),
            Route("POST", "/v1/resume", Level.OPERATOR, self._resume),
        ]

    async def _status(self, _peer, _given):
        return self.status

    async def _drain(self, _peer, given):
        self.given.append(given)
        changed, self.drained = not self.drained, True
        return {"draining": True, "exit": given["exit"], "changed": changed, "sessions": 3}

    async def _resume(self, _peer, given):
        changed, self.drained = self.drained, False
        return {"draining": False, "changed": changed, "sessions": 3}


@pytest.fixture
def gateway(configuration):
    gateway = Gateway()
    with ControlDouble(configuration.parent / "c.sock", gateway.routes):
        yield gateway


@pytest.fixture
def portguard(run_portguard):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield run_portguard
    time.tzset()


def test_that_all_is_well_is_the_first_word_and_the_exit_code(gateway, portguard):
    assert portguard("status") == (
        0,
        "SERVING\n"
        "\n"
        "sessions        212 of 8000\n"
        "workers         1 of 2\n"
        "  worker 3      pid 4712, 104 connections, up 1d02h\n"
        "  worker 1      pid 4700, 1 connection, up 12s (retiring)\n"
        "  confined by   Landlock (ABI 7)\n"
        "policy          5f2c0b91e7aa, loaded 2026-11-20 15:40\n"
        "expires first   gateway, 2027-02-01 11:00 (in 68d10h)\n"
        "audit           ok\n"
        "ledger          ok\n"
        "version         0.1.0, process 4711\n"
        "refused, 5 min  none\n",
        "",
    )


def test_what_is_wrong_is_told_first_and_all_of_it_and_the_exit_code_is_1(gateway, portguard):
    gateway.status = ILL
    code, out, err = portguard("status")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[:3] == [
        "REFUSING ALL since 02:51: audit_unavailable (no space left\\x1b[2J); and 1 more",
        "  since 2026-11-24 02:51: audit_unavailable (no space left)",
        "  since 2026-11-24 02:52: workers_missing (1 of 2 serve)",
    ]
    assert "workers         1 of 2, 3 restarted" in lines
    assert "policy          5f2c0b91e7aa, loaded 2026-11-20 15:40 by uid 1001 (anna): CHG-123" in lines
    assert "expires first   crl:local, 2026-11-01 00:00 (EXPIRED)" in lines
    assert "audit           NOT WRITTEN for 12m31s: no space left" in lines
    assert lines[-1] == "refused, 5 min  audit_unavailable 48, no_role 3"


def test_what_needs_a_restart_is_told_for_as_long_as_it_does(gateway, portguard):
    gateway.status = {**WELL, "needs_restart": ["gateway.state", "gateway.workers"]}
    code, out, _ = portguard("status")
    assert (code, out.splitlines()[0]) == (0, "SERVING")
    assert "needs a restart  gateway.state, gateway.workers" in out.splitlines()
    gateway.status = {name: value for name, value in WELL.items() if name != "needs_restart"}  # of a version before
    assert "restart" not in portguard("status")[1]


@pytest.mark.parametrize("state", ["degraded", "draining", "refusing", "something new"])
def test_whatever_is_not_serving_exits_with_1(gateway, portguard, state):
    gateway.status = {**WELL, "state": state}
    assert portguard("status")[0] == portguard("status", "--json")[0] == 1


def test_a_program_gets_json(gateway, portguard):
    code, out, _ = portguard("status", "--json")
    assert (code, json.loads(out)) == (0, WELL)


def test_a_gateway_that_does_not_run_is_another_exit_code(portguard):
    code, out, err = portguard("status")
    assert (code, out) == (4, "")
    assert "does the gateway run" in err


def test_an_answer_of_another_version_is_an_error(gateway, portguard):
    gateway.status = {"verdict": "SERVING", "state": "serving"}
    assert portguard("status") == (
        1,
        "",
        "portguard: the gateway: expected an answer that this version understands, got another one\n",
    )


def test_draining_says_how_many_sessions_are_left(gateway, portguard):
    assert portguard("drain") == (0, "sessions left: 3\n", "")
    assert portguard("drain") == (0, "new sessions were refused already\nsessions left: 3\n", "")
    assert portguard("resume") == (0, "new sessions are taken again\n", "")
    assert portguard("resume") == (0, "new sessions were taken already\n", "")
    assert gateway.given == [{"exit": False}] * 2


def test_only_with_exit_is_it_to_end(gateway, portguard):
    code, out, _ = portguard("drain", "--exit", "--json")
    assert (code, json.loads(out)["exit"]) == (0, True)
    assert gateway.given == [{"exit": True}]
