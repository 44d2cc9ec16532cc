import http.client
import socket

import pytest

from portguard.cli.quickstart_service import serve
from tests.patience import PATIENCE_S
from tests.ports import reserved_port


def ask(port: int, method: str = "GET", path: str = "/") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request(method, path)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, content


def test_it_tells_what_it_sees() -> None:
    with serve((0,)) as port:
        status, page = ask(port, path="/hello")
    assert status == 200
    assert "You asked for /hello." in page


def test_a_head_has_no_page() -> None:
    with serve((0,)) as port:
        assert ask(port, "HEAD") == (200, "")
        assert ask(port, "PUT")[0] == 501


def test_the_first_port_that_is_free_is_taken() -> None:
    with serve((0,)) as taken, reserved_port() as wanted, serve((taken, wanted, 0)) as port:
        assert port == wanted
        assert ask(port)[0] == 200


def test_it_ends_with_the_block_also_when_a_client_stays() -> None:
    with serve((0,)) as port:
        client = socket.create_connection(("127.0.0.1", port))
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))
    client.close()
