"""`portguard completion`: the script that it prints, in a real shell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

_PORTGUARD = (sys.executable, "-P", "-m", "portguard")


def script(shell):
    done = subprocess.run(
        [*_PORTGUARD, "completion", shell], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def completed(real_program, tmp_path):
    """What a bash that has read the script offers for the last of these words."""
    (tmp_path / "portguard.bash").write_text(script("bash"))

    def complete(*words):
        asking = f"""
            source {tmp_path}/portguard.bash
            COMP_WORDS=({" ".join(map(repr, words))}) COMP_CWORD={len(words) - 1}
            read -r _ _ _ _ function _ <<< "$(complete -p portguard)"
            compopt() {{ echo compopt "$@"; }}  # which only works while readline completes
            $function portguard
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [real_program("bash"), "--norc", "-c", asking],
            env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout.split("\n")[:-1]

    return complete


def test_bash_completes_commands_and_their_options(completed):
    assert completed("portguard", "stat") == ["status"]
    assert completed("portguard", "re") == ["reexec", "reload", "resume"]
    assert completed("portguard", "policy", "di") == ["diff"]
    assert completed("portguard", "reload", "--me") == ["--message"]


def test_bash_completes_the_path_of_a_configuration(completed):
    assert completed("portguard", "status", "-c", "x") == ["compopt -o default", ""]


def test_bash_offers_nothing_for_what_is_no_command(completed):
    assert completed("portguard", "nope") == [""]


@pytest.mark.parametrize(
    ("shell", "first", "place"),
    [
        ("bash", "# To install it: ", "bash-completion/completions/portguard"),
        ("zsh", "#compdef portguard\n# To install it: ", "_portguard"),
        ("fish", "# To install it: ", "fish/completions/portguard.fish"),
    ],
)
def test_the_script_says_how_to_install_it(shell, first, place):
    text = script(shell)
    assert text.startswith(f"{first}portguard completion {shell} > ")
    assert place in text.partition("# To install it: ")[2].partition("\n")[0]
    assert f"_PORTGUARD_COMPLETE={shell}_complete" in text


def test_another_shell_is_wrong_usage():
    done = subprocess.run(
        [*_PORTGUARD, "completion", "tcsh"], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "'tcsh' is not one of" in done.stderr
