"""From a verified chain to the caller: which trust vouches for it, and for whom.

The order is that of the gateway's refusals: trust, revocation, identity. Signatures and dates of the verified chain are
OpenSSL's work; nothing here repeats it. What is added is what OpenSSL does not ask: *which* anchor it was, and whether
the client could have made it another one.

A client could do so when one key is certified under two trusts: its certificate then has two chains, and what it sends
decides which of them is verified. Such a key is ambiguous and refused, wherever it is noticed:

1. among the anchors, when trusts are made (`Trusts` raises);
2. in the verified chain, when it passes through another trust's anchor;
3. among the certificates that the client sent, in any order, verified or not: one with the key of an authority in the
   verified chain, from which a path of names and signatures leads to an anchor of another trust;
4. over time, when an authority's key was verified under one trust before, and is now under another. Then both are
   refused from here on. This memory is bounded, starts empty, and is each worker's own: it is the second line, for
   clients that send one certificate at a time, and no reason to let trusts certify each other's authorities.

Keys alone are compared, not names with them: to OpenSSL names differ less than to the eye. Dates play no part either:
a cross certificate that is not valid yet will be.

The leaf's own key may have certificates of several trusts. Each names its holder to its own trust, and the client says
which it is by sending it; no authority is made to vouch for what it did not sign.
"""

import functools
import hashlib
import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.errors import Refused
from portguard.identity.authorities import UNREADABLE, Authority, is_authority, quietly, read_authority
from portguard.identity.certificate import check_leaf, read_groups, read_name
from portguard.identity.names import Group, Identity, Malformed, Source, check_trust_domain, check_trust_name
from portguard.identity.revocation import RevocationList, Revocations, Standing
from portguard.identity.validity import written
from portguard.reasons import Reason

# Real chains have two to four certificates. What is sent beyond the chain costs work before anybody is let in: reading
# it, and checking the signatures of what claims a key of the chain. With the largest keys one check takes milliseconds.
_MOST_SENT = 20
_MOST_CHECKS = 16
_CACHED_CHAINS = 1024
# Authorities are few, and all clients of a trust share them.
_CACHED_AUTHORITIES = 512
# A client may send 100 kB of certificates. Such chains are judged anew each time, so that 1,024 of them stay small.
_LARGEST_CACHED_BYTES = 16 * 1024
_REMEMBERED_KEYS = 4096


@dataclass(frozen=True)
class Trust:
    """One certificate authority that the gateway accepts, and how a name is read from its certificates."""

    name: str
    anchors: tuple[x509.Certificate, ...]
    source: Source
    trust_domain: str | None = None  # of source "spiffe" only, and required there
    default: bool = False  # names without a prefix are this trust's
    groups: str | None = None  # "ou", "uri:PREFIX", or None: certificates give no groups
    crls: tuple[RevocationList, ...] = ()
    crl_expired: Literal["refuse", "accept"] = "refuse"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a certificate says is calling. It holds as long as the chain is valid and its trust is unchanged."""

    identity: Identity
    groups: frozenset[Group]
    serial: int  # of the leaf certificate
    fingerprint: str  # SHA-256 of the leaf certificate, hex
    not_after: datetime  # the earliest of the whole chain, its anchor included; the last second is still valid


@dataclass(frozen=True, slots=True, order=True)
class TrustProblem:
    """One thing that is wrong with a trust; `key` is that of its table in `portguard.toml`."""

    trust: str
    key: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"trusts.{self.trust}.{self.key}: expected {self.expected}, got {self.found}"


class UnusableTrusts(ValueError):
    """Trusts cannot be used, alone or beside each other. `problems` holds everything found."""

    def __init__(self, problems: Iterable[TrustProblem]):
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Everything about one chain that depends neither on the time nor on other chains."""

    trust: str
    keys: tuple[bytes, ...]  # of the authorities between leaf and anchor
    name: str  # of the authority that issued the leaf, for messages
    not_before: datetime
    not_after: datetime
    standing: Standing
    caller: Caller | Refused


_Judge = Callable[[tuple[bytes, ...], tuple[bytes, ...]], _Verdict | Refused]


class Trusts:
    """All trusts of a gateway. Raises UnusableTrusts when they cannot be told apart or one of them is wrong in itself.

    Not for use by several threads at once.
    """

    def __init__(self, trusts: Iterable[Trust]):
        every = tuple(trusts)
        self._trusts = {trust.name: trust for trust in every}
        self._anchors = _read_anchors(every)
        self._trust_of_key = {anchor.key: name for name, anchors in self._anchors.items() for anchor in anchors}
        self._revocations = {
            trust.name: Revocations(trust.crls, self._anchors[trust.name], accept_stale=trust.crl_expired == "accept")
            for trust in every
        }
        if problems := [*_own_problems(every, self._revocations), *_mutual_problems(every, self._anchors)]:
            raise UnusableTrusts(problems)
        # Of verified chains only: else clients could fill it with whatever they like to send.
        self._read_authority = functools.lru_cache(maxsize=_CACHED_AUTHORITIES)(read_authority)
        self._judge_cached = functools.lru_cache(maxsize=_CACHED_CHAINS)(_weakly(self._judge))
        # key of an authority -> the trusts under which it was verified; the least recently used is forgotten first
        self._verified_under: OrderedDict[bytes, frozenset[str]] = OrderedDict()

    @property
    def every(self) -> tuple[Trust, ...]:
        """All trusts, in the order in which they were given."""
        return tuple(self._trusts.values())

    @property
    def anchors_pem(self) -> str:
        """The anchors of all trusts, for the store of the TLS contexts."""
        return "".join(
            anchor.certificate.public_bytes(Encoding.PEM).decode()
            for anchors in self._anchors.values()
            for anchor in anchors
        )

    def identify(self, verified: Sequence[bytes], sent: Sequence[bytes], at: datetime) -> Caller:
        """Return who is calling. *Fails closed*: whatever is missing, unreadable or in doubt is refused.

        `verified` is the chain that OpenSSL verified, leaf first, anchor last; `sent` is all that the client sent, its
        leaf among it, in any order; both DER. `at` (aware) is the time for which dates and lists are looked at: now, at
        the handshake, and at every later check of a live session.

        Raises Refused: certificate_missing, certificate_untrusted, ambiguous_identity, certificate_not_yet_valid,
        certificate_expired, certificate_revoked, crl_expired, certificate_usage, no_identity.
        """
        caller = self._verdict(verified, sent, at).caller
        if isinstance(caller, Refused):
            raise _again(caller)
        return caller

    def trust_of_nameless(self, verified: Sequence[bytes], sent: Sequence[bytes], at: datetime) -> str:
        """Return the name of the trust that vouches for a certificate which names nobody, as an invitation's does.

        *Fails closed*: raises Refused as `identify` does, but for `no_identity`; and with `bad_request` for the
        certificate of somebody.
        """
        verdict = self._verdict(verified, sent, at)
        if isinstance(verdict.caller, Caller):
            message = f"client certificate: expected that of an invitation, got that of {verdict.caller.identity.name}"
            raise Refused(Reason.BAD_REQUEST, message)
        if verdict.caller.reason is not Reason.NO_IDENTITY:
            raise _again(verdict.caller)
        return verdict.trust

    def expect_issuer(self, trust: str, issuers: Sequence[bytes], certificate: x509.Certificate, at: datetime) -> None:
        """Raise Refused where this trust's lists would have all refused at `at` (aware) that `issuers` issue.

        `issuers` is the chain of the one that issues, anchor last, DER; `certificate` stands for what it would issue.
        *Fails closed*: certificate_revoked, crl_expired.
        """
        authorities = [self._read_authority(der) for der in issuers]
        certificates = [certificate, *(authority.certificate for authority in authorities[:-1])]
        self._revocations[trust].standing(certificates, authorities).check(at)

    def _verdict(self, verified: Sequence[bytes], sent: Sequence[bytes], at: datetime) -> _Verdict:
        """What is to be said of a chain whose trust, dates and revocation are right. Raises Refused. *Fails closed*."""
        chain, all_sent = tuple(verified), tuple(sent)
        cached = sum(map(len, chain)) + sum(map(len, all_sent)) <= _LARGEST_CACHED_BYTES
        verdict = (self._judge_cached if cached else self._judge)(chain, all_sent)
        if isinstance(verdict, Refused):
            raise _again(verdict)
        if at < verdict.not_before:
            message = f"chain: expected a time from {written(verdict.not_before)}, got {written(at)}"
            raise Refused(Reason.CERTIFICATE_NOT_YET_VALID, message)
        if at > verdict.not_after:
            message = f"chain: expected a time until {written(verdict.not_after)}, got {written(at)}"
            raise Refused(Reason.CERTIFICATE_EXPIRED, message)
        verdict.standing.check(at)
        # Only now: a cross certificate that its trust has revoked makes nothing ambiguous.
        self._remember(verdict)
        return verdict

    def _judge(self, verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> _Verdict | Refused:
        try:
            with quietly():
                return self._judge_or_raise(verified, sent)
        except Refused as refused:
            return refused
        except UNREADABLE as error:
            return Refused(Reason.CERTIFICATE_UNTRUSTED, f"client chain: expected readable certificates, got {error}")

    def _judge_or_raise(self, verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> _Verdict:
        if not verified and not sent:
            raise Refused(Reason.CERTIFICATE_MISSING)
        # A chain of one would be an anchor that is its own client.
        if len(verified) < 2:
            message = f"client chain: expected a certificate and its authorities, got {len(verified)} verified"
            raise Refused(Reason.CERTIFICATE_UNTRUSTED, message)
        if verified[0] not in sent:
            message = "client chain: expected the verified certificate among those sent, got others"
            raise Refused(Reason.CERTIFICATE_UNTRUSTED, message)
        if len(sent) > _MOST_SENT:
            message = f"client chain: expected at most {_MOST_SENT} certificates, got {len(sent)}"
            raise Refused(Reason.CERTIFICATE_UNTRUSTED, message)
        authorities = [self._read_authority(der) for der in verified[1:]]
        anchor = authorities[-1]
        trust = self._trust_of(anchor)
        self._refuse_other_trusts(trust, authorities, [*dict.fromkeys(der for der in sent if der not in verified)])

        leaf = x509.load_der_x509_certificate(verified[0])
        certificates = [leaf, *(authority.certificate for authority in authorities)]
        not_after = min(certificate.not_valid_after_utc for certificate in certificates)
        return _Verdict(
            trust=trust.name,
            keys=tuple(authority.key for authority in authorities[:-1]),
            name=authorities[0].name,
            not_before=max(certificate.not_valid_before_utc for certificate in certificates),
            not_after=not_after,
            standing=self._revocations[trust.name].standing(certificates[:-1], authorities),
            caller=_read_caller(leaf, verified[0], trust, not_after),
        )

    def _trust_of(self, anchor: Authority) -> Trust:
        """Return the trust that has this anchor, by subject and public key. Raises Refused. *Fails closed.*"""
        name = self._trust_of_key.get(anchor.key)
        if name is None or all(anchor.key != own.key or anchor.subject != own.subject for own in self._anchors[name]):
            message = f"client chain: expected an anchor of {_listed(self._trusts)} at its end, got {anchor.name}"
            raise Refused(Reason.CERTIFICATE_UNTRUSTED, message)
        return self._trusts[name]

    def _refuse_other_trusts(self, trust: Trust, chain: Sequence[Authority], unused: Sequence[bytes]) -> None:
        """Refuse a chain of which the client could have made one of another trust. *Fails closed.*

        `unused` is what it sent beyond the chain. Raises Refused: ambiguous_identity.
        """
        keys: dict[bytes, Authority] = {}
        for authority in chain:
            owner = self._trust_of_key.get(authority.key, trust.name)
            if owner != trust.name:
                raise _ambiguous(authority, trust.name, owner)
            keys[authority.key] = authority
        # Without the chain itself: from any certificate in it, the way leads on to its own anchor.
        known = list(map(read_authority, unused))
        others = [(anchor, other) for other, own in self._anchors.items() if other != trust.name for anchor in own]
        checks = iter(range(_MOST_CHECKS))
        reached: set[bytes] = set()
        for start in known:
            waiting = [start] if start.key in keys else []
            while waiting:
                certificate = waiting.pop()
                reached.add(certificate.der)
                for anchor, other in others:
                    if _has_issued(anchor, certificate, checks):
                        raise _ambiguous(keys[start.key], trust.name, other)
                waiting += [
                    issuer for issuer in known if issuer.der not in reached and _has_issued(issuer, certificate, checks)
                ]

    def _remember(self, verdict: _Verdict) -> None:
        """Note under which trust the chain's authorities were verified. Raises Refused when it was another before."""
        remembered = self._verified_under
        before: frozenset[str] = frozenset()
        for key in verdict.keys:
            trusts = remembered.get(key)
            if trusts is None:
                remembered[key] = frozenset({verdict.trust})
                if len(remembered) > _REMEMBERED_KEYS:
                    remembered.popitem(last=False)
                continue
            remembered.move_to_end(key)
            if verdict.trust not in trusts:
                trusts = remembered[key] = trusts | {verdict.trust}
            if len(trusts) > 1:
                before |= trusts
        if before:
            found = f"keys that were verified under {_listed(before)}"
            message = f"{verdict.name}: expected it and the authorities above to be of one trust, got {found}"
            raise Refused(Reason.AMBIGUOUS_IDENTITY, message)


def _weakly(judge: _Judge) -> _Judge:
    """A method, for a cache that its object has: a cycle is never freed in a process that has called gc.freeze()."""
    method = weakref.WeakMethod(judge)

    def call(verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> _Verdict | Refused:
        bound = method()
        assert bound is not None
        return bound(verified, sent)

    return call


def _has_issued(issuer: Authority, certificate: Authority, checks: Iterator[int]) -> bool:
    """As `Authority.has_issued`; takes one of `checks` for a signature. Raises Refused when there is none left."""
    if issuer.subject != certificate.issuer:
        return False
    if next(checks, None) is None:
        message = (
            f"client chain: expected at most {_MOST_CHECKS} signatures to check beyond the verified ones, got more"
        )
        raise Refused(Reason.AMBIGUOUS_IDENTITY, message)
    return issuer.has_issued(certificate)


def _read_caller(leaf: x509.Certificate, der: bytes, trust: Trust, not_after: datetime) -> Caller | Refused:
    try:
        check_leaf(leaf, trust.source)
        name = read_name(leaf, trust.source, trust.trust_domain)
        groups = frozenset(Group(trust.name, group) for group in read_groups(leaf, trust.groups))
    except Refused as refused:
        return refused
    except x509.DuplicateExtension as error:
        return Refused(Reason.AMBIGUOUS_IDENTITY, f"client certificate: expected each extension once, got {error}")
    except UNREADABLE as error:
        return Refused(Reason.NO_IDENTITY, f"client certificate: expected readable extensions, got {error}")
    return Caller(
        identity=Identity(trust.name, name),
        groups=groups,
        serial=leaf.serial_number,
        fingerprint=hashlib.sha256(der).hexdigest(),
        not_after=not_after,
    )


def _read_anchors(trusts: Iterable[Trust]) -> dict[str, tuple[Authority, ...]]:
    problems: list[TrustProblem] = []
    anchors: dict[str, tuple[Authority, ...]] = {}
    for trust in trusts:
        read: list[Authority] = []
        for certificate in trust.anchors:
            try:
                read.append(read_authority(certificate.public_bytes(Encoding.DER)))
            except Malformed as error:
                problems.append(TrustProblem(trust.name, "ca", error.expected, error.found))
        anchors[trust.name] = tuple(read)
    if problems:
        raise UnusableTrusts(problems)
    return anchors


def _own_problems(trusts: Sequence[Trust], revocations: dict[str, Revocations]) -> Iterator[TrustProblem]:
    """What is wrong with each trust by itself."""
    for trust in trusts:
        try:
            check_trust_name(trust.name)
        except Malformed as error:
            yield TrustProblem(trust.name, "name", error.expected, error.found)
        if trust.source == "spiffe":
            try:
                check_trust_domain(trust.trust_domain or "")
            except Malformed as error:
                yield TrustProblem(trust.name, "trust_domain", error.expected, error.found)
            if trust.groups is not None and trust.groups.startswith("uri:"):
                # The one URI that a SPIFFE certificate may have is its name.
                yield TrustProblem(trust.name, "groups", '"ou" or none with identity "spiffe"', repr(trust.groups))
        elif trust.trust_domain is not None:
            yield TrustProblem(trust.name, "trust_domain", 'none without identity "spiffe"', repr(trust.trust_domain))
        if trust.groups not in {None, "ou"} and not re.match("uri:.", trust.groups or ""):
            yield TrustProblem(trust.name, "groups", '"ou" or "uri:PREFIX"', repr(trust.groups))
        if not trust.anchors:
            yield TrustProblem(trust.name, "ca", "at least one certificate", "none")
        for certificate in trust.anchors:
            try:
                usable = is_authority(certificate)
            except UNREADABLE:
                usable = False
            if not usable:
                name = certificate.subject.rfc4514_string()
                yield TrustProblem(trust.name, "ca", "certificates of authorities (CA true)", name)
        for stray in revocations[trust.name].misattributed:
            yield TrustProblem(trust.name, "crl", f"a list signed by {stray.issuer_name}", "one with another signature")
        for crl in trust.crls:
            if crl.next_update is None and trust.crl_expired == "refuse":
                found = f"the list of {crl.issuer_name} without one"
                yield TrustProblem(trust.name, "crl", 'a time of the next update, or crl_expired = "accept"', found)


def _mutual_problems(trusts: Sequence[Trust], anchors: dict[str, tuple[Authority, ...]]) -> Iterator[TrustProblem]:
    """What keeps trusts from being told apart."""
    for one, other in combinations(trusts, 2):
        if one.name == other.name:
            yield TrustProblem(other.name, "name", "another name than that of any other trust", repr(other.name))
            continue
        if one.default and other.default:
            yield TrustProblem(other.name, "default", "one default trust", f"a second one beside {one.name}")
        if one.trust_domain is not None and one.trust_domain == other.trust_domain:
            expected = f"another trust domain than that of {one.name}"
            yield TrustProblem(other.name, "trust_domain", expected, repr(other.trust_domain))
        for mine in anchors[one.name]:
            for theirs in anchors[other.name]:
                if mine.key == theirs.key:
                    found = f"the key of {mine.name} in {one.name}"
                    yield TrustProblem(other.name, "ca", "keys that no other trust has", found)
                elif mine.has_issued(theirs) or theirs.has_issued(mine):
                    upper, lower = (mine, theirs) if mine.has_issued(theirs) else (theirs, mine)
                    found = f"{lower.name}, certified by {upper.name}"
                    yield TrustProblem(other.name, "ca", f"an authority with no tie to those of {one.name}", found)


def _again(refused: Refused) -> Refused:
    """A new exception of the same content: one kept in a cache would grow a traceback with every raise."""
    return Refused(refused.reason, refused.message)


def _ambiguous(authority: Authority, trust: str, other: str) -> Refused:
    message = (
        f"{authority.name}: expected an authority of one trust, got one that is certified under {trust} and {other}"
    )
    return Refused(Reason.AMBIGUOUS_IDENTITY, message)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "any trust"
