"""The transcript in `docs/howto/issue-certificates.md` is what the commands really do."""

from collections.abc import Callable
from pathlib import Path

from tests.transcripts import expected, run, transcript

_PAGE = Path(__file__).parents[2] / "docs" / "howto" / "issue-certificates.md"


def test_the_commands_do_what_the_page_shows(tmp_path: Path, real_program: Callable[[str], str]) -> None:
    real_program("openssl")
    steps = transcript(_PAGE.read_text())
    outputs = run([command for command, _ in steps], tmp_path)
    assert len(outputs) == len(steps) > 10
    for (command, shown), output in zip(steps, outputs, strict=True):
        assert expected(shown).fullmatch(output), f"$ {command}\nprinted:\n{output}\nbut the page shows:\n{shown}"


def test_a_line_that_the_page_does_not_show_is_found(tmp_path: Path) -> None:
    (output,) = run(["echo one && echo two"], tmp_path)
    assert expected(["one", "t…"]).fullmatch(output)
    assert expected(["…"]).fullmatch(output)
    for wrong in (["one"], ["one", "t"], ["two", "one"], [], ["…", "three"]):
        assert not expected(wrong).fullmatch(output)
