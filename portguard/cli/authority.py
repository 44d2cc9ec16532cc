"""`portguard ca` and `portguard cert`: the certificate authority at the command line."""

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.cli.certificates import (
    Fields,
    described,
    print_fields,
    read_certificates,
    recorded,
    revocation_fields,
    serial_text,
    table,
    time_text,
)
from portguard.cli.groups import CommandGroup
from portguard.cli.opened_authority import (
    ask,
    authority_option,
    file_option,
    issued_under,
    key_type_option,
    note,
    opened,
    passphrase_option,
    read_passphrase,
    unlocked,
    valid_for_option,
)
from portguard.cli.options import json_option
from portguard.cli.revocation import crl
from portguard.cli.rotation import next_step, rotate
from portguard.errors import UsageError
from portguard.pki import files, names
from portguard.pki.authority import AUTHORITY_VALID_FOR, CLIENT_VALID_FOR, GATEWAY_VALID_FOR, Authority
from portguard.pki.errors import PkiError
from portguard.pki.issued import SignedCertificate, pem_paths, pkcs12_path
from portguard.pki.keys import KeyType
from portguard.pki.revocation import ListStatus, PublishedLists, published_lists
from portguard.pki.rotation import stage
from portguard.pki.store import Record

GATEWAY_STEM = "gateway"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _issue_options(command: _Command) -> _Command:
    """The options that `cert issue` and `cert gateway` share."""
    for option in (
        json_option,
        click.option("--force", is_flag=True, help="Replace files that exist."),
        key_type_option("EC P-256 or RSA 3072; else as the authority's."),
        click.option(
            "--out", type=click.Path(path_type=Path), default=".", metavar="DIR", help="Where to write files."
        ),
        passphrase_option,
        authority_option,
    ):
        command = option(command)
    return command


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
def ca() -> None:
    """Make, show and renew a certificate authority and its lists."""


ca.add_command(crl)
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
        "ca": str(directory / "ca.crt"),
        "key": str(authority.key_path),
        "crl": str(authority.crl_path),
        "root_key": None if root_dir is None else str(root_dir / "root.key"),
        "not_after": time_text(authority.anchor.not_valid_after_utc),
    }
    print_fields(fields, as_json)


@ca.command("show")
@authority_option
@click.option("--pem", is_flag=True, help="Print the certificate that gateways and clients trust.")
@json_option
def show_authority(directory: Path, pem: bool, as_json: bool) -> None:
    """Show the authority, what it issued, and its revocation list."""
    _expect_one_form(pem=pem, as_json=as_json)
    authority = opened(directory)
    if pem:
        click.echo(authority.certificate_pem.decode(), nl=False)
        return
    now = datetime.now(UTC)
    issued = Counter(str(record.status(now)) for record in authority.store.records())
    lists = published_lists(authority, now)
    fields = {
        "directory": str(directory),
        "trust_domain": authority.trust_domain,
        "root": described(authority.anchor, now, "root"),
        "other_root": described(authority.anchors[1], now, "root") if authority.anchors[1:] else None,
        "issuing": described(authority.issuer, now, "issuing CA") if authority.two_tier else None,
        "retired": [each.subject.rfc4514_string() for each in authority.retired],
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
        "next_update": None if lists.next_update is None else time_text(lists.next_update),
    }


def _crl_text(authority: Authority, lists: PublishedLists) -> str:
    parts = [str(authority.crl_path)]
    if lists.status is not ListStatus.CURRENT:
        parts.append(str(lists.status).replace("_", " "))
    if lists.number is not None and lists.next_update is not None:
        parts += [f"number {lists.number}", f"{lists.entries} revoked", f"next update {time_text(lists.next_update)}"]
    return ", ".join(parts)


@click.command("issue")
@click.argument("name")
@click.option("--pkcs12", is_flag=True, help="Write one .p12 file instead of .crt and .key.")
@file_option("--pkcs12-passphrase-file", "Holds the passphrase for the .p12 file; else a terminal is asked.")
@valid_for_option(CLIENT_VALID_FOR)
@_issue_options
def issue(
    name: str,
    pkcs12: bool,
    pkcs12_passphrase_file: Path | None,
    valid_for: timedelta,
    directory: Path,
    passphrase_file: Path | None,
    out: Path,
    key_type: KeyType | None,
    force: bool,
    as_json: bool,
) -> None:
    """Issue a client certificate for the identity NAME.

    It goes to NAME.crt, with the authority's intermediate if there is one, and its key to NAME.key. A "/" in NAME
    becomes a "+" in the file's name.
    """
    if pkcs12_passphrase_file is not None and not pkcs12:
        raise UsageError("--pkcs12-passphrase-file: expected --pkcs12 beside it, got none")
    stem = names.client_file_stem(name)
    expect_room(out, [pkcs12_path(out, stem)] if pkcs12 else list(pem_paths(out, stem)), force=force)
    authority = unlocked(directory, passphrase_file)
    secret = None
    if pkcs12 and pkcs12_passphrase_file is not None:
        secret = read_passphrase(pkcs12_passphrase_file)
    elif pkcs12:
        secret = ask("Passphrase for the .p12 file", "--pkcs12-passphrase-file", twice=True)
    now = datetime.now(UTC)
    issued = authority.issue_client(name, at=now, valid_for=valid_for, key_type=key_type)
    written: dict[str, object]
    if secret is not None:
        written = {"pkcs12": str(issued.write_pkcs12(out, stem, secret, overwrite=force))}
    else:
        certificate, key = issued.write(out, stem, overwrite=force)
        written = {"certificate": str(certificate), "key": str(key)}
    identity = {"identity": names.spiffe_id(authority.trust_domain, name)}
    report(authority, issued, {**identity, **written}, now + valid_for, as_json)


@click.command("gateway", short_help="Issue a gateway's certificate.")
@click.argument("gateway_names", metavar="NAME...", nargs=-1, required=True)
@valid_for_option(GATEWAY_VALID_FOR)
@_issue_options
def gateway(
    gateway_names: tuple[str, ...],
    valid_for: timedelta,
    directory: Path,
    passphrase_file: Path | None,
    out: Path,
    key_type: KeyType | None,
    force: bool,
    as_json: bool,
) -> None:
    """Issue a gateway's certificate for each NAME: a DNS name, *.NAME, or an IP address.

    It goes to gateway.crt, with the authority's intermediate if there is one, and its key to gateway.key.
    """
    covered = [str(name.value) for name in names.gateway(gateway_names) if isinstance(name, x509.DNSName)]
    expect_room(out, list(pem_paths(out, GATEWAY_STEM)), force=force)
    authority = unlocked(directory, passphrase_file)
    now = datetime.now(UTC)
    issued = authority.issue_gateway(gateway_names, at=now, valid_for=valid_for, key_type=key_type)
    certificate, key = issued.write(out, GATEWAY_STEM, overwrite=force)
    written = {"names": list(gateway_names), "certificate": str(certificate), "key": str(key)}
    report(authority, issued, written, now + valid_for, as_json)
    # No wildcard can be issued below a single label.
    if (name := next((each for each in covered if "." in each), None)) and not any(map(_is_wildcard, covered)):
        note(f"services that clients name by SNI need *.{name} too; those by CONNECT or on ports of their own do not")


@click.command("list")
@authority_option
@json_option
def list_certificates(directory: Path, as_json: bool) -> None:
    """List the certificates that the authority issued, oldest first."""
    now = datetime.now(UTC)
    rows = [recorded(record, now) for record in opened(directory).store.records()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    columns = ["name", "kind", "status", "not_before", "not_after", "serial"]
    if any(row["revoked_at"] for row in rows):
        columns += ["revoked_at", "reason"]
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
    _expect_one_form(pem=pem, as_json=as_json)
    now = datetime.now(UTC)
    is_file = os.path.exists(what)
    # A foreign certificate's lapses, such as a negative serial, are no news of this program's code.
    with warnings.catch_warnings(action="ignore"):
        if is_file:
            certificates = read_certificates(Path(what))
            record = _recorded_by(directory, certificates[0])
        else:
            record = issued_under(what, opened(directory))
            certificates = [x509.load_der_x509_certificate(record.der)]
        fields = dict(described(certificates[0], now, what))
        fields |= revocation_fields(record)
        if record is not None:
            fields["status"] = str(record.status(now))
        if is_file:
            fields["followed_by"] = [other.subject.rfc4514_string() for other in certificates[1:]]
    if pem:
        click.echo(certificates[0].public_bytes(Encoding.PEM).decode(), nl=False)
        return
    print_fields(fields, as_json)


def _expect_one_form(*, pem: bool, as_json: bool) -> None:
    if pem and as_json:
        raise UsageError("--pem: expected not to be given beside --json")


def _recorded_by(directory: Path, certificate: x509.Certificate) -> Record | None:
    """Return what the authority at hand knows of a file's certificate. None: it is another's, or there is none."""
    try:
        record = Authority.open(directory).store.get(certificate.serial_number)
    except PkiError as error:
        if isinstance(error.__cause__, OSError):  # not there, or not for the eyes of who asks: a file needs none
            return None
        raise
    return record if record is not None and record.der == certificate.public_bytes(Encoding.DER) else None


def expect_room(out: Path, paths: list[Path], *, force: bool) -> None:
    """Find out before anything is signed and recorded that its files could not be written."""
    files.make_directory(out, 0o777)
    if not force:
        files.refuse_existing(paths)


def _is_wildcard(name: str) -> bool:
    return name.startswith("*.")


def report(
    authority: Authority, issued: SignedCertificate, fields: Fields, asked_until: datetime, as_json: bool
) -> None:
    print_fields(
        {
            **fields,
            "ca": str(authority.directory / "ca.crt"),
            "not_after": time_text(issued.not_after),
            "serial": serial_text(issued.serial),
        },
        as_json,
    )
    if issued.not_after < asked_until.replace(microsecond=0):
        note(f"valid for less than asked: the authority itself ends at {time_text(issued.not_after)}")
