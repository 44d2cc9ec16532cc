"""The transcript in `docs/howto/issue-certificates.md` is what the commands really do."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_PAGE = Path(__file__).parents[2] / "docs" / "howto" / "issue-certificates.md"


def _transcript(text: str) -> list[tuple[str, list[str]]]:
    """Each command of the console blocks, with the lines shown below it."""
    steps: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                steps[-1][1].append(line)
    return steps


def _expected(shown: list[str]) -> re.Pattern[str]:
    """`…` stands for part of a line, and alone on a line for any lines."""
    lines = [r"(?:.*\n)*" if line.strip() == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in shown]
    return re.compile("".join(lines))


def _run(commands: list[str], home: Path) -> list[str]:
    """What each command printed, in one shell, which starts in an empty home."""
    script = "".join(f"printf '\\0'\n{command}\n" for command in commands)
    environment = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
    }
    ended = subprocess.run(
        ["bash", "-c", script], cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        check=False, text=True, timeout=120,
    )  # fmt: skip
    return ended.stdout.split("\0")[1:]


def test_the_commands_do_what_the_page_shows(tmp_path: Path, real_program: Callable[[str], str]) -> None:
    real_program("openssl")
    steps = _transcript(_PAGE.read_text())
    outputs = _run([command for command, _ in steps], tmp_path)
    assert len(outputs) == len(steps) > 10
    for (command, shown), output in zip(steps, outputs, strict=True):
        assert _expected(shown).fullmatch(output), f"$ {command}\nprinted:\n{output}\nbut the page shows:\n{shown}"


def test_a_line_that_the_page_does_not_show_is_found(tmp_path: Path) -> None:
    (output,) = _run(["echo one && echo two"], tmp_path)
    assert _expected(["one", "t…"]).fullmatch(output)
    assert _expected(["…"]).fullmatch(output)
    for wrong in (["one"], ["one", "t"], ["two", "one"], [], ["…", "three"]):
        assert not _expected(wrong).fullmatch(output)
