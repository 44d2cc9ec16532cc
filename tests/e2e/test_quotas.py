"""Quotas by real transfers: counted at the service and at the clients, they end at exactly the last byte."""

import contextlib
import os
import re
import signal
import sqlite3

import pytest

from tests.audited import wait_for_audit
from tests.counting import MB, Transfers, connect_answer, counted, counting, download, moved, steady_zone, upload
from tests.unharmed import kill_all, workers

QUOTA = 200 * MB
WORKERS = 4

# What a session has counted and not passed on when it is killed: a read, and what waits to be encrypted or sent.
IN_FLIGHT = 2 * MB


def role(limits, name="team", members='"alice"'):
    return f'[[roles]]\nname = "{name}"\nmembers = [{members}]\nservices = ["*"]\n{limits}\n'


@pytest.fixture
def start_with(start_gateway):
    """`start_with(sink, source, *roles)` runs a gateway with four workers; alice and bob have certificates."""

    def run(sink, source, *roles):
        policy = f'timezone = "{steady_zone()}"\n{"".join(roles)}'
        services = {"sink": sink.address, "source": source.address}
        gateway = start_gateway(services, policy=policy, workers=WORKERS)
        for name in ("alice", "bob"):
            gateway.certificate(name)  # before several threads would make it
        return gateway

    return run


def endings(gateway, reason):
    return len(re.findall(rf"session\.close .*reason={reason}$", gateway.log, re.MULTILINE))


def in_ledger(gateway):
    """What the ledger says that alice has used this month."""
    with contextlib.closing(sqlite3.connect(gateway.folder / "state" / "ledger.db")) as ledger:
        [[used]] = ledger.execute("SELECT used_bytes FROM usage WHERE name = 'alice' AND period = 'month'")
    return used


def eight_transfers(gateway, size):
    """Four each way, of so much each, all by alice."""
    transfers = Transfers()
    transfers.begin(4, upload, gateway, size)
    transfers.begin(4, download, gateway)
    return transfers


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_quota_ends_eight_transfers_over_four_workers_at_its_last_byte(start_with, direction):
    size = 100 * MB
    with counting() as sink, counting(size) as source:
        gateway = start_with(sink, source, role('quota = ["200MB/month"]'))
        transfers = Transfers()
        if direction == "up":
            transfers.begin(8, upload, gateway, size)
        else:
            transfers.begin(8, download, gateway)
        received = transfers.wait()
        gateway.wait_for_log("session.close ", count=8)
        assert gateway.program.stop() == 0
    assert received + sink.received == QUOTA
    assert endings(gateway, "quota_exhausted") == 8


def test_both_directions_are_taken_off_one_quota(start_with):
    with counting() as sink, counting(20 * MB) as source:
        gateway = start_with(sink, source, role('quota = ["60MB/month"]'))
        transfers = eight_transfers(gateway, 20 * MB)
        received = transfers.wait()
        gateway.wait_for_log("session.close ", count=8)
        assert gateway.program.stop() == 0
    assert received > 0
    assert sink.received > 0
    assert received + sink.received == counted(gateway) == 60 * MB


def test_a_worker_killed_amidst_it_takes_along_no_more_than_was_in_flight(start_with):
    with counting() as sink, counting(100 * MB) as source:
        gateway = start_with(sink, source, role('quota = ["200MB/month"]'))
        transfers = eight_transfers(gateway, 100 * MB)
        gateway.program.wait_until(lambda: moved(gateway) > 60 * MB, "60 MB had moved")
        os.kill(workers(gateway)[0], signal.SIGKILL)
        received = transfers.wait()
        gateway.wait_for_log("session.close ", count=8)
        assert gateway.program.stop() == 0
    lost = endings(gateway, "worker_lost")
    assert lost > 0
    assert endings(gateway, "quota_exhausted") == 8 - lost
    assert counted(gateway) == QUOTA  # its lease went to the others
    assert QUOTA - lost * IN_FLIGHT <= received + sink.received <= QUOTA
    assert in_ledger(gateway) == QUOTA


def test_after_everything_was_killed_the_rest_is_what_the_ledger_had_not_given_away(start_with, start_again):
    with counting() as sink, counting(100 * MB) as source:
        gateway = start_with(sink, source, role('quota = ["200MB/month"]'))
        transfers = eight_transfers(gateway, 100 * MB)
        gateway.program.wait_until(lambda: moved(gateway) > 60 * MB, "60 MB had moved")
        kill_all(gateway)
        before = transfers.wait() + sink.wait()
        given_away = in_ledger(gateway)
        gateway = start_again(gateway)
        sink.received = 0
        received = eight_transfers(gateway, 100 * MB).wait()
        gateway.wait_for_log("session.close ", count=8)
        assert gateway.program.stop() == 0
    # A lease is at most a quarter of what is left, for each worker that holds one; the next is asked for while half is
    # left, and the ledger may know of one more.
    largest = QUOTA // 4 // WORKERS
    assert before <= given_away <= before + 8 * IN_FLIGHT + WORKERS * largest * 3 // 2 + largest
    assert endings(gateway, "quota_exhausted") == 8
    assert received + sink.received == QUOTA - given_away


def test_a_restart_forgets_nothing(start_with, start_again):
    with counting() as sink, counting(20 * MB) as source:
        gateway = start_with(sink, source, role('quota = ["50MB/month"]'))
        received = download(gateway)
        upload(gateway, 7 * MB)
        gateway.wait_for_log("session.close ", count=2)
        assert (received, sink.received) == (20 * MB, 7 * MB)
        assert gateway.program.stop() == 0
        assert in_ledger(gateway) == 27 * MB
        gateway = start_again(gateway)
        received = eight_transfers(gateway, 20 * MB).wait()
        gateway.wait_for_log("session.close ", count=8)
        assert gateway.program.stop() == 0
    assert received + sink.received == (50 - 20) * MB


def test_a_pooled_quota_is_shared_by_those_in_the_role(start_with):
    with counting() as sink, counting(20 * MB) as source:
        limits = role('quota = ["25MB/month"]\npooled_quota = ["40MB/month"]', members='"alice", "bob"')
        gateway = start_with(sink, source, limits)
        transfers = Transfers()
        for name in ("alice", "bob"):
            transfers.begin(2, download, gateway, name)
        assert transfers.wait() == 40 * MB
        wait_for_audit(gateway, "session.close", 4)
        status, _, document = connect_answer(gateway, "source", "bob")
    assert (status, document["reason"]) == (429, "quota_exhausted")
    assert document["message"].startswith("the monthly quota of 40 MB that role team shares is used up; it renews at ")


@pytest.mark.parametrize(
    ("quotas", "message"),
    [
        ('"10MB/hour", "20MB/day"', "hourly quota of 10 MB is used up; it renews at "),
        ('"20MB/hour", "10MB/day"', "daily quota of 10 MB is used up; it renews at 00:00 "),
    ],
)
def test_of_several_quotas_the_one_that_ends_first_counts(start_with, quotas, message):
    with counting() as sink, counting(20 * MB) as source:
        gateway = start_with(sink, source, role(f"quota = [{quotas}]"))
        assert download(gateway) == 10 * MB
        wait_for_audit(gateway, "session.close")
        status, _, document = connect_answer(gateway, "source")
    assert (status, document["reason"]) == (429, "quota_exhausted")
    assert document["message"].startswith(message)


def test_a_role_without_a_quota_beside_one_that_is_exhausted_goes_on(start_with):
    with counting() as sink, counting(20 * MB) as source:
        gateway = start_with(sink, source, role('quota = ["5MB/day"]'), role("", name="free", members='"bob"'))
        assert download(gateway) == 5 * MB
        assert download(gateway, "bob") == 20 * MB
        upload(gateway, 20 * MB, "bob")
        wait_for_audit(gateway, "session.close", 3)
        assert download(gateway) == 0
    assert sink.received == 20 * MB
