"""When a program falls silent, so that another one can take its place."""

from types import SimpleNamespace

import pytest

from portguard.gateway import succession
from portguard.gateway.succession import Succession


class Workers:
    def __init__(self):
        self.done = []

    def pause(self):
        self.done.append("pause")

    async def flush(self):
        self.done.append("flush")
        return True


@pytest.fixture
def falls_silent(monkeypatch):
    """`await falls_silent("deciding", times)` has a part wait for so many looks; whether the program fell silent."""
    monkeypatch.setattr(succession, "_LOOK_EVERY_S", 0)
    monkeypatch.setattr(succession, "_SILENCE_S", 0.1)

    async def fall(part, times):
        looks = {part: iter([True] * times)} if times is not None else {part: iter(lambda: True, None)}

        def waits(name):
            return next(looks.get(name, iter(())), False)

        kind = type("Part", (), {"is_deciding": property(lambda _: waits("deciding")),
                                 "is_securing": property(lambda _: waits("securing"))})  # fmt: skip
        workers = Workers()
        one = Succession(
            workers=workers,
            acceptor=None,
            accounting=kind(),
            trail=kind(),
            reloader=None,
            notifier=None,
            is_issuing=lambda: waits("issuing"),
            handover=SimpleNamespace,
            is_ending=lambda: False,
            stop=lambda: None,
        )
        silent = await one._fall_silent()
        left = 0 if times is None else sum(1 for _ in looks[part])
        return silent, workers.done, left

    return fall


@pytest.mark.parametrize("part", ["deciding", "securing", "issuing"])
async def test_what_is_under_way_is_waited_for(falls_silent, part):
    assert await falls_silent(part, 3) == (True, ["pause", "flush"], 0)


@pytest.mark.parametrize("part", ["deciding", "securing", "issuing"])
async def test_and_not_for_ever(falls_silent, part):
    assert await falls_silent(part, None) == (False, ["pause"], 0)
