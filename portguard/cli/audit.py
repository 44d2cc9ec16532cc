"""`portguard audit`: look into the audit, and prove that it is what the gateway wrote."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from portguard.cli.configuration_file import configuration_at
from portguard.cli.groups import CommandGroup
from portguard.cli.instants import since_instant
from portguard.cli.options import configuration_option, json_option
from portguard.cli.rendering import note, printable
from portguard.errors import PortguardError, UsageError
from portguard.gateway.configuration import Configuration
from portguard.observe.audit.keys import PUBLIC, fingerprint, read_public_key
from portguard.observe.audit.place import HEAD, folder_of
from portguard.observe.audit.reading import in_order, log_files
from portguard.observe.audit.records import NotARecord, Position, Record, parse_head
from portguard.observe.audit.selecting import Follower, Selection, last
from portguard.observe.audit.verifying import Finding, Report
from portguard.observe.audit.verifying import verify as verify_files

_SHOWN_FINDINGS = 20
# For people; --json has all 64 digits.
_SHORTENED = {"policy", "fingerprint", "claimed_fingerprint", "issued_fingerprint"}
_SHOWN_DIGITS = 12


@click.group(cls=CommandGroup)
def audit() -> None:
    """Look into the audit, and verify it."""


@audit.command()
@click.argument("files", metavar="[FILE…]", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--public-key",
    "public_keys",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The key that signatures must fit; else the gateway's own. Keep a copy on another host. Can be given twice.",
)
@configuration_option
@json_option
@click.pass_context
def verify(
    context: click.Context, files: Sequence[Path], public_keys: Sequence[Path], configuration_path: str, as_json: bool
) -> None:
    """Find lines that were altered, removed, inserted or re-ordered.

    Without FILE it is the log of the gateway that the configuration is of, with the files it was rotated to, and the
    gateway's own word for how far the log goes. With FILE only these are looked at; they must end with a checkpoint.
    The exit code is 0 when nothing speaks against the log, 1 when something does, 2 when FILE cannot be read.
    """
    if files and public_keys:
        keys = [read_public_key(path) for path in public_keys]
        report = verify_files(in_order(files), {fingerprint(key): key for key in keys}, None)
    else:
        configuration = configuration_at(configuration_path)
        folder = folder_of(configuration.gateway.state)
        paths = public_keys or [folder / PUBLIC]
        keys_by_print = {fingerprint(key): key for key in map(read_public_key, paths)}
        if files:
            report = verify_files(in_order(files), keys_by_print, None)
        else:
            # The head first: by the time the files are read they reach at least as far.
            head = _head(folder / HEAD, keys_by_print)
            live = _path(configuration)
            known = head if isinstance(head, Position) else None
            report = verify_files(log_files(live), keys_by_print, known, live)
            if isinstance(head, Finding):
                report.findings.append(head)
    _show_report(report, as_json=as_json)
    context.exit(0 if report.ok else 1)


@audit.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until interrupted.")
@click.option("--identity", "identities", metavar="NAME", multiple=True, help='As in "alice" or "corp:alice".')
@click.option("--service", "services", metavar="NAME", multiple=True, help="Only about this service.")
@click.option(
    "--event", "events", metavar="EVENT", multiple=True, help='As in "session.open", or "session" for all such.'
)
@click.option("--since", metavar="TIME", help='A time such as "2026-11-23T07:00:00Z", or how long ago: "2h".')
@click.option(
    "-n", "--lines", "count", metavar="N", type=click.IntRange(min=0), help="The last N; else 20, or all with --since."
)
@configuration_option
@json_option
def tail(
    follow: bool,
    identities: Sequence[str],
    services: Sequence[str],
    events: Sequence[str],
    since: str | None,
    count: int | None,
    configuration_path: str,
    as_json: bool,
) -> None:
    """Print the last lines of the audit.

    Revisions and fingerprints are cut short, and what is empty is left out; --json has all.

    Conditions are joined: a line is shown when it fits all options; of one option given twice, either.
    """
    path = _path(configuration_at(configuration_path))
    at = since_instant(since, datetime.now(UTC)) if since is not None else None
    selection = Selection(identities, services, events, at)
    follower = None
    if follow:
        try:
            # Before looking back: nothing is lost between. What was added meanwhile may come twice, and is skipped.
            follower = Follower(path, selection)
        except OSError as error:
            raise PortguardError(
                f"{path}: expected an audit log, got {(error.strerror or str(error)).lower()}"
            ) from error
    latest = 0
    for record in last(path, selection, count if count is not None else None if at else 20):
        _show(record, as_json=as_json)
        latest = record.seq
    if not (latest or follow or count == 0) and (identities or services or events or at):
        note("no line of the audit fits")
    if follower is not None:
        try:
            for record in follower.follow():
                if record.seq > latest:
                    _show(record, as_json=as_json)
        except KeyboardInterrupt:
            return
        finally:
            follower.close()


def _path(configuration: Configuration) -> Path:
    if configuration.audit.path == "-":
        raise UsageError('audit.path: expected a file to look into, got "-" (standard output)')
    return Path(configuration.audit.path)


def _head(path: Path, keys: Mapping[str, Ed25519PublicKey]) -> Position | Finding:
    expected = "expected the gateway's word for how far the log goes"
    found = ""
    for _ in range(2):  # the first look may meet the gateway in the middle of writing
        try:
            return parse_head(path.read_bytes(), keys)
        except OSError as error:
            found = (error.strerror or str(error)).lower()
        except NotARecord as error:
            found = str(error)
    return Finding(str(path), 0, f"{expected}, got {found}")


def _show(record: Record, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(record.fields))
        return
    words = [record.time, record.event]
    for key, value in record.fields.items():
        if key in {"time", "event", "prev", "signature"} or value in ([], {}, "", None):
            continue
        shown = value[:_SHOWN_DIGITS] if key in _SHORTENED and isinstance(value, str) else value
        words.append(f"{key}={_text(shown)}")
    click.echo(printable(" ".join(words)))


def _text(value: object) -> str:
    if not isinstance(value, str):
        return json.dumps(value, separators=(",", ":"))
    return value if value and not any(c in value for c in ' "=\\') else json.dumps(value)


def _show_report(report: Report, *, as_json: bool) -> None:
    if as_json:
        document = {
            "ok": report.ok,
            "files": report.files,
            "lines": report.lines,
            "first": report.first,
            "last": report.last,
            "sealed": report.sealed,
            "checkpoints": report.checkpoints,
            "findings": [_place(finding) for finding in report.findings],
            "notes": [_place(each) for each in report.notes],
        }
        click.echo(json.dumps(document, indent=2))
        return
    for each in report.notes:
        click.echo(f"note: {printable(str(each))}", err=True)
    for finding in report.findings[:_SHOWN_FINDINGS]:
        click.echo(printable(str(finding)))
    if (more := len(report.findings) - _SHOWN_FINDINGS) > 0:
        click.echo(f"and {more} more (--json prints all)")
    what = f"{report.lines} lines in {len(report.files)} file{'s' * (len(report.files) != 1)}"
    if report.ok:
        click.echo(f"ok: {what}, records {report.first} to {report.last}, signed up to {report.sealed}")
    else:
        click.echo(
            f"NOT what the gateway wrote: {what}, {len(report.findings)} objection{'s' * (len(report.findings) != 1)}"
        )


def _place(finding: Finding) -> dict[str, object]:
    return {"file": finding.file, "line": finding.line or None, "message": finding.message}
