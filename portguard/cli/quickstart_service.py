"""The web service that the quickstart forwards to when it is told of no other."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

from portguard import __version__

NAME = "web"

_PAGE = """\
Hello from the service "web".

Your bytes came through portguard. It ended your TLS, learned who you are from your certificate, found a role of yours
in the policy, and only then connected to this service, which sees nothing but {address}.
You asked for {request}.
"""


@contextlib.contextmanager
def serve(ports: tuple[int, ...]) -> Iterator[int]:
    """Answer HTTP on 127.0.0.1 for the length of the block, at the first of `ports` that is free; yields it."""
    with _bound(ports) as server:
        thread = threading.Thread(target=server.serve_forever, name="built-in service", daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _bound(ports: tuple[int, ...]) -> ThreadingHTTPServer:
    *others, last = ports
    for port in others:
        with contextlib.suppress(OSError):
            return _Server(("127.0.0.1", port), _Handler)
    return _Server(("127.0.0.1", last), _Handler)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A client that keeps its connection open must not keep the quickstart from ending.
    block_on_close = False

    def server_bind(self) -> None:
        # Without the base class's look-up of the machine's name, which may take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = f"portguard/{__version__}"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:  # the name that http.server calls
        page = _PAGE.format(address=f"{self.client_address[0]}:{self.client_address[1]}", request=self.path)
        content = page.encode(errors="backslashreplace")
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815  # likewise

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        """Say nothing: the gateway's log tells of the sessions."""
