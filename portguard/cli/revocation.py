"""`portguard cert revoke` and `portguard ca crl`: certificates taken back, and the lists that tell gateways of them."""

import os
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from portguard.cli.certificates import (
    Fields,
    certificate_line,
    print_fields,
    read_certificates,
    recorded,
    serial_number,
)
from portguard.cli.opened_authority import (
    authority_option,
    file_option,
    issued_under,
    passphrase_option,
    unlocked,
)
from portguard.cli.options import duration_option, json_option
from portguard.cli.rendering import counted, note
from portguard.errors import UsageError
from portguard.instants import written_instant
from portguard.pki import files
from portguard.pki.authority import LIST_VALID_FOR, Authority
from portguard.pki.errors import PkiError
from portguard.pki.files import PUBLIC, NewFile
from portguard.pki.profiles import Kind, RevocationReason
from portguard.pki.revocation import WrittenLists, write_lists
from portguard.pki.revocation import revoke as revoke_certificates
from portguard.pki.standing import Standings, left_to_clients
from portguard.pki.store import Record

_LEFT = {Kind.CLIENT: "other certificate", Kind.INVITATION: "open invitation"}

_REASONS = tuple(reason for reason in RevocationReason if reason is not RevocationReason.CA_COMPROMISE)


def _reason(_context: click.Context, _parameter: click.Parameter, given: str | None) -> RevocationReason | None:
    """Read a reason as RFC 5280 and openssl spell it, in any case, or with hyphens between its words."""
    if given is None:
        return None
    for reason in _REASONS:
        if reason.lower() == given.replace("-", "").lower():
            return reason
    raise click.BadParameter(f"expected {', '.join(_REASONS)}, got {given!r}")


@click.command("revoke", short_help="Revoke certificates, and write the revocation list.")
@click.argument("what", metavar="[FILE|SERIAL]...", nargs=-1)
@click.option(
    "--identity",
    "identities",
    multiple=True,
    metavar="NAME",
    help="Revoke all certificates of this client that are not expired, and its invitations; may be repeated.",
)
@click.option(
    "--reason",
    callback=_reason,
    metavar="REASON",
    help=f"{', '.join(_REASONS)}. The first is the default.",
)
@authority_option
@passphrase_option
@json_option
def revoke(
    what: tuple[str, ...],
    identities: tuple[str, ...],
    reason: RevocationReason | None,
    directory: Path,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Revoke certificates for good, all that are named or none, and write a new ca.crl.

    FILE is a certificate that the authority issued, or an invitation; SERIAL its number in hex, or as many of its first
    digits as no other begins with.

    Gateways refuse the certificate, and end its sessions, once they have the new list.
    """
    if not (what or identities):
        raise UsageError("FILE|SERIAL: expected a certificate, or --identity, got none")
    authority = unlocked(directory, passphrase_file)
    serials = [_issued(each, authority).serial for each in what]
    now = datetime.now(UTC)
    revoked = revoke_certificates(authority, serials, identities, reason=reason, at=now)
    told = list_fields(revoked.lists)
    if as_json:
        standings = Standings(authority)
        fields: Fields = {
            "revoked": [recorded(record, standings.of(record, now)) for record in revoked.now],
            "revoked_before": [recorded(record, standings.of(record, now)) for record in revoked.before],
            "crl": {"file": str(authority.crl_path), **told},
        }
    else:
        fields = {
            "revoked": [certificate_line(record) for record in revoked.now]
            or "nothing that was not revoked or expired before",
            "reason": str(reason or RevocationReason.UNSPECIFIED) if revoked.now else None,
            "revoked_before": [f"{certificate_line(record)}, {_since(record)}" for record in revoked.before],
            "crl": str(authority.crl_path),
            **told,
        }
    print_fields(fields, as_json)
    for name, counts in left_to_clients(authority, (*revoked.now, *revoked.before), now).items():
        others = " and ".join(counted(counts[kind], noun) for kind, noun in _LEFT.items() if counts[kind])
        are = "is" if counts.total() == 1 else "are"
        note(f"client {name} has {others} that {are} good; --identity {name} revokes all")
    if any(record.kind is not Kind.INVITATION for record in revoked.now):  # of those the one that issues knows at once
        note(f"gateways refuse what was revoked once they have {authority.crl_path}")


@click.command("crl", short_help="Sign a new revocation list.")
@duration_option(
    "--valid-for",
    f'How long from now, such as "12h"; else as long as the list before. The first: {LIST_VALID_FOR.days}d.',
)
@file_option("--out", "Write the list to this file too, in the place of one that is there.")
@authority_option
@passphrase_option
@json_option
def crl(
    valid_for: timedelta | None, out: Path | None, directory: Path, passphrase_file: Path | None, as_json: bool
) -> None:
    """Sign a new revocation list, with the same entries and a later end, to ca.crl in the authority's directory.

    Gateways refuse everybody once their list has ended: have this run well before.
    """
    authority = unlocked(directory, passphrase_file)
    lists = write_lists(authority, at=datetime.now(UTC), valid_for=valid_for)
    if out is not None:
        files.publish([NewFile(out, lists.pem, PUBLIC)], overwrite=True)
    copy = None if out is None else str(out)
    print_fields({"crl": str(authority.crl_path), "copy": copy, **list_fields(lists)}, as_json)


def _issued(what: str, authority: Authority) -> Record:
    """Find the certificate that is meant. Raises UsageError, PkiError."""
    if not os.path.exists(what):
        if serial_number(what) is None:
            found = f"{what!r}; all that a client has is revoked by --identity NAME"
            raise UsageError(f"FILE|SERIAL: expected a file or a serial number in hex, got {found}")
        return issued_under(what, authority)
    with warnings.catch_warnings(action="ignore"):  # as in `cert show`
        certificate = read_certificates(Path(what))[0]
        record = authority.store.record_of(certificate)
    if record is None:
        found = "another one"
        if authority.two_tier and certificate in (authority.issuer, *authority.retired):
            found = "an intermediate, which `portguard ca revoke` takes"
        raise PkiError(what, f"a certificate that the authority in {authority.directory} issued", found)
    return record


def _since(record: Record) -> str:
    assert record.revocation is not None
    return f"since {written_instant(record.revocation.at)}, {record.revocation.reason}"


def list_fields(lists: WrittenLists) -> Fields:
    """Return what there is to tell of new lists."""
    return {
        "number": lists.number,
        "entries": lists.entries,
        "next_update": written_instant(lists.next_update),
    }
