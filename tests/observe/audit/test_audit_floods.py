from portguard.observe.audit import floods
from portguard.observe.audit.floods import RefusalGates


def test_a_burst_is_let_through_then_one_a_second_and_the_rest_is_counted():
    gates = RefusalGates()
    answers = [gates.admit("alice", {}, 0.0) for _ in range(50)]
    assert answers == [0] * 20 + [None] * 30
    assert gates.admit("alice", {}, 1.0) == 30


def test_one_identity_hides_nobody_else():
    gates = RefusalGates()
    for _ in range(1000):
        gates.admit("alice", {}, 0.0)
    assert gates.admit("bob", {}, 0.0) == 0


def test_what_is_held_back_at_the_end_of_a_flood_is_told_of_within_a_minute():
    gates = RefusalGates()
    for _ in range(25):
        gates.admit("alice", {"identity": "alice"}, 0.0)
    assert list(gates.report(0.0)) == []
    assert list(gates.report(59.0)) == []
    assert list(gates.report(60.0)) == [({"identity": "alice"}, 5)]
    assert list(gates.report(120.0)) == []


def test_the_number_of_gates_is_bounded_and_no_count_is_lost(monkeypatch):
    monkeypatch.setattr(floods, "_MOST_KEYS", 2)
    gates = RefusalGates()
    for name in ("a", "b", "c"):
        for _ in range(22):
            gates.admit(name, {"identity": name}, 0.0)
    assert len(gates._gates) == 2
    assert sorted(about["identity"] for about, _ in gates.report(0.0, at_once=True)) == ["a", "b", "c"]


def test_all_identities_together_have_a_bound_and_no_count_is_lost(monkeypatch):
    monkeypatch.setattr(floods, "_BURST_OF_ALL", 3)
    monkeypatch.setattr(floods, "_PER_S_OF_ALL", 1.0)
    gates = RefusalGates()
    assert [gates.admit(number, {"identity": number}, 0.0) for number in range(5)] == [0, 0, 0, None, None]
    assert gates.admit(4, {"identity": 4}, 0.5) is None
    assert gates.admit(4, {"identity": 4}, 1.0) == 2
    assert list(gates.report(1.0, at_once=True)) == [({"identity": 3}, 1)]


def test_what_an_identity_is_held_back_by_its_own_gate_takes_nothing_from_all(monkeypatch):
    monkeypatch.setattr(floods, "_BURST_OF_ALL", 21)
    gates = RefusalGates()
    for _ in range(1000):
        gates.admit("alice", {}, 0.0)
    assert gates.admit("bob", {}, 0.0) == 0
    assert gates.admit("carol", {}, 0.0) is None


def test_of_very_many_that_are_forgotten_the_rest_is_told_as_one(monkeypatch):
    monkeypatch.setattr(floods, "_MOST_KEYS", 1)
    monkeypatch.setattr(floods, "_MOST_EVICTED", 2)
    monkeypatch.setattr(floods, "_BURST_OF_ALL", 0)
    gates = RefusalGates()
    for number in range(6):
        gates.admit(number, {"identity": number}, 0.0)
    reported = list(gates.report(0.0, at_once=True))
    assert reported == [({"identity": 0}, 1), ({"identity": 1}, 1), ({"identity": None}, 3), ({"identity": 5}, 1)]
    assert list(gates.report(0.0, at_once=True)) == []
