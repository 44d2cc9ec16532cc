"""What a balancer says in front of a connection, read off its socket."""

import socket

from portguard.gateway.handshake import readable
from portguard.gateway.proxy_protocol import LONGEST_HEADER_BYTES, Proxied, parse


async def read_proxy_header(sock: socket.socket) -> Proxied:
    """Read the PROXY protocol header, and not a byte beyond it: what follows is for OpenSSL to read.

    *Fails closed*: without one, no connection. Raises Refused (bad_request), and OSError when the balancer is gone.
    """
    received = b""
    while True:
        await readable(sock)
        data = sock.recv(LONGEST_HEADER_BYTES, socket.MSG_PEEK)
        if not data:
            raise ConnectionAbortedError("expected a PROXY protocol header, got the end of the connection")
        header = parse(received + data)
        if header is not None:
            sock.recv(header.header_bytes - len(received))
            return header
        received += sock.recv(len(data))
