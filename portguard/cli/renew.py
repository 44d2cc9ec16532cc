"""`portguard cert renew`: a client's own certificate, renewed at its gateway."""

import json
import os
from datetime import UTC, datetime, timedelta

import click
from cryptography import x509

from portguard.cli.as_client import credentials_of, run
from portguard.cli.certificates import lines, serial_text
from portguard.cli.options import duration_option, json_option, profile_option
from portguard.client import renewal
from portguard.client.certificate_request import uris
from portguard.client.credentials import read_certificate
from portguard.client.gateway import Gateway
from portguard.client.key_pair import expect_room, replace_pair
from portguard.client.profile import Profile, profile_path, read_profile
from portguard.instants import written_instant


@click.command(short_help="Renew your own certificate at the gateway.")
@profile_option
@duration_option("--if-within", 'Only if it ends within this time, such as "10d".')
@click.option("--keep-key", is_flag=True, help="Keep the private key; else a new one of the same type is made.")
@json_option
def renew(profile_name: str | None, if_within: timedelta | None, keep_key: bool, as_json: bool) -> None:
    """Renew the certificate of a profile at its gateway, and put the new one in its place, with a new key.

    The gateway must renew certificates, and the old one must still be valid. It stays so until its own end.
    """
    profile = read_profile(profile_path(profile_name, os.environ))
    if if_within is not None and _told_not_due(profile, read_certificate(profile), if_within, as_json=as_json):
        return
    credentials = credentials_of(profile_name)
    # The key may have been that of a renewal which a crash has interrupted, and is finished now.
    if if_within is not None and _told_not_due(profile, credentials.certificate, if_within, as_json=as_json):
        return
    expect_room(profile.certificate, profile.key)
    gateway = Gateway(credentials)
    new = run(renewal.renew(gateway, credentials, keep_key=keep_key, at=datetime.now(UTC)))
    in_one_file = os.path.realpath(profile.certificate) == os.path.realpath(profile.key)
    key_pem = credentials.key_file(new.key) if in_one_file or not keep_key else None
    replace_pair(profile.certificate, profile.key, new.certificate_pem, key_pem)
    described = _described(profile, new.certificate)
    fields: dict[str, object] = {
        "identity": ", ".join(uris(new.certificate)),
        "certificate": described.pop("certificate"),
        "key": str(profile.key),
        "new_key": not keep_key,
        **described,
    }
    if as_json:
        click.echo(json.dumps({"renewed": True, **fields}, indent=2))
        return
    for line in lines(fields):
        click.echo(line)


def _told_not_due(profile: Profile, certificate: x509.Certificate, within: timedelta, *, as_json: bool) -> bool:
    """Whether the certificate ends later than `within` from now; then that is said."""
    if certificate.not_valid_after_utc - datetime.now(UTC) <= within:
        return False
    fields = _described(profile, certificate)
    if as_json:
        click.echo(json.dumps({"renewed": False, **fields}, indent=2))
    else:
        click.echo(next(iter(lines({"not renewed": f"{profile.certificate} is valid until {fields['not_after']}"}))))
    return True


def _described(profile: Profile, certificate: x509.Certificate) -> dict[str, object]:
    return {
        "certificate": str(profile.certificate),
        "not_after": written_instant(certificate.not_valid_after_utc),
        "serial": serial_text(certificate.serial_number),
    }
