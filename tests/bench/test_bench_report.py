"""The report tells medians, and what was void; the goals are judged against the peers of the same run."""

import json
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench.figures import FIGURES, Size
from bench.measure import Machine
from bench.report import Results

_FULL = {figure.key: 10.0 for figure in FIGURES}


@pytest.fixture
def results() -> Results:
    machine = Machine("A <fast> CPU", 2, "6.1", "3.11", "OpenSSL 3.0", 0.1)
    made = Results(machine, Size(1, 1, 1, 1, 0), {"portguard": "portguard 1", "haproxy": "HAProxy 2"})
    made.rounds = {"portguard": [dict(_FULL) for _ in range(3)], "haproxy": [dict(_FULL) for _ in range(3)]}
    return made


def _figure(key: str):
    return next(figure for figure in FIGURES if figure.key == key)


def test_the_median_is_over_all_rounds(results: Results) -> None:
    for measured, value in zip(results.rounds["portguard"], [1.0, 100.0, 2.0], strict=True):
        measured["up_1"] = value
    assert results.medians(_figure("up_1")) == {"portguard": 2.0, "haproxy": 10.0}


def test_a_figure_that_was_void_in_one_round_has_no_median(results: Results) -> None:
    del results.rounds["haproxy"][1]["up_1"]
    assert results.medians(_figure("up_1")) == {"portguard": 10.0}
    assert "void" in _printed(results)


@pytest.mark.parametrize(("ours", "verdict"), [(9.9, "reached"), (10.0, "missed"), (10.1, "missed")])
def test_a_bulk_figure_has_to_be_below_every_peer(results: Results, ours: float, verdict: str) -> None:
    for measured in results.rounds["portguard"]:
        measured["up_1"] = ours
    assert results.goals()[0].startswith(f"{verdict}: client to service, 1 stream: below all")


@pytest.mark.parametrize(
    ("key", "ours", "verdict"),
    [
        ("connect_cpu", 10.0, "reached"),
        ("connect_cpu", 10.1, "missed"),
        ("idle", 30.0, "reached"),
        ("idle", 30.1, "missed"),
        ("busy", 200.0, "reached"),
        ("busy", 200.1, "missed"),
    ],
)
def test_other_goals_may_be_met_exactly(results: Results, key: str, ours: float, verdict: str) -> None:
    for measured in results.rounds["portguard"]:
        measured[key] = ours
    [said] = [line for line in results.goals() if f": {_figure(key).title}: " in line]
    assert said.startswith(verdict)


def test_a_goal_whose_figure_is_void_is_missed(results: Results) -> None:
    results.rounds["portguard"][0].clear()
    assert {line.partition(":")[0] for line in results.goals()} == {"missed"}


def test_without_portguard_there_are_no_goals(results: Results) -> None:
    results.peers = {"haproxy": "HAProxy 2"}
    del results.rounds["portguard"]
    assert results.goals() == []
    assert "x)" not in _printed(results)


def test_the_table_says_how_many_times_our_cost_a_peer_has(results: Results) -> None:
    for measured in results.rounds["haproxy"]:
        measured["up_1"] = 15.0
    assert "15.0 (1.50x)" in _printed(results)


def test_the_picture_is_well_formed_and_has_a_bar_for_each_value(results: Results) -> None:
    root = ElementTree.fromstring(results.picture())
    shown = [figure for figure in FIGURES if not figure.context]
    bars = [element for element in root.iter("{http://www.w3.org/2000/svg}rect") if element.get("height") == "17"]
    assert len(bars) == 2 * len(shown)
    assert "A <fast> CPU" in "".join(root.itertext())


def test_the_picture_says_what_is_void(results: Results) -> None:
    results.rounds["haproxy"][0].clear()
    assert "void" in "".join(ElementTree.fromstring(results.picture()).itertext())


def test_everything_goes_into_json(results: Results) -> None:
    read = json.loads(json.dumps(results.as_json()))
    assert read["figures"]["up_1"]["median"] == {"portguard": 10.0, "haproxy": 10.0}
    assert read["rounds"]["portguard"][0] == _FULL


def _printed(results: Results) -> str:
    console = Console(width=200, record=True, quiet=False, file=None, highlight=False)
    with console.capture() as captured:
        console.print(results.table())
    return captured.get()
