"""The ledger of a fleet: what its gateways hear of each other, and what is left of it when Redis is away or forgets."""

import errno
import queue
import re
import shutil
import socket
import threading
import time

import pytest

import portguard.limits.redis
from portguard.errors import ConfigurationError
from portguard.limits import attempts, redis_rows
from portguard.limits.fleet import Claim, News, SessionsRow
from portguard.limits.ledger import LockRow, LockTarget, Owner, RateRow, UsageRow
from portguard.limits.redis import RedisStore
from portguard.limits.redis_link import RedisSettings
from portguard.limits.redis_rows import FleetRows
from portguard.policy.quantities import Period
from tests.patience import PATIENCE_S
from tests.redis_server import RedisServer

NOW_S = int(time.time())
# Redis forgets by its own clock, and this module may be run long after it was imported.
ENDS_S = NOW_S + 86_400
ANNA, BEN = Owner("dba", "staff", "anna"), Owner("dba", "staff", "ben")
TARGET = LockTarget("identity", "staff", "anna")
LOCK = LockRow(TARGET, "left", "user:root", NOW_S, None)


def used(size, owner=ANNA, granted=0, resets=0, period=Period.DAY):
    return UsageRow(owner, period, NOW_S - 100, ENDS_S, size, granted, resets)


def connects_until(end_s):
    return RateRow(ANNA, f"60:{int(end_s - 60) * 1000}:0", int(end_s))


class Gateway:
    """A store, and what it has told."""

    def __init__(self, settings, folder):
        self.folder = folder
        self.store = RedisStore.open(settings, str(folder))
        self.contents = self.store.contents(NOW_S)
        self.news = queue.Queue()
        self.store.listen(self.news.put)
        self.store.start(lambda answers: [on_written(written) for on_written, written in answers])
        self.first = self.news.get(timeout=PATIENCE_S) if self.store.trouble is None else None

    def write(self, *rows):
        answer = queue.Queue()
        self.store.write(rows, answer.put)
        return answer.get(timeout=PATIENCE_S)

    def claim(self, *claims):
        """The bytes of the rows that were put aside."""
        answer = queue.Queue()
        self.store.claim(claims, answer.put)
        rows = answer.get(timeout=PATIENCE_S)
        return rows if rows is None else [row.used_bytes for row in rows]

    def hear(self, wanted):
        """The next news that are `wanted`."""
        while True:
            news = self.news.get(timeout=PATIENCE_S)
            if wanted(news):
                return news

    def hear_of_use(self, size, owner=ANNA):
        return self.hear(lambda news: any((one.owner, one.used_bytes) == (owner, size) for one in news.use))

    def hear_of_lock(self):
        return self.hear(lambda news: news.locks).locks[-1]

    def close(self):
        return self.store.flush_and_close(PATIENCE_S)


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    """Gateways look into Redis many times a second, and try again as often, so that tests wait less for it."""
    monkeypatch.setattr(portguard.limits.redis, "POLL_S", 0.05)
    monkeypatch.setattr(attempts, "RETRY_S", 0.05)


@pytest.fixture
def server(tmp_path, real_program):
    with RedisServer(real_program("redis-server"), tmp_path / "redis") as server:
        yield server


@pytest.fixture
def start(server, tmp_path):
    """`start(name)` begins a gateway; of the same name, it is the same one again."""
    begun = []

    def run(name, *, fleet="test", url=server.url, password=None):
        gateway = Gateway(RedisSettings(url, fleet, password), tmp_path / name)
        begun.append(gateway)
        return gateway

    yield run
    for gateway in begun:
        gateway.store.flush_and_close(1.0)


def unavailable(gateway):
    """Have the gateway find out that Redis is away."""
    assert gateway.write(used(1, owner=BEN)) is False
    assert gateway.store.failing_s() is not None


# What gateways hear of each other.


def test_what_one_gateway_has_used_the_other_hears_of(start):
    a, b = start("a"), start("b")
    assert a.write(used(100, granted=7)) is True
    [others] = b.hear_of_use(100).use
    assert others == (ANNA, Period.DAY, NOW_S - 100, 100, 7, 0)
    assert b.write(used(30)) is True
    [others] = a.hear_of_use(30).use
    assert others.granted_bytes == 0


def test_who_starts_later_knows_it_from_the_start(start):
    a = start("a")
    a.write(used(100))
    b = start("b")
    news = b.first
    assert news.all_there_is
    assert [one.used_bytes for one in news.use] == [100]
    assert b.contents.usage == ()


def test_another_fleet_in_the_same_redis_hears_of_nothing(start):
    a = start("a")
    a.write(used(100), LOCK)
    b = start("b", fleet="other")
    assert b.first == News([], [], (), [], all_there_is=True)
    assert b.contents.locks == ()


def test_what_a_gateway_has_used_is_its_own_again_after_a_restart(start):
    a = start("a")
    a.write(used(100, granted=7), used(40, owner=BEN))
    assert a.close()
    again = start("a")
    assert set(again.contents.usage) == {used(100, granted=7), used(40, owner=BEN)}
    assert {one.used_bytes for one in again.first.use} == {0}


def test_what_is_over_is_not_there_after_a_restart(start):
    a = start("a")
    a.write(UsageRow(ANNA, Period.DAY, NOW_S - 100, NOW_S - 1, 5, 0))
    a.close()
    assert start("a").contents.usage == ()


def test_connects_to_one_gateway_the_other_hears_of(start):
    a, b = start("a"), start("b")
    row = connects_until(time.time() + 60)
    a.write(row)
    [connects] = b.hear(lambda news: news.connects).connects
    assert (connects.owner, connects.connects) == (ANNA, row.connects)
    assert start("c").first.connects == [connects]
    a.close()
    again = start("a")
    assert again.contents.rates == (row,)
    assert again.first.connects == []


def test_names_of_any_kind_come_through(start):
    a, b = start("a"), start("b")
    strange = Owner("dba", "staff", "Zoë \n 'g 1'")
    a.write(used(100, owner=strange))
    assert b.hear_of_use(100, owner=strange)


# Claims.


def test_a_claim_is_met_with_all_that_is_wanted(start):
    assert start("a").claim(Claim(used(200), 100, 1000)) == [200]


def test_a_claim_near_the_end_is_met_with_what_there_is(start):
    a, b = start("a"), start("b")
    b.write(used(850))
    assert a.claim(Claim(used(200), 100, 1000)) == [150]


def test_a_claim_beyond_the_quota_is_not_met_and_says_why(start):
    a, b = start("a"), start("b")
    b.write(used(950))
    a.hear_of_use(950)
    assert a.claim(Claim(used(200), 100, 1000)) == []
    assert a.hear_of_use(950)
    assert a.claim(Claim(used(50), 50, 1000)) == [50]


def test_what_was_granted_anywhere_may_be_claimed(start):
    a, b = start("a"), start("b")
    b.write(used(1000, granted=300))
    assert a.claim(Claim(used(200), 200, 1000)) == [200]
    assert a.claim(Claim(used(400), 301, 1000)) == []


def test_a_claim_without_a_quota_is_always_met(start):
    a, b = start("a"), start("b")
    b.write(used(10**12))
    assert a.claim(Claim(used(10**12), 10**12, None)) == [10**12]


def test_a_claim_is_met_as_a_whole_or_not_at_all(start):
    a, b = start("a"), start("b")
    b.write(used(1000, owner=ANNA.pool))
    claims = Claim(used(200), 100, 1000), Claim(used(200, owner=ANNA.pool), 100, 1000)
    assert a.claim(*claims) == []
    assert b.claim(Claim(used(1000), 1000, 1000)) == [1000]  # nothing of it has remained


def test_gateways_that_claim_at_the_same_time_never_pass_the_quota(start):
    gateways = [start(name) for name in "abc"]
    quota = 10_000

    def use_all(gateway, got):
        has, failed = 0, 0
        while failed < 3:
            answer = gateway.claim(Claim(used(has + 70), has + 7, quota))
            failed = 0 if answer else failed + 1
            has = answer[0] if answer else has
        got.append(has)

    got = []
    threads = [threading.Thread(target=use_all, args=(gateway, got)) for gateway in gateways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(got) == 3
    assert quota - 7 < sum(got) <= quota


# Resets.


def test_after_a_reset_what_others_had_used_counts_no_more(start):
    a, b = start("a"), start("b")
    b.write(used(900))
    a.hear_of_use(900)
    a.write(used(10, resets=1))
    [others] = b.hear(lambda news: any(one.resets == 1 for one in news.use)).use
    assert others.used_bytes == 10
    assert a.claim(Claim(used(1000, resets=1), 1000, 1000)) == [1000]


def test_who_has_not_heard_of_a_reset_can_neither_write_nor_claim(start):
    a, b = start("a"), start("b")
    a.write(used(10, resets=1))
    b.write(used(900))
    assert b.hear(lambda news: any(one.resets == 1 for one in news.use))
    assert a.claim(Claim(used(1000, resets=1), 1000, 1000)) == [1000]
    a.write(used(10, resets=1))
    assert b.claim(Claim(used(20), 20, 1000)) == []
    assert b.claim(Claim(used(20, resets=1), 20, 1000)) == [20]
    assert start("c").first.use[0].used_bytes == 30


# Locks.


def test_a_lock_reaches_the_others_and_so_does_that_it_is_taken_away(start):
    a, b = start("a"), start("b")
    assert a.write(LOCK) is True
    assert b.hear_of_lock() == LOCK
    assert start("c").contents.locks == (LOCK,)
    assert b.write(LOCK._replace(until_s=0)) is True
    assert a.hear_of_lock().until_s == 0
    assert start("d").contents.locks == ()


def test_who_sees_a_lock_can_take_it_away_whatever_the_clock_says(start, monkeypatch):
    a = start("a")
    monkeypatch.setattr(time, "time_ns", lambda: NOW_S * 10**9)
    a.write(LOCK)
    a.write(LOCK._replace(until_s=0))
    assert start("b").contents.locks == ()
    a.write(LOCK)
    assert start("c").contents.locks == (LOCK,)


def test_locks_hold_over_a_restart_while_redis_is_away(start, server):
    a, b = start("a"), start("b")
    a.write(LOCK)
    b.hear_of_lock()
    b.close()
    server.stop()
    again = start("b")
    assert again.contents.locks == (LOCK,)
    assert again.store.failing_s() > 2.0


def test_a_lock_that_is_set_while_redis_is_away_holds_and_comes_to_the_others(start, server):
    a, b = start("a"), start("b")
    server.stop()
    unavailable(a)
    assert a.write(LOCK) is False
    assert "anna" in (a.folder / "locks.json").read_text()  # before anybody is told
    a.store.flush_and_close(0.1)
    again = start("a")
    assert again.contents.locks == (LOCK,)
    server.start()
    assert b.hear_of_lock() == LOCK


def test_a_lock_that_was_taken_away_while_a_gateway_was_down_does_not_come_back(start):
    a, b = start("a"), start("b")
    a.write(LOCK)
    b.hear_of_lock()
    b.close()
    a.write(LOCK._replace(until_s=0))
    assert start("b").contents.locks == ()
    assert start("c").contents.locks == ()


def test_locks_outlast_a_redis_that_has_lost_everything(start, server):
    a = start("a")
    a.write(LOCK)
    server.stop()
    unavailable(a)
    for file in server.socket.parent.rglob("*.aof*"):
        file.unlink()
    server.start()
    assert a.hear(lambda news: news.all_there_is)
    assert start("b").contents.locks == (LOCK,)


def test_a_lock_that_is_older_than_what_is_known_is_corrected(start, server):
    a, b = start("a"), start("b")
    a.write(LOCK)
    b.hear_of_lock()
    server.stop()
    assert a.write(LOCK._replace(until_s=0)) is False
    unavailable(b)
    server.start()
    assert b.hear_of_lock().until_s == 0
    assert start("c").contents.locks == ()


def test_a_lock_that_is_heard_of_just_before_redis_goes_is_not_lost(start, monkeypatch):
    a, b = start("a"), start("b")
    monkeypatch.setattr(portguard.limits.redis, "_TIDY_EVERY_S", 0.0)
    failing = threading.Event()

    def tidy(_rows, _now_s):
        if b.store.contents(NOW_S).locks and not failing.is_set():
            failing.set()
            raise OSError(errno.ECONNRESET, "gone")

    monkeypatch.setattr(FleetRows, "tidy", tidy)
    a.write(LOCK)
    assert b.hear_of_lock() == LOCK
    assert failing.wait(PATIENCE_S)


# How many sessions there are.


def hear_of_sessions(gateway):
    return {each.counted: each.sessions for each in gateway.hear(lambda news: news.sessions).sessions}


def test_sessions_at_one_gateway_are_heard_of_at_the_others_and_by_who_starts_later(start):
    a, b = start("a"), start("b")
    a.store.tell_sessions([SessionsRow(ANNA, 2), SessionsRow("db", 3), SessionsRow(BEN, 1)])
    assert hear_of_sessions(b) == {ANNA: 2, "db": 3, BEN: 1}
    a.store.tell_sessions([SessionsRow(ANNA, 1), SessionsRow(BEN, 0)])
    assert hear_of_sessions(b) == {ANNA: 1, BEN: 0}
    assert {each.counted: each.sessions for each in start("c").first.sessions} == {ANNA: 1, "db": 3}
    assert a.first.sessions == []


def test_sessions_of_a_gateway_that_is_gone_are_gone_until_it_is_back(start, server):
    a, b = start("a"), start("b")
    a.store.tell_sessions([SessionsRow(ANNA, 2)])
    assert hear_of_sessions(b) == {ANNA: 2}
    id_ = (a.folder / "id").read_text().strip()
    with server.client() as client:
        while not client.delete(f"portguard:{{test}}:gateway:{id_}"):
            pass
        again = b.hear(lambda news: news.gone or news.sessions)
        if again.gone:  # or it said in time that it was there
            assert again.gone == {id_}
            again = b.hear(lambda news: news.sessions)
    assert [tuple(each) for each in again.sessions] == [(ANNA, id_, 2)]


def test_who_told_of_sessions_and_does_not_run_is_gone(start, server):
    b = start("b")
    with server.client() as client:
        client.xadd("portguard:{test}:changes", {"by": "x", "what": "sessions", "of": ANNA_TEXT, "is": "2"})
    assert hear_of_sessions(b) == {ANNA: 2}
    assert b.hear(lambda news: news.gone).gone == {"x"}


def test_sessions_from_before_a_crash_are_none_when_the_gateway_starts_again(start, server):
    a, b = start("a"), start("b")
    a.store.tell_sessions([SessionsRow(ANNA, 2)])
    assert hear_of_sessions(b) == {ANNA: 2}
    assert a.close()
    start("a")
    assert hear_of_sessions(b) == {ANNA: 0}


def test_sessions_are_not_none_before_a_program_that_follows_another_can_tell_of_them(start, server):
    a, b = start("a"), start("b")
    a.store.tell_sessions([SessionsRow(ANNA, 2)])
    assert hear_of_sessions(b) == {ANNA: 2}
    assert a.close()
    after = RedisStore.open(RedisSettings(server.url, "test"), str(a.folder))
    with server.client() as client:
        assert client.hgetall(f"portguard:{{test}}:sessions:{(a.folder / 'id').read_text().strip()}") == {
            ANNA_TEXT: "2"
        }
    assert after.flush_and_close(PATIENCE_S)


def test_sessions_are_told_again_when_redis_is_back_without_what_it_had(start, server):
    a, b = start("a"), start("b")
    a.store.tell_sessions([SessionsRow(ANNA, 2)])
    assert hear_of_sessions(b) == {ANNA: 2}
    with server.client() as client:
        client.flushall()
    assert hear_of_sessions(b) == {ANNA: 2}


def test_sessions_that_portguard_has_not_written_hinder_a_gateway_for_a_while(start, server):
    a = start("a")
    with server.client() as client:
        client.xadd("portguard:{test}:changes", {"by": "0", "what": "sessions", "of": ANNA_TEXT, "is": "many"})
        assert re.search("expected .* as portguard writes (it|them), got ", wait_for_trouble(a))
        client.flushall()
    wait_until_well(a)


# Who is there.


def test_gateways_say_that_they_are_there_and_on_which_host(start, server):
    a, b = start("a"), start("b")
    ids = {(a.folder / "id").read_text().strip(), (b.folder / "id").read_text().strip()}
    with server.client() as client:
        members = FleetRows(client, "test", "").members()
        assert {(each.gateway, each.host, each.runs) for each in members} == {
            (gateway, socket.gethostname(), True) for gateway in ids
        }
        assert all(each.heard_s >= NOW_S for each in members)


def test_who_was_not_heard_of_for_a_month_is_none_of_the_fleet_any_more(server):
    with server.client() as client:
        rows = {name: FleetRows(client, "test", name) for name in ("old", "new", "here")}
        rows["old"].introduce("h", NOW_S - 31 * 86_400)
        rows["new"].introduce("h", NOW_S - 29 * 86_400)
        rows["here"].begin("holder")
        rows["here"].tidy(NOW_S)
        assert [(each.gateway, each.runs) for each in rows["here"].members()] == [("new", False)]


# Redis away.


def test_while_redis_is_away_it_is_told_why_and_what_waits_is_written_afterwards(start, server):
    a, b = start("a"), start("b")
    server.stop()
    assert a.write(used(100)) is False
    assert a.claim(Claim(used(200), 100, 1000)) is None
    assert a.store.trouble.startswith(f"{server.url}: ")
    # By how far it had come when Redis was killed.
    cut_off = (": connection reset by peer", ": broken pipe", "that was closed")
    assert a.store.trouble.endswith((": no such file or directory", ": connection refused", *cut_off))
    assert a.store.errors > 0
    server.start()
    assert b.hear_of_use(100)
    a.write()
    assert a.store.trouble is None
    assert a.store.failing_s() is None


def test_what_redis_has_lost_its_gateways_put_back(start, server):
    a, b = start("a"), start("b")
    a.write(used(100))
    b.hear_of_use(100)
    server.stop()
    unavailable(a)
    unavailable(b)
    for file in server.socket.parent.rglob("*.aof*"):
        file.unlink()
    server.start()
    assert b.hear_of_use(100)


def test_a_redis_that_was_emptied_is_filled_again(start, server):
    a, b = start("a"), start("b")
    a.write(used(100))
    b.hear_of_use(100)
    with server.client() as client:
        client.flushall()
    assert a.hear(lambda news: news.all_there_is)
    assert b.hear_of_use(100)


def test_who_has_missed_changes_reads_everything_anew(start, server):
    a, b = start("a"), start("b")
    with server.client() as client:
        client.xtrim("portguard:{test}:changes", maxlen=0, approximate=False)
    assert b.hear(lambda news: news.all_there_is)
    a.write(used(100))
    assert b.hear_of_use(100)


def test_without_redis_a_gateway_starts_and_learns_later_what_it_had_used(start, server):
    a = start("a")
    a.write(used(100, granted=7), used(40, owner=BEN))
    a.close()
    server.stop()
    again = start("a")
    assert again.contents.usage == ()
    assert again.store.failing_s() > 2.0
    again.store.write([used(1)])  # of somebody who does not know of the 100
    server.start()
    news = again.hear(lambda news: news.own)
    assert set(news.own) == {used(100, granted=7), used(40, owner=BEN)}
    assert start("b").first.use != []
    again.close()
    assert used(100, granted=7) in start("a").contents.usage


def test_what_cannot_be_written_at_the_end_is_said(start, server):
    a = start("a")
    server.stop()
    a.write(used(100))
    assert a.store.flush_and_close(0.5) is False


# What is not taken.


def refused(start, *args, **keywords):
    with pytest.raises(ConfigurationError) as error:
        start(*args, **keywords)
    return str(error.value)


@pytest.fixture
def guarded(tmp_path, real_program):
    with RedisServer(real_program("redis-server"), tmp_path / "guarded", "--requirepass", "s3cret-word") as server:
        yield server


def test_a_wrong_password_is_an_error_that_does_not_show_it(start, guarded):
    said = refused(start, "a", url=guarded.url, password="wr0ng-word")
    assert said == f"{guarded.url}: expected a Redis that can be used, got one that does not take the user and password"
    assert "user and password" in refused(start, "a", url=guarded.url)
    assert "wr0ng" not in repr(RedisSettings("redis://u:wr0ng@h/0", "test", "wr0ng"))
    assert RedisSettings("redis://u:wr0ng@h:1/0?password=wr0ng", "test").shown == "redis://h:1/0"


def test_a_redis_that_says_the_password_again_is_not_quoted(start, tmp_path, real_program):
    """As one does whose AUTH was renamed."""
    server = RedisServer(real_program("redis-server"), tmp_path / "renamed", "--rename-command", "AUTH", "SESAME")
    server.start()
    try:
        for url, password in (
            (server.url, "s3cret w'rd"),
            (f"{server.url}?password=s3cret%20w%27rd", None),
        ):
            said = refused(start, "a", url=url, password=password)
            assert said.endswith("expected a Redis that can be used, got an answer that has the password in it")
    finally:
        server.stop()


def test_the_right_password_is_taken_from_either_place(start, guarded):
    assert start("a", url=guarded.url, password="s3cret-word").write(used(1)) is True
    assert start("b", url=f"{guarded.url}?password=s3cret-word").write(used(1)) is True


def test_another_format_is_refused(start, server):
    with server.client() as client:
        client.set("portguard:{test}:format", "2")
    assert refused(start, "a").endswith("expected a fleet of format 1, got format '2', of another portguard")
    assert start("b", fleet="other").write(used(1)) is True


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("locks", '["identity","staff","anna"]', "soon"),
        ("locks", "anna", '1 1 ["left","root",7,null]'),
        ("spans", "century:1", "4102444800"),
        ("spans", "day:1", "tomorrow"),
        ("usage:day:1", 't ["dba","staff","anna"]', "much"),
        ("usage:day:1", "t anna", "1 0 0"),
        ("rates:{hour}", "gateway anna", "60:1:0"),
    ],
)
def test_rows_that_portguard_has_not_written_are_refused(start, server, key, field, value):
    with server.client() as client:
        client.hset("portguard:{test}:spans", "day:1", str(ENDS_S))
        key = key.format(hour=int(time.time() + 60) // 3600)
        client.hset(f"portguard:{{test}}:{key}", field, value)
    assert re.search("expected .* as portguard writes (it|them), got ", refused(start, "a"))


DEEP = "[" * 5000
ANNA_TEXT = '["dba","staff","anna"]'


@pytest.mark.parametrize(
    ("key", "field", "value", "change"),
    [
        ("usage:century:1", f"t {ANNA_TEXT}", "1 0 0", ("use", ANNA_TEXT, "century:1")),
        ("usage:day:x", f"t {ANNA_TEXT}", "1 0 0", ("use", ANNA_TEXT, "day:x")),
        ("usage:day:1", f"t {DEEP}", "1 0 0", ("use", DEEP, "day:1")),
        ("usage:day:1", f"t {ANNA_TEXT}", "-1 0 0", ("use", ANNA_TEXT, "day:1")),
        ("usage:day:1", f"t {ANNA_TEXT}", f"{'9' * 400} 0 0", ("use", ANNA_TEXT, "day:1")),
        ("usage:day:1", f"t {ANNA_TEXT}", "nan inf 1e9", ("use", ANNA_TEXT, "day:1")),
        ("locks", '["identity","staff","anna"]', f'{"9" * 400} 0 ["","",1,0]', None),
        ("locks", '["identity","staff","anna"]', f"1 1 {DEEP}", None),
        ("locks", '["identity","staff","\\ud800"]', '1 1 ["left","root",7,null]', None),
        ("locks", f'["identity","staff","{"x" * 20_000}"]', '1 1 ["left","root",7,null]', None),
        ("locks", '["identity","staff","anna"]', f'1 1 ["left","{"x" * 20_000}",7,null]', None),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_rows_of_any_kind_hinder_a_gateway_for_as_long_as_they_are_there(
    start, server, key, field, value, change, told
):
    """Whoever else can write to the same Redis: the gateway says what it has found, and goes on when it is gone."""
    a = start("a")
    with server.client() as client:
        client.hset("portguard:{test}:spans", "day:1", str(ENDS_S))
        client.hset(f"portguard:{{test}}:{key}", field, value)
        if told:
            what, of, said = change or ("lock", field, value)
            client.xadd("portguard:{test}:changes", {"by": "0", "what": what, "of": of, "is": said})
        else:
            if change is not None and change[2] != "day:1":
                client.hset("portguard:{test}:spans", change[2], str(ENDS_S))
            client.delete("portguard:{test}:changes")  # so that it reads everything anew
        trouble = wait_for_trouble(a)
        assert re.search("expected .* as portguard writes (it|them), got ", trouble)
        client.flushall()
    wait_until_well(a)
    assert a.write(used(8)) is True


def wait_for_trouble(gateway):
    deadline_s = time.monotonic() + PATIENCE_S
    while (trouble := gateway.store.trouble) is None:
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.02)
    return trouble


def wait_until_well(gateway):
    deadline_s = time.monotonic() + PATIENCE_S
    while gateway.store.trouble is not None:
        assert time.monotonic() < deadline_s, gateway.store.trouble
        threading.Event().wait(0.02)


def test_more_locks_than_workers_can_be_told_are_not_taken(start, server, monkeypatch):
    monkeypatch.setattr(portguard.limits.fleet_locks, "MOST_LOCKS", 3)
    a, b = start("a"), start("b")
    locks = [LOCK._replace(target=TARGET._replace(value=f"client{number}")) for number in range(4)]
    for lock in locks[:3]:
        assert a.write(lock)
    a.write(locks[0]._replace(until_s=0))  # what is taken away does not count
    a.write(locks[1]._replace(until_s=NOW_S - 1))  # nor what is over
    assert a.write(locks[3])
    assert a.write(locks[0])
    assert b.hear_of_lock()
    assert b.store.trouble is None
    a.write(locks[1])
    assert wait_for_trouble(b).endswith("expected at most 3 locks, got more")


def test_more_rows_than_fit_into_memory_are_not_read(start, server, monkeypatch):
    a = start("a")
    for name in "abcd":
        assert a.write(LOCK._replace(target=TARGET._replace(value=name)))
    monkeypatch.setattr(redis_rows, "_MOST_FIELDS", 3)  # not before: it reads what others have written, too
    assert "expected at most 3 rows in portguard:{test}:locks, got more" in refused(start, "b")


def test_numbers_that_a_script_cannot_add_hinder_a_gateway_for_as_long_as_they_are_there(start, server):
    a = start("a")
    with server.client() as client:
        row = used(1)
        client.hset(f"portguard:{{test}}:usage:day:{row.start_s}", f"t {ANNA_TEXT}", f"{'9' * 400} 0 0")
        assert a.write(row) is False
        client.flushall()
    wait_until_well(a)
    assert a.write(row) is True


def test_a_copied_folder_does_not_make_two_gateways_of_one_id(start, tmp_path):
    a = start("a")
    shutil.copytree(a.folder, tmp_path / "copy")
    said = refused(start, "copy")
    assert "expected an id of its own for each gateway, got another gateway with " in said
    a.close()
    assert start("a").store.trouble is None  # who had it before may have it again at once


def test_nothing_is_kept_for_ever(start, server):
    a = start("a")
    a.write(used(100), connects_until(time.time() + 60), LOCK)
    a.close()
    start("b")
    with server.client() as client:
        keys = client.keys("*")
        assert all(key.startswith("portguard:{test}:") for key in keys)
        assert len(keys) > 5
        assert [key for key in keys if client.ttl(key) < 0] == []


def test_an_eviction_policy_that_would_forget_use_is_warned_of(start, server, caplog):
    start("a")
    assert [record.message for record in caplog.records] == []
    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    start("b")
    [record] = caplog.records
    assert record.message == "ledger.eviction"
    assert record.fields == {"server": server.url, "policy": "allkeys-lru"}
