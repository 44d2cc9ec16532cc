"""The control socket as a file."""

import grp
import os
import socket
import stat

import pytest

from portguard.control.listening import listen
from portguard.errors import ConfigurationError

FILE = "/etc/portguard/portguard.toml"
NOBODYS = "no-such-group"


@pytest.fixture
def group():
    """A group of this host that the socket can be given to."""
    return grp.getgrgid(os.getgid()).gr_name


@pytest.fixture
def opened():
    """Closes what `opened(listen(…))` was given."""
    sockets = []

    def keep(control):
        sockets.append(control)
        return control

    yield keep
    for control in sockets:
        control.close()


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def refused(path, group):
    with pytest.raises(ConfigurationError) as caught:
        listen(str(path), group, FILE)
    (problem,) = caught.value.problems
    assert (problem.file, problem.key) == (FILE, "gateway.control")
    return f"expected {problem.expected}, got {problem.found}"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_it_is_for_owner_and_group_whatever_the_umask(tmp_path, group, opened, umask):
    path = tmp_path / "run" / "control.sock"
    before = os.umask(umask)
    try:
        control = opened(listen(str(path), group, FILE))
    finally:
        os.umask(before)
    assert control.warning is None
    assert mode(path) == 0o660
    assert path.stat().st_gid == os.getgid()
    assert mode(path.parent) == 0o755
    assert os.listdir(path.parent) == ["control.sock"]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_without_its_group_it_is_for_the_owner_alone(tmp_path, opened):
    control = opened(listen(str(tmp_path / "control.sock"), NOBODYS, FILE))
    assert mode(control.path) == 0o600
    assert control.warning == (
        f"control.group: expected a group of this host, got {NOBODYS}: "
        "the control socket is for its owner alone, mode 0600"
    )


def test_a_group_that_the_socket_may_not_be_given_to_gets_nothing(tmp_path, group, opened, monkeypatch):
    def refuse(*_given, **_more):
        raise PermissionError

    monkeypatch.setattr(os, "chown", refuse)
    control = opened(listen(str(tmp_path / "control.sock"), group, FILE))
    assert mode(control.path) == 0o600
    assert "expected a group that the gateway's user is in" in control.warning


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_it_is_never_more_open_than_in_the_end(tmp_path, group, opened, monkeypatch, umask):
    seen = []
    chown = os.chown

    def look_first(name, uid, gid, **more):
        seen.append(stat.S_IMODE(os.stat(name, dir_fd=more["dir_fd"]).st_mode))
        chown(name, uid, gid, **more)

    monkeypatch.setattr(os, "chown", look_first)
    before = os.umask(umask)
    try:
        opened(listen(str(tmp_path / "control.sock"), group, FILE))
    finally:
        os.umask(before)
    assert seen == [0o600]


def test_the_mode_of_a_folder_that_is_there_stays(tmp_path, group, opened):
    tmp_path.chmod(0o700)
    opened(listen(str(tmp_path / "control.sock"), group, FILE))
    assert mode(tmp_path) == 0o700


def test_only_the_last_folder_is_made(tmp_path, group):
    path = tmp_path / "a" / "b" / "control.sock"
    assert refused(path, group) == f"expected a path where a socket can be made, got {path}: no such folder"
    assert os.listdir(tmp_path) == []


def test_a_file_in_place_of_the_folder_is_told_of(tmp_path, group):
    (tmp_path / "run").write_text("")
    assert "got " + str(tmp_path / "run" / "control.sock") in refused(tmp_path / "run" / "control.sock", group)


def test_a_stale_socket_is_replaced(tmp_path, group, opened):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    opened(listen(str(path), group, FILE))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_live_socket_is_left_alone_and_named(tmp_path, group, opened):
    path = tmp_path / "control.sock"
    first = opened(listen(str(path), group, FILE))
    found = refused(path, group)
    assert found == (
        f"expected a path of its own for the control socket, got {path}, on which a gateway listens already"
    )
    assert path.stat().st_ino == first.inode


def test_a_live_socket_with_a_full_queue_is_alive(tmp_path, group):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        assert "on which a gateway listens already" in refused(path, group)


def test_what_is_no_socket_is_left_alone(tmp_path, group):
    path = tmp_path / "control.sock"
    path.write_text("precious")
    assert refused(path, group) == f"expected a path of its own for the control socket, got {path}, which is no socket"
    assert path.read_text() == "precious"
    target = tmp_path / "link.sock"
    target.symlink_to(path)
    assert "which is no socket" in refused(target, group)


def test_a_path_of_the_longest_length_works(tmp_path, group, opened):
    path = tmp_path / "c"
    path = tmp_path / ("c" * (107 - len(str(tmp_path)) - 1))
    assert len(str(path)) == 107
    opened(listen(str(path), group, FILE))
    assert os.listdir(tmp_path) == [path.name]


def test_one_that_could_not_be_put_in_its_place_leaves_nothing(tmp_path, group, monkeypatch):
    def fail(*_given, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    path = tmp_path / "control.sock"
    assert refused(path, group).endswith(f"got {path}: no space left on device")
    assert os.listdir(tmp_path) == []


def test_closing_removes_it(tmp_path, group):
    listen(str(tmp_path / "control.sock"), group, FILE).close()
    assert os.listdir(tmp_path) == []


def test_closing_leaves_what_has_taken_its_place(tmp_path, group, opened):
    path = tmp_path / "control.sock"
    first = listen(str(path), group, FILE)
    path.unlink()
    opened(listen(str(path), group, FILE))
    first.close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_closing_twice_and_after_a_removal_is_no_error(tmp_path, group):
    control = listen(str(tmp_path / "control.sock"), group, FILE)
    os.unlink(control.path)
    control.close()
    control.close()
