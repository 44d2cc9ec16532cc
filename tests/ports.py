"""Ports of 127.0.0.1 for programs that cannot be given port 0, and for connections that are to be refused."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port that nobody else gets for as long as the block lasts, to listen at or to connect from.

    Who sets SO_REUSEADDR can listen at it, as servers do; until then connections to it are refused.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        yield port
