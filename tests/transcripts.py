"""Console transcripts of documents, run as they stand: each command, and what the page shows below it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.patience import PATIENCE_S

Step = tuple[str, list[str]]
"""A command, with the lines shown below it."""

_HERE_DOCUMENT = re.compile(r"<<'(\w+)'$")
_PATIENCE_S = 2 * PATIENCE_S  # for all commands of a page


def transcript(text: str) -> list[Step]:
    """The commands of the console blocks of a page, with lines that go on and here-documents, and what is shown."""
    steps: list[Step] = []
    for block in re.findall(r"^ *```console\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        end = None  # of a here-document
        for line in textwrap.dedent(block).splitlines():
            if end is not None:
                steps[-1] = f"{steps[-1][0]}\n{line}", []
                end = None if line == end else end
            elif steps and steps[-1][0].endswith("\\"):
                steps[-1] = f"{steps[-1][0]}\n{line}", []
            elif line.startswith("$ "):
                steps.append((line[2:], []))
                here = _HERE_DOCUMENT.search(line)
                end = here[1] if here else None
            else:
                steps[-1][1].append(line)
    return steps


def expected(shown: Sequence[str]) -> re.Pattern[str]:
    """`…` stands for part of a line, and alone on a line for any lines."""
    lines = [r"(?:.*\n)*" if line.strip() == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in shown]
    return re.compile("".join(lines))


def run(commands: Sequence[str], home: Path, ready: Mapping[str, str] | None = None) -> list[str]:
    """What each command printed, in one shell, which starts in an empty home.

    `ready` has, for commands that go on in the background, the condition to wait for before the next one. Whatever
    still runs at the end is killed.
    """
    script = "".join(f"printf '\\0'\n{command}\n{_wait((ready or {}).get(command))}" for command in commands)
    environment = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
    }
    shell = subprocess.Popen(
        ["bash", "-c", script], cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = shell.communicate(timeout=_PATIENCE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    return output.split("\0")[1:]


def _wait(condition: str | None) -> str:
    # Bounded: it ends by itself also where the test that waits for it was killed.
    return "" if condition is None else f"for _ in $(seq 1000); do {condition} && break; sleep 0.05; done\n"
