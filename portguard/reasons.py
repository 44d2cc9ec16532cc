"""The stable words for why a session was refused or closed: the same in audit, metrics, CLI and client."""

from enum import StrEnum


class Reason(StrEnum):
    """One word per cause. Words are never renamed: dashboards and alert rules are written against them."""

    # The handshake did not produce a certificate that some trust accepts.
    CERTIFICATE_MISSING = "certificate_missing"
    CERTIFICATE_UNTRUSTED = "certificate_untrusted"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_NOT_YET_VALID = "certificate_not_yet_valid"
    CERTIFICATE_USAGE = "certificate_usage"
    CERTIFICATE_REVOKED = "certificate_revoked"
    CRL_EXPIRED = "crl_expired"
    AMBIGUOUS_IDENTITY = "ambiguous_identity"
    NO_IDENTITY = "no_identity"
    INVITATION_USED = "invitation_used"
    # The identity is known, and the policy says no.
    LOCKED = "locked"
    DENIED = "denied"
    NO_ROLE = "no_role"
    SERVICE_NOT_GRANTED = "service_not_granted"
    SOURCE_NOT_ALLOWED = "source_not_allowed"
    OUTSIDE_HOURS = "outside_hours"
    GRANT_EXPIRED = "grant_expired"
    UNKNOWN_SERVICE = "unknown_service"
    # A limit is reached.
    MAX_SESSIONS = "max_sessions"
    SERVICE_FULL = "service_full"
    CONNECT_RATE = "connect_rate"
    QUOTA_EXHAUSTED = "quota_exhausted"
    GATEWAY_FULL = "gateway_full"
    ADDRESS_LIMIT = "address_limit"
    # The gateway cannot do its part.
    DRAINING = "draining"
    LEDGER_UNAVAILABLE = "ledger_unavailable"
    AUDIT_UNAVAILABLE = "audit_unavailable"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_UNRESOLVED = "upstream_unresolved"
    UPSTREAM_TLS = "upstream_tls"
    # The client did not do its part.
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    HANDSHAKE_FAILED = "handshake_failed"
    REQUEST_TIMEOUT = "request_timeout"
    BAD_REQUEST = "bad_request"
    # A session that was open has ended.
    CLIENT_CLOSED = "client_closed"
    UPSTREAM_CLOSED = "upstream_closed"
    CLIENT_TRUNCATED = "client_truncated"
    CLIENT_RESET = "client_reset"
    UPSTREAM_RESET = "upstream_reset"
    IDLE_TIMEOUT = "idle_timeout"
    HALF_CLOSE_TIMEOUT = "half_close_timeout"
    SESSION_TIMEOUT = "session_timeout"
    POLICY_CHANGED = "policy_changed"
    KILLED = "killed"
    WORKER_LOST = "worker_lost"
    GATEWAY_STOPPED = "gateway_stopped"

    @property
    def sentence(self) -> str:
        """What the word means, for a person: lower case, no full stop, nothing from a client or certificate."""
        return _SENTENCES[self]


_SENTENCES = {
    Reason.CERTIFICATE_MISSING: "the client sent no certificate",
    Reason.CERTIFICATE_UNTRUSTED: "no trusted authority issued the client certificate",
    Reason.CERTIFICATE_EXPIRED: "the client certificate has expired",
    Reason.CERTIFICATE_NOT_YET_VALID: "the client certificate is not valid yet",
    Reason.CERTIFICATE_USAGE: "the client certificate is not for client authentication",
    Reason.CERTIFICATE_REVOKED: "the client certificate is revoked",
    Reason.CRL_EXPIRED: "the revocation list of the certificate's issuer is out of date",
    Reason.AMBIGUOUS_IDENTITY: "the client certificate could stand for more than one identity",
    Reason.NO_IDENTITY: "the client certificate carries no usable name",
    Reason.INVITATION_USED: "the invitation was used already, for another key",
    Reason.LOCKED: "the identity is locked",
    Reason.DENIED: "a deny entry of the policy forbids it",
    Reason.NO_ROLE: "no role has this identity as a member",
    Reason.SERVICE_NOT_GRANTED: "no role of this identity grants the service",
    Reason.SOURCE_NOT_ALLOWED: "the role does not allow this source address",
    Reason.OUTSIDE_HOURS: "the role does not allow it at this hour",
    Reason.GRANT_EXPIRED: "the role's grant has expired",
    Reason.UNKNOWN_SERVICE: "there is no such service",
    Reason.MAX_SESSIONS: "the identity has as many sessions as its role allows",
    Reason.SERVICE_FULL: "the service has as many sessions as it allows",
    Reason.CONNECT_RATE: "the identity connects more often than its role allows",
    Reason.QUOTA_EXHAUSTED: "the quota is used up",
    Reason.GATEWAY_FULL: "the gateway has as many sessions as it can hold",
    Reason.ADDRESS_LIMIT: "too many handshakes from this address are under way",
    Reason.DRAINING: "the gateway is draining and takes no new sessions",
    Reason.LEDGER_UNAVAILABLE: "the ledger is unavailable",
    Reason.AUDIT_UNAVAILABLE: "the audit is unavailable",
    Reason.UPSTREAM_UNREACHABLE: "the service cannot be reached",
    Reason.UPSTREAM_TIMEOUT: "the service did not answer in time",
    Reason.UPSTREAM_UNRESOLVED: "the service's host name does not resolve",
    Reason.UPSTREAM_TLS: "TLS with the service failed",
    Reason.HANDSHAKE_TIMEOUT: "the TLS handshake took too long",
    Reason.HANDSHAKE_FAILED: "the TLS handshake failed",
    Reason.REQUEST_TIMEOUT: "the request took too long to arrive",
    Reason.BAD_REQUEST: "the request is not one the gateway takes",
    Reason.CLIENT_CLOSED: "the client closed the session",
    Reason.UPSTREAM_CLOSED: "the service closed the session",
    Reason.CLIENT_TRUNCATED: "the client's connection ended without a TLS close",
    Reason.CLIENT_RESET: "the client's connection was reset",
    Reason.UPSTREAM_RESET: "the service's connection was reset",
    Reason.IDLE_TIMEOUT: "no byte moved for as long as the service allows",
    Reason.HALF_CLOSE_TIMEOUT: "one side had finished and the other stayed silent",
    Reason.SESSION_TIMEOUT: "the session lasted as long as its role allows",
    Reason.POLICY_CHANGED: "the policy no longer allows the session",
    Reason.KILLED: "an operator ended the session",
    Reason.WORKER_LOST: "the process that carried the session ended",
    Reason.GATEWAY_STOPPED: "the gateway stopped",
}
