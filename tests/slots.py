"""Slot tables of workers that are not there, for the parts of the supervisor that count by them."""

from portguard.gateway.slot_tables import SlotTables
from portguard.gateway.slots import FIELDS


class Slots(SlotTables):
    """Tables of so many slots, for workers of these numbers; `slots[slot]` has the numbers of one, to be written to."""

    def __init__(self, capacity: int, *workers: int):
        super().__init__(capacity)
        for worker in workers:
            self.add(worker)

    def __getitem__(self, slot: int) -> memoryview:
        table = self._shelves[slot // self.capacity].table
        return table.cells[table.base(slot) :][:FIELDS]

    def __del__(self) -> None:
        self.close()
