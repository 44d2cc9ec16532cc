"""What goes out as sdist and wheel is complete, and pip can install it.

Builds with setuptools from the package index in a fresh environment, as pip does for a stranger.
"""

import os
import shutil
import subprocess
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import portguard

_REPOSITORY = Path(__file__).parents[2]
_IGNORED = shutil.ignore_patterns(
    ".venv", ".git", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "quickstart", "results"
)


def _run(*command: str | Path, where: Path | None = None, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment that has setuptools and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    try:
        _run(python, "-m", "pip", "install", "--quiet", "setuptools>=68", "wheel")
    except AssertionError as failure:
        message = f"setuptools: expected to install it from the package index, got: {str(failure)[-500:]}"
        if os.environ.get("PORTGUARD_REQUIRE_REAL") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return python


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository: a build writes into the tree that it builds."""
    copy = tmp_path_factory.mktemp("sdist") / "tree"
    shutil.copytree(_REPOSITORY, copy, ignore=_IGNORED)
    return copy


@pytest.fixture(scope="module")
def modules(tree: Path) -> set[str]:
    return {path.relative_to(tree).as_posix() for path in (tree / "portguard").rglob("*.py")}


@pytest.fixture(scope="module")
def sdist(builder: Path, tree: Path, modules: set[str]) -> Path:
    _run(builder, "-c", "import setuptools.build_meta as backend; backend.build_sdist('..')", where=tree)
    [made] = tree.parent.glob("*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(builder: Path, sdist: Path) -> Path:
    """The wheel is built from the sdist, so that it shows the sdist to be enough."""
    options = ["--quiet", "--no-deps", "--no-build-isolation"]
    _run(builder, "-m", "pip", "wheel", *options, "--wheel-dir", sdist.parent, sdist)
    [made] = sdist.parent.glob("*.whl")
    return made


def test_the_sdist_has_everything_to_run_the_tests(sdist: Path, modules: set[str]) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {"LICENSE", "Makefile", "CHANGELOG.md", "ruff.toml", ".ci/run", "tests/conftest.py", *modules}
    assert expected - names == set()
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_wheel_has_every_module_and_nothing_but_the_package(wheel: Path, modules: set[str]) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert (modules | {"portguard/py.typed"}) - names == set()
    assert {name.split("/")[0] for name in names} == {"portguard", f"portguard-{portguard.__version__}.dist-info"}


def test_the_wheel_installs_and_its_command_starts(builder: Path, wheel: Path, tmp_path: Path) -> None:
    _run(builder, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    # Dependencies come from this environment; portguard itself cannot, since an editable install is not in a folder.
    environment = {"PATH": os.defpath, "PYTHONPATH": sysconfig.get_path("purelib")}
    where = _run(builder, "-c", "import portguard; print(portguard.__file__)", where=tmp_path, environment=environment)
    assert Path(where).is_relative_to(builder.parents[1])
    said = _run(builder.parent / "portguard", "--version", where=tmp_path, environment=environment)
    assert said.split() == ["portguard,", "version", portguard.__version__]
