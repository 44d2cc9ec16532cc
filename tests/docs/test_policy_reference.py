"""docs/reference/policy.md tells every key of a policy, and what it shows works."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from portguard.cli.main import portguard
from portguard.identity.names import Namespace
from portguard.identity.patterns import Glob
from portguard.policy import read
from portguard.policy.decide import DECIDED_REASONS
from portguard.policy.hours import parse_window
from portguard.policy.kinds import member_kind, parse_selector
from portguard.policy.model import Deny, Limits, PolicyTest, Role, Service, UpstreamTls
from portguard.policy.read import read_policy

PAGE = (Path(__file__).parents[2] / "docs/reference/policy.md").read_text()
BLOCKS = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NAMESPACE = Namespace({"local": "spiffe", "corp": "email"}, "local", {"example.com": "local"})
ROW = re.compile(r"^\| `([a-z_]+)` \| (.+?) \| (.+?) \|(.*) \|$", re.MULTILINE)

# What the file calls otherwise than the code.
WRITTEN = {
    "upstreams": "upstream", "idle_s": "idle", "session_s": "session", "sources": "from", "source": "from",
    "allowed": "expect",
}  # fmt: skip
SECTIONS = {
    "## [services.NAME]": Service,
    "### [services.NAME.tls]": UpstreamTls,
    "## [[deny]]": Deny,
    "## [[roles]]": Role,
    "## [[tests]]": PolicyTest,
}


def section(heading: str) -> str:
    """The text below a heading, up to the next one."""
    return re.split(r"^#+ ", PAGE.partition(f"\n{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def rows(heading: str) -> dict[str, tuple[str, str, str]]:
    return {key: (kind, default, meaning) for key, kind, default, meaning in ROW.findall(section(heading))}


def keys(dataclass: type) -> set[str]:
    fields = {field.name for field in dataclasses.fields(dataclass)} - {"origin", "limits"}
    fields |= {field.name for field in dataclasses.fields(Limits)} if dataclass is Role else set()
    return {WRITTEN.get(field, field) for field in fields}


@pytest.mark.parametrize("block", BLOCKS)
def test_every_example_is_right(block):
    read_policy([("/etc/portguard/policy.toml", block.encode())], NAMESPACE, gateway_name="bastion.example.com")


@pytest.mark.parametrize(("heading", "dataclass"), SECTIONS.items())
def test_every_key_is_documented_and_no_other(heading, dataclass):
    documented = set(rows(heading))
    assert documented == keys(dataclass) - ({"name"} if dataclass is Service else set())


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_in_an_example(heading):
    missing = {key for key in rows(heading) if not re.search(rf"\b{key} = ", "".join(BLOCKS))}
    assert missing == set()


def test_the_keys_of_defaults_are_documented():
    for table, terms in (("role", read._RoleTerms), ("service", read._ServiceTerms)):
        (row,) = re.findall(rf"^\| `\[defaults\.{table}\]` \| (.+) \|$", PAGE, re.MULTILINE)
        fields = {field.name for field in dataclasses.fields(terms)} - {"limits"}
        fields |= {field.name for field in dataclasses.fields(Limits)} if table == "role" else set()
        assert set(re.findall(r"`(\w+)`", row)) == {WRITTEN.get(field, field) for field in fields}


def first_column(heading: str) -> list[str]:
    return re.findall(r'^\| `"(.+?)"` \|', section(heading), re.MULTILINE)


def test_every_written_member_selector_and_window_reads():
    members, selectors, windows = map(first_column, ("### Members", "### Selectors of services", "### Hours"))
    assert (len(members), len(selectors), len(windows)) == (7, 4, 5)
    for text in members:
        member_kind(NAMESPACE).convert(text)
    for text in selectors:
        parse_selector(text)
    for text in windows:
        parse_window(text)
    assert Glob("ns/**").matches("ns/a/b")


def test_every_reason_of_a_decision_is_explained():
    told = set(re.findall(r"`([a-z_]+)`", section("## How a decision is made")))
    assert told >= {str(reason) for reason in DECIDED_REASONS} | {"unknown_service"}


def test_every_command_and_option_that_is_shown_exists():
    lines = re.findall(r"^(?:\$ |`)portguard (.+?)`?$", PAGE, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(re.sub(r"[\[\]…]", " ", line))
        command = portguard
        while words and hasattr(command, "commands") | hasattr(command, "get_command"):
            command = command.get_command(None, words.pop(0))
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, line


@pytest.mark.parametrize("name", ["explain", "diff", "access", "show"])
def test_every_option_of_a_command_is_documented_and_no_other(name):
    documented = set(re.findall(r"^\| `(--[a-z]+)", section(f"### policy {name}"), re.MULTILINE))
    command = portguard.get_command(None, "policy").get_command(None, name)
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    assert documented == options - {"--config"}
