"""What a reading becomes. That Prometheus itself reads it right is shown in tests/e2e/test_prometheus.py."""

from collections import Counter

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from portguard import __version__
from portguard.observe.metrics import QuotaUse, Reading, Totals, render

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
STRANGE = 'ä"\\\n{}'


def reading(totals=None, **changed):
    values = {
        "totals": totals or Totals(),
        "active": {("db", "team"): 3},
        "sessions_limit": 8000,
        "upstreams": {("db", "10.0.0.1:5432"): True, ("db", "10.0.0.2:5432"): False},
        "certificates": {"gateway": 1.8e9},
        "crls": {"local": 1.7e9},
        "last_load_successful": True,
        "loaded_s": 1.6e9,
        "revision": "ab" * 32,
        "workers": 2,
        "draining": False,
        "quotas": QuotaUse(),
        "audit_failures": 0,
        "ledger_errors": 0,
    } | changed
    return Reading(**values)


def some_totals():
    totals = Totals(
        opened=Counter({("alice", "db"): 5}),
        received=Counter({("alice", "db"): 10**15 + 1}),
        sent=Counter({("alice", "db"): 7}),
        closed=Counter({("db", "client_closed"): 2}),
        refused=Counter({("", "handshake_failed"): 4}),
        worker_restarts=6,
        quota_warnings=Counter({("team", "day"): 8}),
    )
    for seconds in (0.001, 0.002, 99.0):
        totals.handshakes.observe(seconds)
    totals.connect("db", 0.004)
    totals.duration("db", 60.0)
    return totals


def samples(reading, accept="", parse=parse_text):
    body = b"".join(render(reading, accept)[0])
    return {
        (sample.name.removeprefix("portguard_"), *sorted(sample.labels.items())): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize(("accept", "parse"), [("", parse_text), (OPENMETRICS, parse_openmetrics)])
def test_every_value_is_found_under_its_name(accept, parse):
    quotas = QuotaUse(
        limits={("team", "day"): 10**13},
        used={("alice", "team", "day"): 9},
        pooled_limits={("team", "month"): 11},
        pooled_used={("team", "month"): 12},
    )
    found = samples(reading(some_totals(), quotas=quotas, audit_failures=13, ledger_errors=14), accept, parse)
    day, month = (("period", "day"), ("role", "team")), (("period", "month"), ("role", "team"))
    who = ("identity", "alice"), ("service", "db")
    expected = {
        ("sessions_active", ("role", "team"), ("service", "db")): 3,
        ("sessions_limit",): 8000,
        ("sessions_opened_total", *who): 5,
        ("received_bytes_total", *who): 10**15 + 1,
        ("sent_bytes_total", *who): 7,
        ("sessions_closed_total", ("reason", "client_closed"), ("service", "db")): 2,
        ("sessions_refused_total", ("reason", "handshake_failed"), ("service", "")): 4,
        ("upstream_up", ("service", "db"), ("upstream", "10.0.0.1:5432")): 1,
        ("upstream_up", ("service", "db"), ("upstream", "10.0.0.2:5432")): 0,
        ("certificate_not_after_timestamp_seconds", ("use", "gateway")): 1.8e9,
        ("crl_next_update_timestamp_seconds", ("trust", "local")): 1.7e9,
        ("policy_last_load_successful",): 1,
        ("policy_loaded_timestamp_seconds",): 1.6e9,
        ("policy_info", ("revision", "ab" * 32)): 1,
        ("workers",): 2,
        ("worker_restarts_total",): 6,
        ("draining",): 0,
        ("quota_limit_bytes", *day): 10**13,
        ("quota_used_bytes", ("identity", "alice"), *day): 9,
        ("pooled_quota_limit_bytes", *month): 11,
        ("pooled_quota_used_bytes", *month): 12,
        ("quota_warnings_total", *day): 8,
        ("audit_failures_total",): 13,
        ("ledger_errors_total",): 14,
        ("handshake_seconds_count",): 3,
        ("handshake_seconds_bucket", ("le", "0.001")): 1,
        ("handshake_seconds_bucket", ("le", "0.0025")): 2,
        ("handshake_seconds_bucket", ("le", "10.0")): 2,
        ("handshake_seconds_bucket", ("le", "+Inf")): 3,
        ("upstream_connect_seconds_count", ("service", "db")): 1,
        ("session_duration_seconds_sum", ("service", "db")): 60,
        ("session_duration_seconds_bucket", ("le", "60.0"), ("service", "db")): 1,
    }
    assert {key: found.get(key) for key in expected} == expected
    [build] = [dict(key[1:]) for key in found if key[0] == "build_info"]
    assert build["version"] == __version__


def test_counters_that_never_counted_are_there_all_the_same():
    found = samples(reading())
    assert found["worker_restarts_total",] == 0
    assert found["audit_failures_total",] == found["ledger_errors_total",] == 0
    assert found["handshake_seconds_count",] == 0


def test_a_name_cannot_break_out_of_its_label():
    totals = Totals(opened=Counter({(STRANGE, "db"): 1}))
    for accept, parse in (("", parse_text), (OPENMETRICS, parse_openmetrics)):
        assert (
            samples(reading(totals), accept, parse)["sessions_opened_total", ("identity", STRANGE), ("service", "db")]
            == 1
        )


def test_the_format_is_the_one_that_is_asked_for():
    assert render(reading(), "")[1].startswith("text/plain; version=0.0.4")
    pieces, content_type = render(reading(), OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert b"".join(pieces).endswith(b"# EOF\n")
    assert b"EOF" not in b"".join(render(reading(), "")[0])


@pytest.mark.parametrize(("accept", "parse"), [("", parse_text), (OPENMETRICS, parse_openmetrics)])
@pytest.mark.parametrize("count", [0, 1, 199, 200, 201, 400, 1001])
def test_many_series_come_in_pieces_that_fit_together(accept, parse, count):
    totals = Totals(opened=Counter({(f"user-{number}", "db"): number for number in range(count)}))
    for number in range(count // 20):
        totals.connect(f"service-{number}", 0.1)
    pieces, _ = render(reading(totals), accept)
    text = b"".join(pieces).decode()
    lines = text.splitlines()
    assert len([line for line in lines if line.startswith("# TYPE portguard_sessions_opened")]) == 1
    assert len([line for line in lines if line.startswith("# HELP portguard_upstream_connect_seconds ")]) == 1
    families = [family for family in parse(text) if family.name == "portguard_sessions_opened"]
    found = {sample.labels["identity"]: sample.value for family in families for sample in family.samples}
    assert found == {f"user-{number}": number for number in range(count)}
    assert len([line for line in lines if line.startswith("portguard_upstream_connect_seconds_sum")]) == count // 20


def test_no_piece_is_large():
    totals = Totals(opened=Counter({(f"user-{number}", "db"): number for number in range(5000)}))
    for number in range(500):
        totals.connect(f"service-{number}", 0.1)
    assert max(piece.count(b"\n") for piece in render(reading(totals), "")[0]) <= 20 * 16 + 2


def test_totals_that_were_copied_stay_as_they_were():
    totals = some_totals()
    copy = totals.copy()
    before = samples(reading(copy))
    totals.opened["bob", "db"] += 1
    totals.received["alice", "db"] += 1
    totals.sent["alice", "db"] += 1
    totals.closed["db", "killed"] += 1
    totals.refused["db", "no_role"] += 1
    totals.handshakes.observe(1.0)
    totals.connect("db", 1.0)
    totals.connect("web", 1.0)
    totals.duration("db", 1.0)
    assert samples(reading(copy)) == before
    assert len(samples(reading(totals))) > len(before)
