"""What a TCP connection has of the options that the gateway wants of it."""

import socket

WANTED_TCP_OPTIONS = {"TCP_NODELAY": 1, "SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


def tcp_options(sock: socket.socket) -> dict[str, int]:
    """The options as the kernel has them."""
    levels = {name: socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP for name in WANTED_TCP_OPTIONS}
    return {name: sock.getsockopt(level, getattr(socket, name)) for name, level in levels.items()}
