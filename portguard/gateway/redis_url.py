"""URLs of a Redis, as redis-py takes them: https://redis.readthedocs.io/en/stable/connections.html, `from_url`.

Only what a ledger needs is taken. What switches the check of a certificate off is not.
"""

from urllib.parse import SplitResult, parse_qsl, urlsplit

_OPTIONS = {"db", "username", "password"}
_TLS_PATHS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}


def is_redis_url(text: str) -> bool:
    """Whether it is `redis://`, `rediss://` with TLS, or `unix://`, to somewhere, with no options but those known."""
    if not text.isprintable() or " " in text:
        return False
    try:
        parts = urlsplit(text)
        port = parts.port
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
    except ValueError:
        return False
    if parts.fragment or len(dict(options)) < len(options):
        return False
    return all(_is_option(parts, *option) for option in options) and _is_place(parts, port)


def has_password(url: str) -> bool:
    """Whether there is a password in the URL."""
    parts = urlsplit(url)
    return parts.password is not None or "password" in dict(parse_qsl(parts.query, keep_blank_values=True))


def _is_place(parts: SplitResult, port: int | None) -> bool:
    match parts.scheme:
        case "redis" | "rediss":
            database = parts.path.removeprefix("/")
            return bool(parts.hostname) and port != 0 and (not database or _is_number(database))
        case "unix":
            return not parts.hostname and len(parts.path) > 1
    return False


def _is_option(parts: SplitResult, name: str, value: str) -> bool:
    if name in _TLS_PATHS:
        return parts.scheme == "rediss" and value.startswith("/")
    return name in _OPTIONS and (name != "db" or _is_number(value))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5
