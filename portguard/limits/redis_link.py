"""The way to Redis: by which URL and password, and what went wrong on it, in words that have neither."""

import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from portguard.limits.redis_texts import NotAFleet

TIMEOUT_S = 2.0
"""For how long to wait for a connection, and for an answer."""

_LONGEST_ANSWER = 200  # characters

FAILURES = (redis.RedisError, OSError, NotAFleet)
"""What is raised when Redis cannot be used."""


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """Where the ledger of a fleet is. A password is either here or in the URL."""

    url: str = field(repr=False)
    fleet: str
    password: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The URL without user, password and options."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def user(self) -> str:
        """By which name Redis knows the gateway."""
        parts = urlsplit(self.url)
        return unquote(parts.username or "") or dict(parse_qsl(parts.query)).get("username", "default")

    @property
    def secrets(self) -> tuple[str, ...]:
        """The passwords, as Redis is sent them: what no message may have in it."""
        parts = urlsplit(self.url)
        found = (self.password, unquote(parts.password or ""), dict(parse_qsl(parts.query)).get("password"))
        return tuple(filter(None, found))


def connect(settings: RedisSettings) -> "redis.Redis":
    """Return a client that connects once and for all: after an error it is to be closed.

    Raises ValueError for a URL that redis-py does not take.
    """
    # Some versions of redis-py look only for who has signed a certificate, not whom it names.
    tls = {"ssl_cert_reqs": "required", "ssl_check_hostname": True} if settings.url.startswith("rediss:") else {}
    return redis.Redis.from_url(
        settings.url,
        **tls,
        password=settings.password,
        single_connection_client=False,
        max_connections=1,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        # We try again ourselves, after having looked at everything anew.
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        encoding_errors="backslashreplace",
        client_name="portguard",
        protocol=2,
    )


def is_lasting(error: Exception) -> bool:
    """Whether trying again is of no use until somebody changes something, here or there."""
    if isinstance(error, redis.AuthenticationError | NotAFleet):
        return True
    if is_untrusted(error):
        return True
    passing = (redis.ReadOnlyError, redis.BusyLoadingError, redis.OutOfMemoryError)
    return isinstance(error, redis.ResponseError) and not isinstance(error, passing)


def is_untrusted(error: Exception) -> bool:
    """Whether it is the certificate of Redis that is not taken."""
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def because(error: Exception, secrets: Sequence[str] = ()) -> str:
    """What was found, for people, in words that complete "expected …, got …". None of the `secrets` is in it."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"a certificate that is not trusted ({cause.verify_message})"
    match error:
        case NotAFleet():
            return error.found
        case redis.BusyLoadingError():
            return "one that still loads its data"
        case redis.AuthenticationError():
            return "one that does not take the user and password"
        case redis.ReadOnlyError():
            return "a replica, which cannot be written"
        case redis.OutOfMemoryError():
            return "one whose memory is full (maxmemory)"
        case redis.TimeoutError():
            return f"no answer within {TIMEOUT_S:.0f} s"
        case redis.ConnectionError():
            return next(filter(None, map(_of_the_system, _causes(error))), "a connection that was closed")
        case redis.ResponseError():
            # It may say again what it was told: "unknown command 'AUTH', with args beginning with: …".
            text = str(error)
            if any(secret in text for secret in secrets):
                return "an answer that has the password in it"
            return f"the answer {text[:_LONGEST_ANSWER]!a}"
        case OSError():
            return _of_the_system(error) or type(error).__name__
    return type(error).__name__


def _of_the_system(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return f"a TLS error ({error.reason or type(error).__name__})"
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
