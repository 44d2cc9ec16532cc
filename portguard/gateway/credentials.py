"""Secrets that the service manager hands over, which are in no file of the gateway's: systemd.exec(5), LoadCredential=.

They lie in the folder that `$CREDENTIALS_DIRECTORY` names, readable by the gateway's user alone.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from portguard.secret_line import read_secret_line

GATEWAY_KEY_PASSPHRASE = "portguard.gateway-key-passphrase"  # noqa: S105 - the name of one
"""Opens `gateway.key` where that has a passphrase. One line of text."""

AUTHORITY_PASSPHRASE = "portguard.authority-passphrase"  # noqa: S105 - the name of one
"""Opens the keys of all `trusts.NAME.authority` that have a passphrase. One line of text."""

AUDIT_KEY = "portguard.audit-key"
"""The private key of the audit, PEM, instead of the one in `gateway.state`."""

LEDGER_PASSWORD = "portguard.ledger-password"  # noqa: S105 - the name of one
"""For a ledger in Redis, instead of `ledger.password_file`. One line of text."""


def credential(name: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where the credential is; None if it was not handed over."""
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return None
    path = Path(folder, name)
    return path if path.exists() else None


def read_credential(path: Path) -> bytes:
    """Return the one line in a credential; who may read it is systemd's matter. Raises NotOneLine, OSError."""
    return read_secret_line(path, lambda _status: None)
