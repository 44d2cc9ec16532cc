"""`portguard status`: how the gateway is, the verdict first."""

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from portguard.cli.ages import written_age
from portguard.cli.control import control_client, understanding
from portguard.cli.options import configuration_option, json_option
from portguard.cli.rendering import counted, printable

_SERVING = "serving"
_SHOWN_DIGITS = 12
_GAP = " " * 2


@click.command(short_help="Show how the gateway is, and what is wrong.")
@configuration_option
@json_option
def status(configuration_path: str, as_json: bool) -> None:
    """Show how the gateway is: first, in a line, whether it serves and what is wrong.

    Exits with 0 when it serves and nothing is wrong, with 1 when something is, with 4 when it does not answer.
    """
    document = control_client(configuration_path).get("/v1/status")
    with understanding():
        lines = list(_lines(document))
        state = document["state"]
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        for line in lines:
            click.echo(printable(line))
    if state != _SERVING:
        sys.exit(1)


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    yield str(document["verdict"])
    problems = document["problems"]
    if len(problems) > 1:
        for problem in problems:
            yield f"{_GAP}since {_local(problem['since'])}: {problem['code']} ({problem['detail']})"
    yield ""
    rows = [
        ("sessions", f"{document['sessions']} of {document['sessions_limit']}"),
        *_workers(document),
        *_confinement(document),
        ("policy", f"{document['policy'][:_SHOWN_DIGITS]}, {_loaded(document['loaded'])}"),
        *_waiting_for_a_restart(document),
        ("expires first", _expires(document["expires"])),
        ("audit", _store(document["audit"])),
        ("ledger", _store(document["ledger"])),
        ("version", f"{document['version']}, process {document['pid']}"),
    ]
    reasons = document["refusals"]["reasons"]
    minutes = round(document["refusals"]["seconds"] / 60)
    refused = [f"{each['reason']} {each['count']}" for each in reasons] or ["none"]
    rows.append((f"refused, {minutes} min", ", ".join(refused)))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        yield f"{name:<{width}}{_GAP}{text}"


def _workers(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    workers = document["workers"]
    serving = sum(each["serving"] for each in workers)
    restarts = f", {document['worker_restarts']} restarted" if document["worker_restarts"] else ""
    yield "workers", f"{serving} of {document['workers_wanted']}{restarts}"
    for each in workers:
        # Those that serve are what is expected; the others want a word.
        word = "" if each["serving"] else " (retiring)" if each["retiring"] else " (starting)"
        up, carries = written_age(each["uptime"]), counted(each["connections"], "connection")
        yield f"{_GAP}worker {each['worker']}", f"pid {each['pid']}, {carries}, up {up}{word}"


def _confinement(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    # A gateway of the version before has not the field.
    if confinement := document.get("confinement"):
        by = f"Landlock (ABI {confinement['abi']})" if confinement["by"] else f"NONE: {confinement['message']}"
        yield f"{_GAP}confined by", by


def _waiting_for_a_restart(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    # A gateway of the version before has not the field.
    if keys := document.get("needs_restart"):
        yield "needs a restart", ", ".join(map(str, keys))


def _loaded(loaded: Mapping[str, Any]) -> str:
    by = f" by {loaded['by']}" if loaded["by"] is not None else ""
    message = f": {loaded['message']}" if loaded["message"] is not None else ""
    return f"loaded {_local(loaded['at'])}{by}{message}"


def _expires(expires: Mapping[str, Any] | None) -> str:
    if expires is None:
        return "nothing"
    left = f"in {written_age(expires['seconds'])}" if expires["seconds"] > 0 else "EXPIRED"
    return f"{expires['use']}, {_local(expires['at'])} ({left})"


def _store(state: Mapping[str, Any]) -> str:
    if state["ok"]:
        return "ok"
    return f"NOT WRITTEN for {written_age(state['failing'])}: {state['message']}"


def _local(text: str) -> str:
    """An instant, in the zone of who looks at it."""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")
