"""Prometheus itself reads the metrics, and what it answers is what happened."""

import json
import os
import re
import signal
import ssl
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.counting import steady_zone
from tests.patience import PATIENCE_S
from tests.unharmed import workers

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/reference/metrics.md").read_text()
POLICY = """
[[roles]]
name = "team"
members = ["alice"]
services = ["*"]
quota = ["1GB/day"]
pooled_quota = ["1TB/month"]
[[roles]]
name = "frugal"
members = ["frank"]
services = ["echo"]
quota = ["20B/day"]
[[roles]]
name = "guests"
members = ["carol"]
services = ["echo"]
"""


@pytest.fixture
def gateway(start_gateway, echo, free_port):
    services = {"echo": echo, "broken": f"127.0.0.1:{free_port()}"}
    policy = f'timezone = "{steady_zone()}"\n{POLICY}'
    return start_gateway(services, policy=policy, configuration='[log]\nlevel = "debug"')


def get(gateway, path, **headers):
    """Status and body of one of the gateway's pages."""
    request = urllib.request.Request(f"http://127.0.0.1:{gateway.metrics_port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def exchange(client, count):
    client.sendall(bytes(count))
    while count:
        count -= len(client.recv(min(count, 65536)))


def use(gateway, name, count):
    with gateway.connect("echo", name) as client:
        exchange(client, count)
        client.unwrap()


def be_refused(gateway, service, name):
    with gateway.connect(service, name) as client, pytest.raises(ssl.SSLError):
        client.recv(1)


def scrape(gateway):
    """All samples by what stands before their value."""
    _, text = get(gateway, "/metrics")
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("portguard_"): float(value) for name, _, value in lines}


def wait_for(gateway, sample, value):
    gateway.program.wait_until(lambda: scrape(gateway).get(sample) == value, f"{sample} was {value}")


def traffic(gateway):
    """Alice has two sessions that end, carol one; bob, a stranger and a broken service make refusals."""
    use(gateway, "alice", 1000)
    use(gateway, "alice", 500)
    use(gateway, "carol", 7)
    be_refused(gateway, "echo", "bob")
    be_refused(gateway, "broken", "alice")
    with gateway.connect("echo", None) as client, pytest.raises(ssl.SSLError):
        client.recv(1)
    wait_for(gateway, 'sessions_closed_total{reason="client_closed",service="echo"}', 3)
    wait_for(gateway, 'sessions_refused_total{reason="upstream_unreachable",service="broken"}', 1)
    wait_for(gateway, "handshake_seconds_count", 5)
    wait_for(gateway, f'upstream_up{{service="broken",upstream="{upstream(gateway, "broken")}"}}', 0)


def upstream(gateway, service):
    policy = (gateway.folder / "policy.toml").read_text()
    return re.search(rf'\[services\.{service}\]\nupstream = \["([^"]+)"\]', policy)[1]


def test_what_happened_is_counted_under_its_names(gateway):
    traffic(gateway)
    # Workers tell of upstreams once a second, of all else at once.
    wait_for(gateway, f'upstream_up{{service="echo",upstream="{upstream(gateway, "echo")}"}}', 1)
    found = scrape(gateway)
    expected = {
        'sessions_active{role="team",service="echo"}': 0,
        "sessions_limit": 8000,
        'sessions_opened_total{identity="alice",service="echo"}': 2,
        'sessions_opened_total{identity="carol",service="echo"}': 1,
        'received_bytes_total{identity="alice",service="echo"}': 1500,
        'sent_bytes_total{identity="alice",service="echo"}': 1500,
        'sent_bytes_total{identity="carol",service="echo"}': 7,
        'sessions_refused_total{reason="no_role",service="echo"}': 1,
        'sessions_refused_total{reason="certificate_missing",service=""}': 1,
        'upstream_connect_seconds_count{service="echo"}': 3,
        'session_duration_seconds_count{service="echo"}': 3,
        f'upstream_up{{service="echo",upstream="{upstream(gateway, "echo")}"}}': 1,
        "policy_last_load_successful": 1,
        "workers": 2,
        "worker_restarts_total": 0,
        'quota_limit_bytes{period="day",role="team"}': 1e9,
        'quota_used_bytes{identity="alice",period="day",role="team"}': 3000,
        'pooled_quota_limit_bytes{period="month",role="team"}': 1e12,
        'pooled_quota_used_bytes{period="month",role="team"}': 3000,
        "audit_failures_total": 0,
        "ledger_errors_total": 0,
        "draining": 0,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert not [name for name in found if "bob" in name]
    assert 'sessions_opened_total{identity="alice",service="broken"}' not in found


def test_every_metric_is_documented_with_its_type_and_labels_and_no_other(gateway):
    traffic(gateway)
    use(gateway, "frank", 9)
    wait_for(gateway, 'quota_warnings_total{period="day",role="frugal"}', 1)
    _, text = get(gateway, "/metrics")
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    labels = {name: set() for name in types}
    for line in text.splitlines():
        if not line.startswith("#"):
            name = re.match(r"[a-z_]+", line)[0]
            family = name if name in types else re.sub("_(bucket|count|sum)$", "", name)
            labels[family] |= set(re.findall(r'[{,]([a-z_]+)="', line)) - {"le"}
    rows = re.findall(r"^\| `(portguard_\w+)` \| (\w+) \|(.*?)\| .+ \|$", PAGE, re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", names))) for name, kind, names in rows}
    labels["portguard_crl_next_update_timestamp_seconds"] = {"trust"}  # this gateway has no lists
    assert documented == {name: (kind, labels[name]) for name, kind in types.items()}


def test_promtool_finds_nothing_to_complain_of(gateway, real_program):
    traffic(gateway)
    _, text = get(gateway, "/metrics")
    done = subprocess.run(
        [real_program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    spoilt = text.replace("# HELP portguard_workers ", "# HELPLESS portguard_workers ")
    done = subprocess.run(
        [real_program("promtool"), "check", "metrics"], input=spoilt, capture_output=True, text=True, check=False
    )
    assert "portguard_workers" in done.stderr


def test_live_sessions_count_and_nothing_is_lost_with_their_worker(gateway):
    use(gateway, "alice", 100)
    wait_for(gateway, 'sessions_closed_total{reason="client_closed",service="echo"}', 1)
    received, sent = (f'{way}_bytes_total{{identity="alice",service="echo"}}' for way in ("received", "sent"))
    with gateway.connect("echo") as one, gateway.connect("echo") as two:
        exchange(one, 2000)
        exchange(two, 30000)
        for moved in (received, sent):
            wait_for(gateway, moved, 32100)
        found = scrape(gateway)
        assert found['sessions_active{role="team",service="echo"}'] == 2
        assert found['sessions_opened_total{identity="alice",service="echo"}'] == 3
        for pid in workers(gateway):
            os.kill(pid, signal.SIGKILL)
        wait_for(gateway, 'sessions_closed_total{reason="worker_lost",service="echo"}', 2)
    wait_for(gateway, "workers", 2)
    found = scrape(gateway)
    assert found[received] == found[sent] == 32100
    assert found['sessions_opened_total{identity="alice",service="echo"}'] == 3
    assert found['sessions_active{role="team",service="echo"}'] == 0
    assert found["worker_restarts_total"] == 2
    use(gateway, "alice", 1)
    wait_for(gateway, received, 32101)


def test_identities_beyond_those_that_have_a_label_are_others(start_gateway, echo):
    policy = POLICY.replace('"carol"', '"carol", "dora"')
    gateway = start_gateway({"echo": echo}, policy=policy, metrics="max_identities = 1")
    for name, count in (("alice", 1), ("carol", 10), ("dora", 100), ("alice", 1000)):
        use(gateway, name, count)
        gateway.wait_for_log(f"session.close .*identity={name} .*received={count} ")
    wait_for(gateway, 'received_bytes_total{identity="alice",service="echo"}', 1001)
    wait_for(gateway, 'received_bytes_total{identity="other",service="echo"}', 110)
    assert not [name for name in scrape(gateway) if "carol" in name or "dora" in name]


def dashboard_queries():
    """What the Grafana dashboard asks for, its variables filled in."""
    dashboard = json.loads((REPOSITORY / "grafana/portguard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 15
    return [expression.replace("$__rate_interval", "1m").replace("$job", "portguard") for expression in expressions]


def test_prometheus_answers_with_the_right_numbers(gateway, start, free_port, real_program, tmp_path):
    traffic(gateway)
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        "scrape_configs:\n"
        f"  - {{job_name: portguard, static_configs: [{{targets: ['127.0.0.1:{gateway.metrics_port}']}}]}}\n"
    )
    prometheus = start(
        [
            real_program("prometheus"),
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
    )
    prometheus.wait_until_it_says("Server is ready to receive web requests")

    def query(text):
        """Values by labels; those of the target itself left out."""
        url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': text})}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
            result = json.load(response)["data"]["result"]
        return {tuple(sorted(one["metric"].items())): float(one["value"][1]) for one in result}

    received = "sum by (identity) (portguard_received_bytes_total)"
    twice = "count_over_time(portguard_workers[1m]) > 1"
    prometheus.wait_until(lambda: query(twice), "it has scraped the gateway twice, as rate() needs")
    assert query("up") == {
        (("__name__", "up"), ("instance", f"127.0.0.1:{gateway.metrics_port}"), ("job", "portguard")): 1
    }
    assert query(received) == {(("identity", "alice"),): 1500, (("identity", "carol"),): 7}
    assert query("sum by (reason) (portguard_sessions_refused_total)") == {
        (("reason", "no_role"),): 1,
        (("reason", "upstream_unreachable"),): 1,
        (("reason", "certificate_missing"),): 1,
    }
    [quantile] = query("histogram_quantile(0.99, sum by (le) (portguard_handshake_seconds_bucket))").values()
    assert 0 < quantile < 10
    assert query("portguard_certificate_not_after_timestamp_seconds > time()")
    for expression in dashboard_queries():
        answer = query(expression)
        assert answer or "crl_next_update" in expression, expression
    with gateway.connect("echo") as client:
        exchange(client, 4000)
        prometheus.wait_until(lambda: query(received)[("identity", "alice"),] == 5500, "it saw a live session's bytes")
        assert query("sum(portguard_sessions_active)") == {(): 1}
        client.unwrap()


def test_the_gateway_is_ready_until_it_is_told_to_end_and_works_until_it_has(gateway):
    assert get(gateway, "/healthz") == (200, "ok\n")
    assert get(gateway, "/readyz") == (200, "ready\n")
    with gateway.connect("echo") as client:
        exchange(client, 10)
        gateway.program.process.send_signal(signal.SIGTERM)
        gateway.wait_for_log("gateway.drain")
        assert get(gateway, "/readyz") == (503, "not ready\ndraining: no new sessions are taken\n")
        assert get(gateway, "/healthz") == (200, "ok\n")
        found = scrape(gateway)
        assert (found["draining"], found['sessions_active{role="team",service="echo"}']) == (1, 1)
        client.unwrap()
    assert gateway.program.process.wait(PATIENCE_S) == 0


def test_a_gateway_without_workers_is_not_ready_and_says_so(gateway):
    for pid in workers(gateway):
        os.kill(pid, signal.SIGKILL)
    problem = "not ready\nworkers: expected at least one that serves, got none of "
    gateway.program.wait_until(lambda: get(gateway, "/readyz")[1].startswith(problem), "it was not ready")
    assert get(gateway, "/healthz") == (200, "ok\n")
    gateway.program.wait_until(lambda: get(gateway, "/readyz")[0] == 200, "it was ready again")


def test_a_busy_port_for_metrics_is_an_error_that_names_its_key(gateway, start):
    text = (gateway.folder / "portguard.toml").read_text()
    taken = f"127.0.0.1:{gateway.metrics_port}"
    changed = text.replace('[metrics]\nlisten = "127.0.0.1:0"', f'[metrics]\nlisten = "{taken}"')
    assert changed != text
    second = gateway.folder / "second.toml"
    second.write_text(changed)
    done = subprocess.run(
        [*gateway.program.process.args[:-1], second], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 2
    assert f"{second}: metrics.listen: expected an address that can be listened on, got {taken}: Address" in done.stderr
