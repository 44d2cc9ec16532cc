"""What a worker tells the supervisor of its allowances, and what its sessions may move."""

from portguard.gateway.allowances import DOWN, UP, Allowances
from portguard.gateway.messages import Leased, LeaseReturned, LeaseWanted, Regranted, Share, ShareWanted, Ticket

ACCOUNT = 7


def stage():
    sent = []
    return Allowances(sent.append), sent


def ticket(slot, *, account=ACCOUNT, leased=True, paced=False, lease_bytes=0):
    return Ticket(1, slot, account, leased=leased, paced=paced, lease_bytes=lease_bytes)


def passes(gate, count):
    """How many of `count` bytes pass."""
    return len(gate.take(memoryview(bytes(count))))


def test_a_session_without_limits_has_no_gates():
    allowances, sent = stage()
    allowances.open(ticket(0, leased=False))
    assert allowances.gates(0) == allowances.gates(1) == (None, None)
    assert allowances.close(0) is None
    assert sent == []


def test_a_lease_is_for_both_directions_and_all_sessions_of_the_account():
    allowances, sent = stage()
    allowances.open(ticket(0))
    allowances.open(ticket(1))
    allowances.open(ticket(2, account=8))
    allowances.leased(Leased(ACCOUNT, 100))
    assert passes(allowances.gates(0)[UP], 30) == passes(allowances.gates(1)[DOWN], 30) == 30
    assert sent == [LeaseWanted(ACCOUNT, False)]
    assert passes(allowances.gates(0)[DOWN], 100) == 40
    assert passes(allowances.gates(2)[UP], 1) == 0


def test_who_finds_nothing_says_so():
    allowances, sent = stage()
    allowances.open(ticket(0))
    allowances.gates(0)[UP].wait(print, "flow")
    assert sent == [LeaseWanted(ACCOUNT, True)]


def test_the_last_session_gives_back_what_is_left():
    allowances, sent = stage()
    allowances.open(ticket(0))
    allowances.open(ticket(1))
    allowances.leased(Leased(ACCOUNT, 100))
    assert allowances.close(0) is allowances.close(0) is None
    assert allowances.close(1) == LeaseReturned(ACCOUNT, 100)
    assert sent == []


def test_the_last_session_gives_back_even_nothing():
    allowances, sent = stage()
    allowances.open(ticket(0))
    assert allowances.close(0) == LeaseReturned(ACCOUNT, 0)
    assert sent == []


def test_a_ticket_brings_a_lease_for_all_sessions_of_the_account():
    allowances, sent = stage()
    allowances.open(ticket(0))
    gate = allowances.gates(0)[UP]
    went_on = []
    gate.wait(went_on.append, "flow")
    allowances.open(ticket(1, lease_bytes=100))
    assert went_on == ["flow"]
    assert passes(gate, 30) == 30
    assert passes(allowances.gates(1)[DOWN], 100) == 70
    assert allowances.close(0) is None
    assert allowances.close(1) == LeaseReturned(ACCOUNT, 0)
    assert sent == [LeaseWanted(ACCOUNT, True), LeaseWanted(ACCOUNT, False)]


def test_a_ticket_without_a_lease_brings_nothing_and_wakes_nobody():
    allowances, sent = stage()
    allowances.open(ticket(0))
    went_on = []
    allowances.gates(0)[UP].wait(went_on.append, "flow")
    allowances.open(ticket(1))
    assert passes(allowances.gates(1)[DOWN], 1) == 0
    assert went_on == []
    allowances.gates(1)[DOWN].wait(went_on.append, "flow")
    assert sent == [LeaseWanted(ACCOUNT, True)]  # once, as what was asked for is still to come


def test_who_goes_on_without_its_account_gives_back_by_itself():
    allowances, sent = stage()
    allowances.open(ticket(0, lease_bytes=100))
    allowances.open(ticket(1))
    allowances.leave(0)
    assert sent == []
    allowances.leave(1)
    assert sent == [LeaseReturned(ACCOUNT, 100)]
    assert allowances.close(1) is None


def test_a_lease_for_a_session_that_has_ended_goes_to_the_others_of_its_account_or_back():
    allowances, sent = stage()
    late = Regranted(0, ACCOUNT, leased=True, paced=False, lease_bytes=100)
    allowances.leased(late)
    assert sent == [LeaseReturned(ACCOUNT, 100)]
    allowances.open(ticket(1))
    allowances.leased(late)
    assert passes(allowances.gates(1)[UP], 200) == 100


def test_a_lease_that_comes_too_late_goes_back():
    allowances, sent = stage()
    allowances.leased(Leased(ACCOUNT, 100))
    allowances.open(ticket(0, leased=False, paced=True))
    allowances.leased(Leased(ACCOUNT, 50))
    assert sent == [LeaseReturned(ACCOUNT, 100), LeaseReturned(ACCOUNT, 50)]


def test_what_is_recalled_goes_back_even_nothing():
    allowances, sent = stage()
    allowances.recall(ACCOUNT)
    allowances.open(ticket(0))
    allowances.leased(Leased(ACCOUNT, 100))
    allowances.recall(ACCOUNT)
    assert sent == [LeaseReturned(ACCOUNT, 0), LeaseReturned(ACCOUNT, 100)]
    assert passes(allowances.gates(0)[UP], 1) == 0


def test_a_share_is_for_one_direction():
    allowances, sent = stage()
    allowances.open(ticket(0, leased=False, paced=True))
    allowances.share(Share(ACCOUNT, DOWN, 50))
    allowances.share(Share(8, DOWN, 50))
    up, down = allowances.gates(0)
    assert (passes(up, 60), passes(down, 60)) == (0, 50)
    assert sent == []
    up.wait(print, "flow")
    down.wait(print, "flow")
    assert sent == [ShareWanted(ACCOUNT, UP), ShareWanted(ACCOUNT, DOWN)]
    assert allowances.close(0) is None
    assert len(sent) == 2


def test_what_is_leased_passes_no_faster_than_its_share():
    allowances, _ = stage()
    allowances.open(ticket(0, paced=True))
    allowances.leased(Leased(ACCOUNT, 100))
    allowances.share(Share(ACCOUNT, UP, 30))
    assert passes(allowances.gates(0)[UP], 50) == 30
    allowances.share(Share(ACCOUNT, UP, 300))
    assert passes(allowances.gates(0)[UP], 500) == 70


def test_a_share_lapses_and_a_lease_does_not():
    allowances, _ = stage()
    allowances.open(ticket(0, paced=True))
    allowances.leased(Leased(ACCOUNT, 100))
    allowances.share(Share(ACCOUNT, UP, 30))
    for _ in range(2):
        allowances.sweep()
    assert passes(allowances.gates(0)[UP], 50) == 0
    allowances.share(Share(ACCOUNT, UP, 30))
    assert passes(allowances.gates(0)[UP], 50) == 30


def test_a_refusal_concerns_all_sessions_of_the_account_and_the_next_asks_anew():
    allowances, sent = stage()
    allowances.open(ticket(0))
    allowances.open(ticket(1))
    allowances.open(ticket(2, account=8))
    allowances.gates(0)[UP].wait(print, "flow")
    assert sorted(allowances.refused(ACCOUNT)) == [0, 1]
    assert allowances.refused(9) == []
    allowances.gates(1)[UP].wait(print, "flow")
    assert sent == [LeaseWanted(ACCOUNT, True)] * 2


def test_a_session_that_goes_on_in_another_account_leaves_the_first():
    allowances, sent = stage()
    allowances.open(ticket(0))
    allowances.leased(Leased(ACCOUNT, 100))
    allowances.open(ticket(0, account=8))
    assert sent == [LeaseReturned(ACCOUNT, 100)]
    assert allowances.refused(ACCOUNT) == []
    assert allowances.refused(8) == [0]


def test_a_lease_that_a_reload_brings_holds_for_all_that_are_told_of_it_in_turn():
    allowances, sent = stage()
    allowances.open(ticket(0, leased=False, paced=True))
    allowances.open(ticket(1, leased=False, paced=True))
    allowances.share(Share(ACCOUNT, UP, 50))
    allowances.open(ticket(0, paced=True))  # while the other is not told yet
    allowances.share(Share(ACCOUNT, UP, 50))
    assert passes(allowances.gates(0)[UP], 10) == 0
    allowances.leased(Leased(ACCOUNT, 5))
    assert passes(allowances.gates(0)[UP], 10) == 5
    allowances.open(ticket(1, paced=True))
    assert passes(allowances.gates(1)[UP], 10) == 0
    assert [allowances.close(slot) for slot in (0, 1)] == [None, LeaseReturned(ACCOUNT, 0)]
    assert [message for message in sent if isinstance(message, LeaseReturned)] == []


def test_a_lease_that_a_reload_takes_away_goes_back_once():
    allowances, sent = stage()
    allowances.open(ticket(0, paced=True))
    allowances.open(ticket(1, paced=True))
    allowances.leased(Leased(ACCOUNT, 100))
    allowances.open(ticket(0, leased=False, paced=True))
    assert sent == [LeaseReturned(ACCOUNT, 100)]
    allowances.open(ticket(1, leased=False, paced=True))
    assert passes(allowances.gates(1)[UP], 10) == 0
    allowances.share(Share(ACCOUNT, UP, 50))
    assert passes(allowances.gates(1)[UP], 10) == 10
    assert allowances.close(0) is allowances.close(1) is None
    assert sent == [LeaseReturned(ACCOUNT, 100)]


def test_a_bandwidth_comes_and_goes_likewise():
    allowances, _ = stage()
    allowances.open(ticket(0))
    allowances.open(ticket(1))
    allowances.leased(Leased(ACCOUNT, 100))
    allowances.open(ticket(0, paced=True))
    assert passes(allowances.gates(0)[DOWN], 10) == 0
    allowances.open(ticket(0))
    assert passes(allowances.gates(0)[DOWN], 10) == 10
