import pytest

from portguard.identity.names import Identity, Malformed, Namespace
from portguard.identity.patterns import Glob, Pattern, covers, parse_pattern

NAMESPACE = Namespace(
    sources={"local": "spiffe", "corp": "email", "hosts": "dns", "old": "cn"},
    default="local",
    domains={"bastion.example.com": "local"},
)


@pytest.mark.parametrize(
    ("glob", "name"),
    [
        ("alice", "alice"),
        ("*", "alice"),
        ("metrics-*", "metrics-web"),
        ("*@dba.example.com", "a@dba.example.com"),
        ("a*b*c", "axbyc"),
        ("a*b*c", "abbbc"),  # the leftmost "b" a star can leave is the second one
        ("*ab", "abab"),
        ("ns/*/web", "ns/prod/web"),
        ("*/*", "a/b"),
        ("teams/**", "teams/a"),
        ("teams/**", "teams/a/b/c"),
        ("*/x/**", "a/x/b"),
        ("**", "alice"),
        ("**", "a/b/c"),
        ("/**", "/a"),
        ("a.b", "a.b"),
        ("(a|b)+", "(a|b)+"),
        ("[ab]*", "[ab]c"),
    ],
)
def test_a_glob_matches(glob: str, name: str) -> None:
    assert Glob(glob).matches(name)


@pytest.mark.parametrize(
    ("glob", "name"),
    [
        ("alice", "alice2"),
        ("alice", "Alice"),
        ("alice", ""),
        ("*", ""),
        ("*", "a/b"),
        ("metrics-*", "metrics-"),
        ("*@dba.example.com", "@dba.example.com"),
        ("*@dba.example.com", "a@dba.example.com.evil"),
        ("a*b*c", "abc"),
        ("a*b*c", "abxc"),
        ("a*a", "a"),
        ("a*a", "aa"),
        ("ns/*/web", "ns/web"),
        ("ns/*/web", "ns//web"),
        ("ns/*/web", "ns/a/b/web"),
        ("teams/**", "teams"),
        ("teams/**", "teams/"),
        ("teams/**", "teamsters/a"),
        ("*/x/**", "a/x"),
        ("**", ""),
        ("a.b", "axb"),
        ("a.*", "ab"),
        ("[ab]*", "ac"),
        ("a?", "ab"),
        ("\\w*", "ab"),
    ],
)
def test_a_glob_does_not_match(glob: str, name: str) -> None:
    assert not Glob(glob).matches(name)


@pytest.mark.parametrize("text", ["a**", "**a", "a/**/b", "**/a", "***", "a/***", "a/b**"])
def test_two_stars_stand_only_for_a_whole_last_segment(text: str) -> None:
    with pytest.raises(Malformed, match=r'expected "\*\*" only at the end, after a "/", got'):
        Glob(text)


def test_an_empty_glob_is_an_error() -> None:
    with pytest.raises(Malformed):
        Glob("")


def test_a_pattern_never_crosses_trusts() -> None:
    assert Pattern("corp", "**").matches(Identity("corp", "alice"))
    assert not Pattern("corp", "**").matches(Identity("local", "alice"))
    assert not Pattern("corp", "alice").matches(Identity("local", "alice"))


def test_a_pattern_without_a_star_is_exact() -> None:
    assert Pattern("corp", "alice").is_exact
    assert not Pattern("corp", "alice*").is_exact


@pytest.mark.parametrize(
    ("text", "prefix"), [("alice", "alice"), ("ns/*/web", "ns/"), ("*", ""), ("teams/**", "teams/"), ("a*b*", "a")]
)
def test_every_match_begins_with_the_literal_prefix(text: str, prefix: str) -> None:
    assert Pattern("corp", text).literal_prefix == prefix


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("*", "alice"),
        ("*", "a*"),
        ("*", "*"),
        ("a*", "a*b"),
        ("**", "*"),
        ("**", "**"),
        ("**", "a/**"),
        ("a/**", "a/*/b"),
        ("a/**", "a/b/**"),
        ("*/**", "a/*"),
        ("a*c", "a*b*c"),
        ("ns/*/web", "ns/prod/web"),
    ],
)
def test_a_wider_pattern_covers(wide: str, narrow: str) -> None:
    assert covers(Pattern("corp", wide), Pattern("corp", narrow))


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("alice", "*"),
        ("a*", "*"),
        ("*", "**"),
        ("*", "a/b"),
        ("a/*", "a/**"),
        ("*/**", "**"),
        ("a/*/**", "a/**"),
        ("a*b", "a*"),
        ("a*b*c", "a*c"),
        ("alice", "bob"),
    ],
)
def test_a_pattern_that_misses_something_does_not_cover(wide: str, narrow: str) -> None:
    assert not covers(Pattern("corp", wide), Pattern("corp", narrow))


def test_nothing_covers_a_pattern_of_another_trust() -> None:
    assert not covers(Pattern("corp", "**"), Pattern("local", "alice"))


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("alice", Pattern("local", "alice")),
        ("ns/*/web", Pattern("local", "ns/*/web")),
        ("corp:*@dba.example.com", Pattern("corp", "*@dba.example.com")),
        ("corp:*@DBA.Example.com", Pattern("corp", "*@dba.example.com")),
        ("corp:**", Pattern("corp", "**")),
        ("hosts:*.Example.com", Pattern("hosts", "*.example.com")),
        ("old:Team */x", Pattern("old", "Team */x")),
        ("spiffe://bastion.example.com/ns/**", Pattern("local", "ns/**")),
        ("spiffe://bastion.example.com/**", Pattern("local", "**")),
    ],
)
def test_a_written_member_is_read(text: str, pattern: Pattern) -> None:
    assert parse_pattern(text, NAMESPACE) == pattern
    assert parse_pattern(pattern.written("local"), NAMESPACE) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@oncall",
        "crop:*",
        "corp:",
        "a/../*",
        "/a*",
        "a b*",
        "spiffe://other.example.com/**",
        "corp:alice",  # no certificate of an e-mail trust can have it
        "corp:a/*@example.com",
        "corp:ALICE*",
        "corp:*@a@b",
        "hosts:a/**",
        "hosts:a..*",
        "old:a\x00*",
        "old: *",
    ],
)
def test_a_member_that_could_never_match_is_an_error(text: str) -> None:
    with pytest.raises(Malformed):
        parse_pattern(text, NAMESPACE)
