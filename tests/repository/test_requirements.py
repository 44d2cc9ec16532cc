"""What pip installs beside portguard is what portguard imports.

Tests run where their own requirements are installed too, so a requirement that is missing would be met by chance.
"""

import ast
import configparser
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[2]
_DATA = {"tzdata"}  # imported by zoneinfo, where the system has no time zones
_FLEET = "redis"  # of the extra, imported by what is imported for such a ledger only
_BENCH = "rich"  # likewise, of what measures


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _required() -> set[str]:
    """The distributions that every installation has."""
    setup = configparser.ConfigParser()
    setup.read(_REPOSITORY / "setup.cfg")
    lines = setup["options"]["install_requires"].split("\n")
    return {_canonical(re.split(r"[ <>=!~;\[]", line)[0]) for line in lines if line}


def _imported(file: Path) -> set[str]:
    """The packages of others that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module is not None:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"portguard"}


def _distributions(folder: str) -> dict[str, str]:
    """The distributions that the modules of a folder import, each with a module that does."""
    found: dict[str, Path] = {}
    for file in sorted((_REPOSITORY / folder).rglob("*.py")):
        found |= dict.fromkeys(_imported(file) - {"bench"}, file)
    provided = packages_distributions()
    return {_canonical(name): str(file) for package, file in found.items() for name in provided[package]}


def test_what_portguard_imports_is_installed_with_it() -> None:
    imported = _distributions("portguard")
    assert len(imported) > 5
    missing = {name: file for name, file in imported.items() if name not in _required() | {_FLEET}}
    assert missing == {}, "expected each in install_requires of setup.cfg"


@pytest.mark.parametrize(("extra", "needed"), [("fleet", f"{_FLEET}>=5"), ("bench", f"{_BENCH}>=13")])
def test_what_not_everybody_needs_is_an_extra_that_the_tests_have_too(extra: str, needed: str) -> None:
    setup = configparser.ConfigParser()
    setup.read(_REPOSITORY / "setup.cfg")
    extras = setup["options.extras_require"]
    assert needed.partition(">")[0] not in _required()
    assert extras[extra].split() == [needed]
    assert needed in extras["test"].split()


def test_the_bench_runs_where_only_portguard_and_its_extra_are_installed() -> None:
    assert _distributions("bench").keys() - _required() == {_BENCH}


def test_nothing_is_installed_that_nothing_imports() -> None:
    assert _required() - _distributions("portguard").keys() == _DATA
