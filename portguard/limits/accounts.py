"""The accounts of bytes: what identities and roles have used of each calendar period, leases included.

An account counts in every period, quota or not, so that a quota that comes later counts from the period's beginning.
What is leased and not used yet counts as used, for as long as it is out. At the turn of a period it is taken off the
new one: a byte belongs to the period in which it was leased, and one that nobody leased to that in which it is noted.

Where gateways share a ledger, each keeps its own part of every account, and hears what the others have of it.

Time is seconds since the epoch, the calendar's. Nothing here does I/O: `take_rows` tells what is to be written.
"""

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import tzinfo
from typing import Any, NamedTuple

from portguard.errors import Refused
from portguard.limits.account import PERIODS, Account, zeros
from portguard.limits.fleet import Claim, Others
from portguard.limits.ledger import Owner, UsageRow
from portguard.limits.periods import Span, span_at, written_end, written_period
from portguard.policy.model import NO_LIMITS, Limits
from portguard.policy.quantities import Period, Quota, written_size
from portguard.reasons import Reason

_WARN_AT = 0.8
_PLENTY = 16  # leases that are still left


class Warned(NamedTuple):
    """An owner has used most of a quota. Told once a period."""

    owner: Owner
    quota: Quota
    used_bytes: int


class QuotaLine(NamedTuple):
    """How an owner stands in one period. `limit_bytes` None: it is only counted."""

    owner: Owner
    period: Period
    limit_bytes: int | None
    granted_bytes: int  # beyond the limit, for this period
    used_bytes: int
    outstanding_bytes: int  # leased, and not used yet
    end_s: int


class Accounts:
    """All accounts. `limits` are those of the roles, by name; `shared`: other gateways write the same ledger."""

    def __init__(self, limits: Mapping[str, Limits], zone: tzinfo, now_s: float, *, shared: bool = False):
        self._shared = shared
        self._limits: Mapping[str, Limits] = limits
        self._zone = zone
        self._set_spans([span_at(period, now_s, zone) for period in PERIODS])
        self._accounts: dict[Owner, Account] = {}
        self._charged: dict[Owner, tuple[Account, ...]] = {}  # what `charged` has answered, under these limits
        self._changed: dict[Owner, Account] = {}  # what the ledger is to be told
        self._ahead: dict[Owner, Account] = {}  # of which the ledger holds more than is used
        self._writing: Counter[Owner] = Counter()  # how often `rows_for` were asked for, and are not answered yet
        self._to_check: dict[Owner, Account] = {}  # whose use may have come near a quota

    def load(self, rows: Iterable[UsageRow]) -> None:
        """Take over what a ledger held. To be called once, before all else.

        A row counts whose period began at another time, as the policy had another zone then.
        """
        pools: dict[str, set[int]] = {}
        for row in rows:
            account = self.account(row.owner)
            number = PERIODS.index(row.period)
            numbers = pools.setdefault(row.owner.role, set())
            if row.owner.is_pool:
                numbers.add(number)
            account.used[number] = account.asked[number] = account.safe[number] = row.used_bytes
            account.granted[number] = row.granted_bytes
            account.resets[number] = row.resets
            if (row.start_s, row.end_s) != self._spans[number]:
                account.safe[number] = 0
                self._changed[row.owner] = account
        for role, numbers in pools.items():
            # What the ledger has of a role stands: its members' sum is more when they were leased ahead in the ledger
            # one by one, and when an operator has reset the role.
            self._count_members(role, set(range(len(PERIODS))) - numbers)
        for account in self._accounts.values():  # who was warned before a restart need not be warned again
            account.warned = {quota.period for quota in self.quotas(account.owner) if _is_high(account, quota)}

    def configure(self, limits: Mapping[str, Limits], zone: tzinfo, now_s: float) -> None:
        """Go on with other limits, or in another time zone: what was used in the running periods stays used."""
        self.roll(now_s)
        shared = {role for role, before in self._limits.items() if before.pooled_quota}
        self._limits = limits
        self._charged.clear()
        if zone != self._zone:
            self._zone = zone
            self._set_spans([span_at(period, now_s, zone) for period in PERIODS])
            for account in self._accounts.values():
                account.safe = zeros()
                account.others_used, account.others_granted, account.resets = zeros(), zeros(), zeros()
                self._changed[account.owner] = account
        for role in {owner.role for owner in self._accounts}:
            holdings = {
                key: holding
                for owner, account in self._accounts.items()
                if owner.role == role and not owner.is_pool
                for key, holding in account.holdings.items()
            }
            pool = self.account(Owner(role, "", ""))
            if not self.limits(role).pooled_quota:
                outstanding, holdings = pool.outstanding(), {}
                # Nobody will put it back here.
                pool.used = [used - outstanding for used in pool.used]
            pool.holdings = holdings
            if role not in shared:
                self._count_members(role, range(len(PERIODS)))
        self._to_check = dict(self._accounts)

    def state(self) -> dict[str, Any]:
        """All accounts, for another program that goes on with them and their ledger: what json.dumps() takes."""
        return {
            "spans": self._spans,
            "accounts": [
                [*account.owner, account.used, account.granted, account.asked, sorted(account.warned)]
                for account in self._accounts.values()
            ],
            "resets": [[*account.owner, account.resets] for account in self._accounts.values() if any(account.resets)],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, in which the ledger had all that it was asked to hold."""
        self._set_spans([Span(*span) for span in state["spans"]])
        for role, trust, name, used, granted, asked, warned in state["accounts"]:
            account = self.account(Owner(role, trust, name))
            account.used, account.granted, account.asked, account.safe = used, granted, asked, asked.copy()
            if self._shared:
                account.safe = zeros()  # what was to be put aside may have been more than there was
            account.warned = set(map(Period, warned))
            self._ahead[account.owner] = self._changed[account.owner] = account
        for role, trust, name, resets in state.get("resets", ()):  # which older programs do not tell
            self.account(Owner(role, trust, name)).resets = resets

    def account(self, owner: Owner) -> Account:
        """The owner's account; a new one if there is none."""
        account = self._accounts.get(owner)
        if account is None:
            account = self._accounts[owner] = Account(owner)
        return account

    def owners(self) -> Collection[Owner]:
        """Whoever has an account."""
        return tuple(self._accounts)

    # Quotas.

    def limits(self, role: str) -> Limits:
        """The limits of a role; none for a role that is not known."""
        return self._limits.get(role, NO_LIMITS)

    def quotas(self, owner: Owner) -> tuple[Quota, ...]:
        """The owner's own quotas: an identity's, or those that a role shares."""
        limits = self.limits(owner.role)
        return limits.pooled_quota if owner.is_pool else limits.quota

    def quota_periods(self, owner: Owner) -> Collection[Period]:
        """The periods in which the owner has a quota."""
        return {quota.period for quota in self.quotas(owner)}

    def _quota_sizes(self, owner: Owner) -> dict[Period, int]:
        """The size of the owner's smallest quota in each period in which it has one."""
        sizes: dict[Period, int] = {}
        for quota in self.quotas(owner):
            sizes[quota.period] = min(quota.size_bytes, sizes.get(quota.period, quota.size_bytes))
        return sizes

    def charged(self, owner: Owner) -> tuple[Account, ...]:
        """The accounts that an identity's leases are taken off: its own, and its role's if that has quotas."""
        charged = self._charged.get(owner)
        if charged is None:
            account = self.account(owner)
            shared = self.limits(owner.role).pooled_quota
            charged = self._charged[owner] = (account, self.account(owner.pool)) if shared else (account,)
        return charged

    def _looked_at(self, owner: Owner) -> tuple[Account, ...]:
        """As `charged`, to be read only: who has no account yet gets none by being asked for."""
        charged = self._charged.get(owner)
        if charged is None:
            owners = (owner, owner.pool) if self.limits(owner.role).pooled_quota else (owner,)
            charged = tuple(self._accounts.get(each) or Account(each) for each in owners)
        return charged

    def left(self, owner: Owner) -> int:
        """What may still be leased to an identity; negative when a quota became smaller."""
        return min(map(self._left, self._looked_at(owner)))

    def short(self, owner: Owner) -> Account:
        """Of what an identity is short when nothing is left: of its own quotas, else of those that its role shares.

        What comes back to its own comes back to its role's as well, and not the other way round.
        """
        return next(account for account in self._looked_at(owner) if self._left(account) <= 0)

    def exhausted(self, owner: Owner, now_s: float) -> Refused:
        """Say which quota of an identity is used up; of several, the one that renews last.

        To be called when nothing is left, and nobody holds anything of what it is short of.
        """
        end_s, number, whose, quota = max(
            (self._spans[number].end_s, number, account.owner, quota)
            for account in self._looked_at(owner)
            for quota in self.quotas(account.owner)
            for number in [PERIODS.index(quota.period)]
            if quota.size_bytes + account.given(number) <= account.taken(number) - account.outstanding()
        )
        kind = f"{written_period(quota.period)} quota of {written_size(quota.size_bytes)}"
        return Refused(
            Reason.QUOTA_EXHAUSTED,
            f"{f'the {kind} that role {owner.role} shares' if whose.is_pool else kind} is used up; "
            f"it renews at {written_end(self._spans[number], self._zone, now_s)}",
            retry_after_s=end_s - now_s,
        )

    # Use.

    def use(self, account: Account, used_bytes: int) -> None:
        """Enter what moved without a lease."""
        for number in range(len(PERIODS)):
            account.used[number] += used_bytes
        self._changed[account.owner] = self._to_check[account.owner] = account

    def lease(self, owner: Owner, lease_bytes: int) -> bool:
        """Take a lease off the accounts that it concerns; return whether the ledger holds that much already.

        If not, `rows_for` are to be written before a byte of it may be used.
        """
        safe = True
        # Near the end, what is put aside here for later is what somebody lacks at another gateway.
        ahead_bytes = lease_bytes if not self._shared or self.left(owner) > _PLENTY * lease_bytes else 0
        for account in self.charged(owner):
            self._ahead[account.owner] = self._to_check[account.owner] = account
            for number in range(len(PERIODS)):
                account.used[number] += lease_bytes
                if account.used[number] > account.asked[number]:
                    # As much again: the next lease then need not wait for the ledger.
                    account.asked[number] = account.used[number] + ahead_bytes
                safe = safe and account.used[number] <= account.safe[number]
        return safe

    def put_back(self, owner: Owner, unused_bytes: int) -> None:
        """Enter that so much of a lease will not be used."""
        for account in self.charged(owner):
            for number in range(len(PERIODS)):
                account.used[number] -= unused_bytes

    def roll(self, now_s: float) -> None:
        """Begin the periods that have come. A clock that steps back begins none anew: bytes would be had twice."""
        if now_s < self._first_end_s:
            return
        for number, (period, span) in enumerate(zip(PERIODS, self._spans, strict=True)):
            if now_s < span.end_s:
                continue
            self._spans[number] = span_at(period, now_s, self._zone)
            for account in self._accounts.values():
                if account.used[number] or account.granted[number]:
                    self._changed[account.owner] = account
                account.used[number] = account.outstanding()
                account.granted[number] = account.asked[number] = account.safe[number] = 0
                account.others_used[number] = account.others_granted[number] = account.resets[number] = 0
                account.warned.discard(period)
        self._set_spans(self._spans)

    def warnings(self) -> list[Warned]:
        """Whoever has come to use most of a quota since the last call."""
        warned = []
        accounts, self._to_check = self._to_check, {}
        for account in accounts.values():
            for quota in self.quotas(account.owner):
                if quota.period not in account.warned and _is_high(account, quota):
                    account.warned.add(quota.period)
                    used = account.taken(PERIODS.index(quota.period)) - account.outstanding()
                    warned.append(Warned(account.owner, quota, used))
            if account.holdings:
                self._to_check[account.owner] = account
        return warned

    # What operators see and do.

    def lines(self, wanted: Callable[[Owner], bool], now_s: float) -> Iterator[QuotaLine]:
        """How each wanted owner stands, in every period in which it has a quota or has used anything.

        It may be taken slowly, with other things done in between.
        """
        for owner in self.owners():
            if wanted(owner):
                yield from self.lines_of(owner, now_s)

    def lines_of(self, owner: Owner, now_s: float) -> list[QuotaLine]:
        """How one owner stands, as `lines` tells it; one that has no account yet gets none by being asked for."""
        self.roll(now_s)
        account = self._accounts.get(owner) or Account(owner)
        sizes = self._quota_sizes(owner)
        if owner.is_pool and not sizes:
            return []
        outstanding = account.outstanding()
        lines = []
        for number, (period, span) in enumerate(zip(PERIODS, self._spans, strict=True)):
            used, granted = account.taken(number) - outstanding, account.given(number)
            if period in sizes or used:
                lines.append(QuotaLine(owner, period, sizes.get(period), granted, used, outstanding, span.end_s))
        return lines

    def reset(self, owner: Owner, periods: Collection[Period], now_s: float) -> None:
        """Forget what the owner has used in the running periods; what is leased and not used stays taken."""
        self.roll(now_s)
        account = self.account(owner)
        for period in periods:
            number = PERIODS.index(period)
            self._forget_use(account, number)
            account.others_used[number] = 0
            account.resets[number] += self._shared
        account.warned -= set(periods)
        self._changed[owner] = self._ahead[owner] = account

    def grant(self, owner: Owner, periods: Collection[Period], extra_bytes: int, now_s: float) -> None:
        """Give an owner bytes beyond its quotas, until the running periods end."""
        self.roll(now_s)
        account = self.account(owner)
        for period in periods:
            account.granted[PERIODS.index(period)] += extra_bytes
        account.warned -= set(periods)
        self._changed[owner] = account

    # What other gateways have.

    def hear(self, news: Iterable[Others], now_s: float, *, all_there_is: bool = False) -> Collection[str]:
        """Take note of what others have used; return the roles that this concerns.

        `all_there_is`: those who are not named have used nothing. What is of another period is passed over.
        """
        self.roll(now_s)
        if all_there_is:
            for account in self._accounts.values():
                account.others_used, account.others_granted = zeros(), zeros()
        roles = set()
        for others in news:
            number = PERIODS.index(others.period)
            if others.start_s != self._spans[number].start_s:
                continue
            account = self.account(others.owner)
            account.others_used[number], account.others_granted[number] = others.used_bytes, others.granted_bytes
            if others.resets > account.resets[number]:
                account.resets[number] = others.resets
                self._forget_use(account, number)
                account.warned.discard(others.period)
                self._changed[account.owner] = account
            self._to_check[account.owner] = account
            roles.add(others.owner.role)
        return roles

    def load_late(self, rows: Iterable[UsageRow], now_s: float) -> None:
        """Add what this gateway had used before it started, which it could not learn then."""
        self.roll(now_s)
        for row in rows:
            number = PERIODS.index(row.period)
            account = self.account(row.owner)
            account.resets[number] = row.resets
            account.used[number] += row.used_bytes
            account.granted[number] += row.granted_bytes
            self._changed[row.owner] = self._ahead[row.owner] = self._to_check[row.owner] = account

    def _forget_use(self, account: Account, number: int) -> None:
        account.used[number] = account.outstanding()
        # What was put aside before is nobody's any more. In a fleet a late answer is known by the number of its reset.
        # On disk it is not: a write that is under way would be taken for what the ledger holds, which has less by then.
        if self._shared or not self._writing[account.owner]:
            account.asked[number] = account.used[number]
            account.safe[number] = min(account.safe[number], account.asked[number])

    # What the ledger is told.

    def take_rows(self, now_s: float) -> list[UsageRow]:
        """Return the rows that have changed since the last call, all of which are to be written."""
        self.roll(now_s)
        changed, self._changed = self._changed, {}
        return [row for account in changed.values() for row in self._rows(account)]

    def settle(self) -> None:
        """Have the ledger told what is used, and no more, of accounts that nobody draws on. Every few seconds."""
        for owner, account in list(self._ahead.items()):
            # What is being written would be taken for what the ledger holds when it has less again.
            if not account.holdings and not self._writing[owner]:
                del self._ahead[owner]
                account.asked = account.used.copy()
                account.safe = list(map(min, account.safe, account.asked))
                self._changed[owner] = account

    def rows_for(self, owner: Owner) -> list[UsageRow]:
        """The rows that are to be written before what was leased to an identity may be used.

        After each call you must call `written`, or `not_written`, which `Leases.cancel` does.
        """
        self._writing.update((owner, owner.pool))
        return [row for account in self.charged(owner) for row in self._rows(account)]

    def claims_for(self, owner: Owner) -> list[Claim]:
        """As `rows_for`, of a ledger that others write too: what is to be put aside, if there still is so much.

        After each call you must call `claimed`, or `not_written`.
        """
        self._writing.update((owner, owner.pool))
        claims = []
        for account in self.charged(owner):
            sizes = self._quota_sizes(account.owner)
            claims += [
                Claim(row, needed_bytes, sizes.get(row.period))
                for row, needed_bytes in zip(self._rows(account), account.used, strict=True)
            ]
        return claims

    def claimed(self, owner: Owner, rows: Iterable[UsageRow]) -> None:
        """The ledger has put aside these rows, of `claims_for` the owner: as much as was needed, or more."""
        self.not_written(owner)
        for row in rows:
            number = PERIODS.index(row.period)
            account = self._accounts[row.owner]
            if row.start_s != self._spans[number].start_s or row.resets != account.resets[number]:
                continue
            account.safe[number] = max(account.safe[number], row.used_bytes)
            # While another claim is on its way, a row that says less could follow it and take away what it has got.
            if not self._writing[row.owner]:
                account.asked[number] = max(account.used[number], account.safe[number])

    def give_up(self, owner: Owner) -> None:
        """What was claimed for an identity is not to be had, and the lease that needed it is taken back."""
        for account in self.charged(owner):
            if not self._writing[account.owner]:
                account.asked = list(map(max, account.used, account.safe))

    def written(self, rows: Iterable[UsageRow]) -> None:
        """The ledger has these rows, which `rows_for` answered."""
        rows = tuple(rows)
        self.not_written(rows[0].owner)
        for row in rows:
            number = PERIODS.index(row.period)
            if row.start_s == self._spans[number].start_s:
                account = self._accounts[row.owner]
                account.safe[number] = max(account.safe[number], row.used_bytes)

    def not_written(self, owner: Owner) -> None:
        """The ledger did not take what `rows_for` the identity answered."""
        self._writing -= Counter((owner, owner.pool))

    def _set_spans(self, spans: list[Span]) -> None:
        self._spans = spans
        self._first_end_s = min(span.end_s for span in spans)

    def _left(self, account: Account) -> int:
        left = sys.maxsize
        for quota in self.quotas(account.owner):
            number = PERIODS.index(quota.period)
            left = min(left, quota.size_bytes + account.given(number) - account.taken(number))
        return left

    def _rows(self, account: Account) -> list[UsageRow]:
        account.asked = list(map(max, account.asked, account.used))
        return [
            UsageRow(
                account.owner,
                period,
                *self._spans[number],
                account.asked[number],
                account.granted[number],
                account.resets[number],
            )
            for number, period in enumerate(PERIODS)
        ]

    def _count_members(self, role: str, numbers: Iterable[int]) -> None:
        """Have a role's own account count what its identities used before the role had a quota to share."""
        pool = self.account(Owner(role, "", ""))
        members = [account for owner, account in self._accounts.items() if owner.role == role and not owner.is_pool]
        for number in numbers:
            used = sum(account.used[number] for account in members)
            if used > pool.used[number]:
                pool.used[number] = used
                self._changed[pool.owner] = pool


def _is_high(account: Account, quota: Quota) -> bool:
    number = PERIODS.index(quota.period)
    used = account.taken(number) - account.outstanding()
    return used >= _WARN_AT * (quota.size_bytes + account.given(number))
