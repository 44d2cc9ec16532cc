"""PROXY headers: what is written is read back, in whatever pieces it comes, and damage never goes unnoticed."""

from hypothesis import example, given
from hypothesis import strategies as st

from portguard.errors import Refused
from portguard.gateway import proxy_protocol
from portguard.gateway.proxy_protocol import LONGEST_HEADER_BYTES, LONGEST_V1_BYTES, Endpoint, Proxied, TlsClient, parse

ports = st.integers(0, 65535)
endpoints = st.builds(Endpoint, st.ip_addresses(), ports)
clients = st.builds(
    TlsClient,
    session=st.text("0123456789abcdef", min_size=32, max_size=32),
    identity=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300),
    certificate=st.binary(max_size=5000),
    server_name=st.none() | st.text(max_size=60),
    alpn=st.none() | st.just("postgresql"),
)


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, Endpoint | None, Endpoint | None]:
    source, destination = draw(st.none() | endpoints), draw(st.none() | endpoints)
    match draw(st.sampled_from(["v1", "v2", "v2-tls"])):
        case "v1":
            header = proxy_protocol.v1(source, destination)
        case "v2":
            header = proxy_protocol.v2(source, destination)
        case _:
            header = proxy_protocol.v2_tls(source, destination, draw(clients))
    return header, source, destination


def unmapped(endpoint: Endpoint) -> Endpoint:
    mapped = getattr(endpoint.address, "ipv4_mapped", None)
    return Endpoint(mapped or endpoint.address, endpoint.port)


def outcome(data: bytes) -> Proxied | str | None:
    try:
        return parse(data)
    except Refused as refused:
        return refused.message


@given(headers(), st.binary(max_size=50))
def test_what_is_written_is_read_back(written: tuple[bytes, Endpoint | None, Endpoint | None], after: bytes) -> None:
    header, source, destination = written
    if source is None or destination is None:
        assert parse(header + after) == Proxied(False, None, None, len(header))
    else:
        assert parse(header + after) == Proxied(False, unmapped(source), unmapped(destination), len(header))


@given(headers(), st.data())
def test_every_part_of_a_header_asks_for_more(
    written: tuple[bytes, Endpoint | None, Endpoint | None], data: st.DataObject
) -> None:
    header, *_ = written
    cut = data.draw(st.integers(0, len(header) - 1))
    assert parse(header[:cut]) is None
    assert parse(memoryview(header)[:cut]) is None
    assert parse(bytearray(header)) == parse(header)


@given(st.binary(max_size=300) | headers().map(lambda written: written[0]), st.data())
@example(b"PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\r\n", None)
def test_an_answer_once_given_does_not_change_with_what_follows(header: bytes, data: st.DataObject | None) -> None:
    damaged = bytearray(header)
    if data is not None and damaged:
        for _ in range(data.draw(st.integers(0, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    answers = [outcome(bytes(damaged[:end])) for end in range(len(damaged) + 1)]
    given_at = next((index for index, answer in enumerate(answers) if answer is not None), None)
    if given_at is None:
        return
    first, last = answers[given_at], answers[-1]
    # A refusal may quote more of what came, but it stays a refusal; an accepted header stays as it is.
    assert first == last if isinstance(first, Proxied) else isinstance(last, str)


def kinds(header: bytes) -> set[int]:
    """The types of the fields that a reader of `header` sees."""
    at, found = 16 + {0x11: 12, 0x21: 36}.get(header[13], 0), set()
    while at < len(header):
        found.add(header[at])
        at += 3 + int.from_bytes(header[at + 1 : at + 3], "big")
    return found


@given(clients, endpoints, endpoints, st.data())
def test_a_damaged_header_passes_only_where_the_damage_hides_its_checksum(
    client: TlsClient, source: Endpoint, destination: Endpoint, data: st.DataObject
) -> None:
    header = bytearray(proxy_protocol.v2_tls(source, destination, client))
    at = data.draw(st.integers(0, len(header) - 1) | st.sampled_from([12, 13, 14, 15, len(header) - 7]))
    header[at] ^= data.draw(st.integers(1, 255))
    answer = outcome(bytes(header))
    # LOCAL discards the whole block with its checksum; a shorter header ends before it; and a field's type or length
    # can make another field of it.
    if isinstance(answer, Proxied) and not answer.local:
        assert 3 not in kinds(bytes(header[: answer.header_bytes]))


@given(clients, endpoints, endpoints, st.data())
def test_an_address_is_never_taken_in_place_of_another(
    client: TlsClient, source: Endpoint, destination: Endpoint, data: st.DataObject
) -> None:
    header = bytearray(proxy_protocol.v2_tls(source, destination, client))
    at = data.draw(st.integers(16, 27 if header[13] == 0x11 else 51))
    header[at] ^= data.draw(st.integers(1, 255))
    answer = outcome(bytes(header))
    assert isinstance(answer, str)
    assert "checksum" in answer


@given(
    st.binary(max_size=64), st.sampled_from([b"", b"PROXY ", b"\r\n\r\n\x00\r\nQUIT\n", b"\r\n\r\n\x00\r\nQUIT\n\x21"])
)
def test_nothing_is_waited_for_beyond_the_longest_header(rubbish: bytes, start: bytes) -> None:
    longest = LONGEST_V1_BYTES if start == b"PROXY " else LONGEST_HEADER_BYTES
    assert outcome((start + rubbish).ljust(longest, b"x")) is not None
