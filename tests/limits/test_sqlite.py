import os
import queue
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest

from portguard.errors import ConfigurationError
from portguard.limits import attempts, sqlite, sqlite_schema
from portguard.limits.ledger import Contents, LockRow, LockTarget, Owner, RateRow, UsageRow
from portguard.limits.sqlite import SqliteStore
from portguard.policy.quantities import Period
from tests.patience import PATIENCE_S

NOW_S = 1_795_000_000.0
END_S = 1_795_100_000

ALICE = Owner("orders-dba", "corp", "alice")
BOB = Owner("orders-dba", "corp", "bob")


def usage(owner=ALICE, used_bytes=1000, period=Period.DAY, end_s=END_S, granted_bytes=0):
    return UsageRow(owner, period, 1_794_900_000, end_s, used_bytes, granted_bytes)


def rate(owner=ALICE, connects="1 2 3", end_s=END_S):
    return RateRow(owner, connects, end_s)


LOCKED = LockTarget("identity", "corp", "alice")


def lock(target=LOCKED, reason="INC-1", until_s=None):
    return LockRow(target, reason, "uid 0 (root)", 1_794_999_000, until_s)


def eventually(condition):
    """Wait until `condition()` is true; return what it returned."""
    end_s = time.monotonic() + PATIENCE_S
    while not (result := condition()):
        assert time.monotonic() < end_s, "it did not come true"
        time.sleep(0.005)
    return result


class Ledger:
    """A store, and its answers as they come."""

    def __init__(self, path, *, start=True):
        self.path = str(path)
        self.store = SqliteStore.open(self.path, NOW_S)
        self.answers = queue.Queue()
        if start:
            self.store.start(self.deliver)

    def deliver(self, answers):
        for on_written, ok in answers:
            on_written(ok)

    def write(self, *rows, name="written"):
        self.store.write(rows, lambda ok: self.answers.put((name, ok)))

    def answer(self):
        return self.answers.get(timeout=PATIENCE_S)

    def hook(self):
        """The connection that the writer uses."""
        return self.store._file._connection

    def close(self):
        return self.store.flush_and_close(PATIENCE_S)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "ledger.db"


@pytest.fixture
def ledger(path):
    ledger = Ledger(path)
    yield ledger
    ledger.close()


@pytest.fixture
def events(monkeypatch):
    events = []
    monkeypatch.setattr(sqlite.log, "event", lambda level, name, **fields: events.append((level, name, fields)))
    return events


def contents(path, now_s=NOW_S):
    ledger = Ledger(path, start=False)
    try:
        return ledger.store.contents(now_s)
    finally:
        ledger.close()


def used(path):
    """What the file says that owners have used, read as anybody might."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return dict(connection.execute("SELECT name, used_bytes FROM usage").fetchall())
    finally:
        connection.close()


def problem(path):
    with pytest.raises(ConfigurationError) as caught:
        SqliteStore.open(str(path), NOW_S)
    (problem,) = caught.value.problems
    assert problem.key == ""
    return problem.file, problem.expected, problem.found


LEDGER = "a ledger that can be read and written (gateway.state)"


# What is kept.


def test_a_new_ledger_is_empty(path):
    assert contents(path) == Contents((), (), ())


def test_rows_are_there_when_the_ledger_is_opened_again(path):
    ledger = Ledger(path)
    pool = usage(ALICE.pool, 7, Period.MONTH, granted_bytes=5)
    ledger.write(usage(), usage(period=Period.HOUR), pool, rate())
    assert ledger.answer() == ("written", True)
    assert ledger.close()
    found = contents(path)
    assert set(found.usage) == {usage(), usage(period=Period.HOUR), pool}
    assert found.rates == (rate(),)
    assert isinstance(found.usage[0].period, Period)
    assert isinstance(found.usage[0].owner, Owner)


def test_a_row_takes_the_place_of_the_one_before(path):
    ledger = Ledger(path)
    for number in range(1, 4):
        ledger.write(usage(used_bytes=number), rate(connects=str(number)), lock(reason=str(number)))
        assert ledger.answer() == ("written", True)
    ledger.close()
    assert contents(path) == Contents((usage(used_bytes=3),), (rate(connects="3"),), (lock(reason="3"),))


def test_rows_of_one_key_coalesce_and_those_of_others_do_not(path):
    ledger = Ledger(path, start=False)
    ledger.write(usage(used_bytes=1), usage(BOB, 5), name="first")
    ledger.write(usage(used_bytes=2), rate(), name="second")
    assert len(ledger.store._rows) == 3
    ledger.store.start(ledger.deliver)
    assert [ledger.answer(), ledger.answer()] == [("first", True), ("second", True)]
    assert ledger.close()
    found = contents(path)
    assert set(found.usage) == {usage(used_bytes=2), usage(BOB, 5)}
    assert found.rates == (rate(),)


def test_more_rows_than_fit_one_statement_are_all_written(path):
    ledger = Ledger(path)
    rows = [usage(Owner("r", "t", str(number)), number) for number in range(1234)]
    ledger.write(*rows, *(rate(row.owner) for row in rows))
    assert ledger.answer() == ("written", True)
    ledger.close()
    found = contents(path)
    assert set(found.usage) == set(rows)
    assert len(found.rates) == 1234


def test_what_is_over_is_not_returned_and_is_deleted(path):
    ledger = Ledger(path)
    ledger.write(usage(end_s=int(NOW_S)), usage(BOB, end_s=int(NOW_S) + 1), rate(end_s=int(NOW_S)), rate(BOB))
    ledger.answer()
    assert ledger.store.contents(NOW_S) == Contents((usage(BOB, end_s=int(NOW_S) + 1),), (rate(BOB),), ())
    assert ledger.close()
    assert used(path) == {"alice": 1000, "bob": 1000}
    contents(path)
    assert used(path) == {"bob": 1000}


def test_locks_come_back_until_they_are_over_or_taken_away(path):
    serial, fingerprint = LockTarget("serial", "corp", "1f"), LockTarget("fingerprint", "", "ab" * 32)
    bob = LockTarget("identity", "corp", "bob")
    ledger = Ledger(path)
    ledger.write(lock(), lock(serial, until_s=int(NOW_S) + 1), lock(fingerprint, until_s=int(NOW_S)), lock(bob))
    ledger.answer()
    ledger.write(lock(bob, until_s=0))
    ledger.answer()
    ledger.close()
    found = contents(path).locks
    assert set(found) == {lock(), lock(serial, until_s=int(NOW_S) + 1)}
    assert all(isinstance(row.target, LockTarget) for row in found)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM locks").fetchone() == (2,)
    connection.close()


def test_an_identity_and_a_serial_number_that_read_alike_are_two_locks(path):
    ledger = Ledger(path)
    rows = {lock(LockTarget(kind, "corp", "1f")) for kind in ("identity", "serial", "fingerprint")}
    ledger.write(*rows)
    ledger.answer()
    ledger.close()
    assert set(contents(path).locks) == rows


def test_the_writer_deletes_what_is_over_now_and_then(path, monkeypatch):
    monkeypatch.setattr(sqlite, "_DELETE_EVERY_S", 0.0)
    ledger = Ledger(path)
    now_s = int(time.time())
    ledger.write(usage(end_s=now_s - 10), usage(BOB, end_s=now_s + 10_000))
    ledger.answer()
    assert used(path) == {"bob": 1000}
    ledger.close()


def test_an_acknowledged_row_can_be_read_by_others_at_once(ledger):
    ledger.write(usage())
    assert ledger.answer() == ("written", True)
    assert used(ledger.path) == {"alice": 1000}


def test_a_row_that_nobody_waits_for_is_written_all_the_same(ledger):
    ledger.store.write([usage()])
    eventually(lambda: used(ledger.path) == {"alice": 1000})
    ledger.store.write([usage(BOB)])
    eventually(lambda: used(ledger.path) == {"alice": 1000, "bob": 1000})


def test_a_row_that_nobody_waits_for_goes_along_with_one_that_somebody_does(ledger, monkeypatch):
    monkeypatch.setattr(sqlite, "LATEST_S", 3600.0)
    ledger.store.write([usage()])
    ledger.write(usage(BOB))
    assert ledger.answer() == ("written", True)
    assert used(ledger.path) == {"alice": 1000, "bob": 1000}


def test_closing_writes_what_waits_and_leaves_one_file_behind(path, monkeypatch):
    monkeypatch.setattr(sqlite, "LATEST_S", 3600.0)
    ledger = Ledger(path)
    ledger.store.write([usage()])
    assert ledger.close()
    assert ledger.close()
    assert sorted(os.listdir(path.parent)) == ["ledger.db", "ledger.db.lock"]
    assert used(path) == {"alice": 1000}


def test_closing_leaves_nothing_in_the_write_ahead_log_even_while_somebody_reads(path):
    ledger = Ledger(path)
    ledger.write(usage())
    ledger.answer()
    reader = sqlite3.connect(path)
    assert reader.execute("SELECT used_bytes FROM usage").fetchall() == [(1000,)]
    assert ledger.close()
    assert os.path.getsize(f"{path}-wal") == 0
    reader.close()


def test_a_store_that_never_started_writes_what_waits_when_it_is_closed(path):
    ledger = Ledger(path, start=False)
    ledger.store.write([usage()])
    assert ledger.close()
    assert used(path) == {"alice": 1000}


@pytest.mark.parametrize("name", ["o'brien; DROP TABLE usage", "a\0b", "\u202e", "ж" * 300, "x\n\x1b[2J", "\U0001f600"])
def test_names_of_any_kind_come_back_as_they_were(path, name):
    ledger = Ledger(path)
    row = usage(Owner("role", "trust", name))
    ledger.write(row)
    assert ledger.answer() == ("written", True)
    ledger.close()
    assert contents(path).usage == (row,)


@pytest.mark.parametrize("row", [usage(Owner("role", "trust", "\ud800")), rate(connects="\udcff")])
def test_a_text_that_is_no_unicode_is_refused_and_stops_nobody(ledger, row):
    ledger.write(row, usage(BOB), name="broken")
    assert ledger.answer() == ("broken", False)
    assert (ledger.store.errors, ledger.store.trouble) == (1, None)
    ledger.write(usage())
    assert ledger.answer() == ("written", True)
    assert used(ledger.path) == {"alice": 1000}


def test_numbers_are_clipped_to_what_a_column_holds(path):
    ledger = Ledger(path)
    ledger.write(usage(used_bytes=2**63, granted_bytes=-1, end_s=2**70), rate(end_s=2**64))
    assert ledger.answer() == ("written", True)
    ledger.close()
    largest = 2**63 - 1
    assert contents(path) == Contents((usage(used_bytes=largest, end_s=largest),), (rate(end_s=largest),), ())


# Where it is kept.


@pytest.mark.parametrize("umask", [0, 0o277])
def test_the_files_are_for_their_owner_alone_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        ledger = Ledger(tmp_path / "ledger.db")
        ledger.write(usage())
        ledger.answer()
        modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)}
    finally:
        os.umask(before)
    ledger.close()
    assert modes == dict.fromkeys(("ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db.lock"), 0o600)


def test_missing_folders_are_made_for_their_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        contents(tmp_path / "a" / "b" / "ledger.db")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / folder).stat().st_mode) for folder in ("a", "a/b")] == [0o700, 0o700]


def test_a_commit_waits_for_the_disk(ledger):
    assert ledger.hook().execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert ledger.hook().execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_path_of_odd_characters_is_taken_as_it_is(tmp_path):
    path = tmp_path / "a?mode=memory#%41 b" / "ledger.db"
    contents(path)
    assert path.exists()


# What cannot be used.


def test_a_text_file_is_no_ledger_and_stays_as_it_is(tmp_path):
    path = tmp_path / "ledger.db"
    text = "role,name,bytes\n" * 100
    path.write_text(text)
    assert problem(path) == (str(path), LEDGER, "a file that is no database")
    assert path.read_text() == text


def test_a_folder_is_no_ledger(tmp_path):
    path = tmp_path / "ledger.db"
    path.mkdir()
    assert problem(path) == (str(path), "a file", "a folder")


def test_a_named_pipe_is_no_ledger(tmp_path):
    path = tmp_path / "ledger.db"
    os.mkfifo(path)
    assert problem(path) == (str(path), "a file", "no regular file")


def test_another_programs_database_is_refused_and_not_touched(tmp_path):
    path = tmp_path / "ledger.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE usage (x)")
    connection.close()
    before = path.read_bytes()
    assert problem(path) == (str(path), "the ledger", "another program's database")
    assert path.read_bytes() == before


def test_a_ledger_of_a_newer_portguard_is_refused_and_not_touched(path):
    contents(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    before = path.read_bytes()
    assert problem(path) == (str(path), "a ledger of version 2 at most", "version 7, of a newer portguard")
    assert path.read_bytes() == before


def damaged(path):
    ledger = Ledger(path)
    ledger.write(*(usage(Owner("role", "trust", f"{number:0100}"), number) for number in range(500)))
    ledger.answer()
    ledger.close()
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(os.urandom(2000))


def test_a_damaged_ledger_is_refused(path):
    damaged(path)
    file, expected, found = problem(path)
    assert file == str(path)
    assert expected in {LEDGER, "the ledger"}
    assert found.startswith("a damaged database")
    assert "\n" not in found


def test_a_ledger_that_lost_its_end_is_refused(path):
    damaged(path)
    os.truncate(path, 8192)
    assert problem(path)[2].startswith("a damaged database")


def test_a_ledger_whose_free_pages_are_lost_is_refused(path):
    contents(path)
    with open(path, "r+b") as file:
        file.seek(36)  # how many there are
        file.write((5).to_bytes(4, "big"))
    _, expected, found = problem(path)
    assert expected == "the ledger"
    assert found.startswith("a damaged database (")
    assert found.endswith("reelist: size is 0 but should be 5)")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE usage SET used_bytes = 'much'",
        "UPDATE usage SET used_bytes = -5",
        "UPDATE usage SET granted_bytes = 1.5",
        "UPDATE usage SET period = 'decade'",
        "UPDATE usage SET name = x'ff00'",
        "UPDATE usage SET name = CAST(x'ff' AS TEXT)",
        "UPDATE rates SET connects = x'00'",
        "UPDATE locks SET kind = 'person'",
        "UPDATE locks SET value = x'ff'",
        "UPDATE locks SET end_s = 'never'",
    ],
)
def test_a_row_that_was_changed_into_nonsense_is_an_error_at_start(path, statement):
    ledger = Ledger(path)
    ledger.write(usage(), rate(), lock())
    ledger.answer()
    ledger.close()
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(ConfigurationError, match=r"ledger\.db: expected "):
        contents(path)


def test_a_path_below_a_file_is_an_error(tmp_path):
    (tmp_path / "state").write_text("")
    path = tmp_path / "state" / "deeper" / "ledger.db"
    file, expected, found = problem(path)
    assert file == str(path.parent)
    assert (expected, found) == ("a folder that can be written (gateway.state)", "not a directory")


@pytest.mark.parametrize("end", ["-wal", "-shm"])
def test_a_ledger_that_can_have_no_write_ahead_log_is_an_error(path, end):
    contents(path)
    os.mkdir(f"{path}{end}")
    assert problem(path)[2] in {"a file that cannot be opened", "a file that cannot be written"}


def test_a_second_gateway_is_refused_and_the_first_goes_on(ledger):
    expected = "a file that can be written, and no other gateway that uses it (gateway.state)"
    assert problem(ledger.path) == (f"{ledger.path}.lock", expected, "one that does")
    ledger.write(usage())
    assert ledger.answer() == ("written", True)


def test_a_link_to_a_ledger_is_no_way_around_the_lock(ledger, tmp_path):
    link = tmp_path / "link.db"
    link.symlink_to(ledger.path)
    assert problem(link)[2] == "one that does"


LOCKS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
connection.execute("ROLLBACK")
"""


class Program:
    """A Python program in a process of its own, which says when it is ready and ends with its standard input."""

    def __init__(self, source, *arguments):
        command = [sys.executable, "-c", source, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self):
        return self.process.stdout.readline().strip()

    def end(self):
        self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode


@pytest.fixture
def program():
    programs = []

    def start(source, *arguments):
        programs.append(Program(source, *arguments))
        return programs[-1]

    yield start
    for started in programs:
        if started.process.returncode is None:
            started.process.kill()
            started.process.communicate()


def test_a_ledger_that_another_process_has_locked_is_refused_at_start(path, program):
    contents(path)
    other = program(LOCKS, path)
    assert other.line() == "locked"
    assert problem(path) == (str(path), LEDGER, "a file that another process has locked")
    assert other.end() == 0
    assert contents(path) == Contents((), (), ())


HOLDS = """
import sys
from portguard.limits.ledger import Owner, UsageRow
from portguard.limits.sqlite import SqliteStore
from portguard.policy.quantities import Period
store = SqliteStore.open(sys.argv[1], 0.0)
store.start(lambda answers: print("written", flush=True))
store.write([UsageRow(Owner("role", "trust", "alice"), Period.DAY, 0, 1_795_100_000, 42, 0)], print)
sys.stdin.read()
"""


def test_what_was_acknowledged_survives_a_kill_which_frees_the_lock(path, program):
    other = program(HOLDS, path)
    assert other.line() == "written"
    assert problem(path)[2] == "one that does"
    other.process.kill()
    other.process.communicate()
    (row,) = contents(path).usage
    assert (row.owner.name, row.used_bytes) == ("alice", 42)


# Failing while it runs.


def test_rows_that_meet_a_lock_are_answered_no_and_written_when_it_is_gone(ledger, program, events):
    assert (ledger.store.failing_s(), ledger.store.trouble) == (None, None)
    other = program(LOCKS, ledger.path)
    assert other.line() == "locked"
    ledger.write(usage(), usage(BOB, 1))
    assert ledger.answer() == ("written", False)
    assert ledger.store.failing_s() > 0
    assert ledger.store.trouble == "a file that another process has locked"
    ledger.store.write([usage(BOB, 2)])
    ledger.write(rate(), name="again")
    assert ledger.answer() == ("again", False)
    assert used(ledger.path) == {}
    assert other.end() == 0
    eventually(lambda: ledger.store.trouble is None)
    assert ledger.store.failing_s() is None
    assert used(ledger.path) == {"alice": 1000, "bob": 2}
    assert ledger.store.errors >= 1
    ledger.write(usage(), name="after")
    assert ledger.answer() == ("after", True)
    fields = {"file": ledger.path, "message": "a file that another process has locked"}
    failed, resumed = events
    assert failed == ("error", "ledger.unavailable", fields)
    assert resumed[:2] == ("info", "ledger.resume")
    assert resumed[2]["seconds"] > 0


def test_while_failing_who_comes_is_answered_without_another_attempt(ledger, monkeypatch):
    monkeypatch.setattr(attempts, "RETRY_S", 3600.0)
    ledger.hook().execute("PRAGMA query_only = ON")
    ledger.write(usage())
    assert ledger.answer() == ("written", False)
    for _ in range(3):
        ledger.write(usage(), name="again")
        assert ledger.answer() == ("again", False)
    assert ledger.store.errors == 1
    assert ledger.close(), "the connection that could not write is given up"
    assert used(ledger.path) == {"alice": 1000}


def test_a_full_database_recovers_on_its_connection_when_there_is_room(ledger):
    connection = ledger.hook()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    rows = [usage(Owner("role", "trust", f"{number:0500}")) for number in range(100)]
    ledger.write(*rows)
    assert ledger.answer() == ("written", False)
    assert ledger.store.trouble == "a full disk"
    assert used(ledger.path) == {}
    connection.execute("PRAGMA max_page_count = 100000")
    eventually(lambda: ledger.store.trouble is None)
    assert len(used(ledger.path)) == 100
    assert ledger.hook() is connection


FILE_SIZES = """
import os, queue, resource, sys, time
from portguard.limits.ledger import Owner, UsageRow
from portguard.limits.sqlite import SqliteStore
from portguard.policy.quantities import Period
from tests.patience import PATIENCE_S

def row(name):
    return UsageRow(Owner("role", "trust", name), Period.DAY, 0, 1_795_100_000, 42, 0)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

path, answers = sys.argv[1], queue.Queue()
store = SqliteStore.open(path, 0.0)
store.start(lambda batch: [on_written(ok) for on_written, ok in batch])
store.write([row("first")], answers.put)
assert answers.get(timeout=PATIENCE_S) is True
limit(os.stat(path + "-wal").st_size + 100)
store.write([row("second")], answers.put)
assert answers.get(timeout=PATIENCE_S) is False
assert store.failing_s() >= 0
print(store.trouble)
limit(resource.RLIM_INFINITY)
while store.trouble is not None:
    time.sleep(0.01)
assert store.flush_and_close(PATIENCE_S)
print("closed", flush=True)
"""


def test_writes_that_the_system_refuses_are_tried_again_until_it_takes_them(path, program):
    other = program(FILE_SIZES, path)
    assert other.line() == "an input or output error (SQLITE_IOERR_WRITE)"
    assert other.line() == "closed"
    assert other.end() == 0
    assert used(path) == {"first": 42, "second": 42}


NO_ROOM = """
import resource, sys
from portguard.errors import ConfigurationError
from portguard.limits.sqlite import SqliteStore
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    SqliteStore.open(sys.argv[1], 0.0)
except ConfigurationError as error:
    print(error.problems[0].found)
"""


@pytest.mark.parametrize("exists", [True, False])
def test_a_file_that_cannot_grow_is_an_error_at_start(path, program, exists):
    if exists:
        contents(path)
    other = program(NO_ROOM, path)
    assert other.line().startswith("an input or output error")
    assert other.end() == 0
    assert contents(path) == Contents((), (), ())


def test_opening_writes_something_so_that_a_full_disk_shows_at_once(path):
    contents(path)
    assert not os.path.exists(f"{path}-wal")
    ledger = Ledger(path, start=False)
    assert os.path.getsize(f"{path}-wal") > 0
    ledger.close()


def test_a_file_that_was_removed_is_trouble_and_goes_on_when_it_is_back(ledger, tmp_path, monkeypatch, events):
    monkeypatch.setattr(attempts, "RETRY_S", 0.01)
    for end in ("", "-wal", "-shm"):
        os.rename(ledger.path + end, tmp_path / f"away{end}")
    ledger.write(usage())
    assert ledger.answer() == ("written", False)
    assert ledger.store.trouble == "no file any more, put it back or restart the gateway"
    eventually(lambda: ledger.store.errors > 3)
    assert not os.path.exists(ledger.path), "no empty ledger takes its place"
    for end in ("", "-wal", "-shm"):
        os.rename(tmp_path / f"away{end}", ledger.path + end)
    eventually(lambda: len(events) > 1)
    assert used(ledger.path) == {"alice": 1000}
    assert [name for _, name, _ in events] == ["ledger.unavailable", "ledger.resume"]


def test_a_file_that_was_replaced_is_trouble_and_is_not_written(ledger, tmp_path):
    copy = tmp_path / "copy.db"
    contents(copy)
    os.replace(copy, ledger.path)
    ledger.write(usage())
    assert ledger.answer() == ("written", False)
    assert ledger.store.trouble == "another file in its place, restart the gateway to use it"
    assert not ledger.store.flush_and_close(0.0)
    # Or the fixture, which closes again, gives it all its time to try once more.
    ledger.store._writer._thread.join(PATIENCE_S)


def test_a_write_ahead_log_that_was_removed_costs_nothing(path):
    ledger = Ledger(path)
    ledger.write(usage())
    ledger.answer()
    os.unlink(f"{path}-wal")
    os.unlink(f"{path}-shm")
    ledger.write(usage(BOB))
    assert ledger.answer() == ("written", True)
    assert used(path) == {"alice": 1000, "bob": 1000}
    assert os.path.getsize(f"{path}-wal") > 0, "what is written later can be found after a crash"
    ledger.close()


def test_a_write_ahead_log_that_was_removed_is_not_given_up_while_a_reader_keeps_it_from_being_saved(ledger):
    ledger.write(usage())
    ledger.answer()
    reader = sqlite3.connect(ledger.path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT name FROM usage").fetchall() == [("alice",)]
    os.unlink(f"{ledger.path}-wal")
    os.unlink(f"{ledger.path}-shm")
    ledger.write(usage(BOB))
    assert ledger.answer() == ("written", False)
    assert ledger.store.trouble == "no write-ahead log beside it any more, while another process reads it"
    reader.close()
    eventually(lambda: ledger.store.trouble is None)
    assert used(ledger.path) == {"alice": 1000, "bob": 1000}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(sqlite, "_STUCK_S", 0.01)


def test_a_write_that_hangs_counts_as_failing(impatient, ledger):
    disk_answers = threading.Event()
    ledger.hook().set_progress_handler(lambda: disk_answers.wait(PATIENCE_S) and None, 1)
    ledger.write(usage())
    eventually(lambda: ledger.store.failing_s() is not None)
    assert ledger.store.trouble == "a write that does not end"
    assert ledger.answers.empty()
    assert not ledger.store.flush_and_close(0.0)
    disk_answers.set()
    assert ledger.answer() == ("written", True)
    eventually(lambda: ledger.store.failing_s() is None)


def test_a_row_that_came_during_a_write_that_failed_is_the_one_to_be_written(ledger):
    writing, fail = threading.Event(), threading.Event()

    def interrupt():
        writing.set()
        return fail.wait(PATIENCE_S)

    ledger.hook().set_progress_handler(interrupt, 1)
    ledger.write(usage(used_bytes=1), usage(BOB, 1))
    assert writing.wait(PATIENCE_S)
    ledger.store.write([usage(used_bytes=2)])
    fail.set()
    assert ledger.answer() == ("written", False)
    eventually(lambda: used(ledger.path) == {"alice": 2, "bob": 1})


def test_a_writer_that_has_ended_for_whatever_reason_counts_as_failing(path, monkeypatch):
    ended = queue.Queue()
    monkeypatch.setattr(threading, "excepthook", ended.put)

    def deliver(answers):
        raise RuntimeError("the loop is closed")

    ledger = Ledger(path, start=False)
    ledger.store.start(deliver)
    ledger.write(usage())
    ended.get(timeout=PATIENCE_S)
    assert ledger.store.trouble == "a writer that has ended"
    assert ledger.store.failing_s() >= 0
    assert not ledger.close()


def test_closing_waits_for_a_lock_to_go_while_there_is_time(path, program):
    ledger = Ledger(path)
    other = program(LOCKS, path)
    assert other.line() == "locked"
    ledger.write(usage())
    assert ledger.answer() == ("written", False)
    closed = queue.Queue()
    thread = threading.Thread(target=lambda: closed.put(ledger.close()))
    thread.start()
    errors = ledger.store.errors
    eventually(lambda: ledger.store.errors > errors)
    other.end()
    assert closed.get(timeout=PATIENCE_S)
    thread.join()
    assert used(path) == {"alice": 1000}


def test_closing_with_nothing_to_write_needs_no_lock(path, program, events):
    ledger = Ledger(path)
    other = program(LOCKS, path)
    assert other.line() == "locked"
    assert ledger.close()
    assert events == []
    other.end()


# Versions.


ANOTHER_STEP = ("ALTER TABLE usage ADD COLUMN note TEXT NOT NULL DEFAULT ''", "CREATE TABLE more (identity TEXT)")


def test_an_empty_file_becomes_the_newest_version(path):
    path.parent.mkdir()
    path.touch()
    contents(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(sqlite_schema.STEPS),)
    assert connection.execute("PRAGMA application_id").fetchone() == (sqlite_schema.APPLICATION_ID,)
    connection.close()


def written(path):
    ledger = Ledger(path)
    ledger.write(usage())
    ledger.answer()
    ledger.close()
    return sqlite3.connect(path, isolation_level=None)


def test_a_further_step_applies_to_what_is_there_and_only_once(path):
    connection = written(path)
    steps = (*sqlite_schema.STEPS, ANOTHER_STEP)
    sqlite_schema.migrate(connection, steps)
    sqlite_schema.migrate(connection, steps)
    assert sqlite_schema.check(connection, len(steps)) == len(steps)
    assert connection.execute("SELECT name, used_bytes, note FROM usage").fetchall() == [("alice", 1000, "")]
    assert sqlite_schema.usage_rows(connection, NOW_S) == (usage(),)
    connection.close()


def test_a_step_that_fails_changes_nothing(path):
    connection = written(path)
    with pytest.raises(sqlite3.OperationalError):
        sqlite_schema.migrate(connection, (*sqlite_schema.STEPS, (*ANOTHER_STEP, "CREATE TABLE usage (x)")))
    assert sqlite_schema.check(connection) == len(sqlite_schema.STEPS)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone() == (0,)
    assert not connection.in_transaction
    connection.close()


# As the first version of portguard made it, taken from a file that it wrote.
VERSION_1 = f"""
PRAGMA journal_mode = WAL;
CREATE TABLE usage (
            role          TEXT NOT NULL,
            trust         TEXT NOT NULL,     -- with name, empty for what the whole role has used together
            name          TEXT NOT NULL,
            period        TEXT NOT NULL,     -- hour, day, week, month
            start_s       INTEGER NOT NULL,  -- seconds since 1970, as all that end in _s
            end_s         INTEGER NOT NULL,
            used_bytes    INTEGER NOT NULL,  -- at most: what is leased counts
            granted_bytes INTEGER NOT NULL,
            PRIMARY KEY (role, trust, name, period)
        ) WITHOUT ROWID;
CREATE TABLE rates (
            role     TEXT NOT NULL,
            trust    TEXT NOT NULL,
            name     TEXT NOT NULL,
            connects TEXT NOT NULL,
            end_s    INTEGER NOT NULL,
            PRIMARY KEY (role, trust, name)
        ) WITHOUT ROWID;
PRAGMA application_id = 1346849863;
PRAGMA user_version = 1;
INSERT INTO usage VALUES ('orders-dba', 'corp', 'alice', 'day', 1794900000, {END_S}, 1000, 0);
INSERT INTO rates VALUES ('orders-dba', 'corp', 'alice', '1 2 3', {END_S});
"""


def test_a_ledger_of_version_1_keeps_what_it_has_and_takes_locks(path):
    path.parent.mkdir(mode=0o700)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(VERSION_1)
    connection.close()
    ledger = Ledger(path)
    assert ledger.store.contents(NOW_S) == Contents((usage(),), (rate(),), ())
    ledger.write(lock(), usage(BOB, 5))
    assert ledger.answer() == ("written", True)
    assert ledger.close()
    found = contents(path)
    assert (set(found.usage), found.rates, found.locks) == ({usage(), usage(BOB, 5)}, (rate(),), (lock(),))
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()
