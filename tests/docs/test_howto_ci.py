"""The examples in `docs/howto/check-policies-in-ci.md` do what the page says, run as their services run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

_FOLDER = Path(__file__).parents[2] / "docs" / "howto"
_PAGE = (_FOLDER / "check-policies-in-ci.md").read_text()
_FILES = sorted((_FOLDER / "ci").glob("*-policy.yml"))
_POLICY = """
[services.orders-db]
upstream = ["10.0.3.7:5432"]

[[roles]]
name = "dba"
members = ["alice"]
services = ["orders-db"]

[[tests]]
identity = "eve"
service = "orders-db"
expect = "deny"
"""


def _steps(name: str) -> list[str]:
    """What each step of an example runs, in one shell each as its service does; without the installing.

    The files are read as text, as no YAML library is a dependency; where one is at hand, another test reads them whole.
    """
    text = (_FOLDER / "ci" / name).read_text()
    if "github" in name:
        blocks = re.findall(r"^ +run: \|\n((?: {10}.*\n)+)|^ +run: (.+)$", text, re.MULTILINE)
        steps = [re.sub(r"^ {10}", "", block, flags=re.MULTILINE) or line for block, line in blocks]
    else:
        (script,) = re.findall(r"^  script:\n((?:    - .*\n)+)", text, re.MULTILINE)
        steps = [re.sub(r"^    - ", "", script, flags=re.MULTILINE)]
    return [step for step in steps if not step.startswith("pip ")]


def _git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(params=["github-policy.yml", "gitlab-policy.yml"])
def run(request, tmp_path, real_program):
    """Run an example on a change from `_POLICY` to another text; returns the exit code and all output."""
    real_program("git")
    checkout = tmp_path / "checkout"
    (checkout / "policy").mkdir(parents=True)

    def run(text: str) -> tuple[int, str]:
        _git(checkout, "init", "--quiet")
        for content in _POLICY, text:
            (checkout / "policy" / "10-policy.toml").write_text(content)
            _git(checkout, "add", ".")
            _git(checkout, "commit", "--quiet", "--allow-empty", "-m", "x")
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
            "CI_MERGE_REQUEST_DIFF_BASE_SHA": _git(checkout, "rev-parse", "HEAD^1"),
        }
        output = ""
        for step in _steps(request.param):
            # Both services end a script with the first command that fails.
            done = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", step],
                cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            output += done.stdout
            if done.returncode:
                return done.returncode, output
        if "github" in request.param:
            assert "    +++ policy\n" in (tmp_path / "summary.md").read_text()
        return 0, output

    return run


def test_a_change_is_told_and_is_no_failure(run):
    code, output = run(_POLICY.replace('"alice"', '"bob"'))
    assert code == 0
    assert "gained access:\n  who      bob\n  to       orders-db\n" in output
    assert "lost access:\n  who      alice\n" in output


def test_a_change_of_words_alone_is_no_difference(run):
    code, output = run(_POLICY + "# a comment\n")
    assert (code, output.splitlines()[-1]) == (0, "no difference")


def test_a_policy_that_fails_its_own_tests_is_a_failure(run):
    code, output = run(_POLICY.replace('"alice"', '"*"'))
    assert code == 2
    assert "expected deny for local:eve at orders-db, got allow (role dba)" in output


def test_an_old_policy_that_cannot_be_read_is_a_failure(run, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "_POLICY", "rolse = 1")
    code, output = run('[services.x]\nupstream = ["10.0.0.1:1"]\n')
    assert code == 1
    assert "rolse: expected a known key" in output


@pytest.mark.parametrize("file", _FILES, ids=lambda file: file.name)
def test_the_page_shows_the_files_as_they_are(file):
    assert f"```yaml\n{file.read_text()}```" in _PAGE
    assert f"(ci/{file.name})" in _PAGE


@pytest.mark.parametrize("file", _FILES, ids=lambda file: file.name)
def test_each_file_is_yaml_of_its_service(file):
    document = yaml.safe_load(file.read_text())
    if "github" in file.name:
        steps = document["jobs"]["policy"]["steps"]
        assert all(("uses" in step) != ("run" in step) for step in steps)
        assert [step["run"] for step in steps if "run" in step][1:] == _steps(file.name)
        assert document["permissions"] == {"contents": "read"}
    else:
        assert all(isinstance(line, str) for line in document["policy"]["script"])
        assert "\n".join(document["policy"]["script"]) + "\n" == _steps(file.name)[0]


def test_there_is_an_example_for_each_service():
    assert [file.name for file in _FILES] == ["github-policy.yml", "gitlab-policy.yml"]
