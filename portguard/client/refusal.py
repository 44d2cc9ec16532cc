"""What a gateway's "no" looks like from outside: its answer over HTTP, and its alert over TLS."""

import json
import math
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from portguard.client.credentials import Credentials
from portguard.errors import PortguardError, Unreachable
from portguard.policy.addresses import HostPort
from portguard.reasons import Reason

# Alerts of RFC 8446 6.2 by which a gateway refuses a certificate, by the end of OpenSSL's name for them.
_BY_ALERT = {
    "CERTIFICATE_EXPIRED": Reason.CERTIFICATE_EXPIRED,
    "CERTIFICATE_REVOKED": Reason.CERTIFICATE_REVOKED,
    "CERTIFICATE_REQUIRED": Reason.CERTIFICATE_MISSING,
    "UNSUPPORTED_CERTIFICATE": Reason.CERTIFICATE_USAGE,
    "UNKNOWN_CA": Reason.CERTIFICATE_UNTRUSTED,
    "CERTIFICATE_UNKNOWN": Reason.CERTIFICATE_UNTRUSTED,
    "BAD_CERTIFICATE": Reason.CERTIFICATE_UNTRUSTED,
}

_LONGEST_WAIT_S = 10_000_000
_RETRY_AFTER = re.compile(r"[0-9]{1,7}")  # a month has 2,678,400 seconds

# What a wait is told in, once it is at least two of them.
_LONG_UNITS_S = {"days": 86_400, "h": 3600, "min": 60}


class RefusedByGateway(PortguardError):
    """The gateway said no. Like errors.Refused, but `reason` may be a word that this version does not know yet.

    `session` is what the gateway's log knows the attempt by, None when there is none; `retry_after_s` is when to come
    back, None when unknown.
    """

    exit_code = 3

    def __init__(
        self, subject: str, reason: str, message: str, *, session: str | None = None, retry_after_s: int | None = None
    ):
        self.subject = subject
        self.reason = reason
        self.message = message or (Reason(reason).sentence if reason in set(Reason) else "the gateway refused it")
        self.session = session
        self.retry_after_s = retry_after_s
        details = [] if session is None else [f"session {session}"]
        if retry_after_s is not None:
            details.append(f"try again in {written_wait(retry_after_s)}")
        more = f" ({', '.join(details)})" if details else ""
        super().__init__(f"{subject}: {reason}: {self.message}{more}")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer over HTTP. Header names are lower case; the body may be cut."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def document(self) -> dict[str, object]:
        """Return the JSON object that the body is, an empty one when it is none."""
        try:
            document = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return document if isinstance(document, dict) else {}


def refused(service: str, gateway: HostPort, answer: Answer) -> PortguardError:
    """Return the error for an answer that is not what was asked for."""
    document = answer.document()
    reason, message, session = (one_line(document.get(key)) for key in ("reason", "message", "session"))
    if not reason:
        return Unreachable(f"gateway {gateway}: expected an answer of portguard, got HTTP status {answer.status}")
    retry_after = answer.headers.get("retry-after", "")
    return RefusedByGateway(
        service,
        reason,
        message,
        session=session or None,
        retry_after_s=int(retry_after) if _RETRY_AFTER.fullmatch(retry_after) else None,
    )


def foreseen_refusal(service: str, document: Mapping[str, object]) -> RefusedByGateway | None:
    """Return the refusal that a session with `service` would meet now, as the gateway's description tells it.

    None where it tells none: such as one of before it told any.
    """
    refusal = document.get("refusal")
    if not isinstance(refusal, dict) or not (reason := one_line(refusal.get("reason"))):
        return None
    return RefusedByGateway(
        service, reason, one_line(refusal.get("message")), retry_after_s=_whole_wait_s(refusal.get("retry_after_s"))
    )


def _whole_wait_s(value: object) -> int | None:
    """Return a wait of JSON in whole seconds, rounded up as in Retry-After; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LONGEST_WAIT_S:
        return None
    return max(1, math.ceil(value))


def written_wait(wait_s: int) -> str:
    """Return a wait as people say it, rounded up: who comes back by then is not too early."""
    for unit, size_s in _LONG_UNITS_S.items():
        if wait_s >= 2 * size_s:
            return f"{-(-wait_s // size_s)} {unit}"
    return f"{wait_s} s"


def one_line(value: object) -> str:
    """Return a text of the gateway's as one line, so that it cannot look like several messages; "" for no text."""
    return " ".join(value.split()) if isinstance(value, str) else ""


def refused_by_alert(error: ssl.SSLError, credentials: Credentials, at: datetime) -> RefusedByGateway | None:
    """Return the refusal if `error` is an alert by which a gateway refuses a certificate, else None.

    In TLS 1.3 it arrives only after the client's handshake is complete, with the first read.
    """
    _, _, alert = (error.reason or "").partition("ALERT_")
    reason = _BY_ALERT.get(alert)
    if reason is None:
        return None
    certificate = credentials.certificate
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if reason is Reason.CERTIFICATE_UNTRUSTED and at < first:
        reason = Reason.CERTIFICATE_NOT_YET_VALID
    message = (
        f"the gateway did not accept the certificate (alert: {alert.lower().replace('_', ' ')}); "
        f"it is valid from {first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC"
    )
    return RefusedByGateway(str(credentials.profile.certificate), reason, message)


# X509_V_ERR_… of OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _USAGE, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 26, 62, 64
_NO_ISSUER = {2, 18, 19, 20, 21}


def untrusted_gateway(error: ssl.SSLCertVerificationError, credentials: Credentials, name: str) -> Unreachable:
    """Return in plain words why the gateway's own certificate was not accepted: somebody else may be answering."""
    profile = credentials.profile
    code = error.verify_code
    expected, found = "a certificate that verifies", error.verify_message
    if code in (_NOT_YET_VALID, _EXPIRED):
        expected = "a certificate that is valid now, by this machine's clock"
        found = "one that has expired" if code == _EXPIRED else "one that is not valid yet"
    elif code == _USAGE:
        expected, found = "a certificate for servers", "one for another purpose"
    elif code in (_OTHER_NAME, _OTHER_ADDRESS):
        expected, found = f"a certificate for {name}", "one for another name"
    elif code in _NO_ISSUER:
        expected, found = f"a certificate of the authority in {profile.ca}", "one of another authority"
    return Unreachable(f"gateway {profile.gateway}: expected {expected}, got {found}")
