"""The trial of a version that is to take over: does it understand what is left to it, and does a worker of it serve?

Started by the supervisor that is to go, `python -m portguard.gateway.trial DESCRIPTOR`, with a copy of the handover.
It changes nothing. Exit code 0: it may take over; else what is wrong is on standard error.
"""

import asyncio
import sys
import time

import uvloop

from portguard.errors import PortguardError
from portguard.gateway.admission import Admission
from portguard.gateway.bundle import Bundle
from portguard.gateway.handover import Handover, NotTakenOver
from portguard.gateway.slot_tables import SlotTables
from portguard.gateway.snapshot import Snapshot, build
from portguard.gateway.workers import Workers
from portguard.limits.accounts import Accounts
from portguard.limits.leases import Leases
from portguard.observe import log

_WORKER_S = 120.0


def _understand(handover: Handover, snapshot: Snapshot) -> None:
    """Take the books over, as far as that needs nothing but memory."""
    state, slots = handover.state, SlotTables(handover.max_sessions)
    for worker, _ in handover.slots:
        slots.add(worker)
    Admission(slots, max_pending=1, max_pending_per_address=1).restore(state["admission"])
    limits = {role.name: role.limits for role in snapshot.policy.roles}
    accounts = Accounts(limits, snapshot.policy.zone, time.time())
    accounts.restore(state["accounting"]["accounts"])
    Leases(accounts, lambda _slot: 0).restore(state["accounting"]["leases"])


async def _start_worker(bundle: Bundle) -> None:
    loop = asyncio.get_running_loop()
    serves: asyncio.Future[bool] = loop.create_future()

    def found(answer: bool) -> None:
        if not serves.done():
            serves.set_result(answer)

    workers = Workers(
        bundle,
        SlotTables(1),
        on_message=lambda _worker, _message: None,
        on_ready=lambda: found(True),
        on_gone=lambda _worker: found(False),
        on_exit=lambda _worker, _status: None,
    )
    workers.start(1)
    try:
        async with asyncio.timeout(_WORKER_S):
            if not await serves:
                raise NotTakenOver("worker: expected one that serves, got one that ended")
    except TimeoutError:
        raise NotTakenOver(f"worker: expected one that serves within {_WORKER_S:.0f} s, got none") from None
    finally:
        await workers.close()


def main() -> None:
    """Entry point: the descriptor of the handover."""
    log.configure(json_lines=False, level="error")
    try:
        handover = Handover.read(int(sys.argv[1]))
        snapshot = build(handover.bundle)
        _understand(handover, snapshot)
        uvloop.run(_start_worker(handover.bundle))
    except PortguardError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
