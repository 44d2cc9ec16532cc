"""`portguard invite`: a file by which somebody gets a certificate for a key of their own."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from portguard.cli.certificates import print_fields, serial_text
from portguard.cli.issuing import expect_room, note_end
from portguard.cli.opened_authority import (
    authority_option,
    file_option,
    passphrase_option,
    unlocked,
    valid_for_option,
)
from portguard.cli.options import json_option, parsed_by
from portguard.cli.rendering import note
from portguard.client.invitation import SUFFIX, Invitation, Place
from portguard.client.profile import parse_server_name
from portguard.errors import UsageError
from portguard.instants import written_instant
from portguard.pki import files, names
from portguard.pki.authority import INVITATION_VALID_FOR
from portguard.pki.files import SECRET, NewFile
from portguard.policy.addresses import HostPort, parse_host_port


@click.command(short_help="Invite somebody to make a key and get a certificate.")
@click.argument("name")
@click.option(
    "--gateway",
    required=True,
    metavar="HOST:PORT",
    callback=parsed_by(parse_host_port),
    help="The gateway that issues certificates.",
)
@click.option(
    "--server-name",
    metavar="NAME",
    callback=parsed_by(parse_server_name),
    help="What its certificate has to carry, if not HOST.",
)
@valid_for_option(INVITATION_VALID_FOR)
@file_option("--out", f"Where to write it; else NAME{SUFFIX} here.")
@authority_option
@passphrase_option
@json_option
def invite(
    name: str,
    gateway: HostPort,
    server_name: str | None,
    valid_for: timedelta,
    out: Path | None,
    directory: Path,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Invite NAME: write one file, by which `portguard enroll` gets a certificate for this identity, once.

    The key is made where that is run. The gateway must issue certificates by this authority, in this directory. Whoever
    has the file can become NAME until it is used: hand it over on a way that keeps it secret.
    """
    stem = names.client_file_stem(name)
    path = out if out is not None else Path(f"{stem}{SUFFIX}")
    if path.is_dir():
        raise UsageError(f"--out: expected a file, got the directory {str(path)!r}")
    authority = unlocked(directory, passphrase_file)
    identity = names.spiffe_id(authority.trust_domain, name)
    Place.of(Path(), identity)
    expect_room(path.parent, [path], force=False)
    now = datetime.now(UTC)
    issued = authority.invite(name, at=now, valid_for=valid_for)
    invitation = Invitation(
        gateway=gateway,
        server_name=server_name if server_name is not None else gateway.host,
        identity=identity,
        certificate_pem=issued.certificate_pem.decode(),
        key_pem=issued.key_pem.decode(),
        anchors_pem=issued.anchor_pem.decode(),
    )
    files.publish([NewFile(path, invitation.text().encode(), SECRET)])
    fields = {
        "identity": identity,
        "invitation": str(path),
        "gateway": str(gateway),
        "server_name": invitation.server_name,
        "not_after": written_instant(issued.not_after),
        "serial": serial_text(issued.serial),
    }
    print_fields(fields, as_json)
    note_end(issued, now + valid_for)
    note(f"whoever has {path} can become {name} until it is used; `portguard cert revoke {path}` takes it back")
