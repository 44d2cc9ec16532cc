"""Allowances and gates: what passes, what is held, who asks when, and who goes on first."""

import pytest

from portguard.gateway.gates import Allowance, Gate, unlimited


class Stage:
    """An allowance, what it asked for, and who went on."""

    def __init__(self, *, ahead=True):
        self.asked = []
        self.went_on = []
        self.allowance = Allowance(self.asked.append, ahead=ahead)

    def wait(self, name, takes=0):
        def go_on(flow):
            self.went_on.append(flow)
            self.allowance.take(min(takes, self.allowance.left))

        self.allowance.wait(go_on, name)


def view(data):
    return memoryview(data)


def test_more_is_asked_for_once_when_half_is_left():
    s = Stage()
    s.allowance.add(100)
    s.allowance.take(49)
    assert s.asked == []
    s.allowance.take(1)
    assert s.asked == [False]
    s.allowance.take(50)
    assert s.asked == [False]
    s.allowance.add(10)
    s.allowance.take(5)
    assert s.asked == [False, False]


def test_without_ahead_nobody_asks_until_somebody_waits():
    s = Stage(ahead=False)
    s.allowance.add(100)
    s.allowance.take(100)
    assert s.asked == []
    s.wait("a")
    assert s.asked == [True]


def test_who_waits_asks_also_when_it_was_asked_for_at_half_and_the_next_does_not():
    s = Stage()
    s.allowance.add(10)
    s.allowance.take(10)
    s.wait("a")
    s.wait("b")
    assert s.asked == [False, True]


def test_those_who_wait_go_on_in_turn_as_far_as_it_lasts():
    s = Stage()
    for name in "abc":
        s.wait(name, takes=5)
    s.allowance.add(8)
    assert s.went_on == ["a", "b"]
    assert s.asked == [True, False, True]
    s.allowance.add(8)
    assert s.went_on == ["a", "b", "c"]


def test_who_waits_again_at_once_comes_after_the_others():
    s = Stage()

    def go_on(flow):
        s.went_on.append(flow)
        s.allowance.take(1)
        s.allowance.wait(go_on, flow)

    s.allowance.wait(go_on, "a")
    s.allowance.wait(go_on, "b")
    for _ in range(4):
        s.allowance.add(1)
    assert s.went_on == ["a", "b", "a", "b"]


def test_one_turn_each_however_much_there_is():
    s = Stage()
    turns = []

    def go_on(flow):
        turns.append(flow)
        s.allowance.wait(go_on, flow)

    s.allowance.wait(go_on, "a")
    s.allowance.add(5)
    assert turns == ["a"]


def test_all_is_given_up_and_who_wants_more_asks():
    s = Stage()
    s.allowance.add(100)
    assert s.allowance.take_all() == 100
    assert (s.allowance.left, s.allowance.take_all(), s.asked) == (0, 0, [])
    s.wait("a")
    assert s.asked == [True]


def test_after_a_refusal_nobody_waits_and_the_next_asks_anew():
    s = Stage()
    s.wait("a")
    s.allowance.refused()
    s.allowance.add(0)
    s.allowance.take_all()
    s.wait("b")
    assert s.asked == [True, True]
    s.allowance.add(5)
    assert s.went_on == ["b"]


def test_what_is_not_used_lapses_the_second_time():
    s = Stage()
    s.allowance.add(5)
    s.allowance.lapse()
    assert s.allowance.left == 5
    s.allowance.lapse()
    assert s.allowance.left == 0


@pytest.mark.parametrize(
    ("left", "limit"), [(0, 16_384), (1, 16_384), (20_000, 20_000), (65_536, 65_536), (10**9, 65_536)]
)
def test_a_read_is_clipped_but_never_below_a_record_of_tls(left, limit):
    s = Stage()
    s.allowance.add(left)
    assert Gate(s.allowance).clip(65_536) == limit


def test_a_small_limit_stays_small():
    s = Stage()
    s.allowance.add(10**6)
    assert Gate(s.allowance).clip(100) == 100


def test_what_may_not_pass_is_held_and_what_follows_is_held_after_it():
    s = Stage()
    s.allowance.add(3)
    gate = Gate(s.allowance)
    assert bytes(gate.take(view(b"abcdef"))) == b"abc"
    assert gate.held == b"def"
    s.allowance.add(100)
    assert bytes(gate.take(view(b"ghi"))) == b""
    assert s.allowance.left == 100
    assert bytes(gate.take_held()) == b"defghi"
    assert gate.held == b""


def test_what_is_held_is_a_copy():
    s = Stage()
    buffer = bytearray(b"abc")
    gate = Gate(s.allowance)
    gate.take(memoryview(buffer))
    buffer[:] = b"xyz"
    assert gate.held == b"abc"


def test_nothing_asks_when_nothing_passes():
    s = Stage()
    Gate(s.allowance).take(view(b"abc"))
    assert s.asked == []


def test_the_least_of_several_allowances_counts_and_all_are_used():
    lease, share = Stage(), Stage(ahead=False)
    lease.allowance.add(10)
    share.allowance.add(4)
    gate = Gate(lease.allowance, share.allowance)
    assert bytes(gate.take(view(b"abcdefgh"))) == b"abcd"
    assert (lease.allowance.left, share.allowance.left) == (6, 0)
    gate.wait(print, "flow")
    assert (lease.asked, share.asked) == ([], [True])
    gate.give_back(3)
    assert (lease.allowance.left, share.allowance.left) == (9, 3)


def test_what_came_back_wakes_who_waits():
    s = Stage()
    gate = Gate(s.allowance)
    s.wait("a", takes=2)
    s.wait("b", takes=2)
    gate.give_back(3)
    assert s.went_on == []
    gate.wake()
    assert s.went_on == ["a", "b"]
    s.wait("c")
    gate.wake()  # with nothing left
    assert s.went_on == ["a", "b"]


def test_to_wake_nobody_asks_for_nothing_twice():
    s = Stage()
    s.allowance.add(10)
    s.allowance.take(5)
    gate = Gate(s.allowance)
    gate.give_back(2)
    gate.wake()
    s.allowance.take(3)
    assert s.asked == [False]


def test_without_any_allowance_nothing_passes_and_nobody_goes_on():
    gate = Gate()
    assert bytes(gate.take(view(b"abc"))) == b""
    gate.wait(print, "flow")
    assert gate.held == b"abc"


def test_an_unlimited_gate_lets_all_pass():
    gate = unlimited()
    assert bytes(gate.take(view(b"abc"))) == b"abc"
    assert gate.clip(65_536) == 65_536
