"""`portguard cert sign`: a certificate for a key that its owner made, and keeps."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from portguard.cli.issuing import GATEWAY_STEM, expect_room, report
from portguard.cli.opened_authority import authority_option, passphrase_option, unlocked
from portguard.cli.options import duration_option, json_option
from portguard.errors import UsageError
from portguard.pki import names
from portguard.pki.authority import CLIENT_VALID_FOR, GATEWAY_VALID_FOR
from portguard.pki.errors import PkiError
from portguard.pki.issued import certificate_path
from portguard.pki.request import LARGEST_BYTES, Request, read_request

_FILES = (".crt", ".pem", ".cer")


@click.command(short_help="Issue a certificate for a key that stays where it is.")
@click.argument("request_path", metavar="CSR", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="For a client: the identity that it gets.")
@click.option(
    "--gateway",
    "gateway_names",
    metavar="NAME",
    multiple=True,
    help="For a gateway: a DNS name, *.NAME, or an IP address; once for each.",
)
@duration_option(
    "--valid-for", f"How long from now; else {CLIENT_VALID_FOR.days}d, for a gateway {GATEWAY_VALID_FOR.days}d."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=".",
    metavar="DIR|FILE",
    help=f"Where to write: a file, if it ends in {_FILES[0]}, {_FILES[1]} or {_FILES[2]}, or a directory.",
)
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@passphrase_option
@authority_option
@json_option
def sign(
    request_path: Path,
    name: str | None,
    gateway_names: tuple[str, ...],
    valid_for: timedelta | None,
    out: Path,
    force: bool,
    passphrase_file: Path | None,
    directory: Path,
    as_json: bool,
) -> None:
    """Issue a certificate for the key in CSR, a request (PKCS #10) in PEM or DER.

    Whoever made the request keeps the private key. Nothing of the request is used but the public one: whom the
    certificate names is for --name or --gateway to say.
    """
    if (name is None) == (not gateway_names):
        raise UsageError(f"--name, --gateway: expected one of them, got {'none' if name is None else 'both'}")
    if name is None:
        names.gateway(gateway_names)
    stem = GATEWAY_STEM if name is None else names.client_file_stem(name)
    path = out if out.suffix in _FILES and not out.is_dir() else certificate_path(out, stem)
    request = _read(request_path)
    expect_room(path.parent, [path], force=force)
    authority = unlocked(directory, passphrase_file)
    now = datetime.now(UTC)
    fields: dict[str, object]
    if name is not None:
        valid_for = valid_for if valid_for is not None else CLIENT_VALID_FOR
        signed = authority.sign_client(request.public_key, name, at=now, valid_for=valid_for)
        fields = {"identity": names.spiffe_id(authority.trust_domain, name)}
    else:
        valid_for = valid_for if valid_for is not None else GATEWAY_VALID_FOR
        signed = authority.sign_gateway(request.public_key, gateway_names, at=now, valid_for=valid_for)
        fields = {"names": list(gateway_names)}
    signed.write_certificate(path, overwrite=force)
    report(authority, signed, {**fields, "certificate": str(path)}, now + valid_for, as_json)


def _read(path: Path) -> Request:
    try:
        with path.open("rb") as stream:
            return read_request(stream.read(LARGEST_BYTES + 1), str(path))
    except OSError as error:
        raise PkiError(path, "a certificate request", f"“{error.strerror}”") from error
