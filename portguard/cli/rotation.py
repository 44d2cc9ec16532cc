"""`portguard ca rotate`: a new CA in the place of an old one."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from portguard.cli.certificates import certificate_line, print_fields
from portguard.cli.intermediate import resting_on, tell_of_fallen
from portguard.cli.opened_authority import (
    authority_option,
    file_option,
    key_type_option,
    passphrase_option,
    read_root_passphrase,
    unlocked,
    valid_for_option,
)
from portguard.cli.options import json_option
from portguard.cli.rendering import counted, note
from portguard.errors import UsageError
from portguard.instants import written_instant
from portguard.pki import rotation
from portguard.pki.authority import AUTHORITY_VALID_FOR, Authority
from portguard.pki.keys import KeyType
from portguard.pki.rotation import Stage
from portguard.pki.store import Record


@click.command("rotate", short_help="Replace the CA that issues.")
@click.option("--switch", "steps", flag_value="switch", multiple=True, help="Let the new root issue from now on.")
@click.option("--finish", "steps", flag_value="finish", multiple=True, help="Take the old root out of ca.crt.")
@click.option("--abort", "steps", flag_value="abort", multiple=True, help="Take the new root back, before --switch.")
@click.option("--force", is_flag=True, help="With --finish: also while certificates of the old root are good.")
@click.option(
    "--root-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where the root's key is, if not here."
)
@click.option(
    "--compromised", is_flag=True, help="With --root-dir: revoke the old intermediate, and with it all it issued."
)
@file_option("--root-passphrase-file", "Holds the passphrase of the root's key; else it is that of the other key.")
@valid_for_option(AUTHORITY_VALID_FOR)
@key_type_option("EC P-256 or RSA 3072; else as the old one's.")
@authority_option
@passphrase_option
@json_option
def rotate(
    steps: tuple[str, ...],
    force: bool,
    root_dir: Path | None,
    compromised: bool,
    root_passphrase_file: Path | None,
    valid_for: timedelta,
    key_type: KeyType | None,
    directory: Path,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Replace the CA that issues by a new one, whose key gets the same passphrase.

    With the root's key elsewhere (--root-dir) a new intermediate takes over at once.

    A root that issues itself is replaced in three steps: without an option it makes the new root beside the old one,
    --switch lets the new one issue, --finish ends the old one. Between them, ca.crt has to reach everybody.
    """
    step = _only(steps, force=force, root_dir=root_dir)
    for option, given in (("--root-passphrase-file", root_passphrase_file), ("--compromised", compromised)):
        if given and root_dir is None:
            raise UsageError(f"{option}: expected --root-dir beside it, got none")
    authority = unlocked(directory, passphrase_file)
    now = datetime.now(UTC)
    falling: list[Record] = []
    if root_dir is not None:
        passphrase = read_root_passphrase(root_dir, root_passphrase_file, authority.passphrase)
        if compromised:
            falling = resting_on(authority.issuer, authority, now)
        authority = rotation.replace_issuing(
            authority,
            root_dir,
            at=now,
            root_passphrase=passphrase,
            valid_for=valid_for,
            key_type=key_type,
            compromised=compromised,
        )
        then = f"take {authority.crl_path} to every gateway that names it, before the first new certificate comes there"
        if compromised:
            then = f"take {authority.crl_path} to every gateway at once, named in crl"
    elif step == "finish":
        left = rotation.still_good(authority, now)
        for record in left:
            note(f"{certificate_line(record)}, is good until {written_instant(record.not_after)}")
        old_key_path = authority.key_path_of(authority.anchors[-1])
        authority = rotation.finish(authority, at=now, force=force)
        then = f"take {_everywhere(authority)}; {old_key_path} is of no more use, destroy it"
    else:
        if step == "abort":
            authority = rotation.abort(authority, at=now)
        elif step == "switch":
            authority = rotation.switch(authority, at=now)
        else:
            authority = rotation.prepare(authority, at=now, valid_for=valid_for, key_type=key_type)
        then = next_step(authority, now) or f"take {_everywhere(authority)}, if the other ones went there"
    fields = {
        "rotation": rotation.stage(authority),
        "issuing": authority.issuer.subject.rfc4514_string(),
        "ca": str(authority.ca_path),
        "key": str(authority.key_path),
        "crl": str(authority.crl_path),
        "not_after": written_instant(authority.issuer.not_valid_after_utc),
    }
    print_fields(fields, as_json)
    tell_of_fallen(falling)
    note(then)


def next_step(authority: Authority, at: datetime) -> str | None:
    """Say what to do next in the replacement of a root, None where there is none under way."""
    match rotation.stage(authority):
        case None:
            return None
        case Stage.PREPARED:
            return f"take {_everywhere(authority)}; then `portguard ca rotate --switch`"
        case Stage.SWITCHED:
            if left := len(rotation.still_good(authority, at)):
                what = counted(left, "certificate")
                return f"{what} of the old root still to replace, or to end; then `portguard ca rotate --finish`"
            return "nothing that the old root issued is good any more: `portguard ca rotate --finish` ends it"


def _everywhere(authority: Authority) -> str:
    return f"{authority.ca_path} to every gateway and client, and {authority.crl_path} to every gateway"


def _only(steps: tuple[str, ...], *, force: bool, root_dir: Path | None) -> str | None:
    """Return the one step that was asked for, None for the first. Raises UsageError."""
    if len(set(steps)) > 1:
        raise UsageError(f"--{steps[0]}: expected not to be given beside --{steps[1]}")
    step = steps[0] if steps else None
    if step is not None and root_dir is not None:
        raise UsageError(f"--{step}: expected not to be given beside --root-dir")
    if force and step != "finish":
        raise UsageError("--force: expected --finish beside it, got none")
    return step
