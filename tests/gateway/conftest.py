"""Asynchronous tests of the gateway run on the event loop that the gateway runs on.

The relay and its ends run in clients too, also where there is no uvloop. Their tests choose the loops by name:

    pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])
"""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

_LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.SelectorEventLoop,
}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    marker = item.get_closest_marker("asyncio")
    if marker is not None and "loop_factories" in marker.kwargs:
        return _LOOPS
    return {"uvloop": _LOOPS["uvloop"]}
