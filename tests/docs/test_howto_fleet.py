"""`docs/howto/run-a-fleet.md`: its settings are of Redis, its user can do what is needed, and its table is read."""

import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from portguard.errors import ConfigurationError
from portguard.gateway.configuration import read_configuration
from portguard.gateway.redis_diagnosis import diagnose_redis
from portguard.limits.fleet import Claim, SessionsRow
from portguard.limits.ledger import LockRow, LockTarget, Owner, RateRow, UsageRow
from portguard.limits.redis import RedisStore
from portguard.limits.redis_link import RedisSettings
from portguard.observe.findings import Level
from portguard.policy.quantities import Period
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

_PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "run-a-fleet.md").read_text()
_OWNER = Owner("dba", "staff", "anna")


def _block(language: str) -> str:
    [text, *_] = re.findall(rf"^```{language}\n(.*?)^```$", _PAGE, re.MULTILINE | re.DOTALL)
    return text


@pytest.fixture
def server(tmp_path, real_program):
    options = [
        f"--{word}" if not number else word
        for line in _block("").splitlines()
        for number, word in enumerate(line.split(" "))
    ]
    with RedisServer(real_program("redis-server"), tmp_path / "redis", *options, persists=False) as server:
        yield server


@pytest.fixture
def make_user(server, real_program):
    """Run the page's command, with some words of it left out."""

    def run(*without):
        [line] = [line for line in _PAGE.splitlines() if line.startswith("$ redis-cli ACL SETUSER")]
        words = [word for word in shlex.split(line.removeprefix("$ redis-cli ")) if word not in without]
        command = [real_program("redis-cli"), "-s", str(server.socket), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
        assert done.stdout == "OK\n"

    return run


def _open(server, folder, fleet="bastions"):
    url = f"unix://portguard@{server.socket}?db=0"
    return RedisStore.open(RedisSettings(url, fleet, "a long password"), str(folder))


def test_the_user_can_do_all_that_a_gateway_does(server, make_user, tmp_path):
    make_user()
    now_s = int(time.time())
    row = UsageRow(_OWNER, Period.DAY, now_s, now_s + 100, 5, 0)
    lock = LockRow(LockTarget("identity", "staff", "anna"), "left", "user:root", now_s, None)
    done = []
    a = _open(server, tmp_path / "a")
    a.start(lambda answers: done.extend(written for _, written in answers))
    a.write([row, RateRow(_OWNER, f"60:{now_s * 1000}:0", now_s + 60), lock])
    for sessions in (1, 0):
        a.tell_sessions([SessionsRow(_OWNER, sessions)])
    a.claim([Claim(row._replace(used_bytes=9), 9, 10)], lambda _: None)
    assert a.flush_and_close(PATIENCE_S)
    b = _open(server, tmp_path / "b")
    assert b.contents(now_s).locks == (lock,)
    assert b.flush_and_close(PATIENCE_S)
    assert (a.errors, b.errors) == (0, 0)


@pytest.mark.parametrize("word", ["+evalsha", "+xadd", "+hscan", "~portguard:{bastions}:*"])
def test_each_right_that_is_missing_is_told(server, make_user, tmp_path, word):
    make_user(word)
    with pytest.raises(ConfigurationError, match=r"got the answer .*(permission|NOPERM)"):
        _open(server, tmp_path / "a")


def test_doctor_names_each_right_that_is_missing(server, make_user):
    settings = RedisSettings(f"unix://portguard@{server.socket}?db=0", "bastions", "a long password")

    def not_right():
        return [(each.subject, each.text) for each in diagnose_redis(settings) if each.level is not Level.OK]

    make_user()
    assert not_right() == []
    # Without these one does not get as far, or has nothing to look at; another database needs `select`.
    others = {"+auth", "+select", "+client|setname", "+config|get", "+time"}
    [line] = [line for line in _PAGE.splitlines() if line.startswith("$ redis-cli ACL SETUSER")]
    words = [word for word in shlex.split(line) if word.startswith("+") and word not in others]
    assert len(words) > 10
    for word in words:
        make_user(word)
        assert not_right()[0] == ("ledger rights", f"the user portguard lacks {word}"), word


def test_the_user_has_no_right_to_another_fleet(server, make_user, tmp_path):
    make_user()
    with pytest.raises(ConfigurationError, match=r"got the answer .*(permission|NOPERM)"):
        _open(server, tmp_path / "a", fleet="others")


def test_the_settings_are_as_the_page_wants_them(server):
    with server.client() as client:
        for name, value in (("appendonly", "yes"), ("appendfsync", "everysec"), ("maxmemory-policy", "noeviction")):
            assert client.config_get(name) == {name: value}


def test_the_table_is_read_as_it_stands():
    least = '[gateway]\nname = "bastion.example.com"\n[trusts.local]\nca = "ca.crt"\nidentity = "cn"\n'
    problems = []
    ledger = read_configuration("/etc/portguard/portguard.toml", (least + _block("toml")).encode(), problems).ledger
    assert problems == []
    assert (ledger.fleet, ledger.password_file) == ("bastions", "/etc/portguard/redis.password")
