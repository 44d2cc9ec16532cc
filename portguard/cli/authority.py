"""`portguard ca` and `portguard cert`: the certificate authority at the command line."""

import json
import os
import stat
import sys
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
    lines,
    read_certificates,
    recorded,
    serial_digits,
    serial_number,
    serial_text,
    table,
    time_text,
)
from portguard.cli.groups import CommandGroup
from portguard.cli.options import json_option
from portguard.cli.rendering import printable
from portguard.errors import UsageError
from portguard.pki import files, names
from portguard.pki.authority import AUTHORITY_VALID_FOR, CLIENT_VALID_FOR, GATEWAY_VALID_FOR, Authority
from portguard.pki.errors import PkiError
from portguard.pki.issued import IssuedCertificate, pem_paths, pkcs12_path
from portguard.pki.keys import KeyType
from portguard.policy.quantities import Unexpected, parse_duration

DEFAULT_AUTHORITY = "/var/lib/portguard/ca"
GATEWAY_STEM = "gateway"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _authority_path(_context: click.Context, _parameter: click.Parameter, given: str | None) -> Path:
    return Path(given or os.environ.get("PORTGUARD_CA") or DEFAULT_AUTHORITY)


_authority_option = click.option(
    "--ca",
    "directory",
    metavar="DIR",
    callback=_authority_path,
    help=f"The authority's directory; else $PORTGUARD_CA, else {DEFAULT_AUTHORITY}.",
)


def _file_option(name: str, help_text: str) -> Callable[[_Command], _Command]:
    return click.option(name, type=click.Path(path_type=Path), metavar="FILE", help=help_text)


def _valid_for_option(default: timedelta) -> Callable[[_Command], _Command]:
    def parsed(_context: click.Context, _parameter: click.Parameter, given: str | None) -> timedelta:
        if given is None:
            return default
        try:
            return timedelta(seconds=parse_duration(given))
        except Unexpected as error:
            raise click.BadParameter(f"expected {error}, got {given!r}") from error

    text = f'How long from now, such as "12h" or "{default.days}d" (the default).'
    return click.option("--valid-for", callback=parsed, metavar="DURATION", help=text)


def _key_type_option(help_text: str) -> Callable[[_Command], _Command]:
    def parsed(_context: click.Context, _parameter: click.Parameter, given: str | None) -> KeyType | None:
        return None if given is None else KeyType(given)

    choice = click.Choice([key_type.value for key_type in KeyType])
    return click.option("--key-type", type=choice, callback=parsed, help=help_text)


def _issue_options(command: _Command) -> _Command:
    """The options that `cert issue` and `cert gateway` share."""
    for option in (
        json_option,
        click.option("--force", is_flag=True, help="Replace files that exist."),
        _key_type_option("EC P-256 or RSA 3072; else as the authority's."),
        click.option(
            "--out", type=click.Path(path_type=Path), default=".", metavar="DIR", help="Where to write files."
        ),
        _file_option("--passphrase-file", "Holds the passphrase of the authority's key; else a terminal is asked."),
        _authority_option,
    ):
        command = option(command)
    return command


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
def ca() -> None:
    """Make a certificate authority, and look at it."""


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cert() -> None:
    """Issue certificates to clients and gateways, and look at them."""


@ca.command("init")
@_authority_option
@click.option("--trust-domain", required=True, metavar="DOMAIN", help="Clients become spiffe://DOMAIN/NAME.")
@_key_type_option("EC P-256 (the default) or RSA 3072.")
@click.option("--encrypt-key", is_flag=True, help="Encrypt the key, with a passphrase that a terminal is asked for.")
@_file_option("--passphrase-file", "Encrypt the key, with the passphrase in this file.")
@click.option(
    "--root-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep the root's key there, such as on a stick, and issue with an intermediate.",
)
@_file_option("--root-passphrase-file", "Encrypt the root's key with this passphrase; else with the other one.")
@_valid_for_option(AUTHORITY_VALID_FOR)
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
        passphrase = _read_passphrase(passphrase_file)
    elif encrypt_key:
        passphrase = _ask("Passphrase for the key", "--passphrase-file", twice=True)
    if root_passphrase_file is not None:
        root_passphrase = _read_passphrase(root_passphrase_file)
    elif root_dir is not None and encrypt_key and passphrase_file is None:
        root_passphrase = _ask("Passphrase for the root's key", "--root-passphrase-file", twice=True)
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
        "root_key": None if root_dir is None else str(root_dir / "root.key"),
        "not_after": time_text(authority.anchor.not_valid_after_utc),
    }
    _print(fields, as_json)


@ca.command("show")
@_authority_option
@click.option("--pem", is_flag=True, help="Print the certificate that gateways and clients trust.")
@json_option
def show_authority(directory: Path, pem: bool, as_json: bool) -> None:
    """Show the authority, and how many certificates it issued."""
    _expect_one_form(pem=pem, as_json=as_json)
    authority = _opened(directory)
    if pem:
        click.echo(authority.certificate_pem.decode(), nl=False)
        return
    now = datetime.now(UTC)
    issued = Counter(str(record.status(now)) for record in authority.store.records())
    fields = {
        "directory": str(directory),
        "trust_domain": authority.trust_domain,
        "root": described(authority.anchor, now, "root"),
        "issuing": None if authority.issuer == authority.anchor else described(authority.issuer, now, "issuing CA"),
        "key_encrypted": authority.key_is_encrypted,
        "issued": dict(sorted(issued.items())),
    }
    if as_json:
        _print(fields, as_json=True)
        return
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in sorted(issued.items()))
    _print({**fields, "root": None, "issuing": None, "issued": counts or "none yet"}, as_json=False)
    for part in ("root", "issuing"):
        if isinstance(certificate := fields[part], dict):
            click.echo(f"\n{part} certificate")
            _print(certificate, as_json=False)


@cert.command("issue")
@click.argument("name")
@click.option("--pkcs12", is_flag=True, help="Write one .p12 file instead of .crt and .key.")
@_file_option("--pkcs12-passphrase-file", "Holds the passphrase for the .p12 file; else a terminal is asked.")
@_valid_for_option(CLIENT_VALID_FOR)
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
    _expect_room(out, [pkcs12_path(out, stem)] if pkcs12 else list(pem_paths(out, stem)), force=force)
    authority = _unlocked(directory, passphrase_file)
    secret = None
    if pkcs12 and pkcs12_passphrase_file is not None:
        secret = _read_passphrase(pkcs12_passphrase_file)
    elif pkcs12:
        secret = _ask("Passphrase for the .p12 file", "--pkcs12-passphrase-file", twice=True)
    now = datetime.now(UTC)
    issued = authority.issue_client(name, at=now, valid_for=valid_for, key_type=key_type)
    written: dict[str, object]
    if secret is not None:
        written = {"pkcs12": str(issued.write_pkcs12(out, stem, secret, overwrite=force))}
    else:
        certificate, key = issued.write(out, stem, overwrite=force)
        written = {"certificate": str(certificate), "key": str(key)}
    identity = {"identity": names.spiffe_id(authority.trust_domain, name)}
    _report(authority, issued, {**identity, **written}, now + valid_for, as_json)


@cert.command("gateway", short_help="Issue a gateway's certificate.")
@click.argument("gateway_names", metavar="NAME...", nargs=-1, required=True)
@_valid_for_option(GATEWAY_VALID_FOR)
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
    _expect_room(out, list(pem_paths(out, GATEWAY_STEM)), force=force)
    authority = _unlocked(directory, passphrase_file)
    now = datetime.now(UTC)
    issued = authority.issue_gateway(gateway_names, at=now, valid_for=valid_for, key_type=key_type)
    certificate, key = issued.write(out, GATEWAY_STEM, overwrite=force)
    written = {"names": list(gateway_names), "certificate": str(certificate), "key": str(key)}
    _report(authority, issued, written, now + valid_for, as_json)
    # No wildcard can be issued below a single label.
    if (name := next((each for each in covered if "." in each), None)) and not any(map(_is_wildcard, covered)):
        _note(f"services that clients name by SNI need *.{name} too; those by CONNECT or on ports of their own do not")


@cert.command("list")
@_authority_option
@json_option
def list_certificates(directory: Path, as_json: bool) -> None:
    """List the certificates that the authority issued, oldest first."""
    now = datetime.now(UTC)
    rows = [recorded(record, now) for record in _opened(directory).store.records()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    columns = ["name", "kind", "status", "not_before", "not_after", "serial"]
    header = [column.replace("_", " ").upper() for column in columns]
    for line in table(header, [[str(row[column]) for column in columns] for row in rows]):
        click.echo(line)


@cert.command("show", short_help="Show a certificate, of a file or by its serial.")
@click.argument("what", metavar="FILE|SERIAL")
@_authority_option
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
        certificates = read_certificates(Path(what)) if is_file else [_issued_under(what, directory)]
        fields = dict(described(certificates[0], now, what))
        if is_file:
            fields["followed_by"] = [other.subject.rfc4514_string() for other in certificates[1:]]
    if pem:
        click.echo(certificates[0].public_bytes(Encoding.PEM).decode(), nl=False)
        return
    _print(fields, as_json)


def _expect_one_form(*, pem: bool, as_json: bool) -> None:
    if pem and as_json:
        raise UsageError("--pem: expected not to be given beside --json")


def _issued_under(text: str, directory: Path) -> x509.Certificate:
    serial = serial_number(text)
    if serial is None:
        raise UsageError(f"FILE|SERIAL: expected a file or a serial number in hex, got {text!r}")
    store, digits = _opened(directory).store, serial_digits(text)
    records = [record for record in [store.get(serial)] if record is not None]
    if not records and digits:
        records = [record for record in store.records() if serial_text(record.serial).startswith(digits)]
    if len(records) != 1:
        found = f"{len(records)} that begin so" if records else "none"
        raise PkiError(
            f"serial {serial_text(serial)}", f"a certificate that the authority in {directory} issued", found
        )
    return x509.load_der_x509_certificate(records[0].der)


def _opened(directory: Path) -> Authority:
    try:
        return Authority.open(directory)
    except PkiError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        hint = "`portguard ca init` makes an authority, --ca or $PORTGUARD_CA names another"
        raise PkiError(error.subject, error.expected, f"{error.found}; {hint}") from error


def _unlocked(directory: Path, passphrase_file: Path | None) -> Authority:
    authority = _opened(directory)
    passphrase = None
    if passphrase_file is not None:
        passphrase = _read_passphrase(passphrase_file)
    elif authority.key_is_encrypted:
        passphrase = _ask(f"Passphrase of {authority.key_path}", "--passphrase-file")
    authority.unlock(passphrase)
    return authority


def _read_passphrase(path: Path) -> bytes:
    """Return the one line in the file, without its end. The file may be a pipe or a descriptor, read once."""
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            passphrase = stream.read().removesuffix(b"\n").removesuffix(b"\r")
    except OSError as error:
        raise UsageError(f"{path}: expected a passphrase, got “{error.strerror}”") from error
    if not passphrase or b"\n" in passphrase:
        raise UsageError(f"{path}: expected one line with a passphrase, got {'several' if passphrase else 'nothing'}")
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        _note(f"{path}: expected a file that only its owner can read, got mode {stat.S_IMODE(mode):04o}")
    return passphrase


def _ask(question: str, option: str, *, twice: bool = False) -> bytes:
    # Without a terminal, getpass would read standard input and echo it.
    if not sys.stdin.isatty():
        raise UsageError(f"{option}: expected a file, as there is no terminal to ask, got none")
    answer: str = click.prompt(printable(question), hide_input=True, confirmation_prompt=twice, err=True)
    return answer.encode()


def _expect_room(out: Path, paths: list[Path], *, force: bool) -> None:
    """Find out before anything is signed and recorded that its files could not be written."""
    files.make_directory(out, 0o777)
    if not force:
        files.refuse_existing(paths)


def _is_wildcard(name: str) -> bool:
    return name.startswith("*.")


def _report(
    authority: Authority, issued: IssuedCertificate, fields: Fields, asked_until: datetime, as_json: bool
) -> None:
    _print(
        {
            **fields,
            "ca": str(authority.directory / "ca.crt"),
            "not_after": time_text(issued.not_after),
            "serial": serial_text(issued.serial),
        },
        as_json,
    )
    if issued.not_after < asked_until.replace(microsecond=0):
        _note(f"valid for less than asked: the authority itself ends at {time_text(issued.not_after)}")


def _print(fields: Fields, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(fields, indent=2))
        return
    for line in lines(fields):
        click.echo(line)


def _note(text: str) -> None:
    click.echo(f"portguard: {printable(text)}", err=True)
