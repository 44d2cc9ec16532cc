"""The documents hold together: links and anchors resolve, every page is reachable, named commands exist."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import click
import pytest

from portguard.cli.main import portguard

_REPOSITORY = Path(__file__).parents[2]
_PAGES = sorted([*_REPOSITORY.glob("*.md"), *_REPOSITORY.glob("docs/**/*.md")])
_FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[ ]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def _links(page: Path) -> Iterator[tuple[Path, str]]:
    """The files and anchors inside the repository that `page` links to."""
    for target in _LINK.findall(re.sub(r"`[^`\n]*`", "", _prose(page))):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        yield (page.parent / path).resolve() if path else page, anchor


def _anchors(page: Path) -> set[str]:
    """The anchors that hosting sites make of headings: lower case, punctuation dropped, spaces to hyphens."""
    headings = re.findall(r"^#+[ ]+(.+?)[ #]*$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def _name(page: Path) -> str:
    return page.relative_to(_REPOSITORY).as_posix()


@pytest.mark.parametrize("page", _PAGES, ids=_name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in _links(page):
        assert target.exists(), f"{_name(page)}: expected a file at {target}"
        if anchor and target.suffix == ".md":
            assert anchor in _anchors(target), f"{_name(page)}: expected a heading #{anchor} in {_name(target)}"


def test_every_document_is_reachable_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [_REPOSITORY / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        folder = [page / "README.md"] if page.is_dir() else []
        linked = [target for target, _ in _links(page)] if page.suffix == ".md" else folder
        waiting += [target for target in linked if target.exists()]
    unreached = [_name(page) for page in _PAGES if page not in reached and page.is_relative_to(_REPOSITORY / "docs")]
    assert unreached == [], "expected each to be linked from a page that README.md leads to"


@pytest.mark.parametrize("page", _PAGES, ids=_name)
def test_every_command_that_is_named_exists(page: Path) -> None:
    """`portguard cert issue …`, in a console block or in the prose, is a command of this version."""
    text = page.read_text()
    named = re.findall(r"(?:^\$ |`)portguard((?: [a-z][a-z-]*)+)", text, re.MULTILINE)
    for words in named:
        command: click.Command | None = portguard
        for word in words.split():
            if not isinstance(command, click.Group):
                break  # the rest are arguments
            command = command.get_command(click.Context(command), word)
            assert command is not None, f"{_name(page)}: expected a command, got `portguard{words}`"


@pytest.mark.parametrize("page", _PAGES, ids=_name)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (_REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for words in re.findall(r"(?:^\$ |`)make((?: [a-z][a-z0-9-]*)+)", page.read_text(), re.MULTILINE):
        assert set(words.split()) - targets == set(), f"{_name(page)}: expected targets of the Makefile"


def _options(command: click.Command, words: str = "portguard") -> Iterator[tuple[str, str]]:
    """Every long option of every command, with the command."""
    context = click.Context(command)
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            inner = command.get_command(context, word)
            assert inner is not None
            yield from _options(inner, f"{words} {word}")
        return
    for parameter in command.params:
        yield from ((words, option) for option in parameter.opts if option.startswith("--"))


def test_every_option_is_told_of_in_the_reference() -> None:
    reference = "".join(page.read_text() for page in _REPOSITORY.glob("docs/reference/*.md"))
    options = list(_options(portguard))
    assert len(options) > 100
    untold = [f"{words} {option}" for words, option in options if not re.search(rf"{option}(?![\w-])", reference)]
    assert untold == []
