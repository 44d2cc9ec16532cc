"""How certificates look to people and to programs: the fields of one, and the table of many."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from portguard.cli.rendering import printable
from portguard.errors import UsageError
from portguard.instants import written_instant
from portguard.pki import keys
from portguard.pki.errors import MALFORMED
from portguard.pki.profiles import Kind
from portguard.pki.store import Record, status

if TYPE_CHECKING:  # clients' commands load this module too, and need no authority
    from portguard.pki.standing import Standing

Fields = Mapping[str, object]
"""What `--json` prints: text, numbers, lists of text, nested fields, or None."""

_SAN_PREFIXES: Mapping[type[x509.GeneralName], str] = {
    x509.DNSName: "DNS",
    x509.IPAddress: "IP",
    x509.RFC822Name: "email",
    x509.UniformResourceIdentifier: "URI",
}
_USAGES = {
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
}


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Return the certificates in a file, PEM or DER, at least one. Raises UsageError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: expected a certificate, got “{error.strerror}”") from error
    try:
        if b"-----BEGIN CERTIFICATE-----" in data:
            return x509.load_pem_x509_certificates(data)
        return [x509.load_der_x509_certificate(data)]
    except MALFORMED as error:
        found = "a private key" if b"PRIVATE KEY-----" in data else "something else"
        raise UsageError(f"{path}: expected a certificate in PEM or DER, got {found}") from error


def followed_by(certificates: Iterable[x509.Certificate], subject: str) -> list[str]:
    """Return whose certificates come with another one. Unescaped. Raises UsageError as `described` does."""
    with _by_rfc_5280(subject):
        return [certificate.subject.rfc4514_string() for certificate in certificates]


def described(certificate: x509.Certificate, at: datetime, subject: str) -> Fields:
    """Return what there is to know of a certificate, whoever issued it. Unescaped.

    Raises UsageError, which names `subject`, when the certificate is malformed.
    """
    not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    with _by_rfc_5280(subject):
        return {
            "serial": serial_text(certificate.serial_number),
            "subject": certificate.subject.rfc4514_string(),
            "issuer": certificate.issuer.rfc4514_string(),
            "names": _names(certificate),
            "ca": _is_ca(certificate),
            "usage": _usage(certificate),
            "key": _key(certificate),
            "not_before": written_instant(not_before),
            "not_after": written_instant(not_after),
            "status": str(status(not_before, not_after, at)),
            "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
        }


def recorded(record: Record, standing: "Standing") -> Fields:
    """Return what the authority knows of a certificate."""
    return {
        "serial": serial_text(record.serial),
        "kind": str(record.kind),
        "name": record.name,
        "not_before": written_instant(record.not_before),
        "not_after": written_instant(record.not_after),
        "issued_at": written_instant(record.issued_at),
        "status": str(standing.status),
        **revocation_fields(standing),
        "used_for": _used_for(record),
    }


def invitation_fields(record: Record | None) -> Fields:
    """Return whom an invitation invites, and the serial of what was issued by it; None for all other certificates."""
    if record is None or record.kind is not Kind.INVITATION:
        return {"invites": None, "used_for": None}
    return {"invites": record.name, "used_for": _used_for(record)}


def _used_for(record: Record) -> str | None:
    return None if record.used_for is None else serial_text(record.used_for)


def revocation_fields(standing: "Standing | None") -> Fields:
    """Return since when and why a certificate is revoked, None for one that is not or that nobody recorded.

    `revoked_issuer`: it is so because its issuer is.
    """
    revocation = None if standing is None else standing.revocation
    issuer = None if standing is None else standing.revoked_issuer
    return {
        "revoked_at": None if revocation is None else written_instant(revocation.at),
        "reason": None if revocation is None else str(revocation.reason),
        "revoked_issuer": None if issuer is None else issuer.rfc4514_string(),
    }


def certificate_line(record: Record) -> str:
    """Name a recorded certificate in one line, unescaped."""
    return f"{record.kind} {record.name}, serial {serial_text(record.serial)}"


def serial_text(serial: int) -> str:
    """Lower-case hex without leading zeros."""
    return f"{serial:x}"


def serial_digits(text: str) -> str:
    """What stands in a serial, or its beginning, as `serial_text` writes it; whatever stands there."""
    return text.lower().removeprefix("0x").replace(":", "").lstrip("0")


def serial_number(text: str) -> int | None:
    """Read a serial as `serial_text` and openssl write it (upper case, colons, `0x`), None if it is none."""
    digits = text.lower().removeprefix("0x").replace(":", "")
    return int(digits, 16) if digits and set(digits) <= set("0123456789abcdef") else None


def lines(fields: Fields) -> Iterable[str]:
    """Yield `field  value` lines for a terminal: aligned, escaped, without fields that are None or empty."""
    shown = {name.replace("_", " "): value for name, value in fields.items() if value not in (None, [], "")}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        values = value if isinstance(value, list) else [value]
        for position, item in enumerate(values):
            text = {True: "yes", False: "no"}[item] if isinstance(item, bool) else str(item)
            yield f"{'' if position else name:<{width}}  {printable(text)}"


def print_fields(fields: Fields, as_json: bool) -> None:
    """Print fields for a program, or for people."""
    if as_json:
        click.echo(json.dumps(fields, indent=2))
        return
    for line in lines(fields):
        click.echo(line)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """Yield the lines of a table for a terminal: aligned, escaped, never cut, so that cells can be copied."""
    cells = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


@contextlib.contextmanager
def _by_rfc_5280(subject: str) -> Iterator[None]:
    try:
        yield
    except MALFORMED as error:
        raise UsageError(f"{subject}: expected a certificate by RFC 5280, got a malformed one ({error})") from error


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [_name(name) for name in san]


def _name(name: x509.GeneralName) -> str:
    if isinstance(name, x509.OtherName):
        return f"other {name.type_id.dotted_string}:{name.value.hex()}"
    if isinstance(name, x509.DirectoryName):
        return f"directory:{name.value.rfc4514_string()}"
    return f"{_SAN_PREFIXES.get(type(name), type(name).__name__)}:{name.value}"


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _key(certificate: x509.Certificate) -> str:
    try:
        return keys.describe(certificate.public_key())
    except UnsupportedAlgorithm:
        return f"unknown, {certificate.public_key_algorithm_oid.dotted_string}"


def _usage(certificate: x509.Certificate) -> list[str]:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return []
    return [_USAGES.get(usage, usage.dotted_string) for usage in usages]
