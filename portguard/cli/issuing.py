"""`portguard cert issue` and `cert gateway`: certificates with keys of their own, and what all that issues shares."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
from cryptography import x509

from portguard.cli.certificates import Fields, print_fields, serial_text
from portguard.cli.opened_authority import (
    ask,
    authority_option,
    file_option,
    key_type_option,
    passphrase_option,
    read_passphrase,
    unlocked,
    valid_for_option,
)
from portguard.cli.options import json_option
from portguard.cli.rendering import note
from portguard.errors import UsageError
from portguard.instants import written_instant
from portguard.pki import files, names
from portguard.pki.authority import CLIENT_VALID_FOR, GATEWAY_VALID_FOR, Authority
from portguard.pki.issued import SignedCertificate, pem_paths, pkcs12_path
from portguard.pki.keys import KeyType

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
    """Print what was issued, and say so where it ends before `asked_until`."""
    print_fields(
        {
            **fields,
            "ca": str(authority.ca_path),
            "not_after": written_instant(issued.not_after),
            "serial": serial_text(issued.serial),
        },
        as_json,
    )
    note_end(issued, asked_until)


def note_end(issued: SignedCertificate, asked_until: datetime) -> None:
    """Say so where it ends before `asked_until`."""
    if issued.not_after < asked_until.replace(microsecond=0):
        note(f"valid for less than asked: the authority itself ends at {written_instant(issued.not_after)}")
