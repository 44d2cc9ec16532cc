import threading
from pathlib import Path

import pytest

from portguard.pki.directory_lock import locked


def test_who_finds_a_directory_locked_waits_for_it(tmp_path: Path) -> None:
    order: list[str] = []
    other_is_in = threading.Event()

    def other() -> None:
        other_is_in.set()
        with locked(tmp_path):
            order.append("other")

    thread = threading.Thread(target=other)
    with locked(tmp_path):
        thread.start()
        other_is_in.wait()
        # Whoever would not wait would have been first by now, or soon after.
        thread.join(timeout=0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_who_does_not_want_to_wait_is_refused_and_gets_it_afterwards(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(LookupError), locked(tmp_path, taken=LookupError()):
        pass
    with locked(tmp_path, taken=LookupError()):
        pass
