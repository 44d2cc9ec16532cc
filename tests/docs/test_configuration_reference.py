"""docs/reference/configuration.md tells every key, with the default that the gateway really has."""

import dataclasses
import re
from pathlib import Path

import pytest

from portguard.gateway.configuration import Configuration, TrustSettings, read_configuration

PAGE = (Path(__file__).parents[2] / "docs/reference/configuration.md").read_text()
BLOCKS = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
LEAST = BLOCKS[0]
ROW = re.compile(r"^\| `([a-z_]+)` \| .+? \| (.+?) \| .+ \|$", re.MULTILINE)


def section(name):
    """The text below a heading."""
    return PAGE.partition(f"\n## [{name}]\n")[2].partition("\n## ")[0]


def documented(name):
    """Keys of a section, with what stands as their default."""
    return dict(ROW.findall(section(name)))


def read(content):
    problems = []
    configuration = read_configuration("/etc/portguard/portguard.toml", content.encode(), problems)
    assert problems == []
    return configuration


def keys(dataclass):
    """A dataclass's fields as they are written in the file: without units."""
    return {field.name.removesuffix("_s") for field in dataclasses.fields(dataclass)}


SECTIONS = {
    name: type(getattr(read(LEAST), name))
    for name in ("gateway", "timeouts", "capacity", "ledger", "metrics", "audit", "control", "log")
}


def test_every_section_is_looked_at():
    others = {"path", "trusts", "namespace"}
    assert {field.name for field in dataclasses.fields(Configuration)} == SECTIONS.keys() | others


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_is_documented_and_no_other(name):
    assert documented(name).keys() == keys(SECTIONS[name])


def test_every_key_of_a_trust_is_documented_and_no_other():
    assert documented("trusts.NAME").keys() == keys(TrustSettings) - {"name"}


@pytest.mark.parametrize("block", BLOCKS)
def test_every_example_is_right(block):
    read(block if "[gateway]" in block else ("" if "[trusts" in block else LEAST) + gateway_of(block) + block)


def gateway_of(block):
    """What an example of trusts alone lacks."""
    return '[gateway]\nname = "bastion.example.com"\n' if "[trusts" in block else ""


def test_the_documented_defaults_are_the_real_ones():
    written = LEAST
    for name in SECTIONS:
        lines = [f"{key} = {text.strip('`')}" for key, text in documented(name).items() if text != "required"]
        header = "" if f"[{name}]" in written else f"[{name}]\n"
        block = header + "\n".join(lines) + "\n"
        written = written.replace("[gateway]\n", f"[gateway]\n{block}") if name == "gateway" else written + block
    assert written.count(" = ") > 30
    assert read(written) == read(LEAST)
