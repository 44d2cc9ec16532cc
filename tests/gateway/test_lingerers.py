"""The bound on connections that only linger."""

import pytest

from portguard.gateway import lingerers as lingerers_module
from portguard.gateway.lingerers import Lingerers


class One:
    """A connection that lingers until it is closed, which it tells of as it was told to."""

    def __init__(self, on_closed):
        self.closed = False
        self._on_closed = on_closed

    def close(self):
        self.closed = True
        self._on_closed(self)


@pytest.fixture
def emptied():
    return []


@pytest.fixture
def lingerers(monkeypatch, emptied):
    monkeypatch.setattr(lingerers_module, "MOST_LINGERING", 2)
    return Lingerers(lambda: emptied.append(True))


def lingering(lingerers):
    lingerers.add(one := One(lingerers.discard))
    return one


def test_of_too_many_the_oldest_is_closed(lingerers, emptied):
    first, second = lingering(lingerers), lingering(lingerers)
    assert not first.closed
    third = lingering(lingerers)
    assert (first.closed, second.closed, third.closed) == (True, False, False)
    assert list(lingerers) == [second, third]
    assert first not in lingerers
    assert emptied == []


def test_that_the_last_one_is_closed_is_told(lingerers, emptied):
    first, second = lingering(lingerers), lingering(lingerers)
    second.close()
    assert emptied == []
    first.close()
    assert emptied == [True]
    assert not lingerers
