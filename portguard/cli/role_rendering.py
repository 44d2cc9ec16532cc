"""How subjects, roles and their terms look, in what compares policies and lists access."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping

from portguard.cli.policy_rendering import written_limits
from portguard.identity.names import Group, Identity
from portguard.identity.patterns import Pattern
from portguard.instants import written_instant
from portguard.policy.ladder import Ladder, Rung, Subject

WIDTH = 80

_LABEL_WIDTH = 9


def written_subject(subject: Subject, default_trust: str | None) -> str:
    """As a policy would write it."""
    return subject.written() if isinstance(subject, Group) else subject.written(default_trust)


def kind_of(subject: Subject) -> str:
    """`identity`, `pattern` or `group`."""
    match subject:
        case Identity():
            return "identity"
        case Pattern():
            return "pattern"
        case Group():
            return "group"


def subject_json(subject: Subject, default_trust: str | None) -> Mapping[str, str]:
    """For programs: the pair, and the text."""
    name = subject.text if isinstance(subject, Pattern) else subject.name
    written = written_subject(subject, default_trust)
    return {"kind": kind_of(subject), "trust": subject.trust, "name": name, "written": written}


def term_texts(rung: Rung) -> Mapping[str, str]:
    """The terms that a role has, by its keys in a policy."""
    role, texts = rung.role, {}
    if role.sources is not None:
        texts["from"] = ", ".join(map(str, role.sources))
    if role.hours is not None:
        texts["hours"] = f"{role.hours} {rung.zone}"
    if role.expires is not None:
        texts["expires"] = written_instant(role.expires)
    for key, value in written_limits(role.limits, role.session_s).items():
        # Of the limits quotas alone are lists, and their periods are calendar ones.
        texts[key] = f"{', '.join(map(str, value))} {rung.zone}" if isinstance(value, list) else str(value)
    return texts


def role_text(rung: Rung) -> str:
    """One role with its terms, `dba (from 10.0.0.0/8; max_sessions 3)`."""
    terms = "; ".join(f"{key} {text}" for key, text in term_texts(rung).items())
    return f"{rung.terms.role} ({terms})" if terms else rung.terms.role


def ladder_text(ladder: Ladder) -> str:
    """All roles of a ladder in their order."""
    return "denied" if ladder.denied else ", then ".join(map(role_text, ladder.rungs))


def role_json(rung: Rung) -> Mapping[str, object]:
    """One role for programs; what it has no condition or limit for is null or left out."""
    role = rung.role
    return {
        "role": role.name,
        "from": None if role.sources is None else [str(network) for network in role.sources],
        "hours": None if role.hours is None else [str(window) for window in role.hours.windows],
        "timezone": str(rung.zone),
        "expires": None if role.expires is None else written_instant(role.expires),
        "limits": written_limits(role.limits, role.session_s),
    }


def labelled(label: str, text: str, indent: str = "") -> Iterator[str]:
    """Lines of a text beside its label, for 80 columns; a word that is longer stays whole. Not escaped yet."""
    first = f"{indent}{label:<{_LABEL_WIDTH}}"
    yield from textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]


def some(texts: Iterable[str], most: int = 20) -> str:
    """The first of many, and how many more there are."""
    listed = list(texts)
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")
