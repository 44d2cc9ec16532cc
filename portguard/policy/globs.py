"""Which of many globs match a name, without trying them one by one.

A `*` never crosses a "/", so the globs make a tree of segments. Below a node, segments without a star are found in a
dictionary; those with stars by what they begin and end with, one look-up for each pair of lengths that occurs. So the
cost follows the number of different lengths, not of globs. Only segments with several stars that share both their
beginning and their end are compared one after the other.
"""

from collections.abc import Iterator

from portguard.identity.patterns import Glob


class GlobIndex:
    """Globs, each with a mask: a set of small numbers, as the bits of an integer."""

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, glob: Glob, mask: int) -> None:
        """Let `glob` stand for the bits in `mask` also."""
        segments = glob.text.split("/")
        if glob.any_depth:
            segments.pop()
        node = self._root
        for segment in segments:
            node = node.child(segment)
        if glob.any_depth:
            node.below |= mask
        else:
            node.here |= mask

    def matching(self, name: str) -> int:
        """The union of the masks of all globs that match `name`."""
        return self._walk(name.split("/"), any_depth_only=False)

    def covering(self, glob: Glob) -> int:
        """The union of the masks of all globs of which `Glob.covers` says that they cover `glob`."""
        return self._walk(glob.text.split("/"), any_depth_only=glob.any_depth)

    def _walk(self, segments: list[str], *, any_depth_only: bool) -> int:
        nodes = [self._root]
        mask = 0
        last = len(segments) - 1
        for position, segment in enumerate(segments):
            # `a/**` stands for at least one character below `a/`.
            if segment or position < last:
                for node in nodes:
                    mask |= node.below
            nodes = [child for node in nodes for child in node.matching(segment)]
        if not any_depth_only:
            for node in nodes:
                mask |= node.here
        return mask


class _Node:
    """What globs have in common up to some "/"."""

    __slots__ = ("_exact", "_starred", "below", "here")

    def __init__(self) -> None:
        self.here = 0  # of globs that end here
        self.below = 0  # of globs that end in `/**` here
        self._exact: dict[str, _Node] = {}
        # Length of the beginning -> beginning -> length of the end -> end -> segments of these.
        self._starred: dict[int, dict[str, dict[int, dict[str, _Starred]]]] = {}

    def child(self, segment: str) -> "_Node":
        """The node below for a segment of a glob, made when there is none."""
        if "*" not in segment:
            return self._exact.setdefault(segment, _Node())
        first, *_, last = segment.split("*")
        ends = self._starred.setdefault(len(first), {}).setdefault(first, {})
        return ends.setdefault(len(last), {}).setdefault(last, _Starred()).child(segment)

    def matching(self, segment: str) -> Iterator["_Node"]:
        """The nodes below whose segments match that of a name."""
        if (exact := self._exact.get(segment)) is not None:
            yield exact
        length = len(segment)
        for first_length, firsts in self._starred.items():
            if (ends := firsts.get(segment[:first_length])) is not None:
                for last_length, lasts in ends.items():
                    # A star takes at least one character, so the two may not touch.
                    if first_length + last_length < length and (starred := lasts.get(segment[length - last_length :])):
                        yield from starred.matching(segment)


class _Starred:
    """Segments with stars that share their beginning and their end."""

    __slots__ = ("_one_star", "_several_stars")

    def __init__(self) -> None:
        self._one_star: _Node | None = None
        self._several_stars: dict[str, tuple[Glob, _Node]] = {}

    def child(self, segment: str) -> _Node:
        if segment.count("*") == 1:
            self._one_star = self._one_star or _Node()
            return self._one_star
        return self._several_stars.setdefault(segment, (Glob(segment), _Node()))[1]

    def matching(self, segment: str) -> Iterator[_Node]:
        if self._one_star is not None:
            yield self._one_star
        for glob, node in self._several_stars.values():
            if glob.matches(segment):
                yield node
