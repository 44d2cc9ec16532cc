"""How the differences of two policies look, to people, to programs and in spreadsheets."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from portguard.cli.named_policies import NamedPolicy
from portguard.cli.rendering import counted
from portguard.cli.role_rendering import (
    kind_of,
    labelled,
    ladder_text,
    role_json,
    role_text,
    some,
    subject_json,
    term_texts,
    written_subject,
)
from portguard.identity.names import Identity
from portguard.instants import written_instant
from portguard.observe.audit.replaying import Replayable
from portguard.policy.diff import Difference, Differences, Kind, RoleChange, ServiceChange
from portguard.policy.ladder import Ladder
from portguard.policy.model import UpstreamTls
from portguard.policy.quantities import format_duration
from portguard.policy.replay import Becomes, Prospect

CSV_HEADER = ("change", "identity", "kind", "service", "old", "new")

# "hours … -> none" would be read as a role that lets nobody in any more, while it is one that always does.
_WITHOUT = {"from": "any", "hours": "any", "expires": "never", "local_port": "any"}
_SERVICE_KEYS = {"upstreams": "upstream", "idle_s": "idle"}
_TOLD = {
    Kind.GAINED: "gained access",
    Kind.CHANGED: "access changes",
    Kind.LOST: "lost access",
    Kind.UNDENIED: "no longer denied, and no role by this alone",
    Kind.DENIED: "denied from now on, and had no role by this alone",
}


@dataclass(frozen=True)
class Replayed:
    """Sessions of the past that would be decided otherwise, alike ones together."""

    identity: Identity
    service: str
    before: str
    after: str
    refused: bool  # else let in
    reason: str | None
    count: int
    last: datetime


@dataclass(frozen=True)
class Compared:
    """All there is to tell. `replayable` None: no audit was asked; `prospects` None: no gateway was."""

    old: NamedPolicy
    new: NamedPolicy
    differences: Differences
    replayable: Replayable | None
    replayed: tuple[Replayed, ...]
    prospects: tuple[Prospect, ...] | None = None

    @property
    def default_trust(self) -> str | None:
        """That of the new policy, by which all names are written."""
        return self.new.namespace.default

    @property
    def differ(self) -> bool:
        """Whether anything is another."""
        return bool(self.differences or self.replayed or any(map(_is_news, self.prospects or ())))


def compared_lines(compared: Compared) -> Iterator[str]:
    """Lines for people, not escaped yet."""
    yield f"--- {compared.old.title}"
    yield f"+++ {compared.new.title}"
    found, default = compared.differences, compared.default_trust
    for kind in Kind:
        if rows := [row for row in found.access if row.kind is kind]:
            yield ""
            yield f"{_TOLD[kind]}:"
            for row in rows:
                yield from labelled("who", some(written_subject(each, default) for each in row.subjects), "  ")
                yield from labelled("to", some(row.services), "  ")
                yield from _role_lines(row)
    if found.exchanged:
        yield ""
        yield "roles that changed places, for those who have both by different memberships:"
        for pair in found.exchanged:
            yield from labelled("role", f"{pair.after} instead of {pair.before}", "  ")
            yield from labelled("to", some(pair.services), "  ")
    if found.services:
        yield ""
        yield "services:"
        for service in found.services:
            yield from labelled(_verb(service), service.name, "  ")
            for key, (before, after) in _service_values(service).items():
                yield from labelled("", f"{key}: {before} -> {after}", "  ")
    if not found:
        yield "no difference"
    if compared.replayable is not None:
        yield ""
        yield from _replay_lines(compared.replayable, compared.replayed, default)
    if compared.prospects is not None:
        yield ""
        yield from _prospect_lines(compared.prospects, default)


def compared_json(compared: Compared) -> Mapping[str, object]:
    """The same for programs, whole."""
    found, default = compared.differences, compared.default_trust
    document: dict[str, object] = {
        "old": _policy_json(compared.old),
        "new": _policy_json(compared.new),
        "differ": compared.differ,
        "access": [
            {
                "change": row.kind,
                "subjects": [subject_json(subject, default) for subject in row.subjects],
                "services": row.services,
                "old": _ladder_json(row.old),
                "new": _ladder_json(row.new),
                "roles": [
                    {"role": change.name, "change": _verb(change), "keys": change.aspects} for change in row.roles
                ],
            }
            for row in found.access
        ],
        "exchanged": [
            {"before": pair.before, "after": pair.after, "services": pair.services} for pair in found.exchanged
        ],
        "services": [
            {"service": change.name, "change": _verb(change), "keys": _service_values(change)}
            for change in found.services
        ],
    }
    if (replayable := compared.replayable) is not None:
        document["replay"] = {
            "sessions": replayable.sessions,
            "refusals": replayable.refusals,
            "unclear": replayable.unclear,
            "held_back": replayable.held_back,
            "outcomes": [
                {
                    "identity": row.identity.written(default),
                    "trust": row.identity.trust,
                    "name": row.identity.name,
                    "service": row.service,
                    "outcome": "refused" if row.refused else "allowed",
                    "reason": row.reason,
                    "old": row.before,
                    "new": row.after,
                    "count": row.count,
                    "last": written_instant(row.last),
                }
                for row in compared.replayed
            ],
        }
    if compared.prospects is not None:
        document["live"] = [
            {
                "session": prospect.live.session,
                "identity": prospect.live.identity.written(default),
                "trust": prospect.live.identity.trust,
                "name": prospect.live.identity.name,
                "service": prospect.live.service,
                "role": prospect.live.role,
                "becomes": prospect.becomes,
                "reason": prospect.reason,
                "new_role": prospect.grant.role if prospect.grant is not None else None,
            }
            for prospect in compared.prospects
        ]
    return document


def compared_rows(compared: Compared) -> Iterator[Sequence[str]]:
    """Rows below `CSV_HEADER`, one for each identity and service."""
    found, default = compared.differences, compared.default_trust
    for row in found.access:
        before, after = ladder_text(row.old), ladder_text(row.new)
        for subject in row.subjects:
            for service in row.services:
                yield row.kind, written_subject(subject, default), kind_of(subject), service, before, after
    for pair in found.exchanged:
        for service in pair.services:
            yield "exchanged", f"who has both {pair.before} and {pair.after}", "roles", service, pair.before, pair.after
    for change in found.services:
        values = _service_values(change)
        old, new = ("; ".join(f"{key} {pair[side]}" for key, pair in values.items()) for side in (0, 1))
        yield f"service {_verb(change)}", "", "", change.name, old, new
    for outcome in compared.replayed:
        verb = "refused" if outcome.refused else "allowed"
        who = outcome.identity.written(default)
        after = f"{outcome.after}, {counted(outcome.count, 'time')}"
        yield f"replay {verb}", who, "identity", outcome.service, outcome.before, after
    for prospect in filter(_is_news, compared.prospects or ()):
        live = prospect.live
        who = live.identity.written(default)
        yield f"live {prospect.becomes}", who, "identity", live.service, f"role {live.role}", _future(prospect)


def _is_news(prospect: Prospect) -> bool:
    return prospect.becomes is not Becomes.STAYS


def _future(prospect: Prospect) -> str:
    return f"role {prospect.grant.role}" if prospect.grant is not None else str(prospect.reason)


def _prospect_lines(prospects: Sequence[Prospect], default: str | None) -> Iterator[str]:
    for becomes, title in (
        (Becomes.ENDS, "live sessions that would end"),
        (Becomes.CHANGES, "live sessions that would go on by other limits"),
    ):
        chosen = [prospect for prospect in prospects if prospect.becomes is becomes]
        yield f"{title}: {len(chosen)}"
        for prospect in chosen:
            live = prospect.live
            text = f"{live.identity.written(default)} to {live.service}: role {live.role} -> {_future(prospect)}"
            yield from labelled(live.session[:8], text, "  ")
    yield f"live sessions that would stay as they are: {sum(not _is_news(prospect) for prospect in prospects)}"


def _role_lines(row: Difference) -> Iterator[str]:
    if row.kind in {Kind.GAINED, Kind.LOST}:
        yield from labelled("by", ladder_text(row.new if row.kind is Kind.GAINED else row.old), "  ")
        if row.new.denied:
            yield from labelled("", "a deny takes it", "  ")
        if row.old.denied:
            yield from labelled("", "a deny took it", "  ")
    elif row.kind is Kind.CHANGED:
        for change in row.roles:
            yield from labelled("role", _changed_role(change), "  ")
        if not row.roles:
            yield from labelled("roles", f"in another order: {ladder_text(row.new)}", "  ")


def _changed_role(change: RoleChange) -> str:
    if change.old is None or change.new is None:
        return f"+ {role_text(change.new)}" if change.new is not None else f"- {change.name}"
    old, new = term_texts(change.old), term_texts(change.new)
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    values = {key: [terms.get(key, _WITHOUT.get(key, "none")) for terms in (old, new)] for key in keys}
    return f"{change.name}: " + "; ".join(f"{key} {before} -> {after}" for key, (before, after) in values.items())


def _verb(change: RoleChange | ServiceChange) -> str:
    return "added" if change.old is None else "removed" if change.new is None else "changed"


def _service_values(change: ServiceChange) -> Mapping[str, tuple[str, str]]:
    """Old and new values of what differs; of a service that comes or goes, where it is."""
    keys = change.keys or ("upstreams",)
    return {_SERVICE_KEYS.get(key, key): (_value(change.old, key), _value(change.new, key)) for key in keys}


def _value(service: object, key: str) -> str:
    value: Any = getattr(service, key, None)
    match value:
        case UpstreamTls():
            parts = (value.ca, value.server_name, value.certificate, value.key)
            return ", ".join(part for part in parts if part) or "with all defaults"
        case frozenset():
            return ", ".join(sorted(value)) or "none"
        case tuple():
            return ", ".join(map(str, value)) or "none"
        case None | "":
            return _WITHOUT.get(key, "none") if service is not None else "none"
        case float():
            return format_duration(None if math.isinf(value) else value)
        case _:
            return str(value)


def _ladder_json(ladder: Ladder) -> Mapping[str, object]:
    return {"denied": ladder.denied, "roles": [role_json(rung) for rung in ladder.rungs]}


def _policy_json(named: NamedPolicy) -> Mapping[str, object]:
    return {"policy": named.title, "revision": named.revision}


def _replay_lines(replayable: Replayable, rows: Iterable[Replayed], default: str | None) -> Iterator[str]:
    sessions, refusals = counted(replayable.sessions, "session"), counted(replayable.refusals, "refusal")
    yield f"replayed from the audit: {sessions}, {refusals}"
    if replayable.unclear:
        yield f"  passed over, as they do not tell all: {counted(replayable.unclear, 'record')}"
    if replayable.held_back:
        yield f"  not known, as they have no record of their own: {counted(replayable.held_back, 'refusal')}"
    rows = list(rows)
    for refused, title in ((True, "would have been refused"), (False, "would have been let in")):
        chosen = [row for row in rows if row.refused is refused]
        yield f"{title}: {sum(row.count for row in chosen)}"
        for row in chosen:
            text = (
                f"{row.identity.written(default)} to {row.service}: {row.before} -> {row.after}, "
                f"last {written_instant(row.last)}"
            )
            yield from labelled(f"{row.count} x", text, "  ")
