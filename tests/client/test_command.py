import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from portguard.client import command
from portguard.client.local_ports import LocalPort
from portguard.client.signals import STOP, Signals
from portguard.errors import UsageError

DB = LocalPort("orders-db", "127.0.0.1", 40001, None)
WEB = LocalPort("web", "::", 40002, None)


def test_one_service_is_named_in_the_variables_of_libpq_too() -> None:
    assert command.variables([DB]) == {
        "PORTGUARD_ORDERS_DB_HOST": "127.0.0.1",
        "PORTGUARD_ORDERS_DB_PORT": "40001",
        "PORTGUARD_HOST": "127.0.0.1",
        "PORTGUARD_PORT": "40001",
        "PGHOST": "127.0.0.1",
        "PGPORT": "40001",
    }


def test_several_services_have_variables_of_their_own_only() -> None:
    assert command.variables([DB, WEB]) == {
        "PORTGUARD_ORDERS_DB_HOST": "127.0.0.1",
        "PORTGUARD_ORDERS_DB_PORT": "40001",
        "PORTGUARD_WEB_HOST": "::1",
        "PORTGUARD_WEB_PORT": "40002",
    }


def test_the_rest_of_the_environment_is_inherited() -> None:
    inherited = {"HOME": "/home/alice", "PGHOST": "elsewhere", "PGHOSTADDR": "192.0.2.1", "PGUSER": "alice"}
    environment = command.environment([DB], inherited)
    assert environment["HOME"] == "/home/alice"
    assert environment["PGUSER"] == "alice"
    assert environment["PGHOST"] == "127.0.0.1"
    assert "PGHOSTADDR" not in environment, "libpq would dial it, past the tunnel"
    assert command.environment([DB, WEB], inherited)["PGHOST"] == "elsewhere"


def test_host_and_port_are_filled_in() -> None:
    words = ["curl", "http://{host}:{port}/{x}", "{orders-db.port}", "{}", '{"port": 1}']
    assert command.arguments(words, [DB]) == ["curl", "http://127.0.0.1:40001/{x}", "40001", "{}", '{"port": 1}']


def test_of_several_services_host_and_port_are_filled_in_by_name() -> None:
    words = ["{orders-db.host}:{orders-db.port}", "{web.host}:{web.port}"]
    assert command.arguments(words, [DB, WEB]) == ["127.0.0.1:40001", "::1:40002"]


@pytest.mark.parametrize("word", ["{host}", "x{port}"])
def test_of_several_services_a_plain_host_or_port_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match=r"expected \{orders-db.host\} or \{orders-db.port\}, as there are several"):
        command.arguments(["curl", word], [DB, WEB])


def run(*words: str) -> Awaitable[int]:
    async def main() -> int:
        with Signals(STOP) as signals:
            return await command.run(words, os.environ, signals)

    return main()


def python(program: str) -> tuple[str, ...]:
    return sys.executable, "-c", program


async def test_the_exit_code_is_the_commands() -> None:
    assert await run(*python("raise SystemExit(0)")) == 0
    assert await run(*python("raise SystemExit(7)")) == 7


async def test_of_a_command_that_a_signal_ends_the_exit_code_is_128_and_its_number() -> None:
    assert await run(*python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")) == 128 + signal.SIGKILL


async def test_a_program_that_is_not_there_is_127() -> None:
    with pytest.raises(
        command.CannotStart, match=r"^no-such-program: expected a program that can be started"
    ) as caught:
        await run("no-such-program")
    assert caught.value.exit_code == 127


async def test_a_program_that_may_not_be_run_is_126(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(command.CannotStart, match="Permission denied") as caught:
        await run(str(tmp_path / "text"))
    assert caught.value.exit_code == 126


async def test_a_signal_is_passed_on_to_the_command(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    program = f"""
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
open({str(ready)!r}, "w").close()
while True: signal.pause()
"""
    running = asyncio.ensure_future(run(*python(program)))
    await asyncio.to_thread(ready.read_bytes)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 42


@pytest.mark.parametrize("sent_by_terminal", [True, False])
async def test_ctrl_c_reaches_the_command_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent_by_terminal: bool
) -> None:
    """The terminal sends it to the whole foreground; passed on as well, a second one would come."""
    monkeypatch.setattr(command, "_sent_to_both", lambda number: sent_by_terminal and number == signal.SIGINT)
    came = tmp_path / "came"
    os.mkfifo(came)
    program = f"""
import signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit(1))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
open({str(came)!r}, "w").close()
while True: signal.pause()
"""
    running = asyncio.ensure_future(run(*python(program)))
    await asyncio.to_thread(came.read_bytes)
    os.kill(os.getpid(), signal.SIGINT)
    if sent_by_terminal:
        os.kill(os.getpid(), signal.SIGTERM)
    assert await running == (0 if sent_by_terminal else 1)


@pytest.mark.parametrize(
    ("foreground", "sent"), [(os.getpgrp, True), (lambda: os.getpgrp() + 1, False)], ids=["ours", "another"]
)
def test_only_the_foreground_gets_ctrl_c_of_its_terminal(
    monkeypatch: pytest.MonkeyPatch, foreground: Callable[[], int], sent: bool
) -> None:
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda path, *_: real_open(os.devnull if path == "/dev/tty" else path, os.O_RDONLY))
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: foreground())
    assert command._sent_to_both(signal.SIGINT) is sent
    assert command._sent_to_both(signal.SIGTERM) is False


def test_without_a_terminal_ctrl_c_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_terminal(*_: object) -> int:
        raise OSError

    monkeypatch.setattr(os, "open", no_terminal)
    assert command._sent_to_both(signal.SIGINT) is False
