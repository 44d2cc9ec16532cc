"""A process is listed by the name of its script, before and after it becomes another program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

_REPOSITORY = Path(__file__).parents[2]
# As supervisors do: the first run becomes the second, which tells its name.
_SCRIPT = """
import os, sys
from portguard.gateway import reexec
if "TAKEN_OVER" not in os.environ:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"TAKEN_OVER": "1"})
reexec.keep_name()
print(open("/proc/self/comm").read(), end="")
"""


def _name(*command):
    environment = os.environ | {"PYTHONPATH": str(_REPOSITORY)}
    return subprocess.check_output([*map(str, command)], env=environment, text=True, timeout=PATIENCE_S).strip()


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "portguardian"
    path.write_text(f"#!{sys.executable}{_SCRIPT}")
    path.chmod(0o755)
    return path


def test_a_script_is_listed_by_its_own_name_still(script):
    assert _name(script) == "portguardian"


def test_a_module_is_listed_by_the_name_of_the_interpreter(tmp_path):
    (tmp_path / "__main__.py").write_text(_SCRIPT)
    assert _name(sys.executable, tmp_path / "__main__.py") == Path(sys.executable).name
