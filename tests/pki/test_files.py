import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from portguard.pki import files
from portguard.pki.errors import PkiError
from portguard.pki.files import PUBLIC, SECRET, NewFile, publish


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _pair(directory: Path) -> list[NewFile]:
    return [NewFile(directory / "a.key", b"key", SECRET), NewFile(directory / "a.crt", b"certificate", PUBLIC)]


@pytest.fixture(params=["hard links", "no hard links"])
def hard_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test on an ordinary file system, and on one that answers link(2) as FAT does."""
    if request.param == "no hard links":

        def link(*_arguments: object, **_keywords: object) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("hard_links")
def test_files_get_their_content_and_mode(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        publish(_pair(tmp_path))
    finally:
        os.umask(previous)
    assert (tmp_path / "a.key").read_bytes() == b"key"
    assert (tmp_path / "a.crt").read_bytes() == b"certificate"
    assert (_mode(tmp_path / "a.key"), _mode(tmp_path / "a.crt")) == (0o600, 0o644)
    assert sorted(os.listdir(tmp_path)) == ["a.crt", "a.key"]


@pytest.mark.usefixtures("hard_links")
@pytest.mark.parametrize("taken", ["a.key", "a.crt"])
def test_a_name_that_is_taken_leaves_everything_as_it_was(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_bytes(b"old")
    with pytest.raises(PkiError, match=f"{taken}: expected no file of this name, got one that exists"):
        publish(_pair(tmp_path))
    assert os.listdir(tmp_path) == [taken]
    assert (tmp_path / taken).read_bytes() == b"old"


@pytest.mark.usefixtures("hard_links")
def test_a_dangling_link_is_a_name_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PkiError, match=r"a\.key: expected no file of this name"):
        publish(_pair(tmp_path))
    assert os.listdir(tmp_path) == ["a.key"]


def test_overwriting_replaces_and_takes_over_no_mode(tmp_path: Path) -> None:
    (tmp_path / "a.key").write_bytes(b"old")
    (tmp_path / "a.key").chmod(0o644)
    publish(_pair(tmp_path), overwrite=True)
    assert (tmp_path / "a.key").read_bytes() == b"key"
    assert _mode(tmp_path / "a.key") == 0o600


def test_overwriting_a_link_does_not_write_through_it(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"old")
    (tmp_path / "a.key").symlink_to(tmp_path / "precious")
    publish(_pair(tmp_path), overwrite=True)
    assert (tmp_path / "precious").read_bytes() == b"old"
    assert not (tmp_path / "a.key").is_symlink()


@pytest.mark.usefixtures("hard_links")
def test_of_many_at_once_one_wins_and_its_pair_belongs_together(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    won = []

    def write(number: int) -> None:
        mark = str(number).encode()
        barrier.wait()
        try:
            publish([NewFile(tmp_path / "a.key", mark, SECRET), NewFile(tmp_path / "a.crt", mark, PUBLIC)])
        except PkiError:
            return
        won.append(mark)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "a.key").read_bytes() == (tmp_path / "a.crt").read_bytes() == won[0]
    assert sorted(os.listdir(tmp_path)) == ["a.crt", "a.key"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(PkiError, match=r"a\.key: expected a place that can be written, got “No space left on device”"):
        publish(_pair(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_name_that_cannot_be_given_for_another_cause_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_arguments: object, **_keywords: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(PkiError, match=r"a\.key: expected a place that can be written, got “Input/output error”"):
        publish(_pair(tmp_path))
    assert os.listdir(tmp_path) == []


def test_an_interrupt_between_two_files_leaves_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def interrupted(source: Path, target: Path, **keywords: bool) -> None:
        if target.name == "a.crt":
            raise KeyboardInterrupt
        link(source, target, **keywords)

    monkeypatch.setattr(os, "link", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(_pair(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_crash_before_the_name_is_given_leaves_no_half_file(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib\n"
        "from portguard.pki import files\n"
        "os.link = lambda *a, **k: os._exit(9)\n"
        "files.publish([files.NewFile(pathlib.Path(sys.argv[1]), b'key', files.SECRET)])\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, tmp_path / "a.key"], check=False)
    assert ended.returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".tmp"
    assert _mode(left) == 0o600


@pytest.mark.parametrize("mode", [SECRET, PUBLIC])
def test_a_missing_directory_is_named(tmp_path: Path, mode: int) -> None:
    with pytest.raises(PkiError, match="gone/a: expected a place that can be written, got “No such file or directory”"):
        publish([NewFile(tmp_path / "gone" / "a", b"", mode)])


def test_the_data_of_a_file_is_not_in_its_repr(tmp_path: Path) -> None:
    assert "secret" not in repr(NewFile(tmp_path / "a", b"secret", SECRET))


def test_a_directory_is_made_with_its_parents_and_mode(tmp_path: Path) -> None:
    assert files.make_directory(tmp_path / "one" / "two", 0o700)
    assert _mode(tmp_path / "one" / "two") == 0o700
    assert not files.make_directory(tmp_path / "one" / "two", 0o700)


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_file_in_the_place_of_a_directory_is_an_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PkiError, match=f"{path}: expected a directory, or room for one, got a file"):
        files.make_directory(tmp_path / path, 0o700)


def test_refuse_existing_names_the_first_that_exists(tmp_path: Path) -> None:
    files.refuse_existing([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b").write_bytes(b"")
    with pytest.raises(PkiError, match="b: expected no file of this name"):
        files.refuse_existing([tmp_path / "a", tmp_path / "b"])
