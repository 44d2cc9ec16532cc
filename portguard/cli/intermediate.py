"""`portguard ca revoke`: an intermediate taken back that was replaced before somebody found out."""

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography import x509

from portguard.cli.certificates import certificate_line, print_fields
from portguard.cli.opened_authority import (
    authority_option,
    file_option,
    passphrase_option,
    read_root_passphrase,
    unlocked,
)
from portguard.cli.options import json_option
from portguard.cli.rendering import note
from portguard.cli.revocation import list_fields
from portguard.pki import ca_certificates
from portguard.pki.authority import Authority
from portguard.pki.errors import PkiError
from portguard.pki.profiles import Kind, RevocationReason, key_id
from portguard.pki.revocation import is_issued_by
from portguard.pki.rotation import revoke_replaced
from portguard.pki.standing import Standings
from portguard.pki.store import Record


@click.command("revoke", short_help="Revoke an intermediate that was replaced.")
@click.argument("intermediate", metavar="NAME|FILE")
@click.option(
    "--root-dir", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where the root's key is."
)
@file_option("--root-passphrase-file", "Holds the passphrase of the root's key; else it is that of the other key.")
@authority_option
@passphrase_option
@json_option
def revoke_intermediate(
    intermediate: str,
    root_dir: Path,
    root_passphrase_file: Path | None,
    directory: Path,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Revoke an intermediate that was replaced, for good, and write a new ca.crl.

    With it falls all that it issued, also what nobody recorded.

    NAME is what `portguard ca show` has under "retired", or the eight hex digits in it; FILE is its certificate.

    The one that issues is replaced and revoked by `portguard ca rotate --compromised`.
    """
    authority = unlocked(directory, passphrase_file)
    certificate = _meant(intermediate, authority)
    now = datetime.now(UTC)
    falling = resting_on(certificate, authority, now)
    passphrase = read_root_passphrase(root_dir, root_passphrase_file, authority.passphrase)
    lists = revoke_replaced(authority, root_dir, certificate, at=now, root_passphrase=passphrase)
    fields = {
        "revoked": certificate.subject.rfc4514_string(),
        "reason": str(RevocationReason.CA_COMPROMISE),
        "crl": str(authority.crl_path),
        **list_fields(lists),
    }
    print_fields(fields, as_json)
    tell_of_fallen(falling)
    note(f"take {authority.crl_path} to every gateway at once, named in crl")


def resting_on(intermediate: x509.Certificate, authority: Authority, at: datetime) -> list[Record]:
    """Return what an intermediate issued that is good at `at`: it falls with that one. Raises PkiError."""
    standings = Standings(authority)
    return [
        record
        for record in authority.store.records()
        if is_issued_by(record, intermediate) and standings.of(record, at).status.is_good
    ]


def tell_of_fallen(records: Iterable[Record]) -> None:
    """Tell what has to be issued again."""
    for record in records:
        then = "invite anew" if record.kind is Kind.INVITATION else "issue it anew"
        note(f"{certificate_line(record)}, was good until now: {then}")


def _meant(text: str, authority: Authority) -> x509.Certificate:
    """Find the intermediate. Raises PkiError."""
    if os.path.exists(text):
        return ca_certificates.read_issuing(Path(text), authority.anchor)
    for each in (*authority.retired, authority.issuer):
        if text in (each.subject.rfc4514_string(), key_id(each)):
            return each
    raise PkiError(text, f"an intermediate of the authority in {authority.directory}, or its file", "neither")
