"""How long certificates are good for."""

from datetime import UTC, datetime, timedelta

from cryptography import x509


def ends_soon(certificate: x509.Certificate, at: datetime, before: timedelta) -> bool:
    """Whether it ends less than `before` after `at` (aware), or a short-lived one is in the last fifth of its life.

    True also of one that has ended.
    """
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return end - at < min(before, (end - start) / 5)


def written(at: datetime) -> str:
    """A time (aware) as messages have it, `2026-11-25 23:37:53 UTC`."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
