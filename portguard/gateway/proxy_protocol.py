"""The PROXY protocol, versions 1 and 2: who is really calling, told in front of a connection's first byte.

Inbound from balancers (`parse`), outbound to services (`v1`, `v2`, `v2_tls`). Source: haproxy, doc/proxy-protocol.txt
of 2026/04/27. Nothing here does I/O.
"""

import re
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from portguard.errors import Refused
from portguard.reasons import Reason

LONGEST_V1_BYTES = 107
"""Of a version 1 line with its CRLF, section 2.1."""

LONGEST_HEADER_BYTES = 4096
"""Of a version 2 header, in and out. The format allows 64 KiB, but nginx takes no more than this."""

Address = IPv4Address | IPv6Address

_V1_START = b"PROXY "
_V2_START = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEAD = struct.Struct("!12sBBH")
_V2_LOCAL, _V2_PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _UDP4, _TCP6, _UDP6, _UNIX_STREAM, _UNIX_DATAGRAM = 0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32
_ADDRESS_BYTES = {_UNSPECIFIED: 0, _TCP4: 12, _UDP4: 12, _TCP6: 36, _UDP6: 36, _UNIX_STREAM: 216, _UNIX_DATAGRAM: 216}

_TLV_HEAD = struct.Struct("!BH")
_ALPN, _AUTHORITY, _CRC32C, _UNIQUE_ID, _SSL = 0x01, 0x02, 0x03, 0x05, 0x20
_SSL_VERSION, _SSL_CN, _SSL_CLIENT_CERT = 0x21, 0x22, 0x28
_CLIENT_SSL, _CLIENT_CERT_CONN, _CLIENT_CERT_SESS = 0x01, 0x02, 0x04

_V1_ADDRESSES = re.compile(rb"(TCP[46]) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a TCP connection; `port` is 0 to 65535. An IPv4-mapped address that came in is an IPv4Address."""

    address: Address
    port: int


@dataclass(frozen=True, slots=True)
class Proxied:
    """What an inbound header said.

    With `local`, the balancer speaks for itself, as in a health check: the connection's own addresses are the ones.
    Else `source` is the client and `destination` what it called. Both are None when the balancer does not say, or says
    it of something other than TCP (UNKNOWN, UNSPEC, UDP, unix): the client's address is not known then. *Fails
    closed:* it is not the balancer's, which a policy may well trust.
    """

    local: bool
    source: Endpoint | None
    destination: Endpoint | None
    header_bytes: int  # the connection's own bytes begin here


@dataclass(frozen=True, slots=True)
class TlsClient:
    """What `v2_tls` tells a service about the client, beyond its address."""

    session: str  # session id, lower-case hex
    identity: str  # in its written form, "alice" or "corp:alice@example.com"
    certificate: bytes  # DER
    server_name: str | None  # SNI
    alpn: str | None  # the protocol that was selected


def parse(data: bytes | bytearray | memoryview) -> Proxied | None:
    """Read the header at the beginning of `data`, all that came so far; None while it is incomplete.

    Nothing longer than LONGEST_HEADER_BYTES is ever waited for, and what cannot become a header is refused as soon as
    that shows. A CRC32C that is there is verified. *Fails closed:* without a valid header there is no
    connection. Raises Refused (bad_request).
    """
    start = bytes(data[: len(_V2_START)])
    if _V2_START.startswith(start):
        return _parse_v2(bytes(data[:LONGEST_HEADER_BYTES])) if len(data) >= _V2_HEAD.size else None
    if _V1_START.startswith(start[: len(_V1_START)]):
        return _parse_v1(bytes(data[:LONGEST_V1_BYTES]))
    raise _refused("a PROXY protocol header", repr(start))


def v1(source: Endpoint | None, destination: Endpoint | None) -> bytes:
    """The line of version 1. UNKNOWN when an end is None, as when its client is not on TCP."""
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n"
    family, (from_packed, to_packed) = _same_family(source.address, destination.address)
    # Not str(): how an IPv4-mapped address is written there differs between Python versions.
    from_text, to_text = socket.inet_ntop(family, from_packed), socket.inet_ntop(family, to_packed)
    word = "TCP4" if family == socket.AF_INET else "TCP6"
    return f"PROXY {word} {from_text} {to_text} {source.port} {destination.port}\r\n".encode("ascii")


def v2(source: Endpoint | None, destination: Endpoint | None) -> bytes:
    """The header of version 2, addresses only: it fits the 107 bytes that nginx before 1.23 takes.

    UNSPEC when an end is None. Not LOCAL: to a service that would be the gateway itself, which it may well trust.
    """
    return _v2_header(source, destination, b"")


def v2_tls(source: Endpoint | None, destination: Endpoint | None, client: TlsClient) -> bytes:
    """The header of version 2, with who the client is.

    ALPN, AUTHORITY (the SNI), UNIQUE_ID (the session id as text, so that a service's log and the audit can be matched
    by eye), SSL with VERSION, CN (the identity, not the certificate's own CN) and CLIENT_CERT, CRC32C. CLIENT_CERT,
    optional by section 2.2.6, is left out where the header would pass LONGEST_HEADER_BYTES: receivers drop the
    connection then. Raises ValueError when the rest alone passes it.
    """
    tlvs = b""
    if client.alpn is not None:
        tlvs += _tlv(_ALPN, client.alpn.encode())
    if client.server_name is not None:
        tlvs += _tlv(_AUTHORITY, client.server_name.encode(errors="replace"))
    tlvs += _tlv(_UNIQUE_ID, client.session.encode("ascii"))
    # Verify 0: the certificate was checked. Only TLS 1.3 is spoken.
    ssl = struct.pack("!BI", _CLIENT_SSL | _CLIENT_CERT_CONN | _CLIENT_CERT_SESS, 0)
    ssl += _tlv(_SSL_VERSION, b"TLSv1.3") + _tlv(_SSL_CN, client.identity.encode())
    certificate = _tlv(_SSL_CLIENT_CERT, client.certificate) if len(client.certificate) <= 0xFFFF else b""
    checksum = _tlv(_CRC32C, bytes(4))
    room = LONGEST_HEADER_BYTES - len(_v2_header(source, destination, tlvs + _tlv(_SSL, ssl) + checksum))
    if room < 0:
        raise ValueError(f"PROXY header: expected at most {LONGEST_HEADER_BYTES} bytes, got {-room} more")
    if len(certificate) <= room:
        ssl += certificate
    header = _v2_header(source, destination, tlvs + _tlv(_SSL, ssl) + checksum)
    return header[:-4] + struct.pack("!I", crc32c(header))


def _parse_v1(line: bytes) -> Proxied | None:
    """`line` is at most LONGEST_V1_BYTES and may go on after the CRLF."""
    line, crlf, _ = line.partition(b"\r\n")
    # A CR may be half of a CRLF that is still to come, but only at the very end.
    if b"\n" in line or b"\r" in (line if crlf else line[:-1]):
        raise _refused("a PROXY line that ends with CRLF", _excerpt(line))
    if not crlf:
        if len(line) == LONGEST_V1_BYTES:
            raise _refused(f"a PROXY line of at most {LONGEST_V1_BYTES} bytes", f"{_excerpt(line)} without an end")
        return None
    header_bytes = len(line) + 2
    told = line[len(_V1_START) :]
    if told == b"UNKNOWN" or told.startswith(b"UNKNOWN "):
        return Proxied(False, None, None, header_bytes)
    match = _V1_ADDRESSES.fullmatch(told)
    if match is None:
        raise _refused("UNKNOWN, or TCP4 or TCP6 with two addresses and two ports, after PROXY", _excerpt(line))
    family, source, destination, source_port, destination_port = (field.decode("ascii") for field in match.groups())
    return Proxied(
        False,
        _v1_endpoint(family, source, source_port),
        _v1_endpoint(family, destination, destination_port),
        header_bytes,
    )


def _v1_endpoint(family: str, address: str, port: str) -> Endpoint:
    if int(port) > 0xFFFF:
        raise _refused("a port from 0 to 65535 in the PROXY line", port)
    try:
        # Both refuse leading zeros, which some read as octal.
        return Endpoint(IPv4Address(address), int(port)) if family == "TCP4" else _ipv6(IPv6Address(address), int(port))
    except ValueError:
        raise _refused(f"an IPv{family[-1]} address in the PROXY line", repr(address)) from None


def _parse_v2(header: bytes) -> Proxied | None:
    """`header` is 16 bytes to LONGEST_HEADER_BYTES and may go on after the header."""
    _, version_command, family, rest_bytes = _V2_HEAD.unpack_from(header)
    if version_command not in {_V2_LOCAL, _V2_PROXY}:
        raise _refused("PROXY version 2 with command LOCAL (0x20) or PROXY (0x21)", f"0x{version_command:02x}")
    header_bytes = _V2_HEAD.size + rest_bytes
    if header_bytes > LONGEST_HEADER_BYTES:
        raise _refused(f"a PROXY header of at most {LONGEST_HEADER_BYTES} bytes", str(header_bytes))
    if version_command == _V2_PROXY:
        if family not in _ADDRESS_BYTES:
            raise _refused("a PROXY header for TCP, UDP, unix or UNSPEC", f"family and protocol 0x{family:02x}")
        if rest_bytes < _ADDRESS_BYTES[family]:
            raise _refused(f"{_ADDRESS_BYTES[family]} bytes of addresses in the PROXY header", str(rest_bytes))
    if len(header) < header_bytes:
        return None
    if version_command == _V2_LOCAL:
        # "discard the protocol block including the family which is ignored", section 2.2
        return Proxied(True, None, None, header_bytes)
    header = header[:header_bytes]
    tlvs_at = _V2_HEAD.size + _ADDRESS_BYTES[family]
    _check_tlvs(header, tlvs_at)
    addresses = header[_V2_HEAD.size : tlvs_at]
    if family == _TCP4:
        from_packed, to_packed, from_port, to_port = struct.unpack("!4s4sHH", addresses)
        source, destination = Endpoint(IPv4Address(from_packed), from_port), Endpoint(IPv4Address(to_packed), to_port)
    elif family == _TCP6:
        from_packed, to_packed, from_port, to_port = struct.unpack("!16s16sHH", addresses)
        source, destination = _ipv6(IPv6Address(from_packed), from_port), _ipv6(IPv6Address(to_packed), to_port)
    else:
        return Proxied(False, None, None, header_bytes)
    return Proxied(False, source, destination, header_bytes)


def _check_tlvs(header: bytes, at: int) -> None:
    """Raise Refused unless the fields from `at` on fill `header` exactly, and its checksum, if any, is right."""
    checked = False
    while at < len(header):
        value_at = at + _TLV_HEAD.size
        if value_at > len(header):
            raise _refused("whole fields in the PROXY header", f"{len(header) - at} bytes left over")
        kind, length = _TLV_HEAD.unpack_from(header, at)
        at = value_at + length
        if at > len(header):
            raise _refused(
                "fields within the PROXY header", f"field 0x{kind:02x} that ends {at - len(header)} bytes after it"
            )
        if kind == _CRC32C:
            if length != 4 or checked:
                raise _refused(
                    "one checksum of 4 bytes in the PROXY header", "a second one" if checked else str(length)
                )
            checked = True
            told = int.from_bytes(header[value_at:at], "big")
            actual = crc32c(header[:value_at] + bytes(4) + header[at:])
            if told != actual:
                raise _refused(f"checksum 0x{actual:08x} in the PROXY header", f"0x{told:08x}")


def _ipv6(address: IPv6Address, port: int) -> Endpoint:
    return Endpoint(address.ipv4_mapped or address, port)


def _same_family(first: Address, second: Address) -> tuple[socket.AddressFamily, tuple[bytes, bytes]]:
    """Pack two addresses; the header has one family for both, so IPv4 beside IPv6 becomes IPv4-mapped."""
    if first.version == second.version == 4:
        return socket.AF_INET, (first.packed, second.packed)
    return socket.AF_INET6, (_as_ipv6(first), _as_ipv6(second))


def _as_ipv6(address: Address) -> bytes:
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def _v2_header(source: Endpoint | None, destination: Endpoint | None, tlvs: bytes) -> bytes:
    family, addresses = _UNSPECIFIED, b""
    if source is not None and destination is not None:
        af, packed = _same_family(source.address, destination.address)
        family = _TCP4 if af == socket.AF_INET else _TCP6
        addresses = b"".join(packed) + struct.pack("!HH", source.port, destination.port)
    rest = addresses + tlvs
    return _V2_HEAD.pack(_V2_START, _V2_PROXY, family, len(rest)) + rest


def _tlv(kind: int, value: bytes) -> bytes:
    return _TLV_HEAD.pack(kind, len(value)) + value


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for index in range(256):
        crc = index
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC32C_TABLE = _crc32c_table()


def crc32c(data: bytes) -> int:
    """The checksum of RFC 4960, appendix B (Castagnoli). A header is short: about 0.1 ms with a certificate in it."""
    table = _CRC32C_TABLE
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _excerpt(line: bytes) -> str:
    return repr(line if len(line) <= 60 else line[:60] + b"...")


def _refused(expected: str, found: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, f"expected {expected}, got {found}")
