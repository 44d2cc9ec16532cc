"""The options of every TCP connection, of clients and to services: small writes go out at once, dead peers are noticed.

On Linux a connection that is accepted has those of the socket that listened, tcp(7). So they are set once there.
"""

import socket

# A dead peer is noticed after about two minutes: 60 s of silence, then four probes.
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
_TCP_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in _KEEPALIVE.items()
        if hasattr(socket, name)
    ),
)


def set_tcp_options(sock: socket.socket) -> None:
    """Set them: on a connection, or on a socket that listens for all that it accepts from then on."""
    for level, option, value in _TCP_OPTIONS:
        sock.setsockopt(level, option, value)


def ensure_tcp_options(sock: socket.socket) -> None:
    """Set them on a connection that has them not, as it came before they were set on the socket that listens.

    Whoever wakes a gateway that systemd listens for is such a one.
    """
    # Who has the last one has them all. The first ones are no proof: a socket unit may have set those itself.
    level, option, value = _TCP_OPTIONS[-1]
    if sock.getsockopt(level, option) != value:
        set_tcp_options(sock)
