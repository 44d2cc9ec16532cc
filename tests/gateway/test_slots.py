import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from portguard.gateway.slots import ACTIVITY, OPENED, RECEIVED, SENT, STATE, WORKER, SlotTable

CAPACITY = 3


@pytest.fixture
def table() -> Iterator[SlotTable]:
    table = SlotTable.create(CAPACITY)
    yield table
    table.close()


def contents(table: SlotTable, slot: int) -> tuple[int, ...]:
    assert table.base(slot) == 8 * slot
    return tuple(table.cells[8 * slot : 8 * slot + 8])


def test_a_new_table_is_all_free_and_a_cache_line_a_slot(table: SlotTable) -> None:
    assert len(table.cells) * table.cells.itemsize == CAPACITY * 64
    assert not any(table.cells)


def test_a_slot_says_who_carries_the_session_and_since_when(table: SlotTable) -> None:
    table.open(1, worker=4, now_ns=1_000)
    base = table.base(1)
    assert table.cells[base + STATE]
    assert table.cells[base + WORKER] == 4
    assert table.cells[base + OPENED] == table.cells[base + ACTIVITY] == 1_000
    assert table.cells[base + RECEIVED] == table.cells[base + SENT] == 0


def test_slots_are_counted_through_all_tables(table: SlotTable) -> None:
    assert [table.base(slot) for slot in range(4 * CAPACITY, 5 * CAPACITY)] == [0, 8, 16]


def test_a_slot_leaves_its_neighbours_alone(table: SlotTable) -> None:
    table.open(1, worker=4, now_ns=1_000)
    for index in range(table.base(1), table.base(2)):
        table.cells[index] = 2**64 - 1
    assert not any(contents(table, 0))
    assert not any(contents(table, 2))


def test_freeing_tells_what_was_counted(table: SlotTable) -> None:
    table.open(2, worker=0, now_ns=1)
    table.cells[table.base(2) + RECEIVED] += 2**40
    table.cells[table.base(2) + SENT] += 7
    assert table.free(2) == (2**40, 7)


def test_a_slot_that_is_used_again_begins_at_nothing(table: SlotTable) -> None:
    table.open(0, worker=1, now_ns=5)
    before = contents(table, 0)
    for index in range(table.base(0) + WORKER, table.base(1)):
        table.cells[index] = 77
    table.free(0)
    table.open(0, worker=1, now_ns=5)
    assert contents(table, 0)[: OPENED + 1] == before[: OPENED + 1]


@pytest.mark.parametrize("state", [0, 1, 2**64 - 1])
def test_what_a_worker_writes_into_a_slot_keeps_nobody_from_using_it(table: SlotTable, state: int) -> None:
    table.cells[table.base(0) + STATE] = state
    table.open(0, worker=1, now_ns=5)
    table.cells[table.base(0) + RECEIVED] = 3
    table.cells[table.base(0) + STATE] = state
    assert table.free(0) == (3, 0)


def test_what_a_worker_counted_outlives_it(table: SlotTable) -> None:
    table.open(1, worker=0, now_ns=1)
    code = (
        "import os; from portguard.gateway.slots import *; "
        f"table = SlotTable({table.descriptor}, {CAPACITY}); "
        "table.cells[table.base(1) + RECEIVED] += 123; table.cells[table.base(1) + SENT] += 456; "
        "os.kill(os.getpid(), 9)"
    )
    worker = subprocess.run([sys.executable, "-c", code], pass_fds=[table.descriptor], check=False)
    assert worker.returncode == -9
    assert table.free(1) == (123, 456)


def test_the_table_is_no_file_and_no_program_inherits_it(table: SlotTable) -> None:
    assert os.readlink(f"/proc/self/fd/{table.descriptor}").startswith("/memfd:portguard-slots")
    assert not os.get_inheritable(table.descriptor)
    assert os.fstat(table.descriptor).st_size == CAPACITY * 64


def test_a_table_larger_than_its_memory_is_an_error(table: SlotTable) -> None:
    with pytest.raises((ValueError, OSError)):
        SlotTable(table.descriptor, CAPACITY + mmap.PAGESIZE)
