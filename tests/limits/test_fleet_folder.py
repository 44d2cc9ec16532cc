"""A gateway's own id and its copy of the locks, in a folder for it alone."""

import stat

import pytest

from portguard.errors import ConfigurationError
from portguard.limits.fleet import StampedLock
from portguard.limits.fleet_folder import FleetFolder
from portguard.limits.ledger import LockRow, LockTarget

LOCK = StampedLock(LockRow(LockTarget("identity", "staff", "anna"), "left", "user:root", 7, None), 1000)


@pytest.fixture
def open_folder(tmp_path):
    """`open_folder(name)` opens one; all are closed in the end."""
    opened = []

    def run(name="fleet"):
        opened.append(FleetFolder(str(tmp_path / name)))
        return opened[-1]

    yield run
    for folder in opened:
        folder.close()


def problem(open_folder):
    with pytest.raises(ConfigurationError) as error:
        open_folder()
    return str(error.value)


def test_the_id_is_made_once_and_no_other_folder_has_it(open_folder):
    first = open_folder()
    first.close()
    assert open_folder().gateway == first.gateway
    assert open_folder("other").gateway != first.gateway


def test_its_files_are_for_the_gateway_alone(open_folder, tmp_path):
    open_folder().keep([LOCK])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "fleet").iterdir()}
    assert modes == {"id": 0o600, "lock": 0o600, "locks.json": 0o600}
    assert stat.S_IMODE((tmp_path / "fleet").stat().st_mode) == 0o700


def test_a_second_process_is_kept_out(open_folder):
    folder = open_folder()
    assert "expected a file that can be written, and no other gateway that uses it" in problem(open_folder)
    folder.close()
    open_folder()


def test_locks_that_are_kept_are_there_again(open_folder):
    folder = open_folder()
    assert folder.locks == ()
    folder.keep([LOCK])
    folder.close()
    assert open_folder().locks == (LOCK,)


def test_a_copy_has_the_same_id_and_another_holder(open_folder, tmp_path):
    folder = open_folder()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/id").write_bytes((tmp_path / "fleet/id").read_bytes())
    copy = open_folder("copy")
    assert copy.gateway == folder.gateway
    assert copy.holder != folder.holder == folder.holder


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("id", "", "id: expected 16 hex digits, the id of this gateway (gateway.state), got ''"),
        ("id", "../../etc/passwd", "got '../../etc/passwd'"),
        ("locks.json", "", "expected the locks as portguard writes them (gateway.state), got something else (JSON"),
        ("locks.json", "[]", "got something else (TypeError)"),
        ("locks.json", '{"version": 2, "locks": []}', "expected locks of version 1, got version 2"),
        ("locks.json", '{"version": 1, "locks": [["anna", "1 1 []"]]}', "got something else (JSON"),
        ("locks.json", '{"version": 1, "locks": [["[]", "1 1 []"]]}', "got something else (ValueError)"),
    ],
)
def test_what_portguard_has_not_written_is_refused(open_folder, tmp_path, name, content, said):
    open_folder().close()
    (tmp_path / "fleet" / name).write_text(content)
    assert said in problem(open_folder)


def test_a_place_that_is_no_folder_is_refused(open_folder, tmp_path):
    (tmp_path / "fleet").write_text("")
    assert "gateway.state" in problem(open_folder)
