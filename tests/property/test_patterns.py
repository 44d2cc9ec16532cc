import re

from hypothesis import example, given
from hypothesis import strategies as st

from portguard.identity.names import Identity, Malformed, Namespace, parse_identity
from portguard.identity.patterns import Glob, Pattern, covers

# Few characters, so that patterns and names often meet; those that mean something to regular expressions among them.
names = st.text("ab/.@[(?+\\^$|", max_size=12)
globs = st.builds(
    lambda segments, tail: "/".join(segments) + tail,
    st.lists(st.text("ab.[(?+\\^$|*", max_size=5).filter(lambda s: "**" not in s), min_size=1, max_size=3),
    st.sampled_from(["", "", "/**"]),
).filter(bool)

# What has gone wrong in names before: separators, case, control and format characters, two spellings of one letter.
# (All of Unicode would do as well, but its table takes longer to build than hypothesis likes to wait.)
ANYTHING = "abAB19:@/.*-_ ~\x00\n\x7f\x85\u00a0\u00e9e\u0301\u0130\u00df\u200d\u202e\ufb01\ud800\U0001f600"


def as_regex(glob: str) -> re.Pattern[str]:
    """The same pattern as a regular expression: slow in the worst case, but plain to see."""
    tail = ""
    if glob == "**":
        glob, tail = "", ".+"
    elif glob.endswith("/**"):
        glob, tail = glob[:-3], "/.+"
    return re.compile("[^/]+".join(re.escape(part) for part in glob.split("*")) + tail, re.DOTALL)


@given(globs, names)
@example("**", "a/b")
@example("a*b*b", "abbb")
def test_a_glob_matches_what_its_regular_expression_matches(glob: str, name: str) -> None:
    assert Glob(glob).matches(name) == bool(as_regex(glob).fullmatch(name))


@given(globs, st.data())
def test_a_glob_matches_whatever_its_stars_are_replaced_by(glob: str, data: st.DataObject) -> None:
    name, tail = glob, ""
    if glob.endswith("/**") or glob == "**":
        name, tail = glob[:-2], data.draw(st.text(ANYTHING, min_size=1))
    while "*" in name:
        name = name.replace("*", data.draw(st.text(ANYTHING.translate({42: None, 47: None}), min_size=1)), 1)
    name += tail
    assert Glob(glob).matches(name)
    assert name.startswith(Glob(glob).literal_prefix)


@given(globs, globs, names)
def test_what_is_covered_never_matches_more(wide: str, narrow: str, name: str) -> None:
    if covers(Pattern("t", wide), Pattern("t", narrow)) and Glob(narrow).matches(name):
        assert Glob(wide).matches(name)


@given(globs)
def test_every_pattern_covers_itself_and_is_covered_by_any_depth(glob: str) -> None:
    assert covers(Pattern("t", glob), Pattern("t", glob))
    assert covers(Pattern("t", "**"), Pattern("t", glob))


@given(globs, names)
def test_no_pattern_matches_in_another_trust(glob: str, name: str) -> None:
    assert not Pattern("one", glob).matches(Identity("other", name))


class Counted(str):
    """Text that counts how often it is searched."""

    searches = 0

    def find(self, *arguments: object) -> int:
        Counted.searches += 1
        return super().find(*arguments)  # type: ignore[arg-type]  # passed through as they came

    def split(self, *arguments: object, **options: object) -> list[str]:
        return [Counted(part) for part in super().split(*arguments, **options)]  # type: ignore[arg-type]  # likewise


@given(st.integers(1, 300), st.integers(0, 600))
def test_many_stars_cost_one_search_each(stars: int, length: int) -> None:
    glob = Glob("*a" * stars + "*b")  # the worst case for backtracking: every "a" could belong to every star
    Counted.searches = 0
    assert not glob.matches(Counted("a" * length))
    assert Counted.searches <= stars


@given(
    st.sampled_from(["one", "two"]), st.text(ANYTHING, min_size=1, max_size=20), st.sampled_from(["one", "two", None])
)
@example("one", "two:x", "one")
@example("one", "@x", "one")
@example("one", "spiffe://d/x", "one")
def test_an_identity_is_read_back_as_it_was_written(trust: str, name: str, default: str | None) -> None:
    namespace = Namespace({"one": "cn", "two": "cn", "three": "spiffe"}, default, {"d": "three"})
    try:
        identity = parse_identity(f"{trust}:{name}", namespace)
    except Malformed:
        return
    assert identity == Identity(trust, name)
    assert parse_identity(identity.written(default), namespace) == identity


@given(st.text(ANYTHING, max_size=40))
def test_reading_any_text_ends_in_an_identity_or_in_malformed(text: str) -> None:
    namespace = Namespace({"local": "spiffe", "ad": "upn", "m": "email", "d": "dns"}, "local", {"d.test": "local"})
    for prefix in ("", "ad:", "m:", "d:", "spiffe://d.test/"):
        try:
            identity = parse_identity(prefix + text, namespace)
        except Malformed:
            continue
        assert identity.name
        assert identity.name.isprintable()
        assert "*" not in identity.name
