"""KeyUpdates (RFC 8446, section 4.6.3), which Python's ssl cannot send, made of what it logs of a connection's keys."""

import hashlib
import hmac
import ssl
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_HANDSHAKE, _APPLICATION_DATA = 22, 23
_KEY_UPDATE = bytes([24, 0, 0, 1])


class KeyUpdates:
    """Those of a client, which must not have sent anything since its handshake and can send nothing else from then on.

    `keys` is what its context has logged (`keylog_filename`). It speaks TLS_AES_256_GCM_SHA384.
    """

    def __init__(self, tls: ssl.SSLObject, keys: Path):
        assert tls.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
        [secret] = [line.split()[2] for line in keys.read_text().splitlines() if line.startswith("CLIENT_TRAFFIC_S")]
        self._secret = bytes.fromhex(secret)

    def records(self, count: int, *, ask: bool = False) -> Iterator[bytes]:
        """Yield `count` of them; `ask` that the other side change its keys too."""
        for _ in range(count):
            yield self.record(_HANDSHAKE, _KEY_UPDATE + bytes([ask]))
            self._secret = _expand(self._secret, b"traffic upd", 48)

    def record(self, kind: int, content: bytes) -> bytes:
        """The first record under the current key."""
        head = bytes([_APPLICATION_DATA, 3, 3]) + (len(content) + 17).to_bytes(2, "big")
        key, nonce = _expand(self._secret, b"key", 32), _expand(self._secret, b"iv", 12)
        return head + AESGCM(key).encrypt(nonce, content + bytes([kind]), head)

    def data(self, content: bytes) -> bytes:
        """A record of application data, the last there is."""
        return self.record(_APPLICATION_DATA, content)


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label (section 7.1), whose answer is never longer than one hash here."""
    info = length.to_bytes(2, "big") + bytes([6 + len(label)]) + b"tls13 " + label + b"\0"
    return hmac.digest(secret, info + b"\1", hashlib.sha384().name)[:length]
