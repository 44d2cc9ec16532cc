"""The transcript in `docs/tutorial/first-gateway.md` is what the commands really do."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ports import reserved_port
from tests.transcripts import expected, run, transcript

_PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "first-gateway.md"
_PORTS = ("8443", "8080", "9847")


@pytest.fixture
def page() -> Iterator[str]:
    """The page, with ports that are kept for it."""
    text = _PAGE.read_text()
    with contextlib.ExitStack() as held:
        for port in _PORTS:
            kept = held.enter_context(reserved_port())
            text = text.replace(f"{port} ", f"{kept} ").replace(f":{port}", f":{kept}")
        yield text


def test_the_commands_do_what_the_page_shows(tmp_path: Path, page: str, real_program: Callable[[str], str]) -> None:
    real_program("curl")
    steps = transcript(page)
    [server, gateway] = [command for command, _ in steps if command.endswith("&")]
    port = server.split()[3]
    ready = {
        server: f"(exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null",
        gateway: "grep -qs gateway.ready gateway.log",
    }
    outputs = run([command for command, _ in steps], tmp_path, ready)
    assert len(outputs) == len(steps) > 20
    for (command, shown), output in zip(steps, outputs, strict=True):
        assert expected(shown).fullmatch(output), f"$ {command}\nprinted:\n{output}\nbut the page shows:\n{shown}"
