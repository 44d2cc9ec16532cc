"""Ports and addresses for programs that cannot be given port 0, and for connections that are to be refused."""

import contextlib
import secrets
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


@contextlib.contextmanager
def reserved_host(port: int) -> Iterator[str]:
    """An address of this machine alone at which nobody listens at `port`, kept as `reserved_port` keeps a port.

    All of 127.0.0.0/8 leads here (Linux). Of two runs beside each other, each has an address of its own.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        host = ".".join(["127", *(str(secrets.randbelow(254) + 1) for _ in range(3))])
        holder.bind((host, port))
        yield host
