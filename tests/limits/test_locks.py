"""Who is locked out, by which lock, and how locks are named."""

import pytest

from portguard.errors import Refused
from portguard.identity.names import Identity, Malformed, Namespace
from portguard.instants import written_second
from portguard.limits.ledger import LockRow, LockTarget
from portguard.limits.locks import (
    Locks,
    parse_certificate_target,
    parse_identity_target,
    written_target,
)
from portguard.reasons import Reason

NOW_S = 1_795_000_000.5
LATER_S = 1_795_003_600
ALICE = Identity("corp", "alice@example.com")
PRINT, SERIAL = "ab" * 32, "1f"
BY_NAME = LockTarget("identity", "corp", "alice@example.com")
BY_PRINT = LockTarget("fingerprint", "", PRINT)
BY_SERIAL = LockTarget("serial", "corp", SERIAL)
NAMESPACE = Namespace({"local": "spiffe", "corp": "email"}, "local", {"x.test": "local"})


def lock(target=BY_NAME, until_s=None, reason="INC-1"):
    return LockRow(target, reason, "uid 0 (root)", 1_794_999_000, until_s)


def found(locks, identity=ALICE, fingerprint=PRINT, serial=SERIAL, now_s=NOW_S):
    return locks.check(identity, fingerprint, serial, now_s)


def test_without_locks_nobody_is_locked_out():
    assert found(Locks()) is None
    Locks().refuse(ALICE, PRINT, SERIAL, NOW_S)


@pytest.mark.parametrize("target", [BY_NAME, BY_PRINT, BY_SERIAL])
def test_each_kind_of_lock_keeps_out_whom_it_names(target):
    assert found(Locks([lock(target)])) == lock(target)


@pytest.mark.parametrize(
    ("target", "other"),
    [
        (BY_NAME, {"identity": Identity("corp", "bob@example.com")}),
        (BY_NAME, {"identity": Identity("local", "alice@example.com")}),
        (BY_PRINT, {"fingerprint": "ac" * 32}),
        (BY_SERIAL, {"serial": "1e"}),
        (BY_SERIAL, {"identity": Identity("local", "alice@example.com")}),
    ],
)
def test_a_lock_leaves_others_alone(target, other):
    assert found(Locks([lock(target)]), **other) is None


def test_a_name_that_reads_like_a_serial_number_is_no_serial_number():
    locks = Locks([lock(LockTarget("identity", "corp", SERIAL))])
    assert found(locks) is None
    assert found(locks, identity=Identity("corp", SERIAL)) is not None


def test_a_lock_ends_by_itself_at_its_end_and_not_before():
    locks = Locks([lock(until_s=LATER_S)])
    assert found(locks, now_s=LATER_S - 0.001) == lock(until_s=LATER_S)
    assert found(locks, now_s=LATER_S) is None
    assert locks.get(BY_NAME) == lock(until_s=LATER_S)
    assert locks.take_expired(LATER_S - 0.001) == []
    assert locks.take_expired(LATER_S) == [lock(until_s=LATER_S)]
    assert (len(locks), locks.rows(), locks.get(BY_NAME)) == (0, (), None)


def test_locks_for_ever_never_expire():
    locks = Locks([lock()])
    assert locks.take_expired(1e12) == []
    assert found(locks, now_s=1e12) == lock()


@pytest.mark.parametrize(
    ("by_name", "by_print", "counts"),
    [(None, LATER_S, BY_NAME), (LATER_S, None, BY_PRINT), (LATER_S, LATER_S + 1, BY_PRINT), (0, LATER_S, BY_PRINT)],
)
def test_of_several_the_one_that_ends_last_counts(by_name, by_print, counts):
    locks = Locks([lock(BY_NAME, by_name), lock(BY_PRINT, by_print)])
    assert found(locks).target == counts


def test_a_later_lock_takes_the_place_of_the_one_before():
    locks = Locks([lock(until_s=LATER_S)])
    locks.add(lock(reason="INC-2"))
    assert locks.rows() == (lock(reason="INC-2"),)
    locks.remove(BY_NAME)
    locks.remove(BY_NAME)
    assert found(locks) is None


@pytest.mark.parametrize(
    ("target", "until_s", "message"),
    [
        (BY_NAME, None, "the identity is locked"),
        (BY_NAME, LATER_S, f"the identity is locked until {written_second(LATER_S)}"),
        (BY_PRINT, None, "the certificate is locked"),
        (BY_SERIAL, None, "the certificate is locked"),
    ],
)
def test_who_is_refused_is_told_until_when_and_not_why(target, until_s, message):
    with pytest.raises(Refused) as caught:
        Locks([lock(target, until_s)]).refuse(ALICE, PRINT, SERIAL, NOW_S)
    assert (caught.value.reason, caught.value.message) == (Reason.LOCKED, message)


# How they are named.


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("ns/alice", LockTarget("identity", "local", "ns/alice")),
        ("spiffe://x.test/ns/alice", LockTarget("identity", "local", "ns/alice")),
        ("corp:alice@EXAMPLE.com", BY_NAME),
    ],
)
def test_identities_are_read_as_a_policy_reads_them(text, target):
    assert parse_identity_target(text, NAMESPACE) == target


@pytest.mark.parametrize("text", ["", "@oncall", "ali*", "nowhere:alice", "spiffe://y.test/alice"])
def test_what_is_no_identity_is_refused(text):
    with pytest.raises(Malformed):
        parse_identity_target(text, NAMESPACE)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        (f"SHA256:{PRINT}", BY_PRINT),
        ("SHA256:" + ":".join(["AB"] * 32), BY_PRINT),
        ("sha256:" + PRINT, BY_PRINT),
        (PRINT, BY_PRINT),
        (PRINT.upper(), BY_PRINT),
        (":".join(["aB"] * 32), BY_PRINT),
        ("sha256 Fingerprint=" + ":".join(["AB"] * 32), BY_PRINT),
        ("SHA256 FINGERPRINT=" + PRINT, BY_PRINT),
        ("corp:1f", BY_SERIAL),
        ("corp:00:1F", BY_SERIAL),
        ("corp:0x1F", BY_SERIAL),
        ("corp:0", LockTarget("serial", "corp", "0")),
        ("corp:" + "f" * 40, LockTarget("serial", "corp", "f" * 40)),
    ],
)
def test_certificates_are_read_as_portguard_and_openssl_write_them(text, target):
    assert parse_certificate_target(text, NAMESPACE) == target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SHA256:", "64 hex digits"),
        ("SHA256:" + "ab" * 31, "64 hex digits"),
        ("SHA256:" + "xy" * 32, "64 hex digits"),
        ("SHA256:" + PRINT + "ab", "64 hex digits"),
        ("SHA256:" + "a:ba:b" * 16, "64 hex digits"),
        ("SHA256:SHA256:" + PRINT, "64 hex digits"),
        ("SHA256: " + PRINT, "64 hex digits"),
        ("sha256:" + "ab" * 31, "a trust (corp, local) before"),
        ("sha1 Fingerprint=" + ":".join(["AB"] * 20), "a trust (corp, local) before"),
        ("\u017fha256:" + PRINT, "a trust (corp, local) before"),
        (PRINT + "\n", "a trust (corp, local) before"),
        (PRINT[1:], "a trust (corp, local) before"),
        (PRINT + "ab", "a trust (corp, local) before"),
        (":".join(["ab"] * 31), "a trust (corp, local) before"),
        ("corp:" + PRINT, "a serial number"),
        ("1f", "a trust (corp, local) before"),
        ("nowhere:1f", "a trust (corp, local) before"),
        ("corp:", "a serial number"),
        ("corp:1g", "a serial number"),
        ("corp:" + "f" * 41, "a serial number"),
        ("corp:-1", "a serial number"),
    ],
)
def test_what_is_no_certificate_is_refused(text, expected):
    with pytest.raises(Malformed) as caught:
        parse_certificate_target(text, NAMESPACE)
    assert expected in str(caught.value)


@pytest.mark.parametrize("target", [BY_NAME, LockTarget("identity", "local", "ns/alice")])
def test_a_written_identity_is_read_back(target):
    assert parse_identity_target(written_target(target, "local"), NAMESPACE) == target


@pytest.mark.parametrize("target", [BY_PRINT, BY_SERIAL])
def test_a_written_certificate_is_read_back(target):
    assert parse_certificate_target(written_target(target, "local"), NAMESPACE) == target
