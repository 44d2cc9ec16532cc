"""`portguard enroll`: a client's key, made here, and its first certificate, by an invitation."""

from datetime import UTC, datetime
from pathlib import Path

import click

from portguard.cli.as_client import run
from portguard.cli.certificates import print_fields, serial_text
from portguard.cli.options import json_option
from portguard.cli.rendering import note
from portguard.client import enrolment
from portguard.client.enrolment import Enrolled
from portguard.client.gateway import Gateway
from portguard.client.invitation import Place, read_invitation
from portguard.errors import Unreachable
from portguard.instants import written_instant
from portguard.pki import files
from portguard.pki.errors import PkiError


@click.command(short_help="Make a key, and get a certificate by an invitation.")
@click.argument("path", metavar="INVITATION", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=".", metavar="DIR", help="Where to write files; else here."
)
@json_option
def enroll(path: Path, out: Path, as_json: bool) -> None:
    """Make a key here, and have the gateway that INVITATION names issue a certificate for it.

    Beside them come a profile and the certificate of the gateway's authority. If something breaks on the way, run it
    again: the key is kept, and the same certificate comes.
    """
    now = datetime.now(UTC)
    invitation = read_invitation(path)
    credentials = invitation.credentials(path)
    place = Place.of(out, invitation.identity)
    enrolled = enrolment.enrolled_before(place, invitation, credentials, now)
    if enrolled is not None:
        enrolment.finish(place, invitation)
        then = f"{place.certificate} was there already, and nothing was asked for"
    else:
        enrolment.check_dates(invitation, now)
        gateway = Gateway(credentials)
        files.make_directory(out, 0o700)
        enrolment.expect_room(place, invitation)
        key = enrolment.keep_key(place)
        try:
            enrolled = run(enrolment.enroll(gateway, invitation, credentials, place, key, at=now))
        except (Unreachable, PkiError):  # the invitation may be used by now, for this key and no other
            note(f"the key is in {place.key}: run this again to go on with it")
            raise
        then = f"{path} is used, and of no more use to anybody else"
    _print(invitation.identity, enrolled, as_json=as_json)
    note(f"{then}; `portguard whoami --profile {place.profile}` tells who you are to the gateway")


def _print(identity: str, enrolled: Enrolled, *, as_json: bool) -> None:
    place, certificate = enrolled.place, enrolled.certificate
    fields = {
        "identity": identity,
        "profile": str(place.profile),
        "certificate": str(place.certificate),
        "key": str(place.key),
        "ca": str(place.ca),
        "not_after": written_instant(certificate.not_valid_after_utc),
        "serial": serial_text(certificate.serial_number),
    }
    print_fields(fields, as_json)
