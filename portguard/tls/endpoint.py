"""One end of a TLS connection over memory buffers: bytes in, bytes out, no socket.

The event loops' own TLS transports cannot half-close; this can. The order of calls is

    handshake() until it answers True, with receive() and take() in between
    decrypt() and encrypt(), in any order, as often as bytes come
    close_notify() once, when nothing more will be encrypted; decrypt() goes on
"""

import contextlib
import ssl
from collections.abc import Iterator

# A MemoryBIO grows to a third more than the largest amount it ever held and never gives that back, so it is fed and
# drained in slices. With 48 KiB a session that was busy once keeps 150 KiB for good; slices of 64 KiB cost 35 KiB more
# and are hardly quicker, slices of 32 KiB save as much and cost 5 % more CPU.
_SLICE = 48 * 1024
_RECORD = 16 * 1024  # the most plaintext that one TLS record carries (RFC 8446, section 5.1)


class Endpoint:
    """One end of a TLS connection. Never shows keys in its repr.

    `server_hostname` is what a client expects the server's certificate to name; servers leave it None.
    """

    __slots__ = ("_incoming", "_outgoing", "_read", "_write", "failure", "peer_closed", "tls")

    # Room that decrypt() needs beyond the length of the ciphertext: the part of a record that waited inside.
    HEADROOM = _RECORD

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None):
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        # The wrapper's own methods only pass the call on; on the way of every record that shows.
        self._read = self.tls.read
        self._write = self.tls.write
        self.peer_closed = False  # the peer sent close_notify: it will send no more
        self.failure: ssl.SSLError | None = None  # the peer broke the protocol: nothing more can be decrypted

    def handshake(self) -> bool:
        """Go on with the handshake; True once it is complete, False while it needs more from receive().

        Either way take() may hold bytes for the peer, also (the alert) after an ssl.SSLError was raised.
        """
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def receive(self, ciphertext: bytes | memoryview) -> None:
        """Take in bytes from the peer without decrypting them."""
        self._incoming.write(ciphertext)

    def take(self) -> bytes:
        """Return the bytes that wait for the peer, and forget them. Empty when there are none."""
        return self._outgoing.read()

    @property
    def has_output(self) -> bool:
        """Whether take() has something: after decrypt(), an alert."""
        return self._outgoing.pending > 0

    def decrypt(self, ciphertext: memoryview, plaintext: memoryview) -> int:
        """Take in `ciphertext` and write all that it completes to `plaintext`; return the number of bytes.

        `plaintext` must have room for len(ciphertext) + HEADROOM. Nothing complete stays inside: close_notify() with
        a whole record waiting would be fatal to the connection. Sets `peer_closed`, after which the rest is ignored,
        or `failure`; raises it when not even one byte came before it.
        """
        incoming, read = self._incoming, self._read
        total = 0
        start = 0
        end = len(ciphertext)
        try:
            while True:
                if start < end:
                    incoming.write(ciphertext[start : start + _SLICE])
                try:
                    # A record leaves the BIO when it is read whole or in part: an empty one has nothing waiting.
                    while incoming.pending:
                        count = read(_RECORD, plaintext[total:])
                        if not count:
                            self.peer_closed = True
                            return total
                        total += count  # type: ignore[operator]  # with a buffer, read() answers a count
                except ssl.SSLWantReadError:
                    pass
                start += _SLICE
                if start >= end:
                    return total
        except ssl.SSLZeroReturnError:  # close_notify, when our own was sent before
            self.peer_closed = True
        except ssl.SSLError as error:
            self.failure = error
            if not total:
                raise
        return total

    def encrypt(self, plaintext: memoryview) -> Iterator[bytes]:
        """Yield `plaintext` as TLS records, in pieces to be sent in this order. Nothing may be encrypted in between.

        Each piece is best sent before the next one is asked for: memory that is used again at once stays in the
        processor's cache, and a list of them would make the allocator fetch pages and return them all the time.
        """
        start = 0
        while start < len(plaintext):
            start += self._write(plaintext[start : start + _SLICE])
            yield self._outgoing.read()

    def close_notify(self) -> bytes:
        """Return the bytes that tell the peer that nothing more follows. To be called once, after decrypt()."""
        # SSLWantReadError: the peer's own close_notify is not here yet, and need not be. Any other: the connection
        # broke before, which the reading side reports.
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        return self._outgoing.read()
