"""How access looks, to people, to programs and in spreadsheets; and when policies were in force."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from portguard.cli.named_policies import NamedPolicy
from portguard.cli.role_rendering import (
    WIDTH,
    kind_of,
    labelled,
    role_json,
    role_text,
    some,
    subject_json,
    term_texts,
    written_subject,
)
from portguard.gateway.kept_policies import Load
from portguard.instants import written_instant
from portguard.policy.access import Access
from portguard.policy.ladder import Subject, in_order

CSV_HEADER = ("identity", "kind", "service", "role", "from", "hours", "expires", "until", "limits", "unless")

_CONDITIONS = ("from", "hours", "expires")


@dataclass(frozen=True)
class Answered:
    """The answer to who could reach what. `somebody` is empty when all were asked about."""

    named: NamedPolicy
    at: datetime | None
    somebody: frozenset[Subject]
    rows: tuple[Access, ...]

    def written(self, subject: Subject) -> str:
        """A subject as people write it."""
        return written_subject(subject, self.named.namespace.default)


def answered_lines(answered: Answered) -> Iterator[str]:
    """Lines for people, not escaped yet."""
    when = f", {written_instant(answered.at)}" if answered.at is not None else ""
    yield f"{answered.named.title}{when}"
    services: tuple[str, ...] = ()
    subjects: tuple[Subject, ...] = ()
    for row in answered.rows:
        if row.services != services:
            services, subjects = row.services, ()
            yield ""
            yield from textwrap.wrap(some(services), WIDTH, break_on_hyphens=False)
        if row.subjects != subjects:
            subjects = row.subjects
            yield from labelled("who", _who(answered, subjects), "  ")
        yield from labelled("role", role_text(row.rung), "    ")
        if row.until is not None:
            yield from labelled("until", written_instant(row.until), "    ")
        if row.unless:
            yield from labelled("unless", some(map(answered.written, row.unless)), "    ")
    if not answered.rows:
        yield "nobody"


def answered_json(answered: Answered) -> Mapping[str, object]:
    """The same for programs, whole."""
    default = answered.named.namespace.default
    return {
        "policy": answered.named.title,
        "revision": answered.named.revision,
        "at": written_instant(answered.at) if answered.at is not None else None,
        "asked": [subject_json(subject, default) for subject in in_order(answered.somebody)],
        "access": [
            {
                "subjects": [subject_json(subject, default) for subject in row.subjects],
                "services": row.services,
                **role_json(row.rung),
                "until": written_instant(row.until) if row.until is not None else None,
                "unless": [subject_json(subject, default) for subject in row.unless],
            }
            for row in answered.rows
        ],
    }


def answered_rows(answered: Answered) -> Iterator[Sequence[str]]:
    """Rows below `CSV_HEADER`."""
    for row in answered.rows:
        terms = term_texts(row.rung)
        conditions = [terms.get(key, "") for key in _CONDITIONS]
        until = written_instant(row.until) if row.until is not None else ""
        limits = "; ".join(f"{key} {text}" for key, text in terms.items() if key not in _CONDITIONS)
        unless = ", ".join(map(answered.written, row.unless))
        # One caller who is several things is one row.
        whos = [(answered.written(subject), kind_of(subject)) for subject in row.subjects]
        if answered.somebody:
            whos = [(_who(answered, row.subjects), kind_of(row.subjects[0]))]
        for who, kind in whos:
            for service in row.services:
                yield who, kind, service, row.rung.terms.role, *conditions, until, limits, unless


def load_rows(spans: Iterable[tuple[Load, datetime | None]]) -> Iterator[Sequence[str]]:
    """Revision, from, until, by, message; not escaped yet."""
    for load, end in spans:
        until = written_instant(end) if end is not None else "now"
        yield load.revision[:12], written_instant(load.at), until, load.by or "", load.message or ""


def load_json(load: Load, end: datetime | None) -> Mapping[str, object]:
    """The same for programs; `until` null is the last one."""
    return {
        "revision": load.revision,
        "from": written_instant(load.at),
        "until": written_instant(end) if end is not None else None,
        "by": load.by,
        "message": load.message,
    }


def _who(answered: Answered, subjects: tuple[Subject, ...]) -> str:
    texts = list(map(answered.written, subjects))
    return " with ".join(texts) if answered.somebody else some(texts)
