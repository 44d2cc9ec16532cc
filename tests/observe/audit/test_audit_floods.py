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
