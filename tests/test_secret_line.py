"""A secret in a file of one line."""

import os
import threading

import pytest

from portguard.secret_line import LONGEST_BYTES, NotOneLine, read_secret_line


def read(path):
    return read_secret_line(path, lambda status: None)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("secret", [b"s3cret", b" two words ", b"\xff\xfe", b"\x0b\xe2\x80\xa8"])
def test_the_end_of_the_line_is_no_part_of_it_and_all_else_is(tmp_path, secret, end):
    path = tmp_path / "secret"
    path.write_bytes(secret + end)
    assert read(path) == secret


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "nothing"),
        (b"\n", "nothing"),
        (b"\r\n", "nothing"),
        (b"s3cret\n\n", "several lines"),
        (b"s3cret\nword", "several lines"),
        (b"s3cret\rword", "several lines"),
        (b"x" * (LONGEST_BYTES + 1), "more than 4096 bytes"),
    ],
)
def test_what_is_not_one_line_is_no_secret_and_not_shown(tmp_path, content, found):
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(NotOneLine) as caught:
        read(path)
    assert str(caught.value) == found


def test_the_longest_is_read_whole(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"x" * LONGEST_BYTES)
    assert read(path) == b"x" * LONGEST_BYTES


def test_who_may_read_it_is_looked_at_before_and_of_the_very_file(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"s3cret\n")
    path.chmod(0o604)

    def look(status):
        assert (status.st_ino, status.st_mode & 0o777) == (path.stat().st_ino, 0o604)
        raise PermissionError

    with pytest.raises(PermissionError):
        read_secret_line(path, look)


def test_it_may_come_by_a_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"s3cret\n",))
    writer.start()
    assert read(path) == b"s3cret"
    writer.join()
