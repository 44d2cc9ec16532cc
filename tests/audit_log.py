"""An audit log as a gateway writes it, in few words, for tests that spoil it.

log = Log(tmp_path / "audit.jsonl")
log.add("session.open", identity="alice"); log.checkpoint()
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from portguard.observe.audit import records
from portguard.observe.audit.keys import fingerprint

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
KEYS = {fingerprint(KEY.public_key()): KEY.public_key()}
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Log:
    """`at` is where its chain stands."""

    def __init__(self, path: Path):
        self.path = path
        self.at = records.BEGINNING
        path.touch()

    def add(self, event: str = "session.open", **fields: records.Field) -> bytes:
        """Append a record; each is a second later than the one before."""
        line, self.at = records.encode(self.at, NOON + timedelta(seconds=self.at.seq), event, fields)
        return self._append(line)

    def checkpoint(self, cause: str = "interval", key: Ed25519PrivateKey = KEY) -> bytes:
        """Append a checkpoint."""
        line, self.at = records.encode_checkpoint(self.at, NOON + timedelta(seconds=self.at.seq), cause, key)
        return self._append(line)

    def rotate(self, suffix: str) -> Path:
        """Rename the file and begin a new one."""
        self.checkpoint("rotate")
        old = self.path.rename(f"{self.path}{suffix}")
        self.add(records.ROTATE, file=old.name)
        return old

    def head(self, path: Path) -> None:
        """Write the head for where the chain stands."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(records.encode_head(self.at, NOON, KEY))

    def _append(self, line: bytes) -> bytes:
        with self.path.open("ab") as file:
            file.write(line + b"\n")
        return line
