import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from portguard.observe.audit import records
from portguard.observe.audit.records import BEGINNING, NotARecord, Position, encode, encode_checkpoint, parse
from tests.audit_log import KEY, KEYS, NOON


def test_a_record_is_one_line_of_ascii_whatever_a_client_sent():
    line, _ = encode(BEGINNING, NOON, "session.open", {"identity": 'al\nice"\u202e\x1b[2J', "reason": None})
    assert line.isascii()
    assert line.decode().isprintable()
    assert parse(line).fields == {
        "seq": 1,
        "time": "2026-11-23T12:00:00.000000Z",
        "event": "session.open",
        "identity": 'al\nice"\u202e\x1b[2J',
        "prev": "0" * 64,
    }


def test_each_record_names_the_hash_of_the_line_before():
    first, at = encode(BEGINNING, NOON, "gateway.start", {})
    second, end = encode(at, NOON, "gateway.stop", {})
    assert parse(second).prev == records.line_hash(first)
    assert (at.seq, end.seq) == (1, 2)
    assert parse(second).position == end


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"seq":0,"time":"t","event":"e","prev":"' + b"0" * 64 + b'"}',
        b'{"seq":true,"time":"t","event":"e","prev":"' + b"0" * 64 + b'"}',
        b'{"seq":1,"time":"t","event":"e","prev":"short"}',
        b'{"seq":1,"time":"t","prev":"' + b"0" * 64 + b'"}',
        '{"seq":1,"time":"t","event":"ü","prev":"'.encode() + b"0" * 64 + b'"}',
        b'{"seq":1,"x":"' + b"x" * records.LONGEST_LINE_BYTES + b'"}',
    ],
)
def test_what_is_no_record_is_not_taken_for_one(line):
    with pytest.raises(NotARecord):
        parse(line)


def test_a_checkpoint_is_signed_and_another_key_does_not_fit():
    line, at = encode_checkpoint(Position(6, "ab" * 32), NOON, "interval", KEY)
    record = parse(line)
    assert at == record.position == Position(7, records.line_hash(line))
    assert (record.event, record.prev, record.fields["cause"]) == ("audit.checkpoint", "ab" * 32, "interval")
    assert records.is_signed(record, KEYS)
    other = Ed25519PrivateKey.generate()
    assert not records.is_signed(record, {next(iter(KEYS)): other.public_key()})
    assert not records.is_signed(record, {})


def test_no_change_to_a_checkpoint_keeps_its_signature():
    line, _ = encode_checkpoint(BEGINNING, NOON, "stop", KEY)
    for index in range(len(line)):
        spoiled = line[:index] + bytes([line[index] ^ 1]) + line[index + 1 :]
        try:
            record = parse(spoiled)
        except NotARecord:
            continue
        assert not records.is_signed(record, KEYS), index


def test_a_record_that_says_it_is_a_checkpoint_is_not_signed():
    line, _ = encode(BEGINNING, NOON, records.CHECKPOINT, {"key": next(iter(KEYS)), "signature": "AAAA"})
    assert not records.is_signed(parse(line), KEYS)


def test_a_head_says_how_far_the_log_goes_and_cannot_be_made_up():
    head = records.encode_head(Position(12, "cd" * 32), NOON, KEY)
    assert records.parse_head(head, KEYS) == Position(12, "cd" * 32)
    assert len(head) == len(records.encode_head(Position(10**15, "cd" * 32), NOON, KEY))
    for spoiled in (head.replace(b'"seq":12', b'"seq":11'), b"", b"{}", head[:100], b"[" * 100_000):
        with pytest.raises(NotARecord):
            records.parse_head(spoiled, KEYS)
    line, _ = encode_checkpoint(BEGINNING, NOON, "stop", KEY)
    with pytest.raises(NotARecord):
        records.parse_head(json.dumps(json.loads(line) | {"hash": "cd" * 32}).encode(), KEYS)


def test_a_signature_has_one_spelling_only():
    line, _ = encode_checkpoint(BEGINNING, NOON, "stop", KEY)
    assert line.endswith(b'=="}')
    last = line[-5:-4]  # of it, four bits are no part of the signature
    other = {b"A": b"B", b"Q": b"R", b"g": b"h", b"w": b"x"}[last]
    assert not records.is_signed(parse(line[:-5] + other + line[-4:]), KEYS)
