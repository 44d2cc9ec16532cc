from hypothesis import given
from hypothesis import strategies as st

from portguard.identity.names import Identity, Malformed
from portguard.identity.patterns import Glob, Pattern
from portguard.policy.entries import MemberIndex
from portguard.policy.globs import GlobIndex


def glob_or_none(text: str) -> Glob | None:
    try:
        return Glob(text)
    except Malformed:
        return None


# Few letters, so that globs and names meet often.
names = st.text("ab/", min_size=1, max_size=8)
globs = st.text("ab/*", min_size=1, max_size=7).map(glob_or_none).filter(lambda glob: glob is not None)
many_globs = st.lists(globs, max_size=8)
trusts = st.sampled_from(["local", "corp"])


def index_of(many: list[Glob]) -> GlobIndex:
    index = GlobIndex()
    for number, glob in enumerate(many):
        index.add(glob, 1 << number)
    return index


def mask_of(held: list[bool]) -> int:
    return sum(1 << number for number, each in enumerate(held) if each)


@given(many_globs, names)
def test_the_index_finds_the_globs_that_match_and_no_other(many, name):
    assert index_of(many).matching(name) == mask_of([glob.matches(name) for glob in many])


@given(many_globs, globs)
def test_the_index_finds_the_globs_that_cover_another_and_no_other(many, narrow):
    assert index_of(many).covering(narrow) == mask_of([glob.covers(narrow) for glob in many])


@given(st.lists(st.builds(lambda trust, glob: Pattern(trust, glob.text), trusts, globs), max_size=6), trusts, names)
def test_patterns_never_cross_trusts(patterns, trust, name):
    found = MemberIndex([[pattern] for pattern in patterns], {}).matching(Identity(trust, name), ())
    assert found == mask_of([pattern.trust == trust and pattern.glob.matches(name) for pattern in patterns])
