"""`portguard cert list` and `cert show`: what the authority issued, and any certificate in a file."""

import json
import os
import warnings
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.cli.certificates import (
    described,
    followed_by,
    invitation_fields,
    print_fields,
    read_certificates,
    recorded,
    revocation_fields,
    table,
)
from portguard.cli.opened_authority import authority_option, issued_under, opened
from portguard.cli.options import expect_one_form, json_option
from portguard.pki.authority import Authority
from portguard.pki.errors import PkiError
from portguard.pki.standing import Standing, Standings
from portguard.pki.store import Record


@click.command("list")
@authority_option
@json_option
def list_certificates(directory: Path, as_json: bool) -> None:
    """List the certificates that the authority issued, oldest first."""
    now = datetime.now(UTC)
    authority = opened(directory)
    standings = Standings(authority)
    rows = [recorded(record, standings.of(record, now)) for record in authority.store.records()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    columns = ["name", "kind", "status", "not_before", "not_after", "serial"]
    if any(row["revoked_at"] for row in rows):
        columns += ["revoked_at", "reason"]
    if any(row["revoked_issuer"] for row in rows):
        columns.append("revoked_issuer")
    header = [column.replace("_", " ").upper() for column in columns]
    for line in table(header, [[str(row[column] or "") for column in columns] for row in rows]):
        click.echo(line)


@click.command("show", short_help="Show a certificate, of a file or by its serial.")
@click.argument("what", metavar="FILE|SERIAL")
@authority_option
@click.option("--pem", is_flag=True, help="Print the certificate itself.")
@json_option
def show_certificate(what: str, directory: Path, pem: bool, as_json: bool) -> None:
    """Show a certificate: the first one in FILE, or the one that the authority issued under SERIAL.

    SERIAL is hex, whole or as many of its first digits as no other begins with.
    """
    expect_one_form(pem=pem, as_json=as_json)
    now = datetime.now(UTC)
    is_file = os.path.exists(what)
    # A foreign certificate's lapses, such as a negative serial, are no news of this program's code.
    with warnings.catch_warnings(action="ignore"):
        if is_file:
            certificates = read_certificates(Path(what))
            record, standing = _known(directory, certificates[0], now)
        else:
            authority = opened(directory)
            record = issued_under(what, authority)
            standing = Standings(authority).of(record, now)
            certificates = [x509.load_der_x509_certificate(record.der)]
        fields = dict(described(certificates[0], now, what))
        fields |= revocation_fields(standing)
        fields |= invitation_fields(record)
        if standing is not None:
            fields["status"] = str(standing.status)
        if is_file:
            fields["followed_by"] = followed_by(certificates[1:], what)
    if pem:
        click.echo(certificates[0].public_bytes(Encoding.PEM).decode(), nl=False)
        return
    print_fields(fields, as_json)


def _known(directory: Path, certificate: x509.Certificate, at: datetime) -> tuple[Record, Standing] | tuple[None, None]:
    """Return what the authority at hand knows of a file's certificate. None: it is another's, or there is none."""
    try:
        authority = Authority.open(directory)
        record = authority.store.record_of(certificate)
        return (None, None) if record is None else (record, Standings(authority).of(record, at))
    except PkiError as error:
        if isinstance(error.__cause__, OSError):  # not there, or not for the eyes of who asks: a file needs none
            return None, None
        raise
