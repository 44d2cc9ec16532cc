"""What an operator changes is done when the ledger has it: waiting for that, and saying why it has not."""

import asyncio

from portguard.limits.ledger import Store

_PATIENCE_S = 5.0  # for the ledger, which says no sooner than that, unless the disk hangs


async def why_unsaved(store: Store, written: "asyncio.Future[bool]") -> str | None:
    """Wait until rows are `written`, or cannot be for now; return why that is, for people. None: the ledger has them.

    It keeps what it has not, and writes it when it can.
    """
    await asyncio.wait([written], timeout=_PATIENCE_S)
    if written.done() and written.result():
        return None
    return store.trouble or "a ledger that does not answer"
