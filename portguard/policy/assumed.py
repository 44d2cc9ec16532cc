"""Trusts as a policy names them, for checking it where no configuration says which there are."""

import tomllib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from portguard.identity.names import Malformed, Namespace, Source, check_trust_domain, check_trust_name
from portguard.policy.read import PolicyFile

DEFAULT_TRUST = "local"
"""What the trust of names without a prefix is taken to be called."""


def assumed_namespace(files: Sequence[PolicyFile]) -> Namespace:
    """A namespace in which every trust exists that the files mention; no problem of theirs is told.

    Names are taken as they stand (as of trusts that read them from `cn`), and each trust domain as a trust of its own:
    that `corp:ns/web` and `spiffe://corp.example/ns/web` may be one identity is not known.
    """
    sources: dict[str, Source] = {DEFAULT_TRUST: "cn"}
    domains: dict[str, str] = {}
    for text in (text for file in files for text in _written_names(file)):
        if text.startswith("spiffe://"):
            domain = text.removeprefix("spiffe://").partition("/")[0]
            if _passes(check_trust_domain, domain):
                domains[domain] = domain
                sources[domain] = "spiffe"
        else:
            trust, colon, _ = text.removeprefix("@").partition(":")
            if colon and _passes(check_trust_name, trust):
                sources[trust] = "cn"
    return Namespace(sources, DEFAULT_TRUST, domains)


def _written_names(file: PolicyFile) -> Iterator[str]:
    try:
        content = tomllib.loads(file[1].decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return
    groups = content.get("groups")
    yield from _texts(list(groups.values()) if isinstance(groups, dict) else None)
    for entry in [*_tables(content.get("roles")), *_tables(content.get("deny"))]:
        yield from _texts(entry.get("members"))
    for test in _tables(content.get("tests")):
        yield from _texts([test.get("identity"), test.get("groups")])


def _tables(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _passes(check: Callable[[str], None], text: str) -> bool:
    try:
        check(text)
    except Malformed:
        return False
    return True
