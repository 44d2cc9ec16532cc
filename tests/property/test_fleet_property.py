"""Gateways that share a ledger never pass a quota together, and agree on locks in whatever order they hear of them."""

from datetime import UTC
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from portguard.limits.account import Holding
from portguard.limits.accounts import Accounts
from portguard.limits.fleet import Others, StampedLock, merge_locks
from portguard.limits.ledger import LockRow, LockTarget, Owner
from portguard.policy.model import Limits
from portguard.policy.quantities import Period, Quota

NOW_S = 1_795_000_000.0
ANNA = Owner("dba", "staff", "anna")
QUOTA = 1000
LIMITS = Limits(quota=(Quota(QUOTA, Period.DAY),), pooled_quota=(Quota(QUOTA + 300, Period.DAY),))


class SharedRows:
    """The ledger of a fleet as it is to be: a row a gateway, and claims that are met as a whole or not at all."""

    def __init__(self):
        self.rows = {}  # by owner, period, gateway

    def others(self, gateway, row):
        key = row.owner, row.period
        return sum(used for (*about, other), used in self.rows.items() if tuple(about) == key and other != gateway)

    def write(self, gateway, rows):
        for row in rows:
            self.rows[row.owner, row.period, gateway] = row.used_bytes

    def claim(self, gateway, claims):
        granted = []
        for claim in claims:
            row = claim.row
            most = row.used_bytes if claim.limit_bytes is None else claim.limit_bytes - self.others(gateway, row)
            if claim.needed_bytes > most:
                return [], self.news(gateway, claims)
            granted.append(row._replace(used_bytes=max(claim.needed_bytes, min(row.used_bytes, most))))
        self.write(gateway, granted)
        return granted, self.news(gateway, claims)

    def news(self, gateway, claims):
        return [
            Others(row.owner, row.period, row.start_s, self.others(gateway, row), 0, 0)
            for row in (claim.row for claim in claims)
        ]


class Gateway:
    """One that leases to two identities; what is leased and safe may have moved."""

    def __init__(self, name, ledger):
        self.name, self.ledger = name, ledger
        self.accounts = Accounts({"dba": LIMITS}, UTC, NOW_S, shared=True)
        self.moved = 0
        self.news = []  # that is under way to it

    def lease(self, owner, size):
        size = min(size, self.accounts.left(owner))
        if size <= 0:
            return
        self.hold(owner)
        if not self.accounts.lease(owner, size):
            claims = self.accounts.claims_for(owner)
            rows, news = self.ledger.claim(self.name, claims)
            self.accounts.hear(news, NOW_S)
            if not rows:
                self.accounts.not_written(owner)
                self.accounts.put_back(owner, size)
                return
            self.accounts.claimed(owner, rows)
            self.news += news
        self.moved += size

    def hold(self, owner):
        for account in self.accounts.charged(owner):
            account.holdings[owner, 1] = Holding(owner, 1, lambda _slot: 0, 0)

    def end(self):
        for owner in self.accounts.owners():
            self.accounts.account(owner).holdings.clear()
        self.accounts.settle()
        self.ledger.write(self.name, self.accounts.take_rows(NOW_S))

    def hear_late(self):
        self.accounts.hear(self.news, NOW_S)
        self.news.clear()


STEP = st.tuples(st.integers(0, 2), st.sampled_from(["lease", "lease", "end", "hear_late"]), st.integers(1, 400))


@given(st.lists(STEP, max_size=60))
def test_gateways_together_never_pass_a_quota(steps):
    ledger = SharedRows()
    gateways = [Gateway(str(number), ledger) for number in range(3)]
    for number, what, size in steps:
        gateway = gateways[number]
        gateway.lease(ANNA, size) if what == "lease" else getattr(gateway, what)()
        assert sum(gateway.moved for gateway in gateways) <= QUOTA


@given(st.lists(STEP, max_size=30))
def test_what_is_left_can_be_had_at_any_gateway_once_nobody_holds_anything(steps):
    ledger = SharedRows()
    gateways = [Gateway(str(number), ledger) for number in range(3)]
    for number, what, size in steps:
        gateways[number].lease(ANNA, size) if what == "lease" else getattr(gateways[number], what)()
    for gateway in gateways:
        gateway.end()
    last = gateways[0]
    last.accounts.hear(ledger.news(last.name, last.accounts.claims_for(ANNA)), NOW_S)
    for _ in range(2 * QUOTA):
        last.lease(ANNA, 100)
    assert sum(gateway.moved for gateway in gateways) == QUOTA


LOCKS = st.builds(
    lambda at_ms, until_s, reason: StampedLock(
        LockRow(LockTarget("identity", "staff", "anna"), reason, "user:root", 7, until_s), at_ms
    ),
    st.integers(1, 3),
    st.sampled_from([None, 0, 9]),
    st.sampled_from(["a", "b"]),
)


@given(st.lists(LOCKS, max_size=4))
def test_all_agree_on_a_lock_in_whatever_order_they_hear_of_it(locks):
    outcomes = set()
    for order in permutations(locks):
        held = {}
        merge_locks(held, order)
        outcomes |= set(held.values())
        assert merge_locks(held, locks) == []  # once heard, hearing it again changes nothing
    assert len(outcomes) == min(1, len(locks))
