"""The slot table: what each live session of a worker has moved, in memory that it shares with the supervisor alone.

A worker adds to its sessions' slots as bytes move; the supervisor reads them, also after the worker was killed, so
that nothing counted is lost. Slots are numbered through the whole gateway: with tables of 100, worker 2 has those from
200 to 299. A slot is eight unsigned 64-bit numbers, one cache line:

    0 STATE      FREE or OPEN, for whoever looks at the memory: nobody here goes by it
    1 WORKER     the number of the worker that carries the session
    2 RECEIVED   bytes from the client that were passed on
    3 SENT       bytes to the client that were passed on
    4 ACTIVITY   when a byte last moved, time.monotonic_ns()
    5 OPENED     when the session was admitted, time.monotonic_ns()
    6 CONNECTED  how long it took to connect to the service, in ns; 0 until bytes can pass
    7 UPSTREAM   which of the service's upstreams was reached: 1 + its index at admission; 0 until bytes can pass

Aligned 64-bit stores are whole on the platforms that the gateway runs on, so a reader never sees half a number.

A worker that is in somebody else's hands can write whatever it likes into its own. So no other worker has it, which
slots are free is not read from here (`slot_tables` knows), and its size is sealed.
"""

import mmap
import os
import struct

STATE, WORKER, RECEIVED, SENT, ACTIVITY, OPENED, CONNECTED, UPSTREAM = range(8)
FREE, OPEN = range(2)

FIELDS = 8
_SLOT_BYTES = FIELDS * 8
_SLOT = struct.Struct("8Q")


class SlotTable:
    """The table of one worker, over a memory file. `cells` is all its numbers; a slot begins at `base(slot)`."""

    def __init__(self, descriptor: int, capacity: int):
        self.descriptor = descriptor
        self.capacity = capacity
        self._memory = mmap.mmap(descriptor, capacity * _SLOT_BYTES)
        self.cells = memoryview(self._memory).cast("Q")

    @classmethod
    def create(cls, capacity: int) -> "SlotTable":
        """Make a table of `capacity` free slots. Raises OSError.

        Its descriptor is what its worker opens it by, once its size is sealed.
        """
        descriptor = os.memfd_create("portguard-slots", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, capacity * _SLOT_BYTES)
            return cls(descriptor, capacity)
        except OSError:
            os.close(descriptor)
            raise

    def close(self) -> None:
        """Let go of the memory and its descriptor."""
        self.cells.release()
        self._memory.close()
        os.close(self.descriptor)

    def base(self, slot: int) -> int:
        """Return the index in `cells` at which `slot` begins, one of the worker's own."""
        return slot % self.capacity * FIELDS

    def open(self, slot: int, worker: int, now_ns: int) -> None:
        """Begin a session in a slot, whatever is in it; that it is free is for the caller to know."""
        # In the order of above. All at once costs less than one by one.
        _SLOT.pack_into(self._memory, self.base(slot) * 8, OPEN, worker, 0, 0, now_ns, now_ns, 0, 0)

    def connected_s(self, slot: int) -> float | None:
        """How long the session in `slot` took to connect to its service; None until bytes can pass."""
        return self.cells[self.base(slot) + CONNECTED] / 1e9 or None

    def upstream(self, slot: int) -> int | None:
        """The index, in its service's upstreams at admission, of the one that the session in `slot` has reached."""
        number = self.cells[self.base(slot) + UPSTREAM]
        return number - 1 if number else None

    def copy(self, count: int) -> memoryview:
        """Return the numbers of the first `count` slots as they are now, which is quick."""
        return memoryview(self.cells[: count * FIELDS].tobytes()).cast("Q")

    def free(self, slot: int) -> tuple[int, int]:
        """End the session in `slot`, whatever is in it; return its final (received, sent)."""
        base = self.base(slot)
        self.cells[base + STATE] = FREE
        return self.cells[base + RECEIVED], self.cells[base + SENT]
