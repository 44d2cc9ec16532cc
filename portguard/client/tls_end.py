"""The client's end with TLS on it, over memory buffers: what the gateway's does with descriptors not every system can.

Its reading and writing follow the rules of `portguard.gateway.ends`.
"""

import errno
import socket
import ssl
from collections import deque

from portguard.gateway.ends import READ_MAX, End, TruncatedError
from portguard.tls.endpoint import Endpoint

_MOST_UNREAD_PIECES = 1024  # of a backlog to which TLS's own answers are still added

_ciphertext = memoryview(bytearray(READ_MAX))
_plaintext = memoryview(bytearray(READ_MAX + Endpoint.HEADROOM))


class BufferedTlsEnd(End):
    """An end whose bytes travel as TLS records. Its handshake is complete."""

    __slots__ = ("_endpoint",)

    def __init__(self, sock: socket.socket, endpoint: Endpoint):
        super().__init__(sock)
        self._endpoint = endpoint

    def read(self, limit: int) -> memoryview:
        """See End.read. A protocol error by the peer is reported as ECONNABORTED."""
        count = self.sock.recv_into(_ciphertext, limit)
        if not count:
            raise self.failure or TruncatedError("expected close_notify, got the end of the connection")
        return self._decrypt(_ciphertext[:count])

    def read_ahead(self) -> memoryview:
        """See End.read_ahead: a client may send at once with the last message of its handshake."""
        return self._decrypt(_ciphertext[:0])

    def _decrypt(self, ciphertext: memoryview) -> memoryview:
        endpoint = self._endpoint
        try:
            count = endpoint.decrypt(ciphertext, _plaintext)
        except ssl.SSLError as error:
            self._answer()
            raise ConnectionAbortedError(errno.ECONNABORTED, str(error)) from None
        if endpoint.has_output:
            self._answer()
        if endpoint.peer_closed:
            self.eof = True
            self.failure = None  # nothing that breaks after close_notify takes from what came before it
        elif endpoint.failure is not None:
            self.eof = True
            self.failure = ConnectionAbortedError(errno.ECONNABORTED, str(endpoint.failure))
        return _plaintext[:count]

    def _answer(self) -> None:
        """Send what TLS itself has to say, such as the alert that tells what is wrong."""
        answer = self._endpoint.take()
        if self._finishing:  # after close_notify nothing may follow
            return
        if self.backlog is not None and len(self.backlog) >= _MOST_UNREAD_PIECES:
            # Who makes it answer again and again, and never reads, would have the answers pile up for ever.
            raise ConnectionAbortedError(errno.ECONNABORTED, "expected the peer to read its answers, got more requests")
        try:
            self._queue(answer)
        except OSError as error:
            self.failure = error  # and what was read before it is still good

    def write(self, data: memoryview) -> None:
        """See End.write."""
        for piece in self._endpoint.encrypt(data):
            self._queue(piece)

    def finish(self, *, clean: bool = True) -> None:
        """See End.finish. Not clean: the connection ends without close_notify, which the peer can tell."""
        if clean and not self._finishing:
            self._queue(self._endpoint.close_notify())
        super().finish()

    def _queue(self, piece: bytes) -> None:
        if self.backlog is not None:
            self.backlog.append(piece)
            return
        sent = self._send(piece)
        if sent < len(piece):
            self.backlog = deque((memoryview(piece)[sent:],))
