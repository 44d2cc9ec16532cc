"""What verifying says of logs, honest and spoiled; any spoiling at all is in tests/property/test_audit_tampering.py."""

import gzip
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from portguard.errors import PortguardError
from portguard.observe.audit.reading import in_order, log_files
from portguard.observe.audit.records import RECOVER, Position
from portguard.observe.audit.verifying import verify
from tests.audit_log import KEYS, Log


@pytest.fixture
def log(tmp_path):
    """Ten lines: nine records, and a checkpoint as the tenth."""
    log = Log(tmp_path / "audit.jsonl")
    for number in range(1, 10):
        log.add(identity=f"user{number}")
    log.checkpoint()
    return log


def found(log, head=None):
    """What is objected to: (line, message), of all files together."""
    return [(finding.line, finding.message) for finding in verify(log_files(log.path), KEYS, head or log.at).findings]


def edit(log, change):
    lines = log.path.read_bytes().splitlines(keepends=True)
    change(lines)
    log.path.write_bytes(b"".join(lines))


def test_an_honest_log_is_ok(log):
    report = verify([log.path], KEYS, log.at)
    assert (report.ok, report.notes) == (True, [])
    assert (report.lines, report.first, report.last, report.sealed, report.checkpoints) == (10, 1, 10, 10, 1)
    assert verify([log.path], KEYS, None).ok


@pytest.mark.parametrize("number", range(1, 10))
def test_an_altered_line_is_named(log, number):
    def alter(lines):
        lines[number - 1] = lines[number - 1].replace(b"user", b"USER")

    edit(log, alter)
    assert found(log) == [(number, "altered: the chain does not fit")]


@pytest.mark.parametrize("number", range(2, 10))
def test_an_altered_link_is_named(log, number):
    def alter(lines):
        lines[number - 1] = lines[number - 1][:-67] + b"0" * 64 + b'"}\n'

    edit(log, alter)
    assert found(log) == [(number, "altered: the chain does not fit")]


def test_a_removed_line_is_missed_where_it_was(log):
    edit(log, lambda lines: lines.pop(4))
    assert found(log) == [(5, "1 line is missing before it")]


def test_removed_first_lines_are_missed(log):
    edit(log, lambda lines: lines.__delitem__(slice(0, 3)))
    assert found(log) == [(1, "3 lines are missing before it: a file begins with record 1 or audit.rotate")]


def test_an_inserted_line_is_told_from_those_around_it(log):
    edit(log, lambda lines: lines.insert(5, lines[2]))
    (first, _), (second, message) = found(log)
    assert (first, second) == (6, 7)
    assert message == f"follows {log.path}:5, not the line before it: lines were inserted between, or re-ordered"


def test_exchanged_lines_are_both_named(log):
    def exchange(lines):
        lines[3], lines[4] = lines[4], lines[3]

    edit(log, exchange)
    assert [line for line, _ in found(log)] == [4, 5, 6]


def test_a_line_that_is_no_record_is_named_once(log):
    edit(log, lambda lines: lines.__setitem__(4, b"nothing\n"))
    assert found(log) == [(5, "expected a record, got what is no JSON object")]


def test_a_line_written_by_hand_at_the_end_is_not_vouched_for(log):
    log.add(identity="mallory")
    assert found(log, head=Position(10, log.at.hash))[0][0] == 10
    assert verify([log.path], KEYS, None).findings[0].message.startswith("no checkpoint covers the last line,")


def test_a_history_written_anew_does_not_fit_the_signature(log, tmp_path):
    signed = log.path.read_bytes().splitlines()[-1]
    forged = Log(tmp_path / "forged.jsonl")
    for number in range(1, 10):
        forged.add(identity=f"other{number}")
    with forged.path.open("ab") as file:
        file.write(signed + b"\n")
    assert not verify([forged.path], KEYS, None).ok
    forged.checkpoint(key=Ed25519PrivateKey.generate())
    assert any("another key" in finding.message for finding in verify([forged.path], KEYS, None).findings)
    with_valid_links = Log(tmp_path / "again.jsonl")
    for number in range(1, 10):
        with_valid_links.add(identity=f"other{number}")
    line = with_valid_links.checkpoint()
    stolen = signed.rpartition(b',"signature"')[2]
    with_valid_links.path.write_bytes(
        with_valid_links.path.read_bytes().replace(line, line.rpartition(b',"signature"')[0] + b',"signature"' + stolen)
    )
    (finding,) = verify([with_valid_links.path], KEYS, None).findings[:1]
    assert (finding.line, finding.message[:30]) == (10, "no checkpoint covers the last ")
    assert "the signature does not fit" in verify([with_valid_links.path], KEYS, None).findings[1].message


def test_a_cut_tail_is_missed_with_the_head(log):
    edit(log, lambda lines: lines.__delitem__(slice(7, None)))
    assert found(log) == [(7, "the log ends here, with record 7, but went on to 10: 3 lines are cut off")]


def test_a_cut_tail_is_missed_without_the_head(log):
    edit(log, lambda lines: lines.pop())
    (finding,) = verify([log.path], KEYS, None).findings
    assert finding.line == 9
    assert finding.message == "no checkpoint covers the last 9 lines, and more may have been cut off behind it"


def test_a_log_that_goes_on_after_the_head_is_no_objection(log):
    head = log.at
    log.add()
    report = verify([log.path], KEYS, head)
    assert report.ok
    assert (report.sealed, report.last) == (10, 11)
    assert [note.message for note in report.notes] == ["no signature covers the last line yet"]


def test_a_log_that_the_head_contradicts_was_written_anew(log):
    assert found(log, Position(10, "ab" * 32)) == [
        (10, "not the line that the head vouches for: it was altered, or the log written anew")
    ]


def test_rotated_files_are_one_chain_in_whatever_order_and_compressed(log):
    first = log.rotate(".1")
    log.add()
    second = log.rotate("-20261124")
    log.add()
    log.checkpoint("stop")
    compressed = first.with_name(first.name + ".gz")
    compressed.write_bytes(gzip.compress(first.read_bytes()))
    first.unlink()
    (log.path.parent / "audit.jsonl.bak").write_text("not of the log")
    assert log_files(log.path) == [compressed, second, log.path]
    assert in_order([log.path, second, compressed]) == [compressed, second, log.path]
    assert found(log) == []
    second.unlink()
    assert found(log) == [(1, "3 lines are missing before it")]


def test_old_files_may_be_away_but_not_the_beginning_of_one(log):
    log.rotate(".1").unlink()
    log.add()
    report = verify(log_files(log.path), KEYS, log.at)
    assert report.ok
    assert [note.message[:26] for note in report.notes] == ["begins with record 12; wha", "no signature covers the la"][
        :1
    ]
    edit(log, lambda lines: lines.pop(0))
    assert [line for line, _ in found(log)] == [1]


def recovered(log, torn, **fields):
    """What a gateway writes after a crash that left `torn`."""
    with log.path.open("ab") as file:
        file.write(torn)
        if not torn.endswith(b"\n"):
            file.write(b"\n")
    log.add(RECOVER, torn_bytes=len(torn), torn_sha256=hashlib.sha256(torn).hexdigest(), **fields)


@pytest.mark.parametrize("torn", [b'{"seq":11,"ti', b"\x00\x00\n\x00", b"first\nsecond\n"])
def test_what_a_crash_left_is_explained_by_the_next_record(log, torn):
    recovered(log, torn)
    report = verify([log.path], KEYS, log.at)
    assert report.ok
    assert f"{len(torn)} bytes that a crash left" in report.notes[0].message


def test_nobody_else_can_pass_off_lines_as_left_by_a_crash(log):
    recovered(log, b"left")
    log.path.write_bytes(log.path.read_bytes().replace(b"left\n", b"LEFT\n"))
    assert found(log) == [(11, "expected a record, got what is no JSON object")]


def test_an_incomplete_last_line_is_a_note_and_no_proof(log):
    head = log.at
    with log.path.open("ab") as file:
        file.write(b'{"seq":11')
    report = verify([log.path], KEYS, head)
    assert report.ok
    assert report.notes[0].line == 11


def test_lines_that_were_lost_stay_an_objection_after_the_gateway_noticed(log):
    log.at = Position(15, log.at.hash)
    log.add(RECOVER, lost=5)
    assert found(log) == [(11, "5 lines are lost before it, as the gateway saw when it started")]


def test_a_file_without_records_and_one_that_is_missing(tmp_path):
    empty = tmp_path / "audit.jsonl"
    empty.touch()
    assert [str(finding) for finding in verify([empty], KEYS, None).findings] == [
        f"{empty}: expected records, got none"
    ]
    with pytest.raises(PortguardError, match="expected an audit log that can be read, got no such file"):
        verify([tmp_path / "none"], KEYS, None)
    broken = tmp_path / "audit.jsonl.1.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(PortguardError, match="expected an audit log that can be read"):
        verify([broken], KEYS, None)
