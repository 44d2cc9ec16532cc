import math

import msgspec
import pytest

from portguard.gateway.messages import (
    LARGEST_BYTES,
    LARGEST_CERTIFICATE_BYTES,
    LARGEST_REQUEST_BYTES,
    MOST_CHAIN,
    MOST_FORECAST,
    MOST_ROLES,
    VERSION,
    Accepted,
    Admit,
    Beat,
    Ended,
    EnrolmentWanted,
    Forecast,
    ForecastWanted,
    ForeseenRefusal,
    Gone,
    Issued,
    LeaseReturned,
    Locked,
    PastRefusal,
    PastRefusals,
    PastRefusalsWanted,
    QuotaStanding,
    Refusal,
    RenewalWanted,
    RoleStanding,
    Share,
    Standing,
    StandingWanted,
    Ticket,
    Tried,
    TurnedAway,
    decode,
    encode,
)
from portguard.identity.claim import Claim
from portguard.reasons import Reason

MESSAGES = [
    Accepted(7, 1, "2001:db8::1", 50000),
    Admit(
        7, "ab" * 16, "corp", "älice\n\x00", "orders-db", "dba", ["ops"], "1f", "cd" * 32, "192.0.2.1", 0.25, "ef" * 32
    ),
    Beat(),
    Ended(3, Reason.CLIENT_CLOSED, "10.0.3.7:5432", None),
    Ended(3, Reason.CLIENT_CLOSED, None, LeaseReturned(5, 1024)),
    Forecast(7, [ForeseenRefusal(Reason.CONNECT_RATE, "too often", 1.5), None]),
    ForecastWanted(7, "corp", "älice", "1f", "cd" * 32, [("orders-db", "dba")]),
    Gone(7, None),
    Locked("serial", "corp", "1f", 4_000_000_000),
    PastRefusals(7, [PastRefusal(1.5, None, "no_role", "é\n", "ab" * 16)]),
    PastRefusalsWanted(7, "corp", "älice"),
    Refusal(7, Reason.CONNECT_RATE, "too often", 1.5),
    RenewalWanted(7, "ab" * 16, "192.0.2.1", [b"\x30\x00", b""], b"\x30", "1:AAAA"),
    RenewalWanted(7, "ab" * 16, None, [b"", b""], b"", None),
    EnrolmentWanted(7, "ab" * 16, "192.0.2.1", [b"\x30\x00", b""], b"\x30", "1:AAAA"),
    Issued(7, "-----BEGIN"),
    Share(5, 1, 0),
    Standing(7, [RoleStanding(1, 0.5, [QuotaStanding("day", True, 2**63 - 1, 4, 3, 2)]), RoleStanding(0, 0.0, [])]),
    StandingWanted(7, "corp", "älice", ["dba", "ops"]),
    Ticket(7, 3, 5, True, False, 2**63 - 1),
    Tried([("10.0.3.7:5432", True)]),
    TurnedAway("ab" * 16, None, None, None, None, None, None, None, Reason.CERTIFICATE_MISSING, "none"),
    TurnedAway("ab" * 16, *[None] * 7, Reason.CERTIFICATE_EXPIRED, "", Claim("CN=é\n", None, "1f", "ab" * 32)),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message):
    arrived = decode(encode(message))
    assert arrived == message
    assert type(arrived) is type(message)


@pytest.mark.parametrize(
    "parts",
    [
        ["Unheard"],
        ["Ended", 3],
        ["Ended", 3, "killed", None, None, 1],
        ["Ended", 3, "killed", None, ["Leased", 5, 1]],
        "Beat",
        None,
        [],
    ],
    ids=repr,
)
def test_a_message_of_another_version_is_not_guessed_at(parts):
    with pytest.raises(ValueError, match=f"expected a message of version {VERSION}, got "):
        decode(msgspec.msgpack.encode(parts))


@pytest.mark.parametrize("packet", [b"", b"\xc1", b'["Beat"]', encode(MESSAGES[0])[:-1], encode(MESSAGES[0]) + b"\x00"])
def test_a_packet_that_is_no_whole_message_is_an_error(packet):
    with pytest.raises(ValueError, match="expected a message of version"):
        decode(packet)


ADMIT = ["Admit", 7, "ab", "corp", "alice", "db", "dba", [], "1f", "cd", None, 0.25, "ef"]


@pytest.mark.parametrize(
    ("parts", "number", "value"),
    [
        (["Ended", 3, "killed", None, None], 1, "3"),
        (["Ended", 3, "killed", None, None], 1, -1),
        (["Ended", 3, "killed", None, None], 1, True),
        (["Ended", 3, "killed", None, None], 1, 3.5),
        (["Ended", 3, "killed", None, None], 2, "whatever"),
        (["Ended", 3, "killed", None, None], 3, 7),
        (["Ended", 3, "killed", None, ["LeaseReturned", 5, 1]], 4, ["LeaseReturned", -1, 1]),
        (["LeaseReturned", 5, 1], 2, -1),
        (["LeaseWanted", 5, True], 2, 1),
        (["ShareWanted", 5, 1], 2, 2),
        (["Locked", "serial", "corp", "1f", None], 1, "anything"),
        (["Tried", [["10.0.3.7:5432", True]]], 1, [["10.0.3.7:5432"]]),
        (ADMIT, 4, None),
        (ADMIT, 4, ["alice"]),
        (ADMIT, 4, b"alice"),
        (ADMIT, 7, "ops"),
        (ADMIT, 7, [1]),
        (ADMIT, 11, "0.25"),
        (ADMIT, 11, math.nan),
        (ADMIT, 11, math.inf),
        (ADMIT, 11, -0.25),
        (ADMIT, 2, "a" * 33),
        (["Gone", 7, 0.25], 2, math.nan),
    ],
    ids=repr,
)
def test_a_field_of_another_kind_is_an_error(parts, number, value):
    decode(msgspec.msgpack.encode(parts))
    parts = [*parts[:number], value, *parts[number + 1 :]]
    with pytest.raises(ValueError, match=r"expected a message of version \d+, got .*: "):
        decode(msgspec.msgpack.encode(parts))


@pytest.mark.parametrize(
    ("asking", "most"),
    [
        (lambda count: ForecastWanted(7, "corp", "alice", "1f", "cd", [("orders-db", "dba")] * count), MOST_FORECAST),
        (lambda count: StandingWanted(7, "corp", "alice", ["dba"] * count), MOST_ROLES),
    ],
    ids=["forecast", "standing"],
)
def test_no_more_is_asked_about_than_one_answer_has_room_for(asking, most):
    assert decode(encode(asking(most))) == asking(most)
    with pytest.raises(ValueError, match=f"of length <= {most}"):
        decode(encode(asking(most + 1)))


def test_text_that_is_none_is_an_error_on_either_side():
    with pytest.raises(ValueError, match="surrogates not allowed"):
        encode(StandingWanted(7, "corp", "\udce9", []))
    with pytest.raises(ValueError, match="utf-8"):
        decode(encode(StandingWanted(7, "corp", "alice", [])).replace(b"alice", b"al\xe9ce"))


def test_a_message_that_would_arrive_cut_off_is_refused_where_it_is_made():
    room = LARGEST_BYTES - len(encode(Refusal(7, Reason.DENIED, "x" * 1000, None))) + 1000
    assert len(encode(Refusal(7, Reason.DENIED, "x" * room, None))) == LARGEST_BYTES
    with pytest.raises(
        ValueError, match=f"expected a message of at most {LARGEST_BYTES} bytes, got {LARGEST_BYTES + 1}"
    ):
        encode(Refusal(7, Reason.DENIED, "x" * (room + 1), None))


@pytest.mark.parametrize(
    ("chain", "request_bytes"),
    [
        ([1], 1),
        ([1] * (MOST_CHAIN + 1), 1),
        ([1, LARGEST_CERTIFICATE_BYTES + 1], 1),
        ([1, 1], LARGEST_REQUEST_BYTES + 1),
    ],
)
def test_no_more_is_sent_for_a_certificate_than_one_takes(chain, request_bytes):
    for kind in (RenewalWanted, EnrolmentWanted):
        wanted = kind(7, "ab" * 16, None, [b"x" * size for size in chain], b"x" * request_bytes, None)
        with pytest.raises(ValueError, match="channel: expected a message of version"):
            decode(encode(wanted))
