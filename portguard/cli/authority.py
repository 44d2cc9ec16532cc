"""`portguard ca`: the certificate authority at the command line, made and shown. Its other commands are added here."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from portguard.cli.certificates import Fields, described, print_fields
from portguard.cli.groups import CommandGroup
from portguard.cli.intermediate import revoke_intermediate
from portguard.cli.opened_authority import (
    ask,
    authority_option,
    file_option,
    key_type_option,
    opened,
    read_passphrase,
    valid_for_option,
)
from portguard.cli.options import expect_one_form, json_option
from portguard.cli.rendering import note
from portguard.cli.revocation import crl
from portguard.cli.rotation import next_step, rotate
from portguard.errors import UsageError
from portguard.instants import written_instant
from portguard.pki import names
from portguard.pki.authority import AUTHORITY_VALID_FOR, Authority
from portguard.pki.keys import KeyType
from portguard.pki.revocation import ListStatus, PublishedLists, published_lists, revoked_issuers
from portguard.pki.rotation import stage
from portguard.pki.standing import Standings


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
def ca() -> None:
    """Make, show and renew a certificate authority and its lists."""


ca.add_command(crl)
ca.add_command(revoke_intermediate)
ca.add_command(rotate)


@ca.command("init")
@authority_option
@click.option("--trust-domain", required=True, metavar="DOMAIN", help="Clients become spiffe://DOMAIN/NAME.")
@key_type_option("EC P-256 (the default) or RSA 3072.")
@click.option("--encrypt-key", is_flag=True, help="Encrypt the key, with a passphrase that a terminal is asked for.")
@file_option("--passphrase-file", "Encrypt the key, with the passphrase in this file.")
@click.option(
    "--root-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the root's key there, such as on a stick, and issue with an intermediate.",
)
@file_option("--root-passphrase-file", "Encrypt the root's key with this passphrase; else with the other one.")
@valid_for_option(AUTHORITY_VALID_FOR)
@json_option
def init(
    directory: Path,
    trust_domain: str,
    key_type: KeyType | None,
    encrypt_key: bool,
    passphrase_file: Path | None,
    root_dir: Path | None,
    root_passphrase_file: Path | None,
    valid_for: timedelta,
    as_json: bool,
) -> None:
    """Make a certificate authority in a new or empty directory."""
    if root_passphrase_file is not None and root_dir is None:
        raise UsageError("--root-passphrase-file: expected --root-dir beside it, got none")
    names.trust_domain(trust_domain)
    passphrase = root_passphrase = None
    if passphrase_file is not None:
        passphrase = read_passphrase(passphrase_file)
    elif encrypt_key:
        passphrase = ask("Passphrase for the key", "--passphrase-file", twice=True)
    if root_passphrase_file is not None:
        root_passphrase = read_passphrase(root_passphrase_file)
    elif root_dir is not None and encrypt_key and passphrase_file is None:
        root_passphrase = ask("Passphrase for the root's key", "--root-passphrase-file", twice=True)
    now = datetime.now(UTC)
    authority = Authority.create(
        directory,
        trust_domain=trust_domain,
        at=now,
        valid_for=valid_for,
        key_type=key_type or KeyType.EC,
        passphrase=passphrase,
        root_directory=root_dir,
        root_passphrase=root_passphrase,
    )
    fields = {
        "trust_domain": authority.trust_domain,
        "ca": str(authority.ca_path),
        "key": str(authority.key_path),
        "crl": str(authority.crl_path),
        "root_key": None if root_dir is None else str(root_dir / "root.key"),
        "not_after": written_instant(authority.anchor.not_valid_after_utc),
    }
    print_fields(fields, as_json)


@ca.command("show")
@authority_option
@click.option("--pem", is_flag=True, help="Print the certificate that gateways and clients trust.")
@json_option
def show_authority(directory: Path, pem: bool, as_json: bool) -> None:
    """Show the authority, what it issued, and its revocation list."""
    expect_one_form(pem=pem, as_json=as_json)
    authority = opened(directory)
    if pem:
        click.echo(authority.certificate_pem.decode(), nl=False)
        return
    now = datetime.now(UTC)
    standings = Standings(authority)
    issued = Counter(str(standings.of(record, now).status) for record in authority.store.records())
    lists = published_lists(authority, now)
    fields = {
        "directory": str(directory),
        "trust_domain": authority.trust_domain,
        "root": described(authority.anchor, now, "root"),
        "other_root": described(authority.anchors[1], now, "root") if authority.anchors[1:] else None,
        "issuing": described(authority.issuer, now, "issuing CA") if authority.two_tier else None,
        "retired": [each.subject.rfc4514_string() for each in authority.retired],
        "revoked_intermediates": [name.rfc4514_string() for name in revoked_issuers(authority)],
        "rotation": stage(authority),
        "key_encrypted": authority.key_is_encrypted,
        "issued": dict(sorted(issued.items())),
        "crl": _crl_fields(authority, lists),
    }
    if as_json:
        print_fields(fields, as_json=True)
        return
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in sorted(issued.items()))
    shown = {"issued": counts or "none yet", "crl": _crl_text(authority, lists)}
    parts = ("root", "other_root", "issuing")
    print_fields({**fields, **dict.fromkeys(parts), **shown}, as_json=False)
    for part in parts:
        if isinstance(certificate := fields[part], dict):
            click.echo(f"\n{part.replace('_', ' ')} certificate")
            print_fields(certificate, as_json=False)
    if lists.status is not ListStatus.CURRENT:
        note(f"{authority.crl_path}: {_CRL_STATUS[lists.status]}; `portguard ca crl` writes it")
    if (step := next_step(authority, now)) is not None:
        note(step)


_CRL_STATUS = {
    ListStatus.OUT_OF_DATE: "out of date, and gateways that have it refuse everybody",
    ListStatus.BEHIND: "behind the record, something that was revoked is not in it",
    ListStatus.UNREADABLE: "no revocation list of this authority that can be read",
    ListStatus.MISSING: "missing",
}


def _crl_fields(authority: Authority, lists: PublishedLists) -> Fields:
    return {
        "file": str(authority.crl_path),
        "status": str(lists.status),
        "number": lists.number,
        "entries": lists.entries,
        "next_update": None if lists.next_update is None else written_instant(lists.next_update),
    }


def _crl_text(authority: Authority, lists: PublishedLists) -> str:
    parts = [str(authority.crl_path)]
    if lists.status is not ListStatus.CURRENT:
        parts.append(str(lists.status).replace("_", " "))
    if lists.number is not None and lists.next_update is not None:
        next_update = written_instant(lists.next_update)
        parts += [f"number {lists.number}", f"{lists.entries} revoked", f"next update {next_update}"]
    return ", ".join(parts)
