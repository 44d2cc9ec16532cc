"""`portguard quota`: what a person and what a program get to see, and what the gateway is asked to do."""

import json
from functools import partial
from zoneinfo import ZoneInfo

import pytest

from portguard.cli.tables import table_lines
from portguard.control.access import Level
from portguard.control.routes import Route
from portguard.gateway.quota_desk import QuotaDesk, Rules
from portguard.identity.names import Namespace
from portguard.limits.accounts import Accounts
from portguard.limits.ledger import Owner, UsageRow
from portguard.limits.periods import span_at
from portguard.policy.model import Limits
from portguard.policy.quantities import Period, Quota
from tests.control_double import ControlDouble
from tests.gateway_folder import CONFIGURATION
from tests.ledger_double import MemoryLedger

ZONE = ZoneInfo("Europe/Zurich")
NOW_S = 1_795_000_000.0  # 2026-11-18T15:06:40+01:00
LIMITS = {
    "dba": Limits(quota=(Quota(20 * 10**9, Period.DAY),), pooled_quota=(Quota(10**12, Period.MONTH),)),
}
RULES = Rules(Namespace({"local": "cn"}, "local", {}), frozenset(LIMITS), ZONE)


@pytest.fixture
def accounts():
    accounts = Accounts(LIMITS, ZONE, NOW_S)
    used = {Owner("dba", "local", "alice"): 3 * 10**9, Owner("dba", "local", "bo\u202eb"): 25 * 10**9}
    accounts.load(
        UsageRow(owner, period, *span_at(period, NOW_S, ZONE), count, 0)
        for owner, count in used.items()
        for period in (Period.DAY, Period.MONTH)
    )
    return accounts


@pytest.fixture
def ledger():
    ledger = MemoryLedger()
    ledger.start(lambda answers: [on_written(written) for on_written, written in answers])
    return ledger


def desk(accounts, ledger):
    return QuotaDesk(accounts, lambda: RULES, lambda _role: None, ledger, lambda: NOW_S)


@pytest.fixture
def gateway(configuration, accounts, ledger):
    with ControlDouble(configuration.parent / "c.sock", desk(accounts, ledger).routes) as gateway:
        yield gateway


@pytest.fixture
def portguard(run_portguard):
    return partial(run_portguard, "quota")


def test_a_person_sees_a_table(gateway, portguard, accounts):
    accounts.grant(Owner("dba", "local", "alice"), [Period.DAY], 5 * 10**9, NOW_S)
    assert portguard("show") == (
        0,
        "ROLE  IDENTITY          PERIOD   USED    LEFT         LIMIT  ENDS (Europe/Zurich)\n"
        "dba   (the whole role)  day     28 GB                  none  2026-11-19 00:00\n"
        "dba   (the whole role)  month   28 GB  972 GB          1 TB  2026-12-01 00:00\n"
        "dba   alice             day      3 GB   22 GB  20 GB + 5 GB  2026-11-19 00:00\n"
        "dba   alice             month    3 GB                  none  2026-12-01 00:00\n"
        "dba   bo\\u202eb         day     25 GB     0 B         20 GB  2026-11-19 00:00\n"
        "dba   bo\\u202eb         month   25 GB                  none  2026-12-01 00:00\n",
        "",
    )


def test_what_is_known_without_the_ledger_is_shown_as_that(gateway, ledger, portguard):
    ledger.trouble = "connection \x1b[2J refused"
    code, out, err = portguard("show", "alice")
    assert (code, len(out.splitlines())) == (0, 3)
    told = "this is what the gateway knows, as the ledger cannot be used: connection \\x1b[2J refused"
    assert err == f"portguard: {told}\n"


def test_a_program_gets_json(gateway, portguard):
    code, out, _ = portguard("show", "alice", "--role", "dba", "--json")
    document = json.loads(out)
    assert (code, document["timezone"]) == (0, "Europe/Zurich")
    assert [(line["identity"], line["period"], line["used"]) for line in document["quotas"]] == [
        ("alice", "day", 3 * 10**9),
        ("alice", "month", 3 * 10**9),
    ]


def test_that_an_identity_has_used_nothing_says_nothing_of_others(gateway, portguard):
    assert portguard("show", "carol") == (0, "", "portguard: carol has used nothing yet\n")
    told = "portguard: carol has used nothing yet in role dba\n"
    assert portguard("show", "carol", "--role", "dba") == (0, "", told)


def test_that_nobody_has_used_anything_is_said(configuration, ledger, portguard):
    accounts = Accounts({"dba": Limits()}, ZONE, NOW_S)
    with ControlDouble(configuration.parent / "c.sock", desk(accounts, ledger).routes):
        assert portguard("show") == (0, "", "portguard: no identity has used anything yet\n")
        told = "portguard: no identity has used anything yet in role dba\n"
        assert portguard("show", "--role", "dba") == (0, "", told)


def test_a_reset_is_done_and_told(gateway, portguard, accounts):
    assert portguard("reset", "alice") == (0, "reset: alice in role dba, per day\n", "")
    lines = accounts.lines(lambda owner: owner.name == "alice", NOW_S)
    assert {line.period: line.used_bytes for line in lines} == {Period.DAY: 0, Period.MONTH: 3 * 10**9}
    given = {"identity": "alice", "all": False, "pool": False, "role": None, "period": None}
    assert gateway.acts == [("/v1/quotas/reset", given, "done")]


def test_all_and_pools_are_reset(gateway, portguard):
    assert portguard("reset", "--all", "--period", "day")[1] == (
        "reset: alice in role dba, per day\nreset: bo\\u202eb in role dba, per day\n"
    )
    assert portguard("reset", "--pool", "--role", "dba")[1] == "reset: (the whole role) in role dba, per month\n"


def test_a_grant_is_done_and_told(gateway, portguard, accounts):
    assert portguard("grant", "alice", "5GB") == (0, "granted 5 GB: alice in role dba, per day\n", "")
    (line,) = [each for each in accounts.lines(lambda each: each.name == "alice", NOW_S) if each.granted_bytes]
    assert (line.period, line.granted_bytes) == (Period.DAY, 5 * 10**9)
    code, out, _ = portguard("grant", "--pool", "--role", "dba", "1TB", "--json")
    document = json.loads(out)
    assert (code, document["bytes"], document["granted"][0]["identity"]) == (0, 10**12, None)


def test_that_the_ledger_does_not_take_it_is_a_failure(gateway, portguard, ledger):
    ledger.trouble = "a full disk"
    for words in (("reset", "alice"), ("grant", "alice", "5GB")):
        said = f"quota {words[0]}: expected a ledger that takes it, got a full disk; nothing was changed"
        assert portguard(*words) == (1, "", f"portguard: {said}\n")


def test_many_changes_are_told_in_short(configuration, portguard):
    async def reset(_peer, _given):
        return {"reset": [{"role": "dba", "identity": f"user{n}", "periods": ["day"]} for n in range(25)]}

    with ControlDouble(configuration.parent / "c.sock", [Route("POST", "/v1/quotas/reset", Level.ADMIN, reset)]):
        lines = portguard("reset", "--all")[1].splitlines()
    assert (len(lines), lines[-1]) == (21, "and 5 more (--json prints all)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reset",), "quota reset: expected one of IDENTITY, --all and --pool, got none"),
        (
            ("reset", "alice", "--all"),
            "quota reset: expected one of IDENTITY, --all and --pool, got IDENTITY and --all",
        ),
        (("reset", "--pool"), "quota reset: expected --role beside --pool, got none"),
        (("grant", "5GB"), "quota grant: expected one of IDENTITY, --all and --pool, got none"),
        (("grant", "alice", "bob", "5GB"), "quota grant: expected one IDENTITY and SIZE, got 3 words"),
        (("grant", "alice", "5"), 'SIZE: expected a size such as "500kB", "20GB" or "64MiB", got \'5\''),
        (("grant", "alice", "0B"), "bytes: expected an integer, 1 to 1000000000000000, got 0"),
        (("show", "nope:x"), "identity: expected a trust before the first \":\" (known: local), got 'nope:x'"),
    ],
)
def test_wrong_usage_is_told(gateway, portguard, arguments, message):
    assert portguard(*arguments) == (2, "", f"portguard: {message}\n")


def test_what_does_not_exist_fails(gateway, portguard):
    code, out, err = portguard("reset", "carol")
    assert (code, out) == (1, "")
    assert err == "portguard: carol: expected an identity that has used something, got an unknown one\n"


def test_without_a_gateway_it_is_unreachable(configuration, portguard):
    code, out, err = portguard("show")
    assert (code, out) == (4, "")
    assert err == (
        f"portguard: {configuration.parent}/c.sock: expected a gateway's control socket, "
        "got no such file; does the gateway run, or did gateway.control change since it started?\n"
    )


def test_a_slip_elsewhere_in_the_configuration_does_not_keep_one_from_acting(gateway, portguard, configuration):
    configuration.write_text(configuration.read_text() + '\n[timeouts]\nidle = "soon"\n')
    assert portguard("show", "alice")[0] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[gateway\n", ": expected TOML, got an error at "),
        (CONFIGURATION.replace("[trusts", "control = 3\n[trusts", 1), ": gateway.control: expected the path of a file"),
        ("gateway = 3\n", ": gateway: expected a table, got 3"),
    ],
)
def test_a_configuration_that_does_not_say_where_is_an_error(gateway, portguard, configuration, content, message):
    configuration.write_text(content)
    code, out, err = portguard("show")
    assert (code, out) == (2, "")
    assert f"portguard: {configuration}{message}" in err


def test_a_configuration_that_is_missing_is_an_error(portguard, configuration):
    configuration.unlink()
    code, _, err = portguard("show")
    assert code == 2
    assert err == (
        f"portguard: {configuration}: expected a file that can be read (the configuration), "
        "got no such file or directory\n"
    )


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"timezone": "UTC", "quotas": [1]},
        {"timezone": "UTC", "quotas": [{"role": "dba"}]},
        {"timezone": 1, "quotas": []},
        {"timezone": "UTC", "quotas": [{"role": 1, "identity": "a", "period": "day"}] * 2},
    ],
)
def test_a_gateway_that_answers_something_else_is_told_of(configuration, portguard, document):
    async def show(_peer, _given):
        return document

    with ControlDouble(configuration.parent / "c.sock", [Route("GET", "/v1/quotas", Level.VIEWER, show)]):
        code, out, err = portguard("show")
    assert (code, out) == (1, "")
    assert err == "portguard: the gateway: expected an answer that this version understands, got another one\n"


def test_a_zone_that_this_host_does_not_know_is_shown_as_utc(configuration, portguard):
    async def show(_peer, _given):
        line = {"role": "dba", "identity": "a", "period": "day", "limit": None, "granted": 0, "used": 1, "left": None}
        return {"timezone": "Mars/Olympus", "quotas": [line | {"ends": "2026-11-18T23:00:00Z"}]}

    with ControlDouble(configuration.parent / "c.sock", [Route("GET", "/v1/quotas", Level.VIEWER, show)]):
        lines = portguard("show")[1].splitlines()
    assert lines[0].endswith("ENDS (UTC)")
    assert lines[1].endswith("2026-11-18 23:00")


def test_columns_are_aligned_by_what_a_terminal_shows():
    lines = list(
        table_lines(
            ("A", "B", "C"), [("日本", "1", "x"), ("e\u0301", "22", "y\x1b"), ("", "", "")], right=frozenset({1})
        )
    )
    assert lines == ["A      B  C", "日本   1  x", "e\u0301     22  y\\x1b", ""]
