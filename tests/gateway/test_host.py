"""Whether a gateway could begin here: what serving would trip over, found without leaving a trace."""

import grp
import os
import pwd
import resource
import socket
from datetime import UTC, datetime

import pytest

from portguard.gateway import host
from portguard.gateway.bundle import Bundle
from portguard.gateway.configuration import read_configuration
from portguard.gateway.confinement import Landlock
from portguard.gateway.host import host_problems, host_warnings

PATH = "/etc/portguard/portguard.toml"
LEAST = """
[gateway]
name = "bastion.example.com"
state = "{folder}/{state}"
control = "{folder}/{control}"
[trusts.local]
ca = "ca.crt"
identity = "cn"
[audit]
path = "{audit}"
"""


@pytest.fixture
def found(tmp_path):
    """`found(state="a/b")` tells the problems, with paths from the folder, and looks that nothing was made."""
    (tmp_path / "file").write_text("")
    (tmp_path / "there").mkdir()

    def look(*, state="state", control="run/c.sock", audit="audit/audit.jsonl", more="", gateway=""):
        text = LEAST.format(folder=tmp_path, state=state, control=control, audit=audit) + more
        text = text.replace("[gateway]", gateway or "[gateway]", 1)
        bundle = Bundle(PATH, {PATH: text.encode()}, datetime.now(UTC))
        before = sorted(tmp_path.rglob("*"))
        told = [str(problem).replace(f"{tmp_path}/", "") for problem in host_problems(bundle)]
        assert sorted(tmp_path.rglob("*")) == before
        return told

    return look


@pytest.mark.parametrize("state", ["there", "missing", "missing/below/that", "there/missing"])
@pytest.mark.parametrize("audit", ["audit/audit.jsonl", "-", "../elsewhere/audit.jsonl"])
def test_folders_that_serving_would_make_are_no_problem(found, state, audit):
    assert found(state=state, audit=audit) == []


@pytest.mark.parametrize("state", ["file", "file/below", "file/below/that"])
def test_a_state_that_cannot_be_a_folder_is_one_problem(found, state):
    assert found(state=state) == [
        f"{state}: expected a folder that can be written (gateway.state), got not a directory"
    ]


@pytest.mark.parametrize(
    ("audit", "problem"),
    [
        ("../file/audit.jsonl", "../file: expected a folder that can be written (audit.path), got not a directory"),
        ("../there", "../there: expected a file that can be appended to (audit.path), got is a directory"),
    ],
)
def test_an_audit_that_cannot_be_a_file_is_told(found, audit, problem):
    assert found(state="there", audit=audit) == [f"there/{problem}"]


def test_a_configuration_that_is_wrong_by_itself_is_not_looked_at_further(found):
    assert found(state="file", more="[log]\nlevel = 1\n") == []
    assert host_problems(Bundle(PATH, {}, datetime.now(UTC))) == []


def test_a_confinement_that_is_required_is_a_problem_where_the_kernel_has_none(found, monkeypatch):
    required = '[gateway]\nconfinement = "required"'
    monkeypatch.setattr(host, "landlock", lambda: Landlock(None, "no kernel"))
    assert found(state="there", gateway="") == []
    [problem] = found(state="there", gateway=required)
    assert problem == f'{PATH}: gateway.confinement: expected a host with Landlock, as it is "required", got no kernel'
    monkeypatch.setattr(host, "landlock", lambda: Landlock(1))
    assert found(state="there", gateway=required) == []


@pytest.mark.parametrize("control", ["c.sock", "there/c.sock", "missing/c.sock"])
def test_a_control_socket_needs_no_more_than_the_folder_above_its_own(found, control):
    assert found(control=control) == []


@pytest.mark.parametrize(
    ("control", "problem"),
    [
        ("a/b/c.sock", "a path where a socket can be made, got a/b/c.sock: no such folder"),
        ("file/c.sock", "a path where a socket can be made, got file/c.sock: not a directory"),
        ("file/a/c.sock", "a path where a socket can be made, got file/a/c.sock: not a directory"),
        ("file", "a path of its own for the control socket, got file, which is no socket"),
        ("there", "a path of its own for the control socket, got there, which is no socket"),
    ],
)
def test_a_place_where_no_control_socket_can_be_is_told(found, control, problem):
    assert found(control=control) == [f"{PATH}: gateway.control: expected {problem}"]


def test_the_socket_of_the_gateway_that_runs_is_none(found, tmp_path):
    with socket.socket(socket.AF_UNIX) as running:
        running.bind(str(tmp_path / "there/c.sock"))
        running.listen()
        assert found(control="there/c.sock") == []


def test_what_this_user_may_not_see_is_left_to_the_gateways(found, monkeypatch):
    stat = os.stat

    def refuse(path, **more):
        if str(path).endswith("/file"):
            raise PermissionError
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", refuse)
    assert found(state="file/below", control="file/c.sock") == []


def warnings(control):
    text = LEAST.format(folder="/run", state="s", control="c.sock", audit="-")
    return list(host_warnings(read_configuration(PATH, f"{text}[control]\n{control}".encode(), [])))


def test_users_and_groups_that_the_host_does_not_know_are_warned_of():
    known = f'"user:{pwd.getpwuid(os.getuid()).pw_name}", "group:{grp.getgrgid(os.getgid()).gr_name}"'
    assert warnings(f'viewers = [{known}, "user:nobodyx"]\nadmins = ["group:no-such-group", {known}]\n') == [
        f"{PATH}: control.viewers[2]: expected a user of this host, got nobodyx",
        f"{PATH}: control.admins[0]: expected a group of this host, got no-such-group",
    ]


def test_those_that_have_a_level_by_default_need_not_be_there(monkeypatch):
    def unknown(name):
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", unknown)
    monkeypatch.setattr(grp, "getgrnam", unknown)
    assert warnings("") == warnings('operators = ["user:root", "group:portguard"]') == []
    assert len(warnings('operators = ["group:root", "user:portguard"]')) == 2


def test_a_directory_that_does_not_answer_is_no_warning(monkeypatch):
    def silent(name):
        raise OSError("no answer")

    monkeypatch.setattr(pwd, "getpwnam", silent)
    assert warnings('operators = ["user:anna"]') == []


@pytest.mark.parametrize(("most", "problems"), [(100, []), (101, ["capacity.max_sessions: expected at most 100, "])])
def test_sessions_that_the_open_files_do_not_hold_are_told(found, monkeypatch, most, problems):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 200 + 1 + 1024 + 64))
    told = found(more=f"[capacity]\nmax_sessions = {most}\npending_handshakes = 1\n")
    assert [text.removeprefix(f"{PATH}: ").partition("which")[0] for text in told] == problems
