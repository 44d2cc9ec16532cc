"""Connect rates: a sliding window that is never passed, also over restarts, changes of the rate, and set clocks."""

import pytest

from portguard.limits.fleet import OthersConnects
from portguard.limits.ledger import Owner, RateRow
from portguard.limits.rates import CELLS, MAX_ENTRIES, ConnectRates, Connects
from portguard.policy.quantities import Rate

NOW_S = 1_795_478_400.0
ANNA = Owner("developers", "staff", "anna")
BEN = Owner("developers", "staff", "ben")
THREE_A_MINUTE = Rate(3, 60)


def fill(connects: Connects, rate: Rate, now_s: float = NOW_S) -> int:
    """How many are admitted at one instant until one is refused."""
    admitted = 0
    while connects.admit(now_s, rate) == 0.0:
        admitted += 1
    return admitted


def test_as_many_as_the_rate_allows_are_admitted_and_not_one_more():
    assert fill(Connects(), THREE_A_MINUTE) == 3


@pytest.mark.parametrize("per_s", [1, 60, 3600, 86_400])
def test_one_more_is_admitted_when_the_first_is_over_and_not_before(per_s):
    connects, rate = Connects(), Rate(2, per_s)
    assert connects.admit(NOW_S, rate) == 0.0
    assert connects.admit(NOW_S + per_s / 2, rate) == 0.0
    assert connects.admit(NOW_S + per_s - 0.001, rate) == pytest.approx(0.001, abs=0.0015)
    assert connects.admit(NOW_S + per_s, rate) == 0.0
    assert connects.admit(NOW_S + per_s, rate) == pytest.approx(per_s / 2, abs=0.0015)


def test_the_answer_is_how_long_to_wait():
    connects = Connects()
    fill(connects, THREE_A_MINUTE)
    wait_s = connects.admit(NOW_S + 12.3456, THREE_A_MINUTE)
    assert wait_s == pytest.approx(60 - 12.3456, abs=0.0025)
    assert connects.admit(NOW_S + 12.3456 + wait_s, THREE_A_MINUTE) == 0.0


def test_the_wait_suffices_where_floats_fall_short():
    # Without the margin the sum is the float below 1600077131.361, and a millisecond too early.
    connects, rate, now_s = Connects(), Rate(1, 86_400), 1_600_047_767.067
    connects.admit(1_600_077_131.361 - 86_400, rate)
    wait_s = connects.admit(now_s, rate)
    assert connects.admit(now_s + wait_s - 0.002, rate) > 0
    assert connects.admit(now_s + wait_s, rate) == 0.0


def test_a_part_of_a_millisecond_too_early_is_too_early():
    connects, rate = Connects(), Rate(1, 60)
    connects.admit(NOW_S + 0.0007, rate)
    assert connects.admit(NOW_S + 60.0003, rate) > 0
    assert connects.admit(NOW_S + 60.0012, rate) == 0.0


def test_what_is_refused_is_not_counted():
    connects = Connects()
    fill(connects, THREE_A_MINUTE)
    for second in range(60):
        assert connects.admit(NOW_S + second, THREE_A_MINUTE) > 0
    assert fill(connects, THREE_A_MINUTE, NOW_S + 60) == 3


def test_asking_how_long_to_wait_counts_and_forgets_nothing():
    connects = Connects()
    fill(connects, THREE_A_MINUTE)
    before = connects.to_text()
    assert connects.wait_s(NOW_S + 20, THREE_A_MINUTE) == connects.admit(NOW_S + 20, THREE_A_MINUTE) > 0
    assert connects.wait_s(NOW_S + 90, THREE_A_MINUTE) == connects.wait_s(NOW_S - 90, Rate(4, 60)) == 0.0
    assert connects.to_text() == before


def test_the_window_slides_and_has_no_seam():
    connects = Connects()
    fill(connects, THREE_A_MINUTE, NOW_S + 59)
    assert fill(connects, THREE_A_MINUTE, NOW_S + 61) == 0
    assert fill(connects, THREE_A_MINUTE, NOW_S + 119) == 3


def test_a_high_rate_needs_no_more_memory_and_refuses_for_at_most_a_cell_too_long():
    connects, rate = Connects(), Rate(100_000, 3600)
    for step in range(5000):
        assert connects.admit(NOW_S + step * 0.72, rate) == 0.0
        assert len(connects._entries) <= MAX_ENTRIES
    connects.admit(NOW_S + 3600, rate)
    assert len(connects.to_text()) < 1100
    cell_s = 3600 / CELLS
    # Half of them, and those of a cell at most, are still remembered after half the window.
    used = sum(count for _, count in connects._entries)
    connects.admit(NOW_S + 1.5 * 3600, rate)
    kept = sum(count for _, count in connects._entries) - 2
    assert used / 2 - 1 <= kept <= used / 2 + cell_s / 0.72 + 1


def test_those_of_a_cell_are_remembered_until_the_last_of_them_is_over_and_no_longer():
    connects, rate = Connects(), Rate(100, 3600)
    for number in range(100):
        assert connects.admit(NOW_S if number < MAX_ENTRIES else NOW_S + 50, rate) == 0.0
    later = Connects.from_text(connects.to_text())
    assert fill(connects, rate, NOW_S + 3649.9) == MAX_ENTRIES - 1
    assert fill(later, rate, NOW_S + 3650) == 100


def test_a_low_rate_is_exact_to_the_millisecond():
    connects, rate = Connects(), Rate(50, 60)
    for step in range(50):
        assert connects.admit(NOW_S + step * 0.01, rate) == 0.0
    for step in range(50):
        assert connects.admit(NOW_S + 59.998 + step * 0.01, rate) > 0
        assert connects.admit(NOW_S + 60.002 + step * 0.01, rate) == 0.0


def test_a_clock_put_back_forgives_nothing_and_refuses_for_no_longer_than_the_window():
    connects = Connects()
    fill(connects, THREE_A_MINUTE)
    back_s = NOW_S - 86_400
    assert connects.admit(back_s, THREE_A_MINUTE) == pytest.approx(60, abs=0.0015)
    assert connects.admit(back_s + 59.9, THREE_A_MINUTE) > 0
    assert connects.admit(back_s + 60, THREE_A_MINUTE) == 0.0


def test_a_clock_put_back_a_little_keeps_what_lies_before():
    connects = Connects()
    for second in (0, 20, 40):
        connects.admit(NOW_S + second, THREE_A_MINUTE)
    assert connects.admit(NOW_S + 30, THREE_A_MINUTE) == pytest.approx(30, abs=0.0015)
    assert fill(connects, THREE_A_MINUTE, NOW_S + 60) == 1
    assert fill(connects, THREE_A_MINUTE, NOW_S + 89.9) == 1
    assert fill(connects, THREE_A_MINUTE, NOW_S + 90) == 1


def test_a_clock_put_forward_forgives():
    connects = Connects()
    fill(connects, THREE_A_MINUTE)
    assert fill(connects, THREE_A_MINUTE, NOW_S + 86_400) == 3


def test_a_lower_rate_counts_what_was_admitted_under_the_higher():
    connects = Connects()
    fill(connects, Rate(100, 60))
    assert connects.admit(NOW_S + 1, Rate(2, 60)) == pytest.approx(59, abs=0.0015)
    assert fill(connects, Rate(2, 60), NOW_S + 60) == 2


def test_a_higher_rate_counts_what_was_admitted_under_the_lower():
    connects = Connects()
    fill(connects, THREE_A_MINUTE)
    assert fill(connects, Rate(10, 60), NOW_S + 1) == 7


def test_a_longer_window_counts_what_was_admitted_under_the_shorter():
    connects = Connects()
    fill(connects, THREE_A_MINUTE)
    assert connects.admit(NOW_S + 59, Rate(3, 3600)) == pytest.approx(3600 - 59, abs=0.0015)


def test_a_shorter_window_forgets_what_lies_before_it():
    connects = Connects()
    fill(connects, Rate(3, 3600))
    assert fill(connects, THREE_A_MINUTE, NOW_S + 59) == 0
    assert fill(connects, THREE_A_MINUTE, NOW_S + 60) == 3


def test_it_is_idle_when_nothing_is_remembered():
    connects = Connects()
    assert connects.idle(NOW_S)
    assert connects.end_s == 0
    connects.admit(NOW_S + 0.5, THREE_A_MINUTE)
    assert connects.end_s == NOW_S + 61
    assert not connects.idle(NOW_S + 60.5)
    assert connects.idle(NOW_S + 61)


def test_the_text_says_the_window_the_last_instant_and_how_long_before_it_how_many_came():
    connects = Connects()
    assert connects.to_text() == ""
    for second in (0, 1.75, 2):
        connects.admit(NOW_S + second, THREE_A_MINUTE)
    assert connects.to_text() == "60:1795478402000:2000,250,0"
    connects.put_back(NOW_S + 1)
    assert connects.to_text() == "60:1795478401000:1000,0x2"


@pytest.mark.parametrize(
    "text", ["", "60:1795478400250:2000,250,0x3", "1:0:0", "86400:999999999999999:5,5,0x999999999"]
)
def test_a_text_reads_back(text):
    assert Connects.from_text(text).to_text() == text


def test_what_is_read_back_refuses_as_before():
    connects = Connects()
    fill(connects, THREE_A_MINUTE)
    again = Connects.from_text(connects.to_text())
    assert again.admit(NOW_S + 30, THREE_A_MINUTE) == connects.admit(NOW_S + 30, THREE_A_MINUTE) > 0
    assert again.end_s == connects.end_s
    assert fill(again, THREE_A_MINUTE, NOW_S + 60) == 3


@pytest.mark.parametrize(
    "text",
    [
        "60",
        "60:1795478400250",
        "60:1795478400250:",
        "60:1795478400250:250",
        "60:1795478400250:250,",
        "60:1795478400250:0,250",
        "60:1795478400250:250,0x0",
        "60:1795478400250:250,0x",
        "60:1795478400250:x2,0",
        "60:1795478400250:-1,0",
        "60:100:250,0",
        "0:1795478400250:0",
        "86401:1795478400250:0",
        "60:1795478400250:0\n",
        "60:1795478400250:٣,0",
        "60:1795478400250:0x9999999999",
        "60:9999999999999999:0",
        "60:1795478400250:" + ",".join("0" * (MAX_ENTRIES + 1)),
        "\x1b[31m",
    ],
)
def test_nonsense_is_refused_in_one_printable_line(text):
    with pytest.raises(
        ValueError, match=r'^expected connects such as "60:1795478400250:2000,250,0x3", got \''
    ) as caught:
        Connects.from_text(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_each_owner_has_its_own_rate():
    rates = ConnectRates()
    rate = Rate(1, 60)
    assert rates.admit(ANNA, rate, NOW_S) == 0.0
    assert rates.admit(ANNA, rate, NOW_S) > 0
    assert rates.admit(BEN, rate, NOW_S) == 0.0
    assert rates.admit(ANNA._replace(role="operators"), rate, NOW_S) == 0.0
    assert rates.admit(ANNA._replace(trust="partners"), rate, NOW_S) == 0.0


def test_what_changed_is_told_once():
    rates = ConnectRates()
    rates.admit(ANNA, THREE_A_MINUTE, NOW_S)
    rates.admit(ANNA, THREE_A_MINUTE, NOW_S + 1)
    rates.admit(BEN, THREE_A_MINUTE, NOW_S)
    assert rates.changed() == [
        RateRow(ANNA, "60:1795478401000:1000,0", int(NOW_S) + 61),
        RateRow(BEN, "60:1795478400000:0", int(NOW_S) + 60),
    ]
    assert rates.changed() == []
    rates.admit(BEN, THREE_A_MINUTE, NOW_S)
    assert [row.owner for row in rates.changed()] == [BEN]


def test_what_is_refused_changes_nothing():
    rates = ConnectRates()
    rate = Rate(1, 60)
    rates.admit(ANNA, rate, NOW_S)
    rates.changed()
    assert rates.admit(ANNA, rate, NOW_S + 1) > 0
    assert rates.changed() == []


def test_what_is_refused_after_the_clock_was_put_back_or_the_window_grew_is_told():
    rates = ConnectRates()
    rates.admit(ANNA, Rate(1, 60), NOW_S)
    rates.changed()
    assert rates.admit(ANNA, Rate(1, 60), NOW_S - 3600) > 0
    assert rates.changed() == [RateRow(ANNA, "60:1795474800000:0", int(NOW_S) - 3540)]
    assert rates.admit(ANNA, Rate(1, 86_400), NOW_S) > 0
    assert rates.changed() == [RateRow(ANNA, "86400:1795474800000:0", int(NOW_S) - 3600 + 86_400)]


def test_a_restart_forgets_nothing():
    rates = ConnectRates()
    for _ in range(3):
        rates.admit(ANNA, THREE_A_MINUTE, NOW_S)
    again = ConnectRates()
    again.load(rates.changed())
    assert again.changed() == []
    assert again.admit(ANNA, THREE_A_MINUTE, NOW_S + 59) > 0
    assert again.admit(BEN, THREE_A_MINUTE, NOW_S + 59) == 0.0
    assert again.admit(ANNA, THREE_A_MINUTE, NOW_S + 60) == 0.0


def test_rows_are_not_loaded_when_one_is_nonsense():
    rates = ConnectRates()
    rows = [RateRow(ANNA, "60:1795478400000:0x3", int(NOW_S) + 60), RateRow(BEN._replace(name="b\x1b"), "junk", 0)]
    with pytest.raises(ValueError, match=r"^connects of 'b\\x1b' in role 'developers': expected .*, got 'junk'$"):
        rates.load(rows)
    assert rates.admit(ANNA, THREE_A_MINUTE, NOW_S) == 0.0


def test_reset_forgets_one_owner_and_tells_the_ledger():
    rates = ConnectRates()
    rate = Rate(1, 60)
    for owner in (ANNA, BEN):
        rates.admit(owner, rate, NOW_S)
    rates.changed()
    rates.reset(ANNA)
    rates.reset(Owner("developers", "staff", "nobody"))
    assert rates.changed() == [RateRow(ANNA, "", 0)]
    assert rates.admit(BEN, rate, NOW_S) > 0
    assert rates.admit(ANNA, rate, NOW_S) == 0.0


def test_only_the_idle_are_forgotten():
    rates = ConnectRates()
    rates.admit(ANNA, THREE_A_MINUTE, NOW_S)
    rates.admit(BEN, THREE_A_MINUTE, NOW_S + 30)
    rates.changed()
    rates.forget_idle(NOW_S + 60)
    assert list(rates._connects) == [BEN]
    assert rates.changed() == []


def test_those_of_a_future_that_was_put_back_are_forgotten_after_the_window():
    rates = ConnectRates()
    rates.admit(ANNA, THREE_A_MINUTE, NOW_S + 1_000_000)
    rates.changed()
    rates.forget_idle(NOW_S)
    assert rates.changed() == [RateRow(ANNA, "60:1795478400000:0", int(NOW_S) + 60)]
    rates.forget_idle(NOW_S + 60)
    assert not rates._connects


def test_many_owners_who_came_once_are_forgotten_in_time():
    rates = ConnectRates()
    rate = Rate(1, 1)
    for number in range(5000):
        rates.admit(Owner("developers", "staff", str(number)), rate, NOW_S + number)
    assert len(rates._connects) <= 1024


def test_owners_who_are_not_idle_are_remembered_however_many():
    rates = ConnectRates()
    rate = Rate(1, 86_400)
    owners = [Owner("developers", "staff", str(number)) for number in range(3000)]
    for owner in owners:
        assert rates.admit(owner, rate, NOW_S) == 0.0
    assert all(rates.admit(owner, rate, NOW_S + 1) > 0 for owner in owners)


def test_to_ask_for_an_owners_wait_remembers_nobody():
    rates = ConnectRates()
    for _ in range(3):
        rates.admit(ANNA, THREE_A_MINUTE, NOW_S)
    rates.changed()
    assert rates.wait_s(ANNA, THREE_A_MINUTE, NOW_S) == pytest.approx(60, abs=0.0025)
    assert rates.wait_s(BEN, THREE_A_MINUTE, NOW_S) == 0.0
    assert rates.changed() == []
    assert list(rates._connects) == [ANNA]


# Where several gateways share a ledger.


def heard(gateway, count, at_s=NOW_S):
    connects = Connects()
    for _ in range(count):
        connects.admit(at_s, Rate(100, 60))
    return OthersConnects(ANNA, gateway, connects.to_text())


def test_connects_to_other_gateways_count():
    rates = ConnectRates()
    rates.hear([heard("b", 1), heard("c", 1)])
    assert rates.admit(ANNA, THREE_A_MINUTE, NOW_S + 1) == 0.0
    assert rates.wait_s(ANNA, THREE_A_MINUTE, NOW_S + 2) == pytest.approx(58, abs=0.01)
    assert rates.admit(ANNA, THREE_A_MINUTE, NOW_S + 2) == pytest.approx(58, abs=0.01)
    assert rates.admit(ANNA, THREE_A_MINUTE, NOW_S + 60.01) == 0.0


def test_connects_of_others_to_other_gateways_do_not_count():
    rates = ConnectRates()
    rates.hear([heard("b", 3)])
    assert rates.wait_s(BEN, THREE_A_MINUTE, NOW_S) == 0.0
    assert rates.wait_s(ANNA, THREE_A_MINUTE, NOW_S) > 0


def test_the_newest_of_a_gateway_takes_the_place_of_what_it_said_before():
    rates = ConnectRates()
    rates.hear([heard("b", 3)])
    rates.hear([OthersConnects(ANNA, "b", "")])
    assert rates.admit(ANNA, THREE_A_MINUTE, NOW_S) == 0.0
    rates.hear([heard("b", 3)])
    rates.hear([], all_there_is=True)
    assert rates.admit(ANNA, THREE_A_MINUTE, NOW_S) == 0.0


def test_a_clock_that_is_ahead_elsewhere_refuses_for_no_longer_than_the_window():
    rates = ConnectRates()
    rates.hear([heard("b", 3, at_s=NOW_S + 1000)])
    assert rates.wait_s(ANNA, THREE_A_MINUTE, NOW_S) == pytest.approx(60, abs=0.01)


def test_connects_elsewhere_are_not_written_as_our_own_and_are_forgotten_when_over():
    rates = ConnectRates()
    rates.hear([heard("b", 2)])
    rates.admit(ANNA, THREE_A_MINUTE, NOW_S)
    [row] = rates.changed()
    assert row.connects.endswith(":0")
    rates.forget_idle(NOW_S + 61)
    assert rates.wait_s(ANNA, Rate(1, 60), NOW_S) == 0.0


def test_nonsense_of_others_is_an_error():
    with pytest.raises(ValueError, match="expected connects such as"):
        ConnectRates().hear([OthersConnects(ANNA, "b", "many")])
