import pytest

from portguard.gateway.messages import (
    VERSION,
    Accepted,
    Admit,
    Ended,
    PastRefusal,
    PastRefusals,
    PastRefusalsWanted,
    QuotaStanding,
    Refusal,
    RoleStanding,
    Standing,
    StandingWanted,
    Ticket,
    Tried,
    TurnedAway,
    decode,
    encode,
    past_refusals,
    role_standings,
)
from portguard.reasons import Reason

MESSAGES = [
    Accepted(7, 1, "2001:db8::1", 50000),
    Admit(
        7, "ab" * 16, "corp", "älice\n\x00", "orders-db", "dba", ["ops"], "1f", "cd" * 32, "192.0.2.1", 0.25, "ef" * 32
    ),
    Tried([["10.0.3.7:5432", True]]),
    TurnedAway("ab" * 16, None, None, None, None, None, None, None, Reason.CERTIFICATE_MISSING, "none"),
    Refusal(7, Reason.CONNECT_RATE, "too often", 1.5),
    Ended(3, Reason.CLIENT_CLOSED, "10.0.3.7:5432", None, 0),
    Ended(3, Reason.CLIENT_CLOSED, None, 5, 1024),
    Ticket(7, 3, 5, True, False, 1024),
    StandingWanted(7, "corp", "älice", ["dba", "ops"]),
    PastRefusalsWanted(7, "corp", "älice"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message):
    assert decode(encode(message)) == message


def test_a_standing_comes_out_in_its_parts():
    parts = [RoleStanding(1, 0.5, [QuotaStanding("day", True, 5, 4, 3, 2)]), RoleStanding(0, 0.0, [])]
    assert role_standings(decode(encode(Standing(7, parts)))) == parts


def test_past_refusals_come_out_one_by_one():
    parts = [PastRefusal(1.5, None, "no_role", "é\n", "ab" * 16)]
    assert past_refusals(decode(encode(PastRefusals(7, parts)))) == parts


@pytest.mark.parametrize("packet", [b'["Unheard"]', b'["Ended", 3]', b'["Ended", 3, "killed", null, null, 0, 1]'])
def test_a_message_of_another_version_is_not_guessed_at(packet):
    with pytest.raises(ValueError, match=f"expected a message of version {VERSION}, got"):
        decode(packet)


def test_a_message_that_would_arrive_cut_off_is_refused_where_it_is_made():
    with pytest.raises(ValueError, match="expected a message of at most 16384 bytes, got"):
        encode(Refusal(7, Reason.DENIED, "é" * 3000, None))
    encode(Refusal(7, Reason.DENIED, "é" * 2000, None))
