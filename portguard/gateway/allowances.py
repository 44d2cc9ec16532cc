"""What sessions of a worker may move: leases of a quota, and shares of a bandwidth, which the supervisor gives out.

An account stands for an identity in a role. Its sessions draw on one lease for both directions, and on a share for
each. When one is used up, the flows that want more wait in a row; what comes then goes to the first of them.
"""

from collections.abc import Callable

from portguard.gateway.gates import Allowance, Gate
from portguard.gateway.messages import (
    Leased,
    LeaseReturned,
    LeaseWanted,
    Message,
    Regranted,
    Share,
    ShareWanted,
    Ticket,
)

UP, DOWN = range(2)


class _Account:
    __slots__ = ("lease", "shares", "slots")

    def __init__(self, lease: Allowance | None, shares: tuple[Allowance, Allowance] | None):
        self.lease = lease
        self.shares = shares
        self.slots: set[int] = set()

    def gate(self, direction: int) -> Gate | None:
        allowances = [self.lease] if self.lease is not None else []
        if self.shares is not None:
            allowances.append(self.shares[direction])
        return Gate(*allowances) if allowances else None


class Allowances:
    """The accounts of a worker's sessions. `send` reaches the supervisor."""

    def __init__(self, send: Callable[[Message], None]):
        self._send = send
        self._accounts: dict[int, _Account] = {}
        self._by_slot: dict[int, int] = {}

    def open(self, ticket: Ticket | Regranted) -> None:
        """A session was admitted, or goes on otherwise. To be called at once: what it may move can come right after."""
        self.leave(ticket.slot)
        if not (ticket.leased or ticket.paced):
            return
        number = ticket.account
        account = self._accounts.get(number)
        if account is None:
            account = self._accounts[number] = _Account(None, None)
        self._limit(account, ticket)
        account.slots.add(ticket.slot)
        self._by_slot[ticket.slot] = number
        if ticket.lease_bytes:
            self.leased(ticket)

    def gates(self, slot: int) -> tuple[Gate | None, Gate | None]:
        """The gates of an open session, up and down; None: it may move what it likes."""
        number = self._by_slot.get(slot)
        if number is None:
            return None, None
        account = self._accounts[number]
        return account.gate(UP), account.gate(DOWN)

    def close(self, slot: int) -> LeaseReturned | None:
        """A session has ended. Return what the account gives back with its last one, which the supervisor must hear.

        Even nothing is given back: others may wait to hear so. None: the session was not the last, or had no lease.
        """
        number = self._by_slot.pop(slot, None)
        if number is None:
            return None
        account = self._accounts[number]
        account.slots.remove(slot)
        if account.slots:
            return None
        del self._accounts[number]
        return LeaseReturned(number, account.lease.take_all()) if account.lease is not None else None

    def leave(self, slot: int) -> None:
        """A session goes on, and no more in the account in which it was, if in any."""
        if (returned := self.close(slot)) is not None:
            self._send(returned)

    def refused(self, number: int) -> list[int]:
        """There is nothing more for an account. Return the slots of its sessions, which are to end."""
        account = self._accounts.get(number)
        if account is None:
            return []
        if account.lease is not None:
            account.lease.refused()
        return list(account.slots)

    def leased(self, message: Leased | Ticket | Regranted) -> None:
        """More of a quota may be used: as many bytes as are leased with the message."""
        account = self._accounts.get(message.account)
        if account is None or account.lease is None:  # its last session has ended meanwhile
            self._send(LeaseReturned(message.account, message.lease_bytes))
            return
        account.lease.add(message.lease_bytes)

    def recall(self, number: int) -> None:
        """Give back what is not used: somebody else has nothing left."""
        account = self._accounts.get(number)
        left = account.lease.take_all() if account is not None and account.lease is not None else 0
        self._send(LeaseReturned(number, left))

    def share(self, message: Share) -> None:
        """More may pass for now."""
        account = self._accounts.get(message.account)
        if account is not None and account.shares is not None:
            account.shares[message.direction].add(message.share_bytes)

    def sweep(self) -> None:
        """Let shares that were not used for a while lapse, or they would make a burst later. Every second."""
        for account in self._accounts.values():
            for share in account.shares or ():
                share.lapse()

    def _limit(self, account: _Account, ticket: Ticket | Regranted) -> None:
        """Have the account the kinds of limits that it has by now; other sessions of it are about to be told too."""
        number, send = ticket.account, self._send
        if not ticket.leased and account.lease is not None:
            send(LeaseReturned(number, account.lease.take_all()))
            account.lease = None
        elif ticket.leased and account.lease is None:
            account.lease = Allowance(lambda empty: send(LeaseWanted(number, empty)), ahead=True)
        if not ticket.paced:
            account.shares = None
        elif account.shares is None:
            account.shares = self._share(number, UP), self._share(number, DOWN)

    def _share(self, number: int, direction: int) -> Allowance:
        return Allowance(lambda _empty: self._send(ShareWanted(number, direction)), ahead=False)
