"""PostgreSQL through the gateway: libpq 17 and newer by itself, older clients with `portguard connect`.

The server speaks no TLS, and is older than direct TLS negotiation: the gateway ends it.
"""

import hashlib
import os
import random
import subprocess
import sys
import threading

import psycopg
import pytest

from tests.patience import PATIENCE_S
from tests.profiles import write_profile

_BLOCKS, _BLOCK_LINES, _LINE_BYTES = 100, 1000, 1000  # 100 MB

PORTGUARD = (sys.executable, "-P", "-m", "portguard")


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, postgresql):
    upstream = f'upstream = ["127.0.0.1:{postgresql.port}"]'
    services = {"orders-db": f'{upstream}\nalpn = ["postgresql"]\nlocal_port = 5432', "no-alpn": upstream}
    return start_gateway_for_module(services)


@pytest.fixture
def gateway(shared):
    return shared.from_now()


def connect(gateway, name, service="orders-db", **parameters):
    """libpq as it is, told to begin with TLS: no request for it in the clear, which needs a server that answers."""
    certificate, key = gateway.certificate(name)
    return psycopg.connect(
        host=f"{service}.gw.localhost",
        hostaddr="127.0.0.1",
        port=gateway.port,
        user="postgres",
        sslnegotiation="direct",
        sslmode="verify-full",
        sslrootcert=str(gateway.ca),
        sslcert=str(certificate),
        sslkey=str(key),
        connect_timeout=PATIENCE_S,
        autocommit=True,
        **parameters,
    )


def test_libpq_reaches_the_server_without_a_helper(gateway):
    assert psycopg.pq.version() >= 170000
    with connect(gateway, "alice") as connection:
        assert connection.execute("select 6 * 7").fetchone() == (42,)
        assert connection.pgconn.ssl_in_use
    gateway.wait_for_log("session.open .*identity=alice .*service=orders-db ")
    # The client says good-bye and closes; who is faster, it or the server that heard it, is not known.
    gateway.wait_for_log("session.close .*identity=alice .*reason=(client|upstream)_closed")


def test_libpq_of_a_client_without_a_role_is_refused(gateway):
    with pytest.raises(psycopg.OperationalError, match=r"closed the connection|unexpected eof"):
        connect(gateway, "bob")
    gateway.wait_for_log("session.refuse .*identity=bob .*service=orders-db reason=no_role")


def test_libpq_is_refused_by_itself_where_the_service_does_not_take_its_protocol(gateway):
    with pytest.raises(psycopg.OperationalError, match="ALPN"):
        connect(gateway, "alice", "no-alpn")


def test_libpq_that_begins_in_the_clear_gets_no_answer(gateway):
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(
            host="127.0.0.1", port=gateway.port, user="postgres", sslmode="disable", connect_timeout=PATIENCE_S
        )
    gateway.wait_for_log("handshake.fail .*reason=handshake_failed")


def lines():
    """100 MB as COPY takes them, in blocks: numbered lines, so that none is like another."""
    chance = random.Random(1)
    for block in range(_BLOCKS):
        text = chance.randbytes(_BLOCK_LINES * _LINE_BYTES // 2).hex()
        start = block * _BLOCK_LINES
        yield "".join(
            f"{start + line:08d}\t{text[line * _LINE_BYTES + 10 : (line + 1) * _LINE_BYTES]}\n"
            for line in range(_BLOCK_LINES)
        ).encode()


def test_a_copy_of_100_mb_arrives_unchanged_each_way(gateway, postgresql):
    sent, received = hashlib.sha256(), hashlib.sha256()
    received_bytes = 0
    with connect(gateway, "alice") as connection:
        connection.execute("create unlogged table lines (number char(8) primary key, line text)")
        with connection.cursor().copy("copy lines from stdin") as copy:
            for block in lines():
                sent.update(block)
                copy.write(block)
        ordered = "copy (select * from lines order by number)"
        with connection.cursor().copy(f"{ordered} to stdout") as copy:
            for data in copy:
                received.update(data)
                received_bytes += len(data)
    # What arrived at the server is summed up there, so that a fault on the way in is not undone on the way out.
    arrived = postgresql.folder / "arrived"
    postgresql.query(f"{ordered} to program 'sha256sum >{arrived}'")
    assert arrived.read_text().split()[0] == sent.hexdigest()
    assert received.hexdigest() == sent.hexdigest()
    assert received_bytes == _BLOCKS * _BLOCK_LINES * _LINE_BYTES
    # Beside the lines, the protocol has a head of 5 bytes a message.
    gateway.wait_for_log(r"session.close .*service=orders-db .*received=100\d{6} sent=100\d{6} ")


def _wait_until_it_sleeps(postgresql, pid):
    """The statement runs by now, or does within a few looks; a look takes a millisecond or more."""
    for _ in range(10_000):
        [(event,)] = postgresql.query(f"select wait_event from pg_stat_activity where pid = {pid}")
        if event == "PgSleep":
            return
    pytest.fail("the statement does not run")


@pytest.fixture
def sleeping(gateway, postgresql):
    """A connection through the gateway with a statement that runs for an hour, and the list that gets its error."""
    with connect(gateway, "alice") as connection:
        errors = []

        def sleep():
            try:
                connection.execute("select pg_sleep(3600)")
            except psycopg.Error as error:
                errors.append(error)

        pid = connection.info.backend_pid
        thread = threading.Thread(target=sleep)
        thread.start()
        try:
            _wait_until_it_sleeps(postgresql, pid)
            yield connection, thread, errors
        finally:
            postgresql.query(f"select pg_terminate_backend({pid})")
            thread.join(PATIENCE_S)


def test_a_cancel_request_takes_the_way_through_the_gateway(gateway, sleeping):
    connection, thread, errors = sleeping
    gateway.wait_for_log("session.open .*identity=alice .*service=orders-db ")
    connection.cancel_safe(timeout=PATIENCE_S)
    thread.join(PATIENCE_S)
    assert [type(error) for error in errors] == [psycopg.errors.QueryCanceled]
    gateway.wait_for_log("session.open .*identity=alice .*service=orders-db ", count=2)
    # 16 bytes are a CancelRequest.
    gateway.wait_for_log("session.close .*service=orders-db .*received=16 sent=0 ")


def test_a_cancel_request_in_the_clear_does_not_arrive(gateway, sleeping, postgresql):
    connection, thread, errors = sleeping
    connection.pgconn.get_cancel().cancel()  # as libpq before 17 does it: without TLS, and without looking at an answer
    gateway.wait_for_log("handshake.fail .*reason=handshake_failed")
    assert thread.is_alive()
    assert errors == []
    assert postgresql.query(f"select wait_event from pg_stat_activity where pid = {connection.info.backend_pid}") == [
        ("PgSleep",)
    ]


@pytest.fixture
def psql(gateway, real_program, tmp_path):
    """`psql(name, *options)` runs an older psql beside `portguard connect`, which tells it where to go."""
    program = real_program("psql")

    def run(name, *options):
        profile = write_profile(gateway, name, tmp_path)
        command = [*PORTGUARD, "connect", "orders-db", "--profile", str(profile), "--", program, *options]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S)

    return run


PSQL = ("--no-psqlrc", "--no-align", "--tuples-only", "--username", "postgres", "--dbname", "postgres")


def test_an_older_psql_goes_through_portguard_connect(gateway, psql):
    done = psql("alice", *PSQL, "--command", "select 6 * 7")
    assert (done.returncode, done.stdout) == (0, "42\n")
    gateway.wait_for_log("session.close .*identity=alice .*service=orders-db ")


def test_psql_s_own_exit_code_is_passed_on(psql):
    done = psql("alice", *PSQL, "--command", "select * from nowhere")
    assert done.returncode == 1
    assert 'relation "nowhere" does not exist' in done.stderr


def test_places_in_the_command_are_filled_in(psql):
    where = "postgresql://postgres@{host}:{port}/postgres?sslmode=disable"
    done = psql("alice", "--no-psqlrc", "--no-align", "--tuples-only", "--command", "select 6 * 7", where)
    assert (done.returncode, done.stdout) == (0, "42\n")


def test_psql_is_not_started_for_a_client_without_a_role(gateway, psql):
    done = psql("bob", *PSQL, "--command", "select 6 * 7")
    assert done.returncode == 3
    assert done.stdout == ""
    assert "no_role" in done.stderr
    assert "psql" not in done.stderr
    gateway.wait_for_log("session.refuse .*identity=bob .*service=orders-db reason=no_role")
