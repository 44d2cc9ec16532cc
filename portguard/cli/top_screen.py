"""What `portguard top` shows, of two answers of the gateway: sessions and rates, by identity and service."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from portguard.cli.tables import fitted, table_lines
from portguard.policy.quantities import written_size

HEADINGS = frozenset({0, 3})
"""The lines that stand out: the verdict, and the names of the columns."""

_LINES_ABOVE = 4  # verdict, totals, an empty one, the names of the columns
_LINES_BELOW = 1
_RIGHT = frozenset({2, 3, 4, 5})
_HEADER = ("IDENTITY", "SERVICE", "SESSIONS", "FROM/S", "TO/S", "MOVED")
_NUMBERS = 8 + 4 * 2 + 3 * 9 + 2  # columns that the four numbers and the gaps take at most
_NARROWEST_NAME = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """What the gateway said at `at_s`, time.monotonic(): its verdict, and bytes from and to clients by session."""

    at_s: float
    verdict: str
    sessions: Mapping[str, tuple[str, str, int, int]]  # by id: identity, service, received, sent

    @classmethod
    def of(cls, at_s: float, status: Mapping[str, Any], listed: Mapping[str, Any]) -> "Sample":
        """Take the answers apart. Raises LookupError, TypeError or ValueError for those of another version."""
        sessions = {}
        for each in listed["sessions"]:
            about = str(each["identity"]), str(each["service"]), int(each["received"]), int(each["sent"])
            sessions[str(each["session"])] = about
        return cls(at_s, str(status["verdict"]), sessions)


@dataclass(slots=True)
class _Group:
    sessions: int = 0
    moved: int = 0
    received: int = 0  # since the sample before
    sent: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """The difference between two samples. Of sessions that ended in between nothing is known."""

    verdict: str
    elapsed_s: float
    groups: Mapping[tuple[str, str], _Group] = field(repr=False)  # by identity and service

    @classmethod
    def between(cls, before: Sample, after: Sample) -> "Rates":
        """`before` is earlier than `after`."""
        groups: defaultdict[tuple[str, str], _Group] = defaultdict(_Group)
        for session, (identity, service, received, sent) in after.sessions.items():
            _, _, received_before, sent_before = before.sessions.get(session, ("", "", 0, 0))
            group = groups[identity, service]
            group.sessions += 1
            group.moved += received + sent
            group.received += max(0, received - received_before)
            group.sent += max(0, sent - sent_before)
        return cls(after.verdict, after.at_s - before.at_s, groups)

    def lines(self, columns: int, rows: int | None) -> Sequence[str]:
        """The screen, the busiest first; `rows` None: all of it."""
        groups = self._busiest_first()
        room = len(groups) if rows is None else max(0, rows - _LINES_ABOVE - _LINES_BELOW)
        shown, more = groups[:room], len(groups) - room
        names = max(_NARROWEST_NAME, (columns - _NUMBERS) // 2)
        cells = [self._cells(identity, service, group, names) for (identity, service), group in shown]
        lines = [self.verdict, self._totals(), "", *table_lines(_HEADER, cells, right=_RIGHT)]
        if rows is not None:
            lines.append("q quits" if more <= 0 else f"and {more} more; q quits")
            lines = lines[:rows]
        return [fitted(line, columns) for line in lines]

    def document(self) -> Mapping[str, object]:
        """The same for programs: bytes a second, rounded, and all groups."""
        return {
            "verdict": self.verdict,
            "seconds": round(self.elapsed_s, 3),
            "groups": [
                {
                    "identity": identity,
                    "service": service,
                    "sessions": group.sessions,
                    "received_per_second": round(group.received / self.elapsed_s),
                    "sent_per_second": round(group.sent / self.elapsed_s),
                    "moved": group.moved,
                }
                for (identity, service), group in self._busiest_first()
            ],
        }

    def _busiest_first(self) -> Sequence[tuple[tuple[str, str], _Group]]:
        return sorted(
            self.groups.items(), key=lambda each: (-(each[1].received + each[1].sent), -each[1].moved, each[0])
        )

    def _cells(self, identity: str, service: str, group: _Group, names: int) -> Sequence[str]:
        return (
            fitted(identity, names),
            fitted(service, names),
            str(group.sessions),
            self._rate(group.received),
            self._rate(group.sent),
            written_size(group.moved),
        )

    def _totals(self) -> str:
        every = self.groups.values()
        sessions = sum(group.sessions for group in every)
        received, sent = sum(group.received for group in every), sum(group.sent for group in every)
        who = len({identity for identity, _ in self.groups})
        noun, whose = "session" if sessions == 1 else "sessions", "identity" if who == 1 else "identities"
        rates = f"; {self._rate(received)}/s from clients, {self._rate(sent)}/s to them" if self.elapsed_s > 0 else ""
        return f"{sessions} {noun} of {who} {whose}{rates}"

    def _rate(self, count: int) -> str:
        return written_size(round(count / self.elapsed_s)) if self.elapsed_s > 0 else ""
