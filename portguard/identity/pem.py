"""Files of certificates and revocation lists: DER, or PEM blocks of one kind with any text around them (RFC 7468)."""

import binascii
import re

from cryptography import x509

from portguard.identity.authorities import UNREADABLE, quietly
from portguard.identity.names import Malformed

_LINE = re.compile(rb"-----(BEGIN|END) ([^\r\n]{0,64}?)-----")


def read_blocks(content: bytes, label: str, noun: str) -> tuple[bytes, ...]:
    """Return the DER of every block of a PEM file, or `content` itself when it is DER; neither is parsed further.

    `label` is what stands after BEGIN, `noun` what people call it. Raises Malformed for a file without blocks, for a
    block of another kind, and for one that is cut short. What is inside of a block is in no message: it may be a key.
    """
    if not content.strip():
        raise Malformed(f"a {noun}", "an empty file")
    if content[0] == 0x30:  # DER: SEQUENCE
        return (content,)
    blocks: list[bytes] = []
    begun: int | None = None
    for line in _LINE.finditer(content):
        kind, found = line[1], line[2].decode("ascii", "backslashreplace")
        if found != label:
            raise Malformed(f'PEM blocks "{label}"', repr(found))
        if (kind == b"BEGIN") != (begun is None):
            raise Malformed(f'"{label}" blocks that begin and end', f"a second {kind.decode()} line in a row")
        if begun is None:
            begun = line.end()
        else:
            blocks.append(_decode(content[begun : line.start()], noun))
            begun = None
    if begun is not None:
        raise Malformed(f'the end of the last "{label}" block', "the end of the file")
    if not blocks:
        raise Malformed(f'a {noun} as DER or as PEM block "{label}"', "something else")
    return tuple(blocks)


def parse_certificates(content: bytes) -> tuple[x509.Certificate, ...]:
    """Read the certificates of a file, one in DER or any number in PEM, in their order. Raises Malformed."""
    try:
        with quietly():
            return tuple(map(x509.load_der_x509_certificate, read_blocks(content, "CERTIFICATE", "certificate")))
    except Malformed:
        raise
    except UNREADABLE as error:
        raise Malformed("a readable X.509 certificate", f"one that is not: {error}") from error


def _decode(body: bytes, noun: str) -> bytes:
    try:
        return binascii.a2b_base64(b"".join(body.split()), strict_mode=True)
    except binascii.Error as error:
        raise Malformed(f"a {noun} in base64", str(error)) from error
