import pytest

from portguard.identity.patterns import Glob
from portguard.policy.globs import GlobIndex

GLOBS = [
    "*",
    "**",
    "a*",
    "*b",
    "a*b",
    "a*b*c",
    "a*bb*c",
    "ns/*/sa/web",
    "ns/*/sa/web-*",
    "ns/**",
    "ns/*/**",
    "teams/x",
    "*a*",
]
NAMES = [
    "a",
    "b",
    "ab",
    "a1b",
    "abc",
    "a-b-c",
    "abbc",
    "a1bb2c",
    "ns/1/sa/web",
    "ns/1/sa/web-2",
    "ns",
    "ns/",
    "ns//x",
    "ns/1",
    "ns/1/",
    "ns/1/2/3",
    "teams/x",
    "teams/y",
    "bab",
    "/",
    "x/y",
]


def index() -> GlobIndex:
    made = GlobIndex()
    for number, text in enumerate(GLOBS):
        made.add(Glob(text), 1 << number)
    return made


def names_of(mask: int) -> set[str]:
    return {text for number, text in enumerate(GLOBS) if mask >> number & 1}


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_globs_that_match_a_name_are_found(name):
    assert names_of(index().matching(name)) == {text for text in GLOBS if Glob(text).matches(name)}


@pytest.mark.parametrize("narrow", [*GLOBS, "ns/a/**", "ns/a-*/sa/web", "x*", "teams/**"])
def test_exactly_the_globs_that_cover_another_are_found(narrow):
    assert names_of(index().covering(Glob(narrow))) == {text for text in GLOBS if Glob(text).covers(Glob(narrow))}


def test_a_star_takes_at_least_one_character():
    found = index()
    assert "a*b" not in names_of(found.matching("ab"))
    assert "a*b" in names_of(found.matching("a1b"))


def test_masks_of_one_glob_add_up():
    made = GlobIndex()
    made.add(Glob("a*"), 1)
    made.add(Glob("a*"), 4)
    assert made.matching("ab") == 5


def test_an_empty_index_matches_nothing():
    assert GlobIndex().matching("a") == 0
