"""Which rights a gateway lacks in Redis, as a real one says."""

import contextlib

import pytest
import redis

from portguard.limits.redis_link import RedisSettings, connect
from portguard.limits.redis_rights import _NOTHING_DONE, _REFUSED, missing_rights
from portguard.limits.redis_rows import key_prefix
from tests.redis_server import RedisServer

COMMANDS = [command for command, _ in (*_NOTHING_DONE, *_REFUSED)]


@pytest.fixture(scope="module")
def server(tmp_path_factory, real_program):
    with RedisServer(real_program("redis-server"), tmp_path_factory.mktemp("rights") / "redis") as server:
        yield server


@pytest.fixture
def missing(server):
    """What a user with these rights lacks."""

    def missing(*rights):
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "gateway", "reset", "on", "nopass", *rights)
        url = server.url.replace("unix://", "unix://gateway@")
        with contextlib.closing(connect(RedisSettings(url, "test", "any"))) as client:
            return missing_rights(client, "test")

    return missing


def test_who_may_do_everything_lacks_nothing_and_nothing_is_done(server, missing):
    assert missing("~*", "+@all") == ([], False)
    with server.client() as client:
        assert client.keys() == []


def test_who_has_just_these_rights_lacks_nothing(missing):
    rights = [
        "+auth",
        "+select",
        "+client|setname",
        *(f"+{command}" for command in COMMANDS),
    ]  # to be let in, and these
    assert missing(f"~{key_prefix('test')}*", *rights) == ([], False)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_missing_is_named(missing, command):
    assert missing("~*", "+@all", f"-{command}") == ([command], False)


def test_keys_out_of_reach_are_no_missing_commands(missing):
    assert missing(f"~{key_prefix('other')}*", "+@all") == ([], True)


def test_what_keeps_everybody_from_writing_is_no_missing_right(server, missing):
    with server.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            with pytest.raises(redis.ReadOnlyError):
                missing("~*", "+@all")
        finally:
            client.execute_command("REPLICAOF NO ONE")
