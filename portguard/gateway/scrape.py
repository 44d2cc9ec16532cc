"""What a scrape of the metrics shows: what was counted, and how the parts of the supervisor are at that moment."""

import asyncio
import time

from portguard.gateway.status import Watched
from portguard.observe.metrics import Reading


async def scrape(watched: Watched) -> Reading:
    """Look once, then add up what was seen. Others run in between: with thousands of sessions that takes a while."""
    moment, workers = watched.meter.take(), len(watched.workers.serving)
    draining = watched.ending_s() is not None or watched.drain.drained is not None
    for _ in moment.add_live():
        await asyncio.sleep(0)
    for _ in moment.add_quotas(watched.accounting.accounts.lines(lambda _: True, time.time())):
        await asyncio.sleep(0)
    return moment.reading(
        watched.loaded(),
        last_load_successful=watched.reloader.failed is None,
        workers=workers,
        draining=draining,
        audit_failures=watched.trail.failures,
        ledger_errors=watched.accounting.health.errors,
    )
