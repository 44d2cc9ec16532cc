"""What `portguard doctor` finds at the Redis of a fleet, against a real one; what that never says, a double says."""

import contextlib
import time

import pytest
import redis

from portguard.gateway import redis_diagnosis
from portguard.gateway.redis_diagnosis import diagnose_redis
from portguard.limits.redis_link import RedisSettings, connect
from portguard.limits.redis_rows import FleetRows, key_prefix
from portguard.observe.findings import Level
from tests.redis_server import RedisServer


@pytest.fixture(scope="module")
def module_server(tmp_path_factory, real_program):
    with RedisServer(real_program("redis-server"), tmp_path_factory.mktemp("fleet") / "redis") as server:
        yield server


@pytest.fixture
def server(module_server):
    """Empty, and set as it is to be."""
    with module_server.client() as client:
        client.execute_command("REPLICAOF NO ONE")
        client.flushall()
        for name, value in (("maxmemory-policy", "noeviction"), ("appendonly", "yes"), ("appendfsync", "everysec")):
            if client.config_get(name) != {name: value}:
                client.config_set(name, value)
    return module_server


@pytest.fixture
def answers(monkeypatch):
    """What a command is answered instead, by its name: a value, or an error to raise."""
    answers = {}

    class Double(redis.Redis):
        def execute_command(self, *words, **options):
            if words[0] not in answers:
                return super().execute_command(*words, **options)
            if isinstance(answers[words[0]], Exception):
                raise answers[words[0]]
            return answers[words[0]]

    def double(settings):
        client = connect(settings)
        client.__class__ = Double
        return client

    monkeypatch.setattr(redis_diagnosis, "connect", double)
    return answers


def look(server, url=None, password=None):
    """Level, text and advice by subject."""
    found = list(diagnose_redis(RedisSettings(url or server.url, "test", password)))
    return {each.subject: (each.level, each.text, each.advice) for each in found}


def test_where_all_is_right_it_is_said_of_each_thing(server):
    found = look(server)
    assert {level for level, _, _ in found.values()} == {Level.OK}
    assert list(found) == [
        "ledger",
        "ledger rights",
        "ledger persistence",
        "ledger memory",
        "ledger clock",
        "fleet",
    ]
    assert found["ledger"][1].startswith(f"{server.url} answers: ")
    assert found["fleet"][1] == "test: no gateway runs"


def test_nothing_is_changed_by_looking(server):
    with server.client() as client:
        client.hset(f"{key_prefix('test')}locks", "a", "b")
        look(server)
        assert client.keys() == [f"{key_prefix('test')}locks"]
        assert client.ttl(f"{key_prefix('test')}locks") == -1


# What is not right.


@pytest.mark.parametrize(
    ("name", "value", "subject", "text"),
    [
        ("appendonly", "no", "ledger persistence", "appendonly no: when Redis ends, everything is lost that no"),
        ("appendfsync", "no", "ledger persistence", "appendfsync no: what it loses when its host fails is up to"),
        ("maxmemory-policy", "allkeys-lru", "ledger memory", "maxmemory-policy allkeys-lru: it forgets use"),
    ],
)
def test_a_setting_that_forgets_is_warned_of(server, name, value, subject, text):
    with server.client() as client:
        client.config_set(name, value)
    found = look(server)
    assert found[subject][0] is Level.WARNING
    assert found[subject][1].startswith(text)
    assert [each for each in found if found[each][0] is not Level.OK] == [subject]


def test_snapshots_alone_lose_what_came_since(server):
    with server.client() as client:
        client.config_set("appendonly", "no")
        client.config_set("save", "3600 1")
        text = look(server)["ledger persistence"][1]
        client.config_set("save", "")
    assert "what came since the last snapshot (save 3600 1) is lost" in text


def test_a_replica_cannot_be_used(server):
    with server.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
    level, text, advice = look(server)["ledger"]
    assert level is Level.FAILED
    assert text == f"{server.url}: expected a Redis that can be used, got a replica, which cannot be written"
    assert advice == "ledger.url is to lead to the primary"


def test_rights_that_are_missing_are_named_as_they_are_given(server):
    with server.client() as client:
        for words in ("one ~portguard:{test}:* +@all -xadd -hset", "two ~portguard:{other}:* +@all -time"):
            client.execute_command("ACL", "SETUSER", *words.split(), "on", "nopass")
    url = server.url.replace("unix://", "unix://one@")
    level, text, advice = look(server, url, "any")["ledger rights"]
    assert (level, text) == (Level.FAILED, "the user one lacks +xadd, +hset")
    assert advice == "`redis-cli ACL SETUSER one +xadd +hset`"
    assert look(server, f"{server.url}?username=one", "any")["ledger rights"] == (level, text, advice)
    found = look(server, url.replace("one@", "two@"), "any")
    assert found["ledger rights"][1] == "the user two lacks ~portguard:{test}:*"
    assert found["ledger clock"][:2] == (Level.WARNING, "not known: the user may not ask (TIME)")
    assert "fleet" not in found


def test_a_password_that_is_wrong_is_told_and_not_shown(server):
    [(subject, (level, text, advice))] = look(server, password="s3cret-word").items()
    assert (subject, level) == ("ledger", Level.FAILED)
    assert "got one that does not take the user and password" in text
    assert "ledger.password_file" in advice
    assert "s3cret-word" not in text + advice


def test_a_redis_that_is_away_is_told(tmp_path):
    [(subject, (level, text, advice))] = look(None, f"unix://{tmp_path}/none").items()
    assert (subject, level) == ("ledger", Level.FAILED)
    assert text.endswith("expected a Redis that can be used, got no such file or directory")
    assert advice.startswith("look whether Redis runs")


def test_what_another_portguard_has_written_is_told(server):
    with server.client() as client:
        client.set(f"{key_prefix('test')}format", "7")
    assert look(server)["ledger"][1].endswith("expected a fleet of format 1, got format '7', of another portguard")


@pytest.mark.parametrize(
    ("server_name", "version", "mode", "level"),
    [
        ("redis", "6.0.16", "standalone", Level.FAILED),
        ("redis", "6.2.0", "standalone", Level.OK),
        ("redis", "10.0.0", "standalone", Level.OK),
        ("valkey", "7.2.4", "standalone", Level.OK),
        ("redis", "7.0.15", "cluster", Level.FAILED),
        ("redis", "7.0.15", "sentinel", Level.FAILED),
    ],
)
def test_which_servers_will_do(server, answers, server_name, version, mode, level):
    answers["HELLO"] = ["server", server_name, "version", version, "proto", 2, "mode", mode]
    assert look(server)["ledger"][0] is level


@pytest.mark.parametrize(
    ("by_s", "level", "text"),
    [
        (30, Level.WARNING, "that of Redis is 30.0 s ahead of this host's"),
        (-30, Level.WARNING, "that of Redis is 30.0 s behind this host's"),
        (0, Level.OK, "that of Redis is 0.0 s "),
    ],
)
def test_clocks_that_differ_are_warned_of(server, answers, monkeypatch, by_s, level, text):
    now_s = time.time()
    monkeypatch.setattr(redis_diagnosis.time, "time", lambda: now_s)
    answers["TIME"] = (int(now_s) + by_s, round(now_s % 1 * 1e6))
    found = look(server)["ledger clock"]
    assert found[0] is level
    assert found[1].startswith(text)


@pytest.mark.parametrize("command", ["HELLO", "TIME"])
@pytest.mark.parametrize("said", [None, 7, ["x"], [[]]])
def test_answers_that_redis_does_not_give_are_an_error_in_words(server, answers, command, said):
    answers[command] = said
    assert look(server)["ledger"][0] is Level.FAILED


def test_without_tls_others_on_the_network_could_read_along(answers):
    answers["HELLO"] = ["server", "redis", "version", "7.0.15", "mode", "standalone"]
    answers["GET"] = redis.ConnectionError()
    for url, told in (
        ("redis://192.0.2.1/0", True),
        ("rediss://192.0.2.1/0", False),
        ("redis://localhost/0", False),
        ("redis://[::1]/0", False),
    ):
        texts = [each.text for each in diagnose_redis(RedisSettings(url, "test"))]
        assert any("without TLS" in text for text in texts) is told, url


# Who is in the fleet.


def test_the_gateways_of_the_fleet_are_listed(server):
    with contextlib.closing(connect(RedisSettings(server.url, "test"))) as client:
        here, there = FleetRows(client, "test", "a" * 16), FleetRows(client, "test", "b" * 16)
        here.begin("holder")
        here.introduce("gw1.example.com", 1_795_000_000)
        there.introduce("gw2.example.com", 1_795_000_000)
    level, text, _ = look(server)["fleet"]
    assert level is Level.OK
    assert text == (
        f"test: gw1.example.com ({'a' * 16}); "
        f"not running: gw2.example.com ({'b' * 16}), last heard of at 2026-11-18 11:06 UTC"
    )


def test_of_very_many_gateways_some_are_listed(server):
    with contextlib.closing(connect(RedisSettings(server.url, "test"))) as client:
        for number in range(25):
            FleetRows(client, "test", f"{number:016x}").introduce(f"gw{number}", 1_795_000_000)
    assert look(server)["fleet"][1].endswith(" and 5 more")


@pytest.mark.parametrize("text", ["", "x host", "-1 host", f"{10**12} host"])
def test_a_gateway_that_portguard_has_not_written_is_an_error(server, text):
    with server.client() as client:
        client.hset(f"{key_prefix('test')}gateways", "a", text)
    assert look(server)["ledger"][0] is Level.FAILED
