import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from portguard.errors import Refused
from portguard.gateway import proxy_protocol
from portguard.gateway.proxy_protocol import LONGEST_HEADER_BYTES, Endpoint, Proxied, TlsClient, crc32c, parse
from portguard.reasons import Reason

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
CLIENT4 = Endpoint(IPv4Address("192.0.2.1"), 56324)
SERVER4 = Endpoint(IPv4Address("192.0.2.11"), 443)
CLIENT6 = Endpoint(IPv6Address("2001:db8::1"), 1)
SERVER6 = Endpoint(IPv6Address("2001:db8::11"), 65535)
TCP4 = bytes([192, 0, 2, 1, 192, 0, 2, 11]) + struct.pack("!HH", 56324, 443)
TCP6 = CLIENT6.address.packed + SERVER6.address.packed + struct.pack("!HH", 1, 65535)


def header(rest: bytes, *, family: int = 0x11, command: int = 0x21) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def tlvs(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        kind, length = struct.unpack_from("!BH", data)
        assert kind not in found
        found[kind] = data[3 : 3 + length]
        assert len(found[kind]) == length
        data = data[3 + length :]
    return found


def with_checksum(kind_and_rest: bytes) -> bytes:
    """A TCP4 header whose last field is the right checksum."""
    blank = header(TCP4 + kind_and_rest + tlv(3, bytes(4)))
    return blank[:-4] + crc32c(blank).to_bytes(4, "big")


def refusal(data: bytes) -> str:
    with pytest.raises(Refused) as caught:
        parse(data)
    assert caught.value.reason is Reason.BAD_REQUEST
    return caught.value.message


def test_crc32c_gives_the_published_check_values() -> None:
    # RFC 3720, B.4
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize(
    ("line", "source", "destination"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.11 56324 443", CLIENT4, SERVER4),
        (b"PROXY TCP6 2001:db8::1 2001:DB8:0:0:0:0:0:11 1 65535", CLIENT6, SERVER6),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c000:20b 56324 443", CLIENT4, SERVER4),
        (b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535", *map(Endpoint, map(IPv4Address, (0, 2**32 - 1)), (0, 65535))),
        (b"PROXY UNKNOWN", None, None),
        (b"PROXY UNKNOWN ffff:f anything at all \x00\xff", None, None),
    ],
)
def test_version_1_lines_say_who_calls(line: bytes, source: Endpoint | None, destination: Endpoint | None) -> None:
    assert parse(line + b"\r\n\x16\x03\x01") == Proxied(False, source, destination, len(line) + 2)


def test_the_longest_version_1_line_is_read_and_one_byte_more_is_not() -> None:
    longest = b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n"
    assert len(longest) == proxy_protocol.LONGEST_V1_BYTES
    assert parse(longest) == Proxied(False, None, None, 107)
    assert "expected a PROXY line of at most 107 bytes" in refusal(longest.replace(b" f", b" ff", 1))
    assert parse(longest[:106]) is None


@pytest.mark.parametrize(
    ("told", "expectation"),
    [
        (b"TCP4 192.0.2.1 192.0.2.11 56324", "two addresses and two ports"),
        (b"TCP4 192.0.2.1 192.0.2.11 56324 443 ", "two addresses and two ports"),
        (b"TCP4  192.0.2.1 192.0.2.11 56324 443", "two addresses and two ports"),
        (b"TCP4\t192.0.2.1 192.0.2.11 56324 443", "two addresses and two ports"),
        (b"TCP4 192.0.2.1 192.0.2.11 056324 443", "two addresses and two ports"),
        (b"TCP4 192.0.2.1 192.0.2.11 +1 443", "two addresses and two ports"),
        (b"TCP4 192.0.2.1 192.0.2.11 65536 443", "a port from 0 to 65535 in the PROXY line, got 65536"),
        (b"TCP4 192.0.2.1 192.0.2.11 1 65536", "a port from 0 to 65535"),
        (b"TCP4 192.0.2.01 192.0.2.11 1 443", "an IPv4 address in the PROXY line, got '192.0.2.01'"),
        (b"TCP4 192.0.2 192.0.2.11 1 443", "an IPv4 address"),
        (b"TCP4 192.0.2.1 192.0.2.256 1 443", "an IPv4 address"),
        (b"TCP4 2001:db8::1 2001:db8::11 1 443", "an IPv4 address"),
        (b"TCP6 192.0.2.1 192.0.2.11 1 443", "an IPv6 address"),
        (b"TCP6 fe80::1%eth0 2001:db8::11 1 443", "two addresses and two ports"),
        (b"TCP6 2001:db8::1::2 2001:db8::11 1 443", "an IPv6 address"),
        (b"UDP4 192.0.2.1 192.0.2.11 1 443", "UNKNOWN, or TCP4 or TCP6"),
        (b"tcp4 192.0.2.1 192.0.2.11 1 443", "UNKNOWN, or TCP4 or TCP6"),
        (b"UNKNOWNS", "UNKNOWN, or TCP4 or TCP6"),
        (b"", "UNKNOWN, or TCP4 or TCP6"),
    ],
)
def test_a_version_1_line_that_is_not_exact_is_refused(told: bytes, expectation: str) -> None:
    assert expectation in refusal(b"PROXY " + told + b"\r\n")


@pytest.mark.parametrize(
    "line", [b"PROXY UNKNOWN\n", b"PROXY UNKNOWN\n\r\n", b"PROXY UNKNOWN\rX", b"PROXY UNKNOWN\r\r\n"]
)
def test_only_crlf_ends_a_version_1_line(line: bytes) -> None:
    assert "expected a PROXY line that ends with CRLF" in refusal(line)


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\n", b"proxy TCP4", b"PROXY\t", b"\r\n\r\r"]
)
def test_what_is_no_header_is_refused_at_its_first_bytes(data: bytes) -> None:
    assert refusal(data).startswith(f"expected a PROXY protocol header, got {data[:12]!r}")


def test_version_2_headers_say_who_calls() -> None:
    assert parse(header(TCP4) + b"\x16") == Proxied(False, CLIENT4, SERVER4, 28)
    assert parse(header(TCP6, family=0x21) + b"\x16") == Proxied(False, CLIENT6, SERVER6, 52)


def test_an_ipv4_mapped_source_comes_out_as_ipv4() -> None:
    mapped = b"".join(bytes(10) + b"\xff\xff" + end.address.packed for end in (CLIENT4, SERVER4))
    proxied = parse(header(mapped + TCP4[8:], family=0x21))
    assert proxied == Proxied(False, CLIENT4, SERVER4, 52)


def test_a_local_header_leaves_the_addresses_of_the_connection_and_all_its_bytes_are_skipped() -> None:
    assert parse(header(b"", command=0x20, family=0)) == Proxied(True, None, None, 16)
    # Family and block are ignored, whatever they are.
    assert parse(header(b"\xff" * 7, command=0x20, family=0xFF)) == Proxied(True, None, None, 23)


@pytest.mark.parametrize(
    ("family", "rest"), [(0x00, b""), (0x12, TCP4), (0x22, TCP6), (0x31, bytes(216)), (0x32, bytes(216))]
)
def test_what_is_relayed_from_anything_but_tcp_has_no_known_source(family: int, rest: bytes) -> None:
    assert parse(header(rest, family=family)) == Proxied(False, None, None, 16 + len(rest))


@pytest.mark.parametrize("family", [0x01, 0x10, 0x13, 0x20, 0x30, 0x33, 0x41, 0xFF])
def test_unknown_families_and_protocols_are_refused(family: int) -> None:
    assert f"got family and protocol 0x{family:02x}" in refusal(header(bytes(216), family=family))


@pytest.mark.parametrize("version_command", [0x00, 0x01, 0x11, 0x22, 0x2F, 0x31])
def test_other_versions_and_commands_are_refused(version_command: int) -> None:
    assert f"got 0x{version_command:02x}" in refusal(header(TCP4, command=version_command))


@pytest.mark.parametrize(("family", "length"), [(0x11, 12), (0x12, 12), (0x21, 36), (0x22, 36), (0x31, 216)])
def test_a_block_shorter_than_its_addresses_is_refused(family: int, length: int) -> None:
    assert parse(header(bytes(length), family=family)) is not None
    message = f"expected {length} bytes of addresses in the PROXY header, got {length - 1}"
    assert refusal(header(bytes(length - 1), family=family)) == message


def test_the_longest_version_2_header_is_read_and_one_byte_more_is_not_waited_for() -> None:
    padding = tlv(4, bytes(LONGEST_HEADER_BYTES - 16 - 12 - 3))
    longest = header(TCP4 + padding)
    assert len(longest) == LONGEST_HEADER_BYTES
    proxied = parse(longest + b"more")
    assert proxied is not None
    assert proxied.header_bytes == LONGEST_HEADER_BYTES
    assert parse(longest[:-1]) is None
    too_long = header(TCP4 + tlv(4, bytes(len(padding) - 2)))
    assert refusal(too_long[:16]) == "expected a PROXY header of at most 4096 bytes, got 4097"


def test_fields_that_are_not_known_are_skipped() -> None:
    rest = tlv(0xEA, b"vpce-1") + tlv(4, b"") + tlv(0x20, b"\x01")
    assert parse(header(TCP4 + rest)) == Proxied(False, CLIENT4, SERVER4, 28 + len(rest))


def test_fields_that_do_not_fill_the_header_exactly_are_refused() -> None:
    assert "got field 0x04 that ends 1 bytes after it" in refusal(header(TCP4 + b"\x04\x00\x02x"))
    assert "got 2 bytes left over" in refusal(header(TCP4 + tlv(4, b"x") + b"\x04\x00"))


def test_a_right_checksum_is_taken_and_a_wrong_one_refused() -> None:
    good = with_checksum(tlv(5, b"an id"))
    assert parse(good) == Proxied(False, CLIENT4, SERVER4, len(good))
    told, actual = int.from_bytes(good[-4:], "big") ^ 1, int.from_bytes(good[-4:], "big")
    bad = good[:-1] + bytes([good[-1] ^ 1])
    assert refusal(bad) == f"expected checksum 0x{actual:08x} in the PROXY header, got 0x{told:08x}"
    # It covers the addresses, and what follows it.
    assert "checksum" in refusal(good[:16] + b"\x01" + good[17:])
    assert "checksum" in refusal(header(TCP4 + tlv(3, good[-4:]) + tlv(4, b"later")))


def test_a_checksum_of_another_size_or_a_second_one_is_refused() -> None:
    assert "one checksum of 4 bytes in the PROXY header, got 3" in refusal(header(TCP4 + tlv(3, bytes(3))))
    first = with_checksum(b"")[28:]
    again = header(TCP4 + first + first)
    # The first one is made right for the header that holds two.
    right = crc32c(again[:31] + bytes(4) + again[35:]).to_bytes(4, "big")
    assert "got a second one" in refusal(again[:31] + right + again[35:])


@pytest.mark.parametrize(
    ("source", "destination", "line"),
    [
        (CLIENT4, SERVER4, b"PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\r\n"),
        (CLIENT6, SERVER6, b"PROXY TCP6 2001:db8::1 2001:db8::11 1 65535\r\n"),
        (CLIENT4, SERVER6, b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::11 56324 65535\r\n"),
        (None, SERVER4, b"PROXY UNKNOWN\r\n"),
        (CLIENT4, None, b"PROXY UNKNOWN\r\n"),
    ],
)
def test_version_1_is_written_as_the_specification_has_it(
    source: Endpoint | None, destination: Endpoint | None, line: bytes
) -> None:
    assert proxy_protocol.v1(source, destination) == line


def test_version_2_is_written_as_the_specification_has_it() -> None:
    assert proxy_protocol.v2(CLIENT4, SERVER4) == header(TCP4)
    assert proxy_protocol.v2(CLIENT6, SERVER6) == header(TCP6, family=0x21)
    assert proxy_protocol.v2(None, SERVER4) == header(b"", family=0)
    mixed = CLIENT6.address.packed + bytes(10) + b"\xff\xff" + SERVER4.address.packed + struct.pack("!HH", 1, 443)
    assert proxy_protocol.v2(CLIENT6, SERVER4) == header(mixed, family=0x21)


ALICE = TlsClient("0123456789abcdef" * 2, "corp:ålice@example.com", b"DER", "orders-db.bastion.test", "postgresql")


def test_version_2_with_tls_tells_who_the_client_is() -> None:
    written = proxy_protocol.v2_tls(CLIENT4, SERVER4, ALICE)
    proxied = parse(written)  # verifies the checksum
    assert proxied == Proxied(False, CLIENT4, SERVER4, len(written))
    fields = tlvs(written[28:])
    assert fields.keys() == {0x01, 0x02, 0x03, 0x05, 0x20}
    assert fields[0x01] == b"postgresql"
    assert fields[0x02] == b"orders-db.bastion.test"
    assert fields[0x05] == ALICE.session.encode()
    assert fields[0x20][:5] == b"\x07\x00\x00\x00\x00"
    assert tlvs(fields[0x20][5:]) == {0x21: b"TLSv1.3", 0x22: "corp:ålice@example.com".encode(), 0x28: b"DER"}


def test_what_the_client_did_not_say_is_left_out() -> None:
    quiet = TlsClient(ALICE.session, "alice", b"DER", None, None)
    written = proxy_protocol.v2_tls(None, None, quiet)
    assert parse(written) == Proxied(False, None, None, len(written))
    assert tlvs(written[16:]).keys() == {0x03, 0x05, 0x20}


def test_a_certificate_too_big_for_the_header_is_left_out_and_the_name_stays() -> None:
    room = LONGEST_HEADER_BYTES - len(proxy_protocol.v2_tls(CLIENT4, SERVER4, ALICE)) + len(ALICE.certificate)
    for size, fits in ((room, True), (room + 1, False), (70_000, False)):
        client = TlsClient(ALICE.session, ALICE.identity, bytes(size), ALICE.server_name, ALICE.alpn)
        written = proxy_protocol.v2_tls(CLIENT4, SERVER4, client)
        assert parse(written) is not None
        assert (len(written) == LONGEST_HEADER_BYTES) is fits
        ssl = tlvs(tlvs(written[28:])[0x20][5:])
        assert ssl[0x22] == ALICE.identity.encode()
        assert (0x28 in ssl) is fits


def test_the_longest_names_there_can_be_fit_and_longer_ones_raise() -> None:
    client = TlsClient(ALICE.session, "t" * 63 + ":" + "n" * 2048, b"", "s" * 255, "a" * 255)
    assert parse(proxy_protocol.v2_tls(CLIENT6, SERVER6, client)) is not None
    with pytest.raises(ValueError, match="expected at most 4096 bytes"):
        proxy_protocol.v2_tls(CLIENT6, SERVER6, TlsClient(ALICE.session, "n" * 4000, b"", None, None))
