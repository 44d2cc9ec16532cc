from ipaddress import ip_network

import pytest

from portguard.policy.spans import Steps, contains, merged, network_span


def test_spans_that_touch_or_overlap_are_merged():
    assert merged([(5, 7), (1, 3), (3, 4), (6, 9), (6, 7)]) == ((1, 4), (5, 9))


@pytest.mark.parametrize(
    ("wide", "narrow", "contained"),
    [
        ([(0, 10)], [(2, 3), (5, 10)], True),
        ([(0, 10)], [], True),
        ([(0, 10)], [(9, 11)], False),
        ([(0, 4), (5, 9)], [(3, 6)], False),
        ([], [(1, 2)], False),
    ],
)
def test_a_span_is_contained_only_as_a_whole(wide, narrow, contained):
    assert contains(wide, narrow) is contained


def test_steps_hold_from_the_start_of_a_span_to_before_its_end():
    steps = Steps([(0, [(10, 20), (15, 30)]), (3, [(20, 25)])])
    assert [steps.at(n) for n in (9, 10, 19, 20, 24, 25, 29, 30)] == [0, 1, 1, 9, 9, 1, 1, 0]


def test_steps_without_spans_hold_nowhere():
    assert Steps([]).at(0) == 0


@pytest.mark.parametrize("text", ["10.0.0.0/8", "192.0.2.7/32", "::/0", "2001:db8::/64"])
def test_a_network_spans_its_addresses(text):
    network = ip_network(text)
    assert network_span(network) == (int(network[0]), int(network[-1]) + 1)
