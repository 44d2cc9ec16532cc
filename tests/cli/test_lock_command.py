"""`portguard lock` and `portguard unlock`: what people and programs get to see, and what the gateway is asked to do."""

import json

import pytest

from portguard.control.access import Level
from portguard.control.routes import Route
from portguard.gateway.lock_desk import LockDesk
from portguard.identity.names import Namespace
from portguard.limits.locks import Locks
from tests.control_double import ControlDouble
from tests.ledger_double import MemoryLedger

NOW_S = 1_795_000_000  # 2026-11-18T11:06:40Z
PRINT = "ab" * 32


@pytest.fixture
def ledger():
    ledger = MemoryLedger()
    ledger.start(lambda answers: [on_written(written) for on_written, written in answers])
    return ledger


@pytest.fixture
def gateway(configuration, ledger):
    desk = LockDesk(
        Locks(),
        store=ledger,
        namespace=lambda: Namespace({"local": "cn"}, "local", {}),
        sessions={},
        tell=lambda message: None,
        end=lambda session, reason: None,
        on_expired=lambda lock: None,
        clock=lambda: NOW_S,
    )
    with ControlDouble(configuration.parent / "c.sock", desk.routes) as gateway:
        yield gateway


@pytest.fixture
def portguard(run_portguard):
    """`portguard("lock", "alice", …)` is exit code, standard output and standard error."""
    return run_portguard


def test_a_lock_is_set_told_and_taken_away(gateway, portguard, ledger):
    assert portguard("lock", "alice", "--reason", "INC-1") == (0, "locked: alice\nsessions closed: 0\n", "")
    given = {"identity": "alice", "certificate": None, "reason": "INC-1", "for": None}
    assert gateway.acts == [("/v1/lock", given, "done")]
    assert [row.target.value for row in ledger.contents(NOW_S).locks] == ["alice"]
    assert portguard("unlock", "alice") == (0, "unlocked: alice\n", "")
    assert ledger.contents(NOW_S).locks == ()
    assert portguard("unlock", "alice") == (1, "", "portguard: alice: expected a lock, got none\n")


def test_a_lock_has_an_end(gateway, portguard, ledger):
    code, out, _ = portguard("lock", "--certificate", f"SHA256:{PRINT}", "--reason", "INC-1", "--for", "2h")
    assert (code, out.splitlines()[0]) == (0, f"locked: SHA256:{PRINT} until 2026-11-18 13:06 UTC")
    assert [row.until_s for row in ledger.contents(NOW_S).locks] == [NOW_S + 7200]
    assert portguard("unlock", "--certificate", f"SHA256:{PRINT.upper()}")[:2] == (0, f"unlocked: SHA256:{PRINT}\n")


def test_a_person_sees_a_table(gateway, portguard):
    portguard("lock", "alice", "--reason", "INC-1")
    portguard("lock", "--certificate", "local:1F", "--reason", "a key in a repository", "--for", "1h")
    code, out, err = portguard("lock", "--list")
    header, *rows = out.splitlines()
    assert (code, err) == (0, "")
    assert header.split("  ")[0] == "LOCKED"
    assert [(row.split()[0], row.split("  ")[-1]) for row in rows] == [
        ("alice", "INC-1"),
        ("local:1f", "a key in a repository"),
    ]
    assert [("2026-11-18 12:06" in row, "unlocked" in row) for row in rows] == [(False, True), (True, False)]


def test_the_two_ends_of_a_short_lock_are_told_apart(gateway, portguard):
    done = portguard("lock", "alice", "--reason", "INC-1", "--for", "3s")
    assert done == (0, "locked: alice until 2026-11-18 11:06:43 UTC\nsessions closed: 0\n", "")
    portguard("lock", "bob", "--reason", "INC-1", "--for", "10m")
    alice, bob = portguard("lock", "--list")[1].splitlines()[1:]
    assert alice.split()[1:5] == ["2026-11-18", "11:06:40", "2026-11-18", "11:06:43"]
    assert bob.split()[1:5] == ["2026-11-18", "11:06", "2026-11-18", "11:16"]


def test_a_program_gets_json(gateway, portguard):
    code, out, _ = portguard("lock", "alice", "--reason", "INC-1", "--json")
    document = json.loads(out)
    assert (code, document["lock"]["identity"], document["replaced"], document["sessions"]) == (0, "alice", False, 0)
    code, out, _ = portguard("lock", "--list", "--json")
    assert (code, json.loads(out)) == (0, {"locks": [document["lock"]]})
    code, out, _ = portguard("unlock", "alice", "--json")
    assert (code, json.loads(out)) == (0, {"unlocked": document["lock"]})


def test_nobody_locked_out_is_said(gateway, portguard):
    assert portguard("lock", "--list") == (0, "", "portguard: nobody is locked out\n")


def test_without_the_ledger_it_fails_with_words_and_the_list_says_so(gateway, portguard, ledger):
    ledger.trouble = "a full disk"
    assert portguard("lock", "alice", "--reason", "INC-1") == (
        1,
        "",
        "portguard: alice: locked; in force until the gateway restarts, and not yet in the ledger: a full disk\n",
    )
    code, out, err = portguard("lock", "--list")
    assert (code, "alice" in out) == (0, True)
    assert err == "portguard: in force at this gateway, and not yet in the ledger: 1\n"


def test_what_the_gateway_says_is_escaped(configuration, portguard):
    row = {"identity": "a\u202eb", "certificate": None, "since": "2026-11-18T14:06:40Z", "until": None}
    row |= {"by": "\x1b[2J", "reason": "\x07", "saved": True}

    async def show(_peer, _given):
        return {"locks": [row]}

    with ControlDouble(configuration.parent / "c.sock", [Route("GET", "/v1/locks", Level.VIEWER, show)]):
        _, out, _ = portguard("lock", "--list")
    assert "a\\u202eb" in out
    assert "\x1b" not in out
    assert "\x07" not in out


@pytest.mark.parametrize("answer", [{}, {"locks": 1}, {"locks": [{"identity": "alice"}]}])
def test_an_answer_of_another_version_is_said(configuration, portguard, answer):
    async def show(_peer, _given):
        return answer

    with ControlDouble(configuration.parent / "c.sock", [Route("GET", "/v1/locks", Level.VIEWER, show)]):
        code, _, err = portguard("lock", "--list")
    assert (code, err) == (
        1,
        "portguard: the gateway: expected an answer that this version understands, got another one\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lock",), "lock: expected one of IDENTITY and --certificate, got none"),
        (("lock", "alice", "--certificate", "local:1"), "lock: expected one of IDENTITY and --certificate, got both"),
        (("lock", "alice"), "lock: expected --reason, got none"),
        (("lock", "alice", "--list"), "lock: expected nothing to lock beside --list"),
        (("unlock",), "unlock: expected one of IDENTITY and --certificate, got none"),
        (("lock", "@oncall", "--reason", "x"), "identity: expected an identity, not a group, got '@oncall'"),
        (
            ("lock", "alice", "--reason", "x", "--for", "soon"),
            'for: expected a duration such as "250ms", "10s", "5m", "24h" or "30d", got \'soon\'',
        ),
    ],
)
def test_wrong_usage_is_told(gateway, portguard, arguments, message):
    assert portguard(*arguments) == (2, "", f"portguard: {message}\n")
