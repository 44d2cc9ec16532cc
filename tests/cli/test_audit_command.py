"""`portguard audit`: what a person and what a program get to see, and the exit code."""

import json
import sys

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from portguard.cli import main as cli
from portguard.observe.audit.keys import signing_key
from tests.audit_log import KEY, Log
from tests.gateway_folder import CONFIGURATION


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state" / "audit"
    folder.mkdir(parents=True)
    pem = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "audit.pub").write_bytes(pem)
    (tmp_path / "portguard.toml").write_text(CONFIGURATION.replace("[trusts", 'state = "state"\n[trusts', 1))
    return folder


@pytest.fixture
def log(state):
    log = Log(state / "audit.jsonl")
    log.add("gateway.start")
    log.add("session.open", trust="local", identity="alice", service="db", source="192.0.2.1")
    log.add("session.refuse", trust="local", identity="al\x1b[2Jice\u202e", service="x y", groups=["a"])
    log.checkpoint()
    log.head(state / "head")
    return log


@pytest.fixture
def portguard(monkeypatch, capsys, tmp_path):
    """Run `portguard audit … -c` the configuration; returns exit code, standard output and standard error."""

    def run(*arguments, config=True):
        configuration = ["-c", str(tmp_path / "portguard.toml")] if config else []
        monkeypatch.setattr(sys, "argv", ["portguard", "audit", *map(str, arguments), *configuration])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return caught.value.code or 0, output.out, output.err

    return run


def test_an_honest_log_is_ok(log, portguard):
    assert portguard("verify") == (0, "ok: 4 lines in 1 file, records 1 to 4, signed up to 4\n", "")
    code, out, _ = portguard("verify", "--json")
    assert code == 0
    assert json.loads(out) == {
        "ok": True,
        "files": [str(log.path)],
        "lines": 4,
        "first": 1,
        "last": 4,
        "sealed": 4,
        "checkpoints": 1,
        "findings": [],
        "notes": [],
    }


def test_a_spoiled_log_is_told_of_with_file_and_line(log, portguard):
    log.path.write_bytes(log.path.read_bytes().replace(b"192.0.2.1", b"192.0.2.2"))
    code, out, _ = portguard("verify")
    assert code == 1
    assert out == (
        f"{log.path}:2: altered: the chain does not fit\nNOT what the gateway wrote: 4 lines in 1 file, 1 objection\n"
    )
    code, out, _ = portguard("verify", "--json")
    verdict = json.loads(out)
    assert (code, verdict["ok"]) == (1, False)
    assert verdict["findings"] == [{"file": str(log.path), "line": 2, "message": "altered: the chain does not fit"}]


def test_a_cut_tail_and_a_missing_head_are_objections(log, state, portguard):
    log.path.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:2]))
    code, out, _ = portguard("verify")
    assert (code, f"{log.path}:2: the log ends here, with record 2, but went on to 4: 2 lines are cut off" in out) == (
        1,
        True,
    )
    (state / "head").unlink()
    code, out, _ = portguard("verify")
    assert (code, f"{state}/head: expected the gateway's word for how far the log goes, got no such file" in out) == (
        1,
        True,
    )


def test_a_copy_is_verified_with_a_public_key_alone(log, state, portguard, tmp_path):
    copy = log.path.rename(tmp_path / "copy.jsonl")
    key = (state / "audit.pub").rename(tmp_path / "elsewhere.pub")
    assert portguard("verify", "--public-key", key, copy, config=False)[0] == 0
    log.path = copy
    log.add()
    code, out, _ = portguard("verify", "--public-key", key, copy, config=False)
    assert (code, f"{copy}:5: no checkpoint covers the last line" in out) == (1, True)


def test_a_key_that_signed_nothing_is_no_proof(log, portguard, tmp_path):
    signing_key(tmp_path)
    code, out, _ = portguard("verify", "--public-key", tmp_path / "audit.pub", log.path, config=False)
    assert (code, "signed with another key" in out) == (1, True)


@pytest.mark.parametrize("missing", ["portguard.toml", "state/audit/audit.pub", "state/audit/audit.jsonl"])
def test_no_missing_file_ends_in_a_traceback(log, portguard, tmp_path, missing):
    (tmp_path / missing).unlink()
    code, out, err = portguard("verify")
    assert code in {1, 2}
    assert str(tmp_path / missing) in err + out


def test_a_log_that_is_gone_is_an_objection_and_a_slip_in_its_name_is_none(log, portguard, tmp_path):
    log.path.unlink()
    code, out, _ = portguard("verify")
    gone = f"{log.path}: the log ends here, with record 0, but went on to 4: 4 lines are cut off"
    assert (code, out.splitlines()[1:2]) == (1, [gone])
    code, out, err = portguard("verify", tmp_path / "audti.jsonl")
    assert (code, out) == (2, "")
    assert err.startswith(f"portguard: {tmp_path}/audti.jsonl: expected an audit log that can be read, got no such")


def test_the_last_lines_are_printed_with_nothing_raw_in_them(log, portguard):
    code, out, _ = portguard("tail")
    assert code == 0
    start, opened, refused, checkpoint = out.splitlines()
    assert start == "2026-11-23T12:00:00.000000Z gateway.start seq=1"
    assert opened.endswith(" session.open seq=2 trust=local identity=alice service=db source=192.0.2.1")
    assert refused.startswith("2026-11-23T12:00:02.000000Z session.refuse seq=3 ")
    assert ' identity=al\\x1b[2Jice\\u202e service="x y" groups=["a"]' in refused
    assert checkpoint.split()[1] == "audit.checkpoint"


def test_where_there_is_no_log_nothing_is_told_of_it(log, portguard):
    log.path.unlink()
    code, out, err = portguard("tail")
    assert (code, out) == (2, "")
    assert err.startswith(f"portguard: {log.path}: expected an audit log, got no such file")


def test_a_log_that_has_no_lines_yet_is_one(log, portguard):
    log.path.write_bytes(b"")
    assert portguard("tail") == (0, "", "")


def test_people_get_long_digits_short_and_nothing_empty(log, portguard):
    digits = {"policy": "ab" * 32, "fingerprint": "cd" * 32, "claimed_fingerprint": "ef" * 32, "session": "01" * 16}
    digits["issued_fingerprint"] = "ab" * 32
    log.add("session.open", **digits, groups=[], message="", service="0", received=0, clean=False)
    out = portguard("tail", "-n", "1")[1]
    assert out.endswith(
        f" policy=abababababab fingerprint=cdcdcdcdcdcd claimed_fingerprint=efefefefefef session={'01' * 16}"
        " issued_fingerprint=abababababab"
        " service=0 received=0 clean=false\n"
    )
    whole = json.loads(portguard("tail", "-n", "1", "--json")[1])
    assert whole.items() >= (digits | {"groups": [], "message": "", "received": 0, "clean": False}).items()


def test_a_program_gets_the_lines_as_json(log, portguard):
    code, out, _ = portguard("tail", "--json", "--event", "session", "-n", "1")
    assert code == 0
    assert out.isascii()
    assert json.loads(out)["identity"] == "al\x1b[2Jice\u202e"


def test_conditions_reach_the_log(log, portguard):
    assert [line.split()[2] for line in portguard("tail", "--identity", "local:alice")[1].splitlines()] == ["seq=2"]
    assert [line.split()[2] for line in portguard("tail", "--service", "x y")[1].splitlines()] == ["seq=3"]
    assert len(portguard("tail", "--since", "2026-11-23T12:00:02Z")[1].splitlines()) == 2


def test_that_no_line_fits_is_said_beside_the_data(log, portguard):
    assert portguard("tail", "--event", "cert") == (0, "", "portguard: no line of the audit fits\n")
    assert portguard("tail", "--event", "cert", "-n", "0") == (0, "", "")
    assert portguard("tail", "--event", "session.open")[2] == ""


@pytest.mark.parametrize("since", ["yesterday", "2026-11-23T12:00:00", ""])
def test_a_time_without_offset_is_refused(log, portguard, since):
    code, out, err = portguard("tail", "--since", since)
    assert (code, out) == (2, "")
    assert err.startswith("portguard: --since: expected a time with an offset")


def test_standard_output_cannot_be_looked_into(log, portguard, tmp_path):
    with (tmp_path / "portguard.toml").open("a") as file:
        file.write('[audit]\npath = "-"\n')
    for command in ("tail", "verify"):
        code, _, err = portguard(command)
        assert (code, err) == (2, 'portguard: audit.path: expected a file to look into, got "-" (standard output)\n')
