"""Where the gateway listens: on sockets that it was handed, and on those that it binds for the rest."""

import socket

import pytest

from portguard.errors import ConfigurationError
from portguard.gateway.activation import HandedOver
from portguard.gateway.bundle import read_bundle
from portguard.gateway.listeners import Binding, listen, written_address
from portguard.gateway.snapshot import build
from portguard.policy.addresses import ListenAddress
from tests.descriptors import open_descriptors
from tests.gateway_folder import GatewayFolder


@pytest.fixture
def snapshot(tmp_path):
    folder = GatewayFolder(tmp_path)
    folder.add("portguard.toml", '[metrics]\nlisten = "127.0.0.1:0"\n')
    folder.write(
        "policy.toml", (folder.path / "policy.toml").read_text().replace("]\n\n", ']\nlisten = ["127.0.0.1:0"]\n\n')
    )
    return build(read_bundle(folder.configuration))


@pytest.fixture
def handed_over():
    made = []

    def make(name):
        sock = socket.create_server(("127.0.0.1", 0))
        made.append(sock)
        return HandedOver(3, name, sock, ListenAddress(*sock.getsockname()))

    yield make
    for sock in made:
        sock.close()


def listening(snapshot, *given):
    return listen(snapshot.configuration, snapshot.policy, given)


def test_without_systemd_everything_is_bound(snapshot):
    bound, metrics = listening(snapshot)
    assert [listener.service.name if listener.service else None for listener, _ in bound] == [None, "orders-db"]
    addresses = {written_address(sock) for sock in (*(sock for _, sock in bound), metrics)}
    assert len(addresses) == 3
    for sock in (*(sock for _, sock in bound), metrics):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        sock.close()


def test_a_socket_for_ipv6_is_for_nothing_else(monkeypatch):
    # Else [::]:8443 would take what is 0.0.0.0:8443's, and clients over IPv4 would have mapped addresses.
    seen = []

    class Watched(socket.socket):
        def bind(self, address):
            # Looked at before: of a socket bound to one address, unlike to all, the kernel says so in any case.
            seen.append(self.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Watched)
    with Binding("portguard.toml") as binding:
        binding.bind_metrics(ListenAddress("::1", 0)).close()
    assert seen == [1]


@pytest.mark.parametrize(("name", "place"), [("gateway", 0), ("orders-db", 1), ("metrics", 2)])
def test_what_is_handed_over_takes_its_place_and_the_rest_is_bound(snapshot, handed_over, name, place):
    given = handed_over(name)
    bound, metrics = listening(snapshot, given)
    socks = [*(sock for _, sock in bound), metrics]
    assert [sock is given.sock for sock in socks] == [index == place for index in range(3)]
    for sock in socks:
        sock.close()


def test_what_has_no_place_is_an_error(snapshot, handed_over):
    with pytest.raises(ConfigurationError, match="socket activation"):
        listening(snapshot, handed_over("invoices-db"))


def test_every_address_that_is_taken_is_named_and_nothing_stays_open(tmp_path):
    folder = GatewayFolder(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        taken = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in (one, other)]
        text = (folder.path / "portguard.toml").read_text()
        listen_at = f'listen = ["127.0.0.1:0", "{taken[0]}"]'
        folder.write("portguard.toml", text.replace('listen = ["127.0.0.1:0"]', listen_at))
        folder.add("portguard.toml", f'[metrics]\nlisten = "{taken[1]}"\n')
        snapshot = build(read_bundle(folder.configuration))
        before = open_descriptors()
        with pytest.raises(ConfigurationError) as caught:
            listening(snapshot)
        assert open_descriptors() == before
    assert [(problem.key, problem.found) for problem in caught.value.problems] == [
        ("gateway.listen", f"{taken[0]}: Address already in use"),
        ("metrics.listen", f"{taken[1]}: Address already in use"),
    ]
