"""The text of every policy that was ever loaded, by revision, so that the audit can be read years later."""

import os
import secrets
import shutil
from pathlib import Path

from portguard.gateway.bundle import Bundle, policy_files
from portguard.gateway.configuration import Configuration


def keep_policy(bundle: Bundle, configuration: Configuration) -> Path:
    """Keep the policy's files in `state/policies/REVISION/` and return that folder; it may be there already.

    Only the policy: certificates' keys are never copied. Raises OSError; then no part of the folder is there.
    """
    folder = Path(configuration.gateway.state) / "policies"
    kept = folder / bundle.revision
    if kept.is_dir():
        return kept
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / f".{secrets.token_hex(8)}.tmp"
    temporary.mkdir(mode=0o700)
    try:
        for path, content in policy_files(configuration, bundle.files):
            descriptor = os.open(
                temporary / Path(path).name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
        os.rename(temporary, kept)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return kept
