"""Where the audit keeps what it needs besides the log itself, inside the gateway's state."""

from pathlib import Path

HEAD = "head"
"""The gateway's signed word for how far its log goes. The gateway also holds a lock on it."""


def folder_of(state: str) -> Path:
    """The folder with the key and the head; apart from the log, wherever that is."""
    return Path(state) / "audit"
