"""Patterns over names: exact, `*` for one or more characters other than "/", a trailing `/**` for any depth.

Matching takes no regular expressions, so nothing in a pattern can be taken for one, and no backtracking: a `*` never
crosses a "/", so segments are compared one by one, and within a segment the leftmost place for each literal part is
always a right one. The cost is that of `str.find`.
"""

from dataclasses import dataclass, field

from portguard.identity.names import Identity, Malformed, Namespace, check_name, fold

_ANY_DEPTH = "**"


@dataclass(frozen=True, slots=True, order=True)
class Glob:
    """A pattern over plain text, such as `metrics-*`, `ns/*/web`, `teams/**`; `**` alone is any text but the empty one.

    Raises Malformed for the empty pattern and for `**` anywhere but as the whole last segment.
    """

    text: str
    _segments: tuple[tuple[str, ...], ...] = field(init=False, repr=False, compare=False)  # literal parts between stars
    any_depth: bool = field(init=False, repr=False, compare=False)  # whether it ends in `/**` (or is `**`)

    def __post_init__(self) -> None:
        if not self.text:
            raise Malformed("a name or a pattern", "nothing")
        segments = self.text.split("/")
        any_depth = segments[-1] == _ANY_DEPTH
        if any_depth:
            segments.pop()
        if any(_ANY_DEPTH in segment for segment in segments):
            raise Malformed('"**" only at the end, after a "/"', repr(self.text))
        object.__setattr__(self, "_segments", tuple(tuple(segment.split("*")) for segment in segments))
        object.__setattr__(self, "any_depth", any_depth)

    @property
    def is_exact(self) -> bool:
        """Whether exactly one text matches: `text` itself."""
        return "*" not in self.text

    @property
    def literal_prefix(self) -> str:
        """What every match begins with; empty when the pattern begins with a star. For an index over many patterns."""
        return self.text.partition("*")[0]

    def matches(self, name: str) -> bool:
        """Whether `name` as a whole fits."""
        segments = self._segments
        if self.any_depth:
            # maxsplit leaves everything below the last literal segment in one piece, which may hold more slashes.
            names = name.split("/", len(segments))
            if len(names) <= len(segments) or not names.pop():
                return False
        else:
            names = name.split("/")
            if len(names) != len(segments):
                return False
        return all(map(_segment_matches, segments, names))

    def covers(self, narrow: "Glob") -> bool:
        """Whether everything that `narrow` matches is matched by this. True only if sure.

        A star of `narrow` is put to this pattern as the character "*" itself. Literal parts hold none, so only a star
        of this pattern can take it, and such a star would take whatever stands in its place as well.
        """
        return (self.any_depth or not narrow.any_depth) and self.matches(narrow.text)


@dataclass(frozen=True, slots=True, order=True)
class Pattern:
    """A glob over the names of one trust. It never matches an identity of another."""

    trust: str
    text: str
    glob: Glob = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "glob", Glob(self.text))

    @property
    def is_exact(self) -> bool:
        """Whether exactly one identity matches: `Identity(trust, text)`."""
        return self.glob.is_exact

    @property
    def literal_prefix(self) -> str:
        """What the name of every match begins with; may be empty."""
        return self.glob.literal_prefix

    def matches(self, identity: Identity) -> bool:
        """Whether the identity is of this trust and its whole name fits. *Fails closed.*"""
        return identity.trust == self.trust and self.glob.matches(identity.name)

    def written(self, default_trust: str | None) -> str:
        """The text that `parse_pattern` reads back."""
        return Identity(self.trust, self.text).written(default_trust)


def parse_pattern(text: str, namespace: Namespace) -> Pattern:
    """Read a written member: an identity, or a pattern after its trust (`corp:*@example.com`, `spiffe://corp.example/**`).

    Raises Malformed for an unknown trust, and for what no certificate of that trust could ever match: a deny entry
    with such a member would protect nothing.
    """
    if text.startswith("@"):
        raise Malformed("an identity or a pattern, not a group", repr(text))
    trust, rest = namespace.split(text)
    source = namespace.sources[trust]
    folded = fold(rest, source)
    check_name(folded, source, wildcards=True)
    return Pattern(trust, folded)


def covers(wide: Pattern, narrow: Pattern) -> bool:
    """Whether every identity that `narrow` matches is matched by `wide`. True only if sure."""
    return wide.trust == narrow.trust and wide.glob.covers(narrow.glob)


def _segment_matches(parts: tuple[str, ...], text: str) -> bool:
    """Whether `text` is the literal `parts` in order, with one or more characters in each gap between them."""
    if len(parts) == 1:
        return text == parts[0]
    first, *middle, last = parts
    if not text.startswith(first):
        return False
    position = len(first)
    for part in middle:
        # From the next character on, as the star before must take one.
        found = text.find(part, position + 1)
        if found < 0:
            return False
        position = found + len(part)
    return len(text) - len(last) > position and text.endswith(last)
