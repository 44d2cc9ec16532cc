import socket

import pytest

from portguard.observe import log
from portguard.observe.audit.journal import Journal


@pytest.fixture
def events(monkeypatch):
    seen = []
    monkeypatch.setattr(log, "event", lambda level, name, **fields: seen.append((level, name)))
    return seen


def test_each_line_is_an_entry_of_its_own(tmp_path, events):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(path)
        journal = Journal(path)
        journal.send([b'{"seq":1}', b'{"seq":2}'])
        journal.close()
        received = [journald.recv(1000) for _ in range(2)]
    assert received[0] == b'MESSAGE={"seq":1}\nPRIORITY=6\nSYSLOG_IDENTIFIER=portguard-audit\n'
    assert received[1].startswith(b'MESSAGE={"seq":2}\n')
    assert events == []


def test_a_journal_that_is_away_is_told_of_once_and_again_when_it_is_back(tmp_path, events):
    path = str(tmp_path / "socket")
    journal = Journal(path)
    journal.send([b"a"])
    journal.send([b"b"])
    assert events == [("error", "audit.copy_failed")]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(path)
        journal.send([b"c"])
        assert journald.recv(1000).startswith(b"MESSAGE=c\n")
    assert events == [("error", "audit.copy_failed"), ("info", "audit.copy_resumed")]
    journal.close()
