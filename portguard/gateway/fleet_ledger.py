"""The ledger that `[ledger]` names: a file of the gateway's own, or a Redis that a fleet of gateways shares."""

import importlib.util
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from portguard.errors import ConfigurationError, Problem, because
from portguard.gateway.bundle import PRIVATE_MODE, too_open
from portguard.gateway.configuration import Configuration
from portguard.gateway.credentials import LEDGER_PASSWORD, credential
from portguard.gateway.redis_url import has_password
from portguard.limits.ledger import Store
from portguard.limits.sqlite import SqliteStore
from portguard.secret_line import NotOneLine, read_secret_line

if TYPE_CHECKING:
    from portguard.limits.redis_link import RedisSettings


def open_ledger(configuration: Configuration) -> Store:
    """Make the ledger ready. Raises ConfigurationError."""
    ledger, state = configuration.ledger, configuration.gateway.state
    if ledger.url == "sqlite":
        return SqliteStore.open(f"{state}/ledger.db", time.time())
    settings = redis_settings(configuration)
    # Only here: its package is an extra.
    from portguard.limits.redis import RedisStore  # noqa: PLC0415

    return RedisStore.open(settings, f"{state}/fleet")


def redis_settings(configuration: Configuration) -> "RedisSettings":
    """Where the ledger is when it is in Redis. Raises ConfigurationError as `require_redis` and `ledger_password`."""
    require_redis(configuration)
    from portguard.limits.redis_link import RedisSettings  # noqa: PLC0415  # its package is an extra

    ledger = configuration.ledger
    return RedisSettings(ledger.url, ledger.fleet, ledger_password(configuration))


def require_redis(configuration: Configuration) -> None:
    """Raise ConfigurationError when the ledger is in Redis, and what speaks to that is not installed."""
    if configuration.ledger.url != "sqlite" and importlib.util.find_spec("redis") is None:
        expected = "the package redis for such a ledger, as pip install 'portguard[fleet]' installs it"
        raise ConfigurationError([Problem(configuration.path, "ledger.url", expected, "none")])


def ledger_password(configuration: Configuration) -> str | None:
    """The password that is handed over, or in a file; None: neither, and the URL may have one.

    Raises ConfigurationError for a file that cannot be read, or that others can read too, and for more than one
    password. *Fails closed*.
    """
    ledger = configuration.ledger
    if ledger.url == "sqlite":
        return None
    handed_over = credential(LEDGER_PASSWORD)
    if handed_over is not None and (ledger.password_file is not None or has_password(ledger.url)):
        found = f"one beside the credential {LEDGER_PASSWORD}"
        raise ConfigurationError([Problem(configuration.path, "ledger", "the password in one place", found)])
    path = handed_over or (Path(ledger.password_file) if ledger.password_file is not None else None)
    return _read_password(path) if path is not None else None


def _read_password(path: Path) -> str:
    def look(status: os.stat_result) -> None:
        if (opened_to := too_open(status)) is not None:
            raise ConfigurationError([Problem(str(path), "", f"a password of {PRIVATE_MODE}", opened_to)])

    try:
        return read_secret_line(path, look).decode()
    except OSError as error:
        raise ConfigurationError([Problem(str(path), "", "a readable file with a password", because(error))]) from error
    except UnicodeDecodeError:  # which shows what it could not decode
        raise ConfigurationError([Problem(str(path), "", "a password in UTF-8", "other bytes")]) from None
    except NotOneLine as error:
        raise ConfigurationError([Problem(str(path), "", "one line with a password", str(error))]) from error
