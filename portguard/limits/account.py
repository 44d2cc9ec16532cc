"""One account of bytes: how much its owner has used of each calendar period, and what workers hold of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from portguard.limits.ledger import Owner
from portguard.policy.quantities import Period

PERIODS = tuple(Period)
"""All kinds, in the order of an account's lists."""


class Holding:
    """What one worker holds of an identity's account. `moved(slot)` is what a live session has moved, both ways."""

    __slots__ = ("leased", "moved", "next_bytes", "owner", "recalled", "slots", "spent", "waiting", "worker")

    def __init__(self, owner: Owner, worker: int, moved: Callable[[int], int], first_bytes: int):
        self.owner = owner
        self.worker = worker
        self.moved = moved
        self.slots: dict[int, int] = {}  # and what each had moved when it began to draw on this
        self.leased = 0  # since it began, less what was given back
        self.spent = 0  # by those of its sessions that have ended
        self.next_bytes = first_bytes
        self.recalled = False  # and has not answered yet
        self.waiting = False

    def unspent(self) -> int:
        """What is leased and not used yet.

        Counts are in memory that the worker writes to. Whatever they say, it is between nothing and all.
        """
        left = self.leased - self.spent - sum(self.moved(slot) - before for slot, before in self.slots.items())
        return max(0, min(left, self.leased - self.spent))


def zeros() -> list[int]:
    """Nothing in any period."""
    return [0] * len(PERIODS)


@dataclass(slots=True)
class Account:
    """One owner's account. Lists have a number for each of `PERIODS`."""

    owner: Owner
    used: list[int] = field(default_factory=zeros)  # or leased
    granted: list[int] = field(default_factory=zeros)
    asked: list[int] = field(default_factory=zeros)  # what the ledger is to hold: at least `used`, once it is told
    safe: list[int] = field(default_factory=zeros)  # what the ledger surely holds
    others_used: list[int] = field(default_factory=zeros)  # by other gateways, at most
    others_granted: list[int] = field(default_factory=zeros)  # at other gateways
    resets: list[int] = field(default_factory=zeros)  # of which this gateway knows, where several share a ledger
    warned: set[Period] = field(default_factory=set)
    holdings: dict[tuple[Owner, int], Holding] = field(default_factory=dict)  # by identity's owner and worker

    def outstanding(self) -> int:
        """What is leased and not used yet."""
        return sum(holding.unspent() for holding in self.holdings.values())

    def taken(self, number: int) -> int:
        """What is used or leased of a period, wherever."""
        return self.used[number] + self.others_used[number]

    def given(self, number: int) -> int:
        """What was granted for a period beyond the quotas, wherever."""
        return self.granted[number] + self.others_granted[number]
