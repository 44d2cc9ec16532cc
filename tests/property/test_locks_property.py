"""Whatever else is locked and unlocked: who has a lock in force is not let in, and nobody else is kept out."""

from hypothesis import given
from hypothesis import strategies as st

from portguard.identity.names import Identity
from portguard.limits.ledger import LockRow, LockTarget
from portguard.limits.locks import Locks

names, digits, times_s = st.sampled_from("ab"), st.sampled_from(["1", "2"]), st.integers(0, 20)
holders = st.tuples(st.builds(Identity, names, names), digits, digits)
targets = st.one_of(
    st.builds(LockTarget, st.just("identity"), names, names),
    st.builds(LockTarget, st.just("fingerprint"), st.just(""), digits),
    st.builds(LockTarget, st.just("serial"), names, digits),
)
ends_s = st.one_of(st.none(), times_s)
acts = st.lists(
    st.one_of(
        st.tuples(st.just("lock"), targets, ends_s), st.tuples(st.just("unlock"), targets), st.tuples(st.just("expire"))
    )
)


def names_holder(target, holder):
    identity, fingerprint, serial = holder
    match target:
        case ("identity", trust, name):
            return (trust, name) == (identity.trust, identity.name)
        case ("fingerprint", _, value):
            return value == fingerprint
        case ("serial", trust, value):
            return (trust, value) == (identity.trust, serial)


@given(acts, holders, times_s)
def test_a_lock_in_force_never_admits_and_nothing_else_keeps_out(acts, holder, now_s):
    locks, expected = Locks(), {}
    for act, *about in acts:
        if act == "lock":
            target, until_s = about
            locks.add(LockRow(target, "", "", 0, until_s))
            expected[target] = until_s
        elif act == "unlock":
            locks.remove(*about)
            expected.pop(*about, None)
        else:
            locks.take_expired(now_s)
    ends = [end_s for target, end_s in expected.items() if names_holder(target, holder)]
    kept_out = any(end_s is None or now_s < end_s for end_s in ends)
    found = locks.check(*holder, now_s)
    assert (found is not None) == kept_out
    if found is not None:
        assert found.until_s is None or all(end_s is not None and end_s <= found.until_s for end_s in ends)
