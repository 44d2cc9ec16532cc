"""A new CA in the place of an old one.

With the root's key elsewhere, a new issuing CA takes over in one step, `replace_issuing`: whoever trusts the root
trusts it. What the old one issued stays good, and its list stays in `ca.crl` as long as any of that may be shown. When
its key turns out to be in the wrong hands, the root revokes it: then, or later, by `revoke_replaced`.

A root that issues itself is replaced in three, as nobody trusts a new one by itself:

    prepare(authority, at=now)   ca.crt holds both, the old one issues       PREPARED
    ...                          every gateway and client gets that ca.crt
    switch(authority, at=now)    ca.crt holds both, the new one issues       SWITCHED
    ...                          what the old one issued is replaced, or ends
    finish(authority, at=now)    ca.crt holds the new one

The stage is what ca.crt says: its first root issues, and the new one is the one that began later. That file changes in
one step, so a crash leaves one stage or the other; what else belongs to a stage is in place before, or, like the lists,
is found missing by `published_lists` and made by the next `write_lists`.
"""

import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from cryptography import x509

from portguard.errors import UsageError
from portguard.pki import ca_certificates, files, keys, profiles
from portguard.pki.authority import (
    AUTHORITY_VALID_FOR,
    LIST_VALID_FOR,
    Authority,
    certificate_file,
    list_pem,
)
from portguard.pki.directory_lock import locked
from portguard.pki.errors import PkiError
from portguard.pki.files import PUBLIC, NewFile
from portguard.pki.keys import KeyType
from portguard.pki.profiles import Issuer, Revocation, RevocationReason, Validity
from portguard.pki.revocation import (
    WrittenLists,
    is_issued_by,
    list_number,
    read_revocation,
    root_list,
    write_lists_locked,
)
from portguard.pki.store import Record


class Stage(StrEnum):
    """How far the replacement of a root is."""

    PREPARED = "prepared"
    SWITCHED = "switched"


def stage(authority: Authority) -> Stage | None:
    """Return how far the replacement of the root is, None when there is none under way."""
    if len(authority.anchors) == 1:
        return None
    first, second = authority.anchors
    return Stage.PREPARED if first.not_valid_before_utc < second.not_valid_before_utc else Stage.SWITCHED


def prepare(
    authority: Authority,
    *,
    at: datetime,
    valid_for: timedelta = AUTHORITY_VALID_FOR,
    key_type: KeyType | None = None,
) -> Authority:
    """Make a new root beside the old one, which goes on issuing; return the authority as it is then.

    Raises UsageError where the root's key is elsewhere, PkiError when a replacement is under way or the clock stands
    before the old root's beginning, WrongPassphrase when the key is locked.
    """
    with locked(authority.directory):
        authority = _expect_stage(authority, None)
        validity = Validity.starting(at, valid_for)
        if validity.not_before <= authority.anchor.not_valid_before_utc:
            expected = f"a time after that of the root, {authority.anchor.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC"
            raise PkiError("validity of the new root", expected, f"{validity.not_before:%Y-%m-%d %H:%M:%S}")
        key, key_file = authority.new_ca_key("ca", key_type)
        root = profiles.root(key, authority.trust_domain, validity, path_length=0)
        files.publish([key_file])
        return _publish_roots(authority, [authority.anchor, root], at)


def switch(authority: Authority, *, at: datetime) -> Authority:
    """Let the new root issue from now on. Raises as `prepare` does."""
    with locked(authority.directory):
        authority = _expect_stage(authority, Stage.PREPARED)
        return _publish_roots(authority, authority.anchors[::-1], at)


def finish(authority: Authority, *, at: datetime, force: bool = False) -> Authority:
    """Take the old root out of ca.crt. Its key stays where it is.

    Raises PkiError as `prepare` does, and without `force` while `still_good` returns any.
    """
    with locked(authority.directory):
        authority = _expect_stage(authority, Stage.SWITCHED)
        if (left := still_good(authority, at)) and not force:
            expected = "nothing that the old root issued and that is neither revoked nor expired"
            raise PkiError(authority.ca_path, expected, f"{len(left)}, such as that of {left[0].name!r}")
        return _publish_roots(authority, authority.anchors[:1], at)


def abort(authority: Authority, *, at: datetime) -> Authority:
    """Take back `prepare`: the new root, which has issued nothing, goes, and its key too. Raises as `prepare` does."""
    with locked(authority.directory):
        authority = _expect_stage(authority, Stage.PREPARED)
        key_path = authority.key_path_of(authority.anchors[1])
        authority = _publish_roots(authority, authority.anchors[:1], at)
        with files.reported(key_path):
            key_path.unlink()
        return authority


def still_good(authority: Authority, at: datetime) -> list[Record]:
    """Return what the old root issued and that is neither revoked nor expired; nothing where no root is replaced."""
    if stage(authority) is None:
        return []
    old = min(authority.anchors, key=lambda root: root.not_valid_before_utc)
    return [each for each in authority.store.records() if each.is_good(at) and is_issued_by(each, old)]


def replace_issuing(
    authority: Authority,
    root_directory: str | os.PathLike[str],
    *,
    at: datetime,
    root_passphrase: bytes | None = None,
    valid_for: timedelta = AUTHORITY_VALID_FOR,
    key_type: KeyType | None = None,
    compromised: bool = False,
) -> Authority:
    """Let a new issuing CA take over, below the same root; return the authority as it is then.

    `root_passphrase` opens the root's key (None: the same passphrase as that of the authority's, if it takes one).
    With `compromised` the root revokes the old issuing CA, and so all that it has issued, recorded or not.
    Raises UsageError where the root itself issues, PkiError when `root_directory` has no key of this root,
    WrongPassphrase when one of the keys is locked.
    """
    if not authority.two_tier:
        raise UsageError("--root-dir: expected an authority whose root is kept elsewhere, got one whose root issues")
    with locked(authority.directory):
        authority = authority.reopened()
        root = _root(authority, Path(root_directory), root_passphrase)
        validity = Validity.starting(at, valid_for, root.certificate)
        key, key_file = authority.new_ca_key("issuing", key_type)
        issuing = profiles.issuing(key, authority.trust_domain, validity, root)
        directory, old = authority.directory, authority.issuer
        # First: who repeats a command that was interrupted means this issuing CA, and not the new one.
        _update_root_list(authority, root, at, revoke=authority.issuer if compromised else None)
        files.publish([key_file])
        retired = certificate_file(directory / f"issuing-{profiles.key_id(old)}.crt", old)
        # One that an interrupted rotation left is the same.
        files.publish([retired, certificate_file(directory / ca_certificates.ISSUING, issuing)], overwrite=True)
        return _with_lists(authority, at)


def revoke_replaced(
    authority: Authority,
    root_directory: str | os.PathLike[str],
    certificate: x509.Certificate,
    *,
    at: datetime,
    root_passphrase: bytes | None = None,
) -> WrittenLists:
    """Have the root revoke an issuing CA that was replaced, and so all that it has issued, recorded or not.

    One that is revoked already stays as it is; the lists are written anew. `certificate` is one that the root signed;
    it need not be in the directory any more. Raises as `replace_issuing` does, and PkiError for the CA that issues.
    """
    if not authority.two_tier:
        raise UsageError("--root-dir: expected an authority whose root is kept elsewhere, got one whose root issues")
    with locked(authority.directory):
        authority = authority.reopened()
        if certificate in (authority.issuer, authority.anchor):
            found = "the one that issues; `portguard ca rotate --root-dir DIR --compromised` replaces and revokes it"
            if certificate == authority.anchor:
                found = "the root, which only a new authority replaces"
            raise PkiError(certificate.subject.rfc4514_string(), "an intermediate that was replaced", found)
        root = _root(authority, Path(root_directory), root_passphrase)
        _update_root_list(authority, root, at, revoke=certificate)
        return write_lists_locked(authority, at=at)


def _update_root_list(authority: Authority, root: Issuer, at: datetime, *, revoke: x509.Certificate | None) -> None:
    """Sign the root's list anew, with an entry more, or make the one that an authority of before lists lacks."""
    path = authority.root_crl_path
    assert path is not None
    if revoke is None and path.exists():
        return
    before = root_list(authority)
    entries = {each.serial_number: read_revocation(each) for each in before or ()}
    if revoke is not None:
        entries.setdefault(revoke.serial_number, Revocation(at.replace(microsecond=0), RevocationReason.CA_COMPROMISE))
    above = 0 if before is None else list_number(before)
    number = authority.store.begin_list(at, authority.store.last_valid_for() or LIST_VALID_FOR, above=above)
    validity = Validity.starting(at, root.certificate.not_valid_after_utc - at, root.certificate)
    files.publish([NewFile(path, list_pem(entries.items(), number, validity, root), PUBLIC)], overwrite=True)


def _expect_stage(authority: Authority, expected: Stage | None) -> Authority:
    """Return the authority as it is now. Raises UsageError, PkiError when it is at another stage."""
    authority = authority.reopened()
    if authority.two_tier:
        raise UsageError("--root-dir: expected the directory with the root's key, got none")
    found = stage(authority)
    if found is not expected:
        texts = {
            None: "no new root",
            Stage.PREPARED: "a new root that is prepared",
            Stage.SWITCHED: "a new root that issues",
        }
        raise PkiError(authority.ca_path, texts[expected], texts[found])
    return authority


def _publish_roots(authority: Authority, roots: Sequence[x509.Certificate], at: datetime) -> Authority:
    files.publish([certificate_file(authority.ca_path, *roots)], overwrite=True)
    return _with_lists(authority, at)


def _with_lists(authority: Authority, at: datetime) -> Authority:
    authority = authority.reopened()
    write_lists_locked(authority, at=at)
    return authority


def _root(authority: Authority, directory: Path, passphrase: bytes | None) -> Issuer:
    """Return the root with its key. Raises PkiError, WrongPassphrase."""
    [certificate, *_] = ca_certificates.read(directory / "root.crt")
    if certificate != authority.anchor:
        raise PkiError(directory / "root.crt", f"the root of the authority in {authority.directory}", "another one")
    path = directory / "root.key"
    pem = files.read(path, "the key of the root")
    if passphrase is None and keys.is_encrypted(pem):
        passphrase = authority.passphrase
    key = keys.from_pem(pem, passphrase, str(path))
    if key.public_key() != certificate.public_key():
        raise PkiError(path, "the key of root.crt", "the key of another one")
    return Issuer(certificate, key)
