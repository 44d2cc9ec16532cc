"""Why a change of an operator's is not in the ledger."""

import asyncio
from types import SimpleNamespace

import pytest

from portguard.gateway import saving
from portguard.gateway.saving import why_unsaved


@pytest.fixture
async def written():
    """Whether the ledger has it, once that is known."""
    return asyncio.get_running_loop().create_future()


@pytest.fixture
def store():
    return SimpleNamespace(trouble=None)


async def test_what_is_written_has_no_trouble(store, written):
    asyncio.get_running_loop().call_soon(written.set_result, True)
    store.trouble = "the one of before"
    assert await why_unsaved(store, written) is None


async def test_what_cannot_be_written_has_the_trouble_of_the_ledger(store, written):
    store.trouble = "no space left on device"
    written.set_result(False)
    assert await why_unsaved(store, written) == "no space left on device"


async def test_a_ledger_that_does_not_answer_is_not_waited_for_and_may_answer_later(store, written, monkeypatch):
    monkeypatch.setattr(saving, "_PATIENCE_S", 0.0)
    assert await why_unsaved(store, written) == "a ledger that does not answer"
    assert not written.done()
