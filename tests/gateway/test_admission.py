from ipaddress import ip_address, ip_network

import pytest

from portguard.errors import Refused
from portguard.gateway.admission import Admission, Client
from portguard.gateway.messages import Misconduct
from portguard.gateway.slots import CONNECTED, RECEIVED, SENT, UPSTREAM
from portguard.limits.ledger import Owner
from portguard.reasons import Reason
from tests.slots import Slots

HERE, THERE = ip_address("192.0.2.1"), ip_address("2001:db8::1")
SECOND_NS = 1_000_000_000
CLIENT = Client(("ops",), "1f", "cd" * 32, "192.0.2.1")
ALICE, BOB = Owner("team", "local", "alice"), Owner("team", "local", "bob")


@pytest.fixture
def slots():
    return Slots(2, 0, 1, 2, 4)


@pytest.fixture
def admission(slots):
    return Admission(slots, max_pending=3, max_pending_per_address=2, exempt=[ip_network("198.51.100.0/24")])


def admit(admission, connection, now_ns=0):
    return admission.admit(
        connection,
        session_id="ab" * 16,
        owner=ALICE,
        service="db",
        client=CLIENT,
        upstreams=("db-1:5432", "db-2:5432"),
        now_ns=now_ns,
    )


def refusal(act, *args) -> Reason:
    with pytest.raises(Refused) as caught:
        act(*args)
    return caught.value.reason


def test_an_address_has_only_so_many_handshakes_under_way_and_others_go_on(admission):
    admission.begin(0, HERE)
    admission.begin(0, HERE)
    assert refusal(admission.begin, 0, HERE) is Reason.ADDRESS_LIMIT
    admission.begin(0, THERE)


def test_of_ipv6_all_addresses_of_a_network_of_64_bits_count_together(admission):
    admission.begin(0, ip_address("2001:db8:0:1::1"))
    admission.begin(0, ip_address("2001:db8:0:1:ffff:ffff:ffff:ffff"))
    assert refusal(admission.begin, 0, ip_address("2001:db8:0:1::2")) is Reason.ADDRESS_LIMIT
    connection = admission.begin(0, ip_address("2001:db8:0:2::1"))
    admission.gone(connection, 0)
    assert list(admission._per_address.values()) == [2]


def test_an_exempt_address_of_ipv6_is_that_one_and_not_its_network():
    exempt = [ip_network("2001:db8::7/128")]
    admission = Admission(Slots(1, 0), max_pending=9, max_pending_per_address=1, exempt=exempt)
    for _ in range(3):
        admission.begin(0, ip_address("2001:db8::7"))
    admission.begin(0, ip_address("2001:db8::8"))
    assert refusal(admission.begin, 0, ip_address("2001:db8::9")) is Reason.ADDRESS_LIMIT


def test_all_addresses_together_have_only_so_many_handshakes_under_way(admission):
    for last in range(3):
        admission.begin(0, ip_address(f"192.0.2.{last}"))
    assert refusal(admission.begin, 0, THERE) is Reason.GATEWAY_FULL


def test_an_exempt_address_counts_in_the_whole_only(admission):
    office = ip_address("198.51.100.7")
    for _ in range(3):
        admission.begin(0, office)
    assert refusal(admission.begin, 0, office) is Reason.GATEWAY_FULL


def test_a_connection_that_is_gone_or_admitted_gives_its_place_back(admission):
    first, second = admission.begin(0, HERE), admission.begin(0, HERE)
    admission.gone(first, 0)
    admit(admission, second)
    assert admission.pending == 0
    admission.begin(0, HERE)
    admission.begin(0, HERE)
    assert refusal(admission.begin, 0, HERE) is Reason.ADDRESS_LIMIT


def test_a_connection_that_ends_as_it_is_admitted_keeps_its_session_until_that_ends(admission):
    connection = admission.begin(0, HERE)
    session = admit(admission, connection)
    admission.gone(connection, 0)  # which the worker said before it heard of its session
    assert admission.load(0) == 1
    assert admission.end(session.slot, SECOND_NS).session == session
    assert (admission.load(0), admission.pending) == (0, 0)


def test_without_a_free_slot_a_session_is_refused_and_stays_pending(admission):
    for _ in range(2):
        admit(admission, admission.begin(0, THERE))
    connection = admission.begin(0, HERE)
    assert refusal(admit, admission, connection) is Reason.GATEWAY_FULL
    assert admission.pending == 1
    admission.gone(connection, 0)


def test_an_identitys_sessions_are_counted_per_role_and_nobody_elses_with_them(admission):
    session = admit(admission, admission.begin(0, HERE))
    assert admission.sessions_of(ALICE) == 1
    assert admission.sessions_of(BOB) == admission.sessions_of(ALICE._replace(role="other")) == 0
    admission.end(session.slot, SECOND_NS)
    assert admission.sessions_of(ALICE) == 0


def check_room(admission, owner=ALICE, service="db", most_of_owner=None, most_of_service=None, elsewhere=None):
    """`elsewhere`: sessions at other gateways."""
    admission.check_room(
        owner,
        service,
        most_of_owner=most_of_owner,
        most_of_service=most_of_service,
        elsewhere=lambda counted: (elsewhere or {}).get(counted, 0),
    )


@pytest.mark.parametrize("count", [1, 2])
def test_an_identity_has_only_so_many_sessions_in_a_role_and_others_have_their_own(admission, count):
    sessions = [admit(admission, admission.begin(0, HERE)) for _ in range(count)]
    with pytest.raises(Refused) as caught:
        check_room(admission, most_of_owner=count)
    assert caught.value.reason is Reason.MAX_SESSIONS
    noun = "session" if count == 1 else "sessions"
    assert caught.value.message == f"role team allows {count} {noun} at once, and as many are open"
    check_room(admission, most_of_owner=count + 1)
    check_room(admission, BOB, most_of_owner=1)
    check_room(admission, ALICE._replace(role="other"), most_of_owner=1)
    check_room(admission)
    admission.end(sessions[0].slot, SECOND_NS)
    check_room(admission, most_of_owner=count)


def test_a_service_has_only_so_many_sessions_of_all_together(admission):
    session = admit(admission, admission.begin(0, HERE))
    with pytest.raises(Refused) as caught:
        check_room(admission, BOB, most_of_owner=5, most_of_service=1)
    assert caught.value.reason is Reason.SERVICE_FULL
    assert caught.value.message == "service db allows 1 session at once, and as many are open"
    check_room(admission, BOB, most_of_service=2)
    check_room(admission, service="web", most_of_service=1)
    admission.end(session.slot, SECOND_NS)
    check_room(admission, BOB, most_of_service=1)


def test_sessions_at_other_gateways_count_too(admission):
    admit(admission, admission.begin(0, HERE))
    for bound, reason in (("most_of_owner", Reason.MAX_SESSIONS), ("most_of_service", Reason.SERVICE_FULL)):
        with pytest.raises(Refused) as caught:
            check_room(admission, **{bound: 3}, elsewhere={ALICE: 2, "db": 2})
        assert caught.value.reason is reason
        check_room(admission, **{bound: 4}, elsewhere={ALICE: 2, "db": 2, BOB: 9, "web": 9})
        check_room(admission, elsewhere={ALICE: 9, "db": 9})


def test_of_both_the_identitys_own_bound_is_told(admission):
    admit(admission, admission.begin(0, HERE))
    with pytest.raises(Refused) as caught:
        check_room(admission, most_of_owner=1, most_of_service=1)
    assert caught.value.reason is Reason.MAX_SESSIONS


def test_a_worker_that_is_lost_makes_room(admission):
    admit(admission, admission.begin(4, HERE))
    admission.lose(4, SECOND_NS)
    check_room(admission, most_of_owner=1, most_of_service=1)


def test_an_unknown_connection_is_not_admitted(admission):
    with pytest.raises(KeyError):
        admit(admission, 7)


def test_the_end_of_a_session_tells_what_it_moved_and_frees_its_slot(admission, slots):
    session = admit(admission, admission.begin(4, HERE), now_ns=SECOND_NS)
    slots[session.slot][RECEIVED] = 10
    slots[session.slot][SENT] = 20
    account = admission.end(session.slot, 3 * SECOND_NS)
    assert (account.session, account.received, account.sent, account.duration_s) == (session, 10, 20, 2.0)
    with pytest.raises(KeyError):
        admission.end(session.slot, 3 * SECOND_NS)
    for _ in range(2):
        again = admit(admission, admission.begin(0, THERE))
        assert slots[again.slot][RECEIVED] == 0


def test_a_worker_that_is_lost_takes_only_its_own_along(admission):
    lost = admit(admission, admission.begin(1, HERE))
    admission.begin(1, HERE)
    kept = admit(admission, admission.begin(2, THERE))
    assert [account.session for account in admission.lose(1, SECOND_NS)] == [lost]
    assert list(admission.sessions.values()) == [kept]
    assert (admission.pending, admission.load(1), admission.load(2)) == (0, 0, 1)


def test_a_worker_says_nothing_of_what_another_has(admission):
    connection = admission.begin(0, HERE)
    slot = admit(admission, admission.begin(0, THERE)).slot
    for check, number in [
        (admission.gone, connection),
        (admission.check_pending, connection),
        (admission.check_pending, 99),
        (admission.check_session, slot),
        (admission.check_session, 99),
    ]:
        with pytest.raises(Misconduct):
            check(number, 1)
    admission.check_pending(connection, 0)
    admission.check_session(slot, 0)
    assert (admission.pending, len(admission.sessions)) == (1, 1)


def test_nothing_stays_of_those_who_are_gone(admission):
    counts = (admission._per_address, admission._per_worker, admission._per_owner, admission._per_service)
    admission.end(admit(admission, admission.begin(0, HERE)).slot, SECOND_NS)
    admission.gone(admission.begin(0, THERE), 0)
    admit(admission, admission.begin(1, HERE))
    admission.begin(1, THERE)
    assert all(counts)
    admission.lose(1, SECOND_NS)
    assert not any(counts)


def test_the_load_of_a_worker_counts_connections_and_sessions(admission):
    connection = admission.begin(1, HERE)
    admission.begin(1, THERE)
    assert admission.load(1) == 2
    session = admit(admission, connection)
    assert admission.load(1) == 2
    admission.end(session.slot, 0)
    assert admission.load(1) == 1
    assert admission.load(2) == 0


def test_the_end_of_a_session_tells_how_long_its_service_took_to_reach(admission, slots):
    reached, unreached = (admit(admission, admission.begin(0, HERE)) for _ in range(2))
    slots[reached.slot][CONNECTED] = SECOND_NS // 4
    assert admission.end(reached.slot, SECOND_NS).connected_s == 0.25
    assert admission.end(unreached.slot, SECOND_NS).connected_s is None
    again = admit(admission, admission.begin(0, HERE))
    admit(admission, admission.begin(0, HERE))
    assert admission.end(again.slot, SECOND_NS).connected_s is None


@pytest.mark.parametrize(("cell", "upstream"), [(0, None), (1, "db-1:5432"), (2, "db-2:5432"), (3, None)])
def test_the_end_of_a_session_tells_which_upstream_it_had_reached(admission, slots, cell, upstream):
    session = admit(admission, admission.begin(0, HERE))
    slots[session.slot][UPSTREAM] = cell
    assert admission.upstream(session) == upstream
    assert admission.end(session.slot, SECOND_NS).upstream == upstream
    again = admit(admission, admission.begin(0, HERE))
    assert admission.upstream(again) is None


def test_a_session_knows_its_client_and_when_it_was_opened(admission):
    session = admit(admission, admission.begin(0, HERE), now_ns=SECOND_NS)
    assert (session.client, session.opened_ns) == (CLIENT, SECOND_NS)
    assert admission.move(session.slot, "other").client == CLIENT
