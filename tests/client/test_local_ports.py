import pytest

from portguard.client.local_ports import LocalPort, Wish, assign, parse_service, parse_wish
from portguard.errors import UsageError
from portguard.policy.addresses import ListenAddress


@pytest.mark.parametrize(
    ("text", "service", "host", "port"),
    [
        ("5432", None, "127.0.0.1", 5432),
        ("0", None, "127.0.0.1", 0),
        ("localhost:5432", None, "127.0.0.1", 5432),
        ("0.0.0.0:5432", None, "0.0.0.0", 5432),
        ("[::1]:5432", None, "::1", 5432),
        ("Orders-DB=5432", "orders-db", "127.0.0.1", 5432),
        ("orders-db=[::1]:0", "orders-db", "::1", 0),
    ],
)
def test_a_local_address_is_read(text: str, service: str | None, host: str, port: int) -> None:
    assert parse_wish(text) == Wish(service, ListenAddress(host, port))


@pytest.mark.parametrize("text", ["", "x", "65536", "::1:5432", ":5432", "db.example.com:5432", "web=", "5432:web:80"])
def test_what_is_no_local_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^-L: expected \[SERVICE=\]\[ADDR:\]PORT"):
        parse_wish(text)


@pytest.mark.parametrize("text", ["", "a b", "web/../x", "web:80", "wéb", "a\r\nb"])
def test_what_could_be_no_service_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^service: expected a name such as orders-db, got "):
        parse_service(text)


def test_a_service_is_in_lower_case() -> None:
    assert parse_service("Orders-DB.") == "orders-db"


def test_wishes_go_to_services_in_their_order_and_named_ones_first() -> None:
    wishes = [parse_wish(text) for text in ("1", "web=2", "3")]
    assigned = assign(["db", "web", "cache", "log"], wishes)
    assert {service: address.port for service, address in assigned.items()} == {"db": 1, "web": 2, "cache": 3}


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["1", "2", "3"], "at most one for each of 2 services, got 3"),
        (["db=1", "web=2", "3"], "at most one for each of 2 services, got 3"),
        (["cache=1"], "one of the services db, web, each once, got 'cache'"),
        (["db=1", "db=2"], "one of the services db, web, each once, got a second one for it"),
    ],
)
def test_wishes_that_no_service_is_left_for_are_refused(texts: list[str], found: str) -> None:
    with pytest.raises(UsageError) as caught:
        assign(["db", "web"], [parse_wish(text) for text in texts])
    assert str(caught.value) == f"-L: expected {found}"


@pytest.mark.parametrize(
    ("host", "reachable", "loopback"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.2", True),
        ("::1", "::1", True),
        ("0.0.0.0", "127.0.0.1", False),
        ("::", "::1", False),
        ("192.0.2.7", "192.0.2.7", False),
    ],
)
def test_programs_on_this_machine_are_told_an_address_that_works(host: str, reachable: str, loopback: bool) -> None:
    port = LocalPort("web", host, 80, None)
    assert port.reachable_host == reachable
    assert port.is_loopback is loopback


def test_a_port_is_written_as_urls_want_it() -> None:
    assert str(LocalPort("web", "::1", 80, None)) == "[::1]:80"
