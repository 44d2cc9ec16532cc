"""The ledger: the durable account of what identities use. Here is what it holds, and what every kind of it can do.

The accounts themselves are kept in memory, by one process (`accounts`, `rates`). The ledger has what a restart must
not forget. Its rows say how much is used *at most*: a lease is written before a byte of it may move, so whatever dies,
no quota is passed; what was leased and not used is at worst lost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from portguard.policy.quantities import Period


class Owner(NamedTuple):
    """Whose use is counted: an identity's in a role, or, with `trust` and `name` empty, that of the whole role."""

    role: str
    trust: str
    name: str

    @property
    def is_pool(self) -> bool:
        """Whether it stands for the whole role."""
        return not self.name

    @property
    def pool(self) -> "Owner":
        """The role's own account."""
        return Owner(self.role, "", "")


class UsageRow(NamedTuple):
    """What an owner has used, at most, in a period that runs from `start_s` until before `end_s` (since the epoch).

    There is one row for each owner and kind of period: the next period's takes its place.
    """

    owner: Owner
    period: Period
    start_s: int
    end_s: int
    used_bytes: int
    granted_bytes: int  # that an administrator gave beyond the quota, for this period
    resets: int = 0  # where several gateways share a ledger: after how many resets it counts


class RateRow(NamedTuple):
    """How often an owner has connected of late, as `rates.Connects.to_text` writes it."""

    owner: Owner
    connects: str
    end_s: int  # from then on it says nothing any more


class LockTarget(NamedTuple):
    """Who is locked out: an identity, a certificate by its fingerprint, or those of a trust with a serial number."""

    kind: Literal["identity", "fingerprint", "serial"]
    trust: str  # empty for a fingerprint, which needs none
    value: str  # the name; the SHA-256, or the serial number, in lower-case hex without anything between


class LockRow(NamedTuple):
    """A lock, of the reason `reason`, by the operator `by`. Times are seconds since the epoch.

    It acts until before `until_s`, None for ever. One whose `until_s` is 0 is a lock that was taken away.
    """

    target: LockTarget
    reason: str
    by: str
    since_s: int
    until_s: int | None


Row = UsageRow | RateRow | LockRow


@dataclass(frozen=True, slots=True)
class Contents:
    """What a ledger held when it was opened, without what is over."""

    usage: tuple[UsageRow, ...]
    rates: tuple[RateRow, ...]
    locks: tuple[LockRow, ...]


Answers = Sequence[tuple[Callable[[bool], None], bool]]
"""Who waits for rows to be written, and whether they were."""


class Store(Protocol):
    """Where the ledger is kept. Between `start` and `flush_and_close` no method waits for a disk or a network."""

    def contents(self, now_s: float) -> Contents:
        """Return what is there, and not over at `now_s`, since the epoch. Raises ConfigurationError."""

    def start(self, deliver: Callable[[Answers], None]) -> None:
        """Begin to write. `deliver` gets the answers, in whatever thread, and is to have each one called."""

    def flush_and_close(self, timeout_s: float) -> bool:
        """Write what waits, and end; return False when that was not possible in time."""

    def write(self, rows: Sequence[Row], on_written: Callable[[bool], None] | None = None) -> None:
        """Put the rows in place of those that they follow.

        `on_written(True)` comes, in the event loop, once they are safe. `on_written(False)` comes when they could not
        be written for now; they are kept all the same, and tried again until they or newer ones are. Without
        `on_written` they are written along with others, within `LATEST_S`.
        """

    def failing_s(self) -> float | None:
        """For how many seconds nothing could be written; None when it could."""

    @property
    def errors(self) -> int:
        """How many attempts to write have failed since the start."""

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written now, for people; None when it can."""


LATEST_S = 0.2
"""How long rows that nobody waits for may wait for others: to wake the writer costs more than to write."""
