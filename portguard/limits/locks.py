"""Who is locked out: identities and single certificates, for ever or until a time. Nothing else lifts a lock.

Time is seconds since the epoch. A lock acts from the moment it is here until its end has come, whether or not anybody
takes it away then. Supervisor and workers each have such a table; the ledger has the supervisor's.
"""

import re
from collections.abc import Collection, Iterable

from portguard.errors import Refused
from portguard.identity.names import Identity, Malformed, Namespace, parse_identity
from portguard.instants import written_second
from portguard.limits.ledger import LockRow, LockTarget
from portguard.reasons import Reason

_FINGERPRINT = "SHA256:"
_FINGERPRINT_DIGITS = 64
# As `portguard cert show` writes one, as a lock is written, and as openssl does: `sha256 Fingerprint=1B:F5:…`.
_WRITTEN_FINGERPRINT = re.compile(
    r"(?:sha256:|sha256 fingerprint=)?([0-9a-f]{64}|[0-9a-f]{2}(?::[0-9a-f]{2}){31})", re.IGNORECASE | re.ASCII
)
_MOST_SERIAL_DIGITS = 40  # RFC 5280 4.1.2.2: 20 bytes

_HEX = frozenset("0123456789abcdef")


class Locks:
    """The locks, one for each target."""

    def __init__(self, rows: Iterable[LockRow] = ()):
        self._rows = {row.target: row for row in rows}

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self) -> Collection[LockRow]:
        """All locks, also those that are over and not yet taken away."""
        return tuple(self._rows.values())

    def get(self, target: LockTarget) -> LockRow | None:
        """The lock of a target, None when there is none; it may be over."""
        return self._rows.get(target)

    def add(self, row: LockRow) -> None:
        """Lock, in place of what the target was locked by before."""
        self._rows[row.target] = row

    def remove(self, target: LockTarget) -> None:
        """Unlock; nothing for what is not locked."""
        self._rows.pop(target, None)

    def take_expired(self, now_s: float) -> list[LockRow]:
        """Take away those that are over, and return them."""
        expired = [row for row in self._rows.values() if not _acts(row, now_s)]
        for row in expired:
            del self._rows[row.target]
        return expired

    def check(self, identity: Identity, fingerprint: str, serial: str, now_s: float) -> LockRow | None:
        """Return the lock that keeps this holder of this certificate out now; of several, the one that ends last.

        `fingerprint` and `serial` are in lower-case hex, the serial number without leading zeros. *Fails closed*: what
        lasts for ever is never outdone by what ends.
        """
        if not self._rows:
            return None
        found = [
            row
            for target in targets_of(identity, fingerprint, serial)
            if (row := self._rows.get(target)) is not None and _acts(row, now_s)
        ]
        return max(found, key=lambda row: (row.until_s is None, row.until_s or 0), default=None)

    def refuse(self, identity: Identity, fingerprint: str, serial: str, now_s: float) -> None:
        """Raise Refused with `locked` for whom `check` finds a lock. Who set it, and why, is not told.

        *Fails closed*.
        """
        lock = self.check(identity, fingerprint, serial, now_s)
        if lock is not None:
            what = "the identity" if lock.target.kind == "identity" else "the certificate"
            until = "" if lock.until_s is None else f" until {written_second(lock.until_s)}"
            raise Refused(Reason.LOCKED, f"{what} is locked{until}")


def targets_of(identity: Identity, fingerprint: str, serial: str) -> tuple[LockTarget, LockTarget, LockTarget]:
    """All that this holder of this certificate can be locked by."""
    return (
        LockTarget("identity", identity.trust, identity.name),
        LockTarget("fingerprint", "", fingerprint),
        LockTarget("serial", identity.trust, serial),
    )


def parse_identity_target(text: str, namespace: Namespace) -> LockTarget:
    """Read a written identity, also a `spiffe://` URI. Raises Malformed."""
    identity = parse_identity(text, namespace)
    return LockTarget("identity", identity.trust, identity.name)


def parse_certificate_target(text: str, namespace: Namespace) -> LockTarget:
    """Read the fingerprint of a certificate, or a trust, a colon and a serial number. Raises Malformed.

    Both in hex, as portguard or openssl write them: in either case, with or without colons in between. The fingerprint
    may have `SHA256:` or `sha256 Fingerprint=` before it. No serial number is as long as one.
    """
    if (written := _WRITTEN_FINGERPRINT.fullmatch(text)) is not None:
        return LockTarget("fingerprint", "", written[1].replace(":", "").lower())
    if text.startswith(_FINGERPRINT):
        raise Malformed(f'{_FINGERPRINT_DIGITS} hex digits after "{_FINGERPRINT}"', repr(text))
    trust, colon, serial = text.partition(":")
    if not colon or trust not in namespace.sources:
        known = ", ".join(sorted(namespace.sources))
        raise Malformed(f'"{_FINGERPRINT}" or a trust ({known}) before the first ":"', repr(text))
    digits = _digits(serial.removeprefix("0x"))
    if digits is None or len(digits.lstrip("0")) > _MOST_SERIAL_DIGITS:
        raise Malformed(f"a serial number of 1 to {_MOST_SERIAL_DIGITS} hex digits after the trust", repr(text))
    return LockTarget("serial", trust, digits.lstrip("0") or "0")


def written_target(target: LockTarget, default_trust: str | None) -> str:
    """The text that `parse_identity_target` or `parse_certificate_target` reads back."""
    match target.kind:
        case "identity":
            return Identity(target.trust, target.value).written(default_trust)
        case "fingerprint":
            return f"{_FINGERPRINT}{target.value}"
        case "serial":
            return f"{target.trust}:{target.value}"


def _acts(row: LockRow, now_s: float) -> bool:
    return row.until_s is None or now_s < row.until_s


def _digits(text: str) -> str | None:
    """Hex digits in lower case, without colons; None for anything else."""
    digits = text.replace(":", "").lower()
    return digits if digits and set(digits) <= _HEX else None
