"""No change to an audit log passes unnoticed, and each is told of where it was made."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from portguard.observe.audit.reading import log_files
from portguard.observe.audit.verifying import verify
from tests.audit_log import KEYS, Log

BEFORE_ROTATION = 7
NEAR = 2  # lines from the change to where it is told of: what follows a line proves it wrong


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    log = Log(tmp_path_factory.mktemp("honest") / "audit.jsonl")
    for number in range(5):
        log.add("session.open", identity=f"user{number}", groups=["a", "b"])
    log.checkpoint()
    log.rotate(".1")
    for number in range(5):
        log.add("session.close", identity=f"user{number}", received=number, duration=0.5)
    log.checkpoint("stop")
    return log


def read(log):
    return [line for file in log_files(log.path) for line in file.read_bytes().splitlines(keepends=True)]


def objections(folder: Path, lines, head):
    path = folder / "spoiled.jsonl"
    path.write_bytes(b"".join(lines))
    return [finding.line for finding in verify([path], KEYS, head).findings]


once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@once
@given(data=st.data())
def test_any_altered_byte_is_found_at_its_line(honest, tmp_path, data):
    lines = read(honest)
    assert objections(tmp_path, lines, honest.at) == []
    number = data.draw(st.integers(1, len(lines)))
    line = lines[number - 1]
    index = data.draw(st.integers(0, len(line) - 1))
    value = data.draw(st.integers(0, 255))
    assume(line[index] != value)
    lines[number - 1] = line[:index] + bytes([value]) + line[index + 1 :]
    found = objections(tmp_path, lines, honest.at)
    # A newline in the middle of a line, or none at its end, moves the ones below.
    assert found
    assert min(abs(place - number) for place in found) <= (NEAR if value == 10 or index == len(line) - 1 else 0)
    if number < len(lines) or index < len(line) - 1:
        assert objections(tmp_path, lines, None), "without the head"


@once
@given(data=st.data())
def test_any_removed_lines_are_missed_at_their_place(honest, tmp_path, data):
    lines = read(honest)
    first = data.draw(st.integers(1, len(lines)))
    last = data.draw(st.integers(first, len(lines)))
    # Without the whole first file it is a log whose old files are kept elsewhere.
    assume((first, last) != (1, BEFORE_ROTATION))
    del lines[first - 1 : last]
    found = objections(tmp_path, lines, honest.at)
    assert found
    assert min(abs(place - first) for place in found) <= 1 or found == [0]


@once
@given(data=st.data())
def test_any_inserted_line_is_found_at_its_place(honest, tmp_path, data):
    lines = read(honest)
    number = data.draw(st.integers(1, len(lines) + 1))
    lines.insert(number - 1, data.draw(st.sampled_from(lines) | st.binary(max_size=30).map(lambda text: text + b"\n")))
    found = objections(tmp_path, lines, honest.at)
    assert found
    assert min(abs(place - number) for place in found) <= 1


@once
@given(data=st.data())
def test_any_other_order_is_found(honest, tmp_path, data):
    lines = read(honest)
    order = data.draw(st.permutations(lines))
    assume(order != lines)
    first = next(number for number, pair in enumerate(zip(lines, order, strict=True), 1) if pair[0] != pair[1])
    found = objections(tmp_path, order, honest.at)
    assert found
    # A log may begin with the beginning of any file, as old ones are kept elsewhere.
    assert b"audit.rotate" in order[0] or min(abs(place - first) for place in found) <= 1


@once
@given(cut=st.integers(1, 100_000))
def test_any_cut_tail_is_found(honest, tmp_path, cut):
    content = b"".join(read(honest))
    kept = content[: -min(cut, len(content))]
    assert objections(tmp_path, [kept], honest.at)
