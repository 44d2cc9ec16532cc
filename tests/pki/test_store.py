import os
import sqlite3
import stat
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from portguard.pki import store as module
from portguard.pki.errors import PkiError
from portguard.pki.profiles import Kind, Revocation, RevocationReason
from portguard.pki.store import Record, Status, Store, status

_TIME = datetime(2026, 7, 1, 12, 0, 0, tzinfo=UTC)
_DAY = timedelta(days=1)


_REVOKED = Revocation(_TIME, RevocationReason.KEY_COMPROMISE)


def _record(serial: int, name: str = "alice", revocation: Revocation | None = None) -> Record:
    return Record(serial, Kind.CLIENT, name, _TIME, _TIME + _DAY, _TIME, b"der", revocation)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "certificates.db")
    store.create()
    return store


def test_records_come_back_in_the_order_of_issue(store: Store) -> None:
    records = [_record(2**159 - 1, "bob"), _record(1), _record(0xABC, "ci/deploy")]
    for record in records:
        store.add(record)
    assert store.records() == records
    assert store.get(0xABC) == records[2]


def test_an_unknown_serial_has_no_record(store: Store) -> None:
    store.add(_record(1))
    assert store.get(2) is None


def test_a_serial_is_never_recorded_twice(store: Store) -> None:
    store.add(_record(1, "alice"))
    with pytest.raises(PkiError, match="UNIQUE"):
        store.add(_record(1, "mallory"))
    assert [record.name for record in store.records()] == ["alice"]


def test_the_file_is_for_its_owner_alone_and_is_the_only_one(store: Store) -> None:
    store.add(_record(1))
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert os.listdir(store.path.parent) == ["certificates.db"]


def test_a_store_is_not_made_over_another(store: Store) -> None:
    store.add(_record(1))
    with pytest.raises(PkiError, match="expected no file of this name"):
        store.create()
    assert len(store.records()) == 1


def test_many_writers_lose_nothing(store: Store) -> None:
    barrier = threading.Barrier(4)

    def write(first: int) -> None:
        barrier.wait()
        for serial in range(first, first + 5):
            Store(store.path).add(_record(serial))

    threads = [threading.Thread(target=write, args=(1 + 100 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.records()) == 20


def test_a_missing_store_is_an_error_and_stays_missing(tmp_path: Path) -> None:
    store = Store(tmp_path / "certificates.db")
    for act in (lambda: store.add(_record(1)), store.records, lambda: store.get(1)):
        with pytest.raises(PkiError, match="expected the record of issued certificates, got no such file"):
            act()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to look at" * 20])
def test_a_damaged_store_is_an_error(store: Store, content: bytes) -> None:
    store.path.write_bytes(content)
    with pytest.raises(PkiError, match=r"certificates\.db: expected the record of issued certificates, got"):
        store.add(_record(1))
    assert store.path.read_bytes() == content


def _alter(store: Store, statement: str) -> None:
    connection = sqlite3.connect(store.path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_another_programs_database_is_an_error(store: Store) -> None:
    _alter(store, "PRAGMA application_id = 7")
    with pytest.raises(PkiError, match="got another program's database"):
        store.records()


def test_a_store_of_a_later_version_is_an_error(store: Store) -> None:
    _alter(store, "PRAGMA user_version = 4")
    with pytest.raises(PkiError, match="expected a store of version 3 or earlier, got version 4, of a later portguard"):
        store.add(_record(1))


_FIRST_VERSION = f"""
    PRAGMA application_id = {0x50474341};
    PRAGMA user_version = 1;
    CREATE TABLE certificates (serial TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL,
        not_before INTEGER NOT NULL, not_after INTEGER NOT NULL, issued_at INTEGER NOT NULL, der BLOB NOT NULL);
"""
_SECOND_VERSION = """
    PRAGMA user_version = 2;
    CREATE TABLE revocations (serial TEXT PRIMARY KEY REFERENCES certificates (serial), revoked_at INTEGER NOT NULL,
        reason TEXT NOT NULL, settled_in INTEGER);
    CREATE TABLE lists (number INTEGER PRIMARY KEY, made_at INTEGER NOT NULL, valid_for INTEGER NOT NULL);
"""


@pytest.fixture
def first_version(tmp_path: Path) -> Store:
    """A store as it was before it knew of revocations, with one certificate."""
    connection = sqlite3.connect(tmp_path / "certificates.db")
    connection.executescript(_FIRST_VERSION)
    times = [int(time.timestamp()) for time in (_TIME, _TIME + _DAY, _TIME)]
    connection.execute("INSERT INTO certificates VALUES ('1', 'client', 'alice', ?, ?, ?, ?)", [*times, b"der"])
    connection.commit()
    connection.close()
    return Store(tmp_path / "certificates.db")


def test_a_store_of_the_first_version_becomes_one_of_this_when_it_is_read(first_version: Store) -> None:
    assert first_version.records() == [_record(1)]
    first_version.revoke([1], _REVOKED)
    assert first_version.get(1) == _record(1, revocation=_REVOKED)


def test_a_store_of_the_first_version_becomes_one_of_this_when_it_is_written(first_version: Store) -> None:
    first_version.add(_record(2))
    assert first_version.unsettled() == []
    assert first_version.begin_list(_TIME, _DAY) == 1


def test_a_store_of_the_second_version_becomes_one_of_this_and_keeps_what_it_has(first_version: Store) -> None:
    connection = sqlite3.connect(first_version.path)
    connection.executescript(_SECOND_VERSION)
    at_s = int(_TIME.timestamp())
    connection.execute("INSERT INTO revocations VALUES ('1', ?, 'keyCompromise', NULL)", [at_s])
    connection.execute("INSERT INTO lists VALUES (7, ?, 3600)", [at_s])
    connection.commit()
    connection.close()
    assert first_version.records() == [_record(1, revocation=_REVOKED)]
    first_version.add(replace(_record(2), kind=Kind.INVITATION))
    first_version.revoke([], _REVOKED, ["alice"])
    assert [record.serial for record in first_version.unsettled()] == [1, 2]
    assert first_version.begin_list(_TIME, _DAY) == 8


def test_two_that_find_the_first_version_make_one_of_this(
    first_version: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier, seen = threading.Barrier(2), threading.local()
    version = module._version
    found: list[list[Record]] = []

    def version_that_both_see(connection: sqlite3.Connection) -> int:
        number = version(connection)
        if not hasattr(seen, "once"):
            seen.once = number
            barrier.wait()
        return number

    monkeypatch.setattr(module, "_version", version_that_both_see)

    def read() -> None:
        found.append(Store(first_version.path).records())

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[_record(1)]] * 2


def test_a_revocation_stays_with_its_certificate(store: Store) -> None:
    for serial in (1, 2, 3):
        store.add(_record(serial))
    store.revoke([3, 1], _REVOKED)
    assert [record.revocation for record in store.records()] == [_REVOKED, None, _REVOKED]
    assert [record.serial for record in store.unsettled()] == [1, 3]
    assert store.get(2) == _record(2)


def test_of_several_revocations_all_are_recorded_or_none(store: Store) -> None:
    for serial in (1, 2):
        store.add(_record(serial))
    with pytest.raises(PkiError, match="FOREIGN KEY"):
        store.revoke([1, 7], _REVOKED)
    store.revoke([2], _REVOKED)
    with pytest.raises(PkiError, match="UNIQUE"):
        store.revoke([1, 2], Revocation(_TIME, RevocationReason.UNSPECIFIED))
    assert [record.revocation for record in store.records()] == [None, _REVOKED]


def test_what_is_settled_is_revoked_but_needed_in_no_list(store: Store) -> None:
    for serial in (1, 2):
        store.add(_record(serial))
    store.revoke([1, 2], _REVOKED)
    store.settle([1], store.begin_list(_TIME, _DAY))
    assert [record.serial for record in store.unsettled()] == [2]
    assert store.get(1) == _record(1, revocation=_REVOKED)


def test_each_list_has_a_higher_number_and_the_last_ones_length_is_known(store: Store) -> None:
    assert store.last_valid_for() is None
    assert [store.begin_list(_TIME, _DAY * length) for length in (3, 1, 2)] == [1, 2, 3]
    assert store.last_valid_for() == 2 * _DAY


def test_a_revoked_certificate_is_revoked_before_and_after_its_end_too() -> None:
    revoked = _record(1, revocation=_REVOKED)
    for offset in (-_DAY, timedelta(0), 3 * _DAY):
        assert revoked.status(_TIME + offset) is Status.REVOKED
        assert _record(1).status(_TIME + offset) is not Status.REVOKED


@pytest.mark.parametrize("change", ["reason = 'boredom'", "revoked_at = 'soon'"])
def test_a_damaged_revocation_is_an_error(store: Store, change: str) -> None:
    store.add(_record(1))
    store.revoke([1], _REVOKED)
    _alter(store, f"UPDATE revocations SET {change}")
    with pytest.raises(PkiError, match="expected a readable record, got a damaged one"):
        store.records()


@pytest.mark.parametrize("change", ["serial = 'xyz'", "kind = 'root'", "not_after = 'soon'", "not_before = 1e300"])
def test_a_damaged_record_is_an_error(store: Store, change: str) -> None:
    store.add(_record(1))
    _alter(store, f"UPDATE certificates SET {change}")
    with pytest.raises(PkiError, match="expected a readable record, got a damaged one"):
        store.records()


def test_a_store_that_another_keeps_locked_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portguard.pki.store._LOCK_TIMEOUT_S", 0.01)
    connection = sqlite3.connect(store.path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(PkiError, match="got “database is locked”"):
            store.add(_record(1))
    finally:
        connection.close()
    store.add(_record(1))


def test_reading_does_not_wait_for_who_is_about_to_write(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portguard.pki.store._LOCK_TIMEOUT_S", 0.01)
    store.add(_record(1))
    connection = sqlite3.connect(store.path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        assert len(store.records()) == 1
        with pytest.raises(PkiError, match="got “database is locked”"):
            store.add(_record(2))
    finally:
        connection.close()


def test_a_path_with_marks_of_uris_is_a_path(tmp_path: Path) -> None:
    store = Store(tmp_path / "a?mode=memory#100%.db")
    store.create()
    store.add(_record(1))
    assert os.listdir(tmp_path) == ["a?mode=memory#100%.db"]


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (timedelta(seconds=-1), Status.NOT_YET_VALID),
        (timedelta(0), Status.VALID),
        (_DAY, Status.VALID),
        (_DAY + timedelta(seconds=1), Status.EXPIRED),
    ],
)
def test_the_status_at_both_ends(offset: timedelta, expected: Status) -> None:
    assert status(_TIME, _TIME + _DAY, _TIME + offset) is expected


def test_the_certificate_is_not_in_the_repr_of_a_record() -> None:
    assert "der" not in repr(_record(1))
