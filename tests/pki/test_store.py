import os
import sqlite3
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from portguard.pki.errors import PkiError
from portguard.pki.profiles import Kind
from portguard.pki.store import Record, Status, Store, status

_TIME = datetime(2026, 7, 1, 12, 0, 0, tzinfo=UTC)
_DAY = timedelta(days=1)


def _record(serial: int, name: str = "alice") -> Record:
    return Record(serial, Kind.CLIENT, name, _TIME, _TIME + _DAY, _TIME, b"der")


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
    _alter(store, "PRAGMA user_version = 2")
    with pytest.raises(PkiError, match="expected a store of version 1, got version 2, of another portguard"):
        store.add(_record(1))


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
