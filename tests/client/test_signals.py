import asyncio
import os
import signal

import pytest

from portguard.client.signals import STOP, Signals, Stopped


async def test_a_signal_is_awaited() -> None:
    with Signals(STOP) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await signals.next() == signal.SIGTERM


async def test_signals_come_in_their_order() -> None:
    with Signals(STOP) as signals:
        for number in (signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert [await signals.next(), await signals.next()] == [signal.SIGHUP, signal.SIGTERM]


async def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in STOP]
    with Signals(STOP):
        assert [signal.getsignal(number) for number in STOP] != before
    assert [signal.getsignal(number) for number in STOP] == before


async def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals(STOP) as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            assert await signals.next() == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_work_ends_as_it_would_when_no_signal_comes() -> None:
    async def work() -> int:
        return 5

    async def fail() -> int:
        raise KeyError("no")

    with Signals(STOP) as signals:
        assert await signals.unless(work()) == 5
        with pytest.raises(KeyError):
            await signals.unless(fail())


async def test_a_signal_cancels_the_work() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with Signals(STOP) as signals, pytest.raises(Stopped, match="SIGINT") as caught:
        await signals.unless(work())
    assert caught.value.exit_code == 130
    assert cancelled.is_set()


async def test_a_signal_that_comes_with_the_end_of_the_work_is_kept() -> None:
    with Signals(STOP) as signals:

        async def work() -> int:
            signals._came.put_nowait(signal.SIGTERM)
            return 5

        assert await signals.unless(work()) == 5
        assert await signals.next() == signal.SIGTERM
