"""Which of the rights that a gateway of a fleet needs in Redis its user has. Asking changes nothing there.

Redis looks at rights before all else, so each command is given in a form that does nothing, or is refused for its form
(https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/).
"""

from typing import Any, NamedTuple

import redis

from portguard.limits.redis_rows import key_prefix

_NOWHERE = "nothing"  # a key that a fleet does not have

# What the words answer where the right is there: an error or not.
_NOTHING_DONE: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("get", ("GET", _NOWHERE)),
    ("set", ("SET", _NOWHERE, "", "XX")),
    ("hget", ("HGET", _NOWHERE, "f")),
    ("hmget", ("HMGET", _NOWHERE, "f")),
    ("hscan", ("HSCAN", _NOWHERE, "0")),
    ("hdel", ("HDEL", _NOWHERE, "f")),
    ("expire", ("EXPIRE", _NOWHERE, 1)),
    ("expireat", ("EXPIREAT", _NOWHERE, 1)),
    ("xadd", ("XADD", _NOWHERE, "NOMKSTREAM", "*", "f", "v")),
    ("xrange", ("XRANGE", _NOWHERE, "-", "+", "COUNT", 1)),
)
_REFUSED: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("hset", ("HSET", _NOWHERE, "f", "v", "a field without a value")),
    ("script|load", ("SCRIPT LOAD", "this is no Lua")),
    ("evalsha", ("EVALSHA", "0" * 40, 1, _NOWHERE)),
)


class MissingRights(NamedTuple):
    """Commands as ACL SETUSER has them after a `+`, and whether the fleet's keys are out of reach."""

    commands: list[str]
    keys: bool


def missing_rights(client: Any, fleet: str) -> MissingRights:
    """Return what the user lacks. Raises redis.RedisError for what keeps everybody from writing there, and OSError."""
    commands, keys = [], False
    for some, is_refused in ((_NOTHING_DONE, False), (_REFUSED, True)):
        for command, words in some:
            try:
                client.execute_command(*(key_prefix(fleet) + _NOWHERE if word is _NOWHERE else word for word in words))
            except redis.exceptions.NoPermissionError as error:
                if " key" in str(error).lower():
                    keys = True
                else:
                    commands.append(command)
            except (redis.ReadOnlyError, redis.OutOfMemoryError):
                raise
            except redis.ResponseError:
                if not is_refused:
                    raise
    return MissingRights(commands, keys)
