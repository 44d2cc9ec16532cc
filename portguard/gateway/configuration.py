"""`portguard.toml` as frozen dataclasses, one a section. `docs/reference/configuration.md` says what the keys mean.

Paths are absolute after reading: relative ones are meant from the folder of the file.
"""

import os
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from portguard.control.access import Principal
from portguard.errors import Problem
from portguard.gateway import configuration_kinds as kinds
from portguard.gateway.redis_url import has_password
from portguard.identity.names import Malformed, Namespace, Source, check_trust_name
from portguard.policy.addresses import ListenAddress
from portguard.policy.toml import (
    BOOLEAN,
    DURATION,
    DURATION_OR_OFF,
    LISTEN_ADDRESS,
    NETWORK,
    PATH,
    Table,
    integer,
    parse,
)

Network = IPv4Network | IPv6Network

# sun_path of unix(7), less the final NUL.
LONGEST_SOCKET_PATH_BYTES = 107
DEFAULT_OPERATORS = (Principal("group", "portguard"),)
DEFAULT_ADMINS = (Principal("user", "root"),)

_BOTH_FAMILIES = (ListenAddress("0.0.0.0", 8443), ListenAddress("::", 8443))  # noqa: S104 - the gateway is for outside


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """`[gateway]`."""

    name: str  # DNS name in lower case
    listen: tuple[ListenAddress, ...]  # at least one; port 0: the system picks one
    certificate: str
    key: str
    policy: str  # a file or a folder
    state: str
    control: str
    workers: int  # 0: one per CPU
    accept_proxy_protocol_from: tuple[Network, ...]
    watch: bool  # reload when files change
    confinement: Literal["auto", "required"]  # of workers; "auto": as far as the kernel knows how to


@dataclass(frozen=True, slots=True)
class TrustSettings:
    """`[trusts.NAME]`."""

    name: str
    ca: str
    identity: Source
    trust_domain: str | None  # None unless `identity` is "spiffe"
    default: bool
    crl: tuple[str, ...]
    crl_expired: Literal["refuse", "accept"]
    groups: str | None  # "ou", "uri:PREFIX", or None: certificates give no groups
    authority: str | None  # the directory of the authority that renews certificates; None: none does
    renew_for_s: float  # how long what it issues is valid


@dataclass(frozen=True, slots=True)
class Timeouts:
    """`[timeouts]`, in seconds; None: off."""

    handshake_s: float
    request_s: float
    connect_s: float
    idle_s: float | None
    half_close_s: float | None
    session_s: float | None
    drain_s: float | None  # 0: sessions are cut at once


@dataclass(frozen=True, slots=True)
class Capacity:
    """`[capacity]`."""

    max_sessions: int
    pending_handshakes: int
    pending_handshakes_per_address: int
    pending_handshakes_exempt: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """`[ledger]`."""

    url: str = field(repr=False)  # "sqlite", or of a Redis; a password may be in it
    fleet: str  # which gateways share a Redis
    password_file: str | None
    when_unavailable: Literal["refuse", "allow"]


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """`[metrics]`."""

    listen: ListenAddress
    max_identities: int


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """`[audit]`."""

    path: str  # "-": standard output
    required: bool
    rotate_size: int | None  # in bytes; None: off
    rotate_age_s: float | None  # None: off
    sync: Literal["written", "disk"]
    copy: Literal["none", "journal"]


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """`[control]`."""

    group: str
    viewers: tuple[Principal, ...]
    operators: tuple[Principal, ...]
    admins: tuple[Principal, ...]


@dataclass(frozen=True, slots=True)
class LogSettings:
    """`[log]`."""

    format: Literal["text", "json"]
    level: Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Configuration:
    """The whole of `portguard.toml`."""

    path: str
    gateway: GatewaySettings
    trusts: tuple[TrustSettings, ...]  # in the file's order
    timeouts: Timeouts
    capacity: Capacity
    ledger: LedgerSettings
    metrics: MetricsSettings
    audit: AuditSettings
    control: ControlSettings
    log: LogSettings
    namespace: Namespace = field(init=False, repr=False)  # to read names written in a policy or on a command line

    def __post_init__(self) -> None:
        namespace = Namespace(
            sources={trust.name: trust.identity for trust in self.trusts},
            default=next((trust.name for trust in self.trusts if trust.default), None),
            domains={trust.trust_domain: trust.name for trust in self.trusts if trust.trust_domain is not None},
        )
        object.__setattr__(self, "namespace", namespace)


def read_configuration(path: str, content: bytes, problems: list[Problem]) -> Configuration:
    """Read `content`, the bytes of the file at `path` (absolute), and add everything wrong with it to `problems`.

    The answer may be used only as far as `problems` stayed as it was; else the paths in it (empty where unreadable)
    still tell which other files to look at, so that their problems can be told in the same go.
    """
    root = parse(path, content, problems)
    folder = os.path.dirname(path)
    gateway = _gateway(root.table("gateway"), folder)
    configuration = Configuration(
        path=path,
        gateway=gateway,
        trusts=_trusts(root, folder),
        timeouts=_timeouts(root.table("timeouts")),
        capacity=_capacity(root.table("capacity")),
        ledger=_ledger(root.table("ledger"), gateway.name, folder),
        metrics=_metrics(root.table("metrics"), gateway.listen),
        audit=_audit(root.table("audit"), gateway.state),
        control=_control(root.table("control")),
        log=_log(root.table("log")),
    )
    root.finish()
    return configuration


def _gateway(table: Table, folder: str) -> GatewaySettings:
    def path(key: str, default: str) -> str:
        # Of a file that cannot be read nobody knows which files it names, and the default ones may well be missing.
        return _joined(folder, table.get(key, PATH, default if table.readable else ""))

    listen = table.array("listen", LISTEN_ADDRESS, default=_BOTH_FAMILIES, minimum=1)
    for index, address in enumerate(listen):
        if any(address.overlaps(other) for other in listen[:index]):
            table.report(f"listen[{index}]", "an address that no other one overlaps", str(address))
    control = path("control", "/run/portguard/control.sock")
    if len(control.encode()) > LONGEST_SOCKET_PATH_BYTES:
        # bind() would say only "AF_UNIX path too long".
        table.report("control", f"a path of at most {LONGEST_SOCKET_PATH_BYTES} bytes", control)
    return GatewaySettings(
        name=table.get("name", kinds.GATEWAY_NAME),
        listen=listen,
        certificate=path("certificate", "tls/gateway.crt"),
        key=path("key", "tls/gateway.key"),
        policy=path("policy", "policy.toml"),
        state=path("state", "/var/lib/portguard"),
        control=control,
        workers=table.get("workers", integer(0, 256), 0),
        accept_proxy_protocol_from=table.array("accept_proxy_protocol_from", NETWORK),
        watch=table.get("watch", BOOLEAN, False),
        confinement=table.get("confinement", kinds.CONFINEMENT, "auto"),
    )


def _trusts(root: Table, folder: str) -> tuple[TrustSettings, ...]:
    tables = root.tables_by_name("trusts")
    if not tables and root.readable:
        root.report("trusts", "at least one table, [trusts.NAME]", None)
    trusts = tuple(_trust(name, table, folder, alone=len(tables) == 1) for name, table in tables.items())
    domains: dict[str, str] = {}
    default: str | None = None
    for trust in trusts:
        table = tables[trust.name]
        if trust.default and default is not None:
            table.report_as("default", "one default trust", f"a second one beside {default}")
        default = trust.name if trust.default else default
        if trust.trust_domain and trust.trust_domain in domains:
            # A member written spiffe://DOMAIN/… would belong to either.
            expected = f"another trust domain than that of {domains[trust.trust_domain]}"
            table.report("trust_domain", expected, trust.trust_domain)
        domains.setdefault(trust.trust_domain or "", trust.name)
    return trusts


def _trust(name: str, table: Table, folder: str, *, alone: bool) -> TrustSettings:
    try:
        check_trust_name(name)
    except Malformed as error:
        table.report("", f"a name of {error.expected}", name)
    identity = table.get("identity", kinds.IDENTITY)
    domain = table.get("trust_domain", kinds.TRUST_DOMAIN, None)
    if identity == "spiffe" and domain is None and "trust_domain" not in table:
        table.report("trust_domain", 'a trust domain, as identity is "spiffe"', None)
    if identity not in {"spiffe", None} and domain:
        table.report("trust_domain", 'no trust domain unless identity is "spiffe"', domain)
    authority = _joined(folder, table.get("authority", PATH, "")) or None
    groups = table.get("groups", kinds.GROUPS, None)
    if authority is not None and identity not in {"spiffe", None}:
        table.report("authority", 'none unless identity is "spiffe"', authority)
    if authority is not None and groups:
        # Who renews would be rid of his groups, and of the deny entries that name them.
        table.report("groups", "none beside authority, whose certificates give no groups", groups)
    if authority is None and "renew_for" in table and "authority" not in table:
        table.report("authority", "one, as renew_for is there", None)
    return TrustSettings(
        name=name,
        ca=_joined(folder, table.get("ca", PATH)),
        identity=identity or "spiffe",
        trust_domain=domain,
        default=table.get("default", BOOLEAN, alone),
        crl=tuple(_joined(folder, crl) for crl in table.array("crl", PATH)),
        crl_expired=table.get("crl_expired", kinds.CRL_EXPIRED, "refuse"),
        groups=groups,
        authority=authority,
        renew_for_s=table.get("renew_for", kinds.RENEW_FOR, 30 * 86_400.0),
    )


def _timeouts(table: Table) -> Timeouts:
    return Timeouts(
        handshake_s=table.get("handshake", DURATION, 10.0),
        request_s=table.get("request", DURATION, 10.0),
        connect_s=table.get("connect", DURATION, 10.0),
        idle_s=table.get("idle", DURATION_OR_OFF, 3600.0),
        half_close_s=table.get("half_close", DURATION_OR_OFF, 60.0),
        session_s=table.get("session", DURATION_OR_OFF, None),
        drain_s=table.get("drain", kinds.DRAIN, 300.0),
    )


def _capacity(table: Table) -> Capacity:
    return Capacity(
        max_sessions=table.get("max_sessions", integer(1, 1_000_000), 8000),
        pending_handshakes=table.get("pending_handshakes", integer(1, 1_000_000), 512),
        pending_handshakes_per_address=table.get("pending_handshakes_per_address", integer(1, 1_000_000), 32),
        pending_handshakes_exempt=table.array("pending_handshakes_exempt", NETWORK),
    )


def _ledger(table: Table, gateway_name: str, folder: str) -> LedgerSettings:
    url = table.get("url", kinds.LEDGER_URL, "sqlite")
    fleet, password_file = table.get("fleet", kinds.FLEET, ""), table.get("password_file", kinds.PASSWORD_FILE, "")
    if url == "sqlite":
        for key, value in (("fleet", fleet), ("password_file", password_file)):
            if value:
                table.report_as(key, "it only beside the url of a Redis", 'one beside "sqlite"')
    elif password_file and has_password(url):
        table.report_as("password_file", "the password in one place", "one beside that in the url")
    return LedgerSettings(
        url=url,
        fleet=fleet or gateway_name,
        password_file=_joined(folder, password_file) or None,
        when_unavailable=table.get("when_unavailable", kinds.WHEN_UNAVAILABLE, "refuse"),
    )


def _metrics(table: Table, taken: tuple[ListenAddress, ...]) -> MetricsSettings:
    listen = table.get("listen", LISTEN_ADDRESS, ListenAddress("127.0.0.1", 9847))
    if any(listen.overlaps(other) for other in taken):
        table.report("listen", "an address that gateway.listen does not overlap", str(listen))
    return MetricsSettings(listen=listen, max_identities=table.get("max_identities", integer(0, 1_000_000), 1000))


def _audit(table: Table, state: str) -> AuditSettings:
    path = table.get("path", PATH, "audit/audit.jsonl")
    return AuditSettings(
        path=path if path == "-" else _joined(state, path),
        required=table.get("required", BOOLEAN, True),
        rotate_size=table.get("rotate_size", kinds.ROTATE_SIZE, 100_000_000),
        rotate_age_s=table.get("rotate_age", DURATION_OR_OFF, 7 * 86_400.0),
        sync=table.get("sync", kinds.SYNC, "written"),
        copy=table.get("copy", kinds.COPY, "none"),
    )


def _control(table: Table) -> ControlSettings:
    return ControlSettings(
        group=table.get("group", kinds.ACCOUNT, "portguard"),
        viewers=table.array("viewers", kinds.PRINCIPAL),
        operators=table.array("operators", kinds.PRINCIPAL, default=DEFAULT_OPERATORS),
        admins=table.array("admins", kinds.PRINCIPAL, default=DEFAULT_ADMINS),
    )


def _log(table: Table) -> LogSettings:
    return LogSettings(format=table.get("format", kinds.FORMAT, "text"), level=table.get("level", kinds.LEVEL, "info"))


def _joined(folder: str, path: str) -> str:
    """An absolute path; empty stays empty, which is where a Problem has been noted already."""
    return os.path.join(folder, path).rstrip("/") or "/" if path else ""
