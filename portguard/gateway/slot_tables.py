"""The slot tables of all workers, as the supervisor has them (`slots`): one for each, and which of its slots are taken.

A worker is given the memory of its own table and no other: what it writes there is about its own sessions. Any worker
may come to carry all sessions, so each has room for the whole capacity; memory that was never written to costs nothing.
"""

import fcntl
from collections.abc import Iterable, Mapping, Sequence

from portguard.gateway.slots import FIELDS, RECEIVED, SENT, SlotTable


class _Shelf:
    """A table, and which of its slots are taken: those below `used` that are not in `free`."""

    __slots__ = ("free", "table", "used")

    def __init__(self, table: SlotTable):
        self.table = table
        self.used = 0  # how many ever were at once; what lies beyond is neither copied nor in memory
        self.free: list[int] = []


class SlotTables:
    """All tables, by the numbers of their workers. `capacity` is how many sessions there can be, of all workers.

    A slot tells whose it is, and no two workers have the same. KeyError for that of a worker without a table.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._shelves: dict[int, _Shelf] = {}

    @classmethod
    def adopted(cls, capacity: int, descriptors: Iterable[Sequence[int]]) -> "SlotTables":
        """Go on with another program's tables, whose `descriptors` these are; see `retake`."""
        tables = cls(capacity)
        for worker, descriptor in descriptors:
            tables._shelves[worker] = _Shelf(SlotTable(descriptor, capacity))
        return tables

    @property
    def descriptors(self) -> list[tuple[int, int]]:
        """Workers' numbers and the descriptors of their memory."""
        return [(worker, shelf.table.descriptor) for worker, shelf in self._shelves.items()]

    def add(self, worker: int) -> SlotTable:
        """Make a table for a worker that has none. Raises OSError."""
        table = SlotTable.create(self.capacity)
        _seal_size(table.descriptor)
        self._shelves[worker] = _Shelf(table)
        return table

    def drop(self, worker: int) -> None:
        """A worker is no more, and its sessions have been ended: let go of its table."""
        self._shelves.pop(worker).table.close()

    def close(self) -> None:
        """Let go of all."""
        for worker in list(self._shelves):
            self.drop(worker)

    def take(self, worker: int, now_ns: int) -> int:
        """Begin a session of the worker; return its slot. Raises IndexError when it has `capacity` of them."""
        shelf = self._shelves[worker]
        if shelf.free:
            slot = shelf.free.pop()
        elif shelf.used < self.capacity:
            slot = worker * self.capacity + shelf.used
            shelf.used += 1
        else:  # the next number is another worker's
            raise IndexError(f"worker {worker}: expected a free slot, got none")
        shelf.table.open(slot, worker, now_ns)
        return slot

    def retake(self, slots: Iterable[int]) -> None:
        """Take over which slots are taken; what is counted in them stays."""
        taken = set(slots)
        for slot in taken:
            shelf = self._shelves[slot // self.capacity]
            shelf.used = max(shelf.used, slot % self.capacity + 1)
        for worker, shelf in self._shelves.items():
            first = worker * self.capacity
            shelf.free = [slot for slot in range(first, first + shelf.used) if slot not in taken]

    def free(self, slot: int) -> tuple[int, int]:
        """End the session in `slot`; return its final (received, sent)."""
        shelf = self._shelves[slot // self.capacity]
        shelf.free.append(slot)
        return shelf.table.free(slot)

    def of(self, slot: int) -> SlotTable:
        """Return the table that has the slot."""
        return self._shelves[slot // self.capacity].table

    def moved(self, slot: int) -> int:
        """How many bytes the session in `slot` has moved, both ways together."""
        table = self._shelves[slot // self.capacity].table
        cells, base = table.cells, table.base(slot)
        return cells[base + RECEIVED] + cells[base + SENT]

    def copy(self) -> "SlotsCopy":
        """Return the numbers of all slots as they are now, which is quick: as much as was ever in use is copied."""
        copies = {worker: shelf.table.copy(shelf.used) for worker, shelf in self._shelves.items()}
        return SlotsCopy(self.capacity, copies)


class SlotsCopy:
    """All slots as they were at one moment."""

    def __init__(self, capacity: int, cells: Mapping[int, memoryview]):
        self._capacity = capacity
        self._cells = cells

    def __getitem__(self, slot: int) -> memoryview:
        """Return the numbers of a slot."""
        worker, index = divmod(slot, self._capacity)
        return self._cells[worker][index * FIELDS : (index + 1) * FIELDS]


def _seal_size(descriptor: int) -> None:
    """Let nobody change the size of a memory file, fcntl(2).

    A worker in somebody else's hands that made its own shorter would end the supervisor, which has it mapped: SIGBUS.
    """
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
