"""redis-cli, which can do TLS and nothing of portguard's, reaches a Redis that cannot do TLS."""

import hashlib
import os
import subprocess

import pytest

from tests.patience import PATIENCE_S

_BIG = 20 * 1000 * 1000


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, redis):
    return start_gateway_for_module({"cache": redis})


@pytest.fixture
def gateway(shared):
    return shared.from_now()


@pytest.fixture
def redis_cli(gateway, real_program):
    """`redis_cli(name, *words)` sends one command to `cache` as the client `name`; None: without a certificate."""
    program = real_program("redis-cli")

    def run(name, *words, given=b""):
        command = [program, "-h", "127.0.0.1", "-p", str(gateway.port)]
        command += ["--tls", "--sni", "cache.gw.localhost", "--cacert", str(gateway.ca)]
        if name is not None:
            certificate, key = gateway.certificate(name)
            command += ["--cert", str(certificate), "--key", str(key)]
        return subprocess.run([*command, *words], input=given, capture_output=True, check=False, timeout=PATIENCE_S)

    return run


@pytest.fixture
def redis_directly(redis, real_program):
    """The same without the gateway, to see what arrived."""
    host, port = redis.split(":")
    command = [real_program("redis-cli"), "-h", host, "-p", port]
    return lambda *words: subprocess.run([*command, *words], capture_output=True, check=True, timeout=PATIENCE_S).stdout


def test_a_command_is_answered(gateway, redis_cli, redis_directly):
    done = redis_cli("alice", "SET", "greeting", "hello")
    assert (done.returncode, done.stdout) == (0, b"OK\n")
    assert redis_directly("GET", "greeting") == b"hello\n"
    gateway.wait_for_log("session.open .*identity=alice .*service=cache ")


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("bob", "session.refuse .*identity=bob .*service=cache reason=no_role"),
        (None, "handshake.fail .*reason=certificate_missing"),
    ],
)
def test_a_command_of_somebody_else_does_not_arrive(gateway, redis_cli, redis_directly, name, refusal):
    done = redis_cli(name, "SET", "intruder", "here")
    assert done.returncode == 1
    assert b"OK" not in done.stdout
    assert done.stderr
    assert redis_directly("EXISTS", "intruder") == b"0\n"
    gateway.wait_for_log(refusal)


def test_a_value_of_20_mb_comes_and_goes_unchanged(gateway, redis_cli, redis_directly):
    value = os.urandom(_BIG)
    assert redis_cli("alice", "-x", "SET", "big", given=value).stdout == b"OK\n"
    there = redis_directly("--raw", "GET", "big")
    back = redis_cli("alice", "--raw", "GET", "big").stdout
    digest = hashlib.sha256(value).hexdigest()
    assert hashlib.sha256(there.removesuffix(b"\n")).hexdigest() == digest
    assert hashlib.sha256(back.removesuffix(b"\n")).hexdigest() == digest
    gateway.wait_for_log(r"session.close .*received=200000\d\d sent=5 ")
    gateway.wait_for_log(r"session.close .*received=\d\d sent=200000\d\d ")


def test_several_commands_go_in_flight_at_once(redis_cli):
    # Two thousand requests are written before the first answer is read.
    requests = b"".join(b"*2\r\n$4\r\nINCR\r\n$5\r\ncount\r\n" for _ in range(2000))
    done = redis_cli("alice", "--pipe", given=requests)
    assert b"errors: 0, replies: 2000" in done.stdout
    assert redis_cli("bob", "--pipe", given=requests).returncode != 0
