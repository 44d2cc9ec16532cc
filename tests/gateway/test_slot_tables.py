import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from portguard.gateway.slot_tables import SlotTables
from portguard.gateway.slots import RECEIVED, SENT, SlotTable

CAPACITY = 3


@pytest.fixture
def tables() -> Iterator[SlotTables]:
    tables = SlotTables(CAPACITY)
    yield tables
    tables.close()


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def scribble(table: SlotTable, number: int) -> None:
    """Do what a worker in somebody else's hands could do to the memory that it has."""
    for index in range(len(table.cells)):
        table.cells[index] = number


def test_what_a_worker_writes_is_in_no_other_worker_s_slots(tables: SlotTables) -> None:
    hostile, other = tables.add(0), tables.add(1)
    own, others = tables.take(0, 1), tables.take(1, 1)
    other.cells[other.base(others) + RECEIVED] = 7
    scribble(hostile, 2**40)
    assert (tables.moved(own), tables.moved(others)) == (2**41, 7)
    assert tables.copy()[others][RECEIVED] == 7
    assert tables.free(others) == (7, 0)


def test_each_worker_has_a_memory_of_its_own(tables: SlotTables) -> None:
    tables.add(0), tables.add(1)
    files = {os.fstat(descriptor).st_ino for _, descriptor in tables.descriptors}
    assert len(files) == 2


@pytest.mark.parametrize("size_bytes", [0, CAPACITY * 64 - 1, CAPACITY * 64 + 1])
def test_no_worker_can_take_the_memory_away_from_under_the_supervisor(tables: SlotTables, size_bytes: int) -> None:
    table = tables.add(0)
    with pytest.raises(PermissionError):
        os.ftruncate(table.descriptor, size_bytes)
    assert not any(table.cells)


def test_no_two_workers_have_a_slot_of_the_same_number(tables: SlotTables) -> None:
    taken = []
    for worker in (0, 1, 7):
        tables.add(worker)
        taken += [tables.take(worker, 1) for _ in range(CAPACITY)]
    assert len(set(taken)) == 3 * CAPACITY


def test_a_worker_gets_no_slot_beyond_its_table(tables: SlotTables) -> None:
    tables.add(0), tables.add(1)
    for _ in range(CAPACITY):
        last = tables.take(0, 1)
    with pytest.raises(IndexError, match="worker 0: expected a free slot, got none"):
        tables.take(0, 1)
    tables.free(last)
    assert tables.take(0, 1) == last


def test_a_worker_without_a_table_gets_no_slot(tables: SlotTables) -> None:
    tables.add(0)
    with pytest.raises(KeyError):
        tables.take(1, 1)


def test_a_copy_has_what_was_counted_then_of_all_that_ever_had_a_slot(tables: SlotTables) -> None:
    for worker in (0, 1):
        table = tables.add(worker)
        slots = [tables.take(worker, 1) for _ in range(2)]
        for slot in slots:
            table.cells[table.base(slot) + SENT] = slot + 1
    tables.free(slots[0])
    copy = tables.copy()
    table.cells[table.base(slots[1]) + SENT] = 99
    assert [copy[slot][SENT] for slot in (0, 1, CAPACITY, CAPACITY + 1)] == [1, 2, CAPACITY + 1, CAPACITY + 2]


def test_a_copy_costs_what_was_in_use_and_not_what_could_be() -> None:
    tables = SlotTables(1_000_000)
    for worker in range(4):
        tables.add(worker)
    tables.take(2, 1)
    copy = tables.copy()
    assert sum(cells.nbytes for cells in copy._cells.values()) == 64
    tables.close()


def test_a_table_that_is_dropped_leaves_no_descriptor_and_one_that_is_made_anew_is_empty(tables: SlotTables) -> None:
    before = descriptors()
    scribble(tables.add(4), 1)
    tables.drop(4)
    assert descriptors() == before
    assert not any(tables.add(4).cells)


@pytest.mark.parametrize("step", [(os, "ftruncate"), (mmap, "mmap")])
def test_a_table_that_cannot_be_made_leaves_no_descriptor(
    tables: SlotTables, monkeypatch: pytest.MonkeyPatch, step: tuple[object, str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    before = descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(*step, fail)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            tables.add(0)
    assert descriptors() == before
    assert tables.descriptors == []


def test_another_program_goes_on_with_the_tables_and_with_what_is_counted_in_them(tables: SlotTables) -> None:
    for worker in (3, 5):
        tables.add(worker)
    first, second, other = tables.take(3, 1), tables.take(3, 1), tables.take(5, 1)
    table = SlotTable(os.dup(tables.descriptors[0][1]), CAPACITY)
    table.cells[table.base(second) + RECEIVED] = 8
    table.close()
    adopted = SlotTables.adopted(CAPACITY, [(worker, os.dup(descriptor)) for worker, descriptor in tables.descriptors])
    adopted.retake([second, other])
    assert (adopted.moved(second), adopted.moved(other)) == (8, 0)
    assert adopted.take(3, 1) == first
    assert len({first, second, other, adopted.take(3, 1), adopted.take(5, 1)}) == 5
    adopted.close()
