"""How each proxy is configured, started and ended. All get equal settings:

TLS 1.3 only, EC P-256 certificates, a client certificate required and verified, no session tickets, as many threads or
workers as there are CPUs, TCP_NODELAY, no line logged per session. What is not named here stays as it is delivered.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench.load import Doors
from bench.measure import Family
from bench.upstream import SERVICES
from portguard.pki.authority import Authority

NAME = "bench.test"
_PATIENCE_S = 20.0
_SERVER_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


class Unavailable(Exception):
    """A peer cannot take part: it is not installed, or it did not start. The text says which."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Paths of PEM files."""

    authority: Path
    certificate: Path
    key: Path
    client_certificate: Path
    client_key: Path

    @classmethod
    def make(cls, folder: Path) -> "Credentials":
        """Let a new authority in `folder` issue the proxy's certificate and one for the client `alice`."""
        now = datetime.now(UTC)
        authority = Authority.create(folder / "ca", trust_domain=NAME, at=now)
        certificate, key = authority.issue_gateway([NAME, f"*.{NAME}"], at=now).write(folder, "proxy")
        client_certificate, client_key = authority.issue_client("alice", at=now).write(folder, "alice")
        return cls(folder / "ca" / "ca.crt", certificate, key, client_certificate, client_key)

    def client_context(self) -> ssl.SSLContext:
        """What the client shakes hands with."""
        context = ssl.create_default_context(cafile=self.authority)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.client_certificate, self.client_key)
        return context


@dataclass(frozen=True, slots=True)
class Setting:
    """What a peer is to be configured for. `doors` and `upstreams` are ports on 127.0.0.1, by service."""

    folder: Path
    credentials: Credentials
    workers: int
    doors: Mapping[str, int]
    upstreams: Mapping[str, int]


class Peer(ABC):
    """A proxy that can take part."""

    name: str

    @abstractmethod
    def version(self) -> str:
        """Name and version, as the program tells them. Raises Unavailable when it is not installed."""

    @abstractmethod
    def configure(self, setting: Setting) -> Sequence[str | Path]:
        """Write the configuration into the setting's folder and return the command that runs in the foreground."""

    def doors(self, upstreams: Mapping[str, int]) -> dict[str, int]:
        """Choose a port for each service."""
        return dict(zip(upstreams, free_ports(len(upstreams)), strict=True))


class HAProxy(Peer):
    """HAProxy in TCP mode; documentation: configuration.txt of version 2.6."""

    name = "haproxy"

    def version(self) -> str:
        return " ".join(_first_line([_program("haproxy"), "-v"]).replace("version ", "").split()[:2])

    def configure(self, setting: Setting) -> Sequence[str | Path]:
        pem = setting.folder / "proxy.pem"
        descriptor = os.open(pem, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(setting.credentials.certificate.read_bytes() + setting.credentials.key.read_bytes())
        lines = [
            "global",
            f"  nbthread {setting.workers}",
            "  maxconn 8000",
            "  tune.ssl.cachesize 0",
            "  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets",
            "defaults",
            "  mode tcp",
            "  timeout connect 10s",
            "  timeout client 1h",
            "  timeout server 1h",
        ]
        for service, port in setting.doors.items():
            lines += [
                f"listen {service}",
                f"  bind 127.0.0.1:{port} ssl crt {pem} ca-file {setting.credentials.authority} verify required",
                f"  server upstream 127.0.0.1:{setting.upstreams[service]}",
            ]
        configuration = setting.folder / "haproxy.cfg"
        configuration.write_text("\n".join(lines) + "\n")
        return [_program("haproxy"), "-db", "-f", configuration]


class Nginx(Peer):
    """nginx with its stream module, as Debian's libnginx-mod-stream or built in."""

    name = "nginx"

    _modules = (Path("/usr/lib/nginx/modules"), Path("/usr/lib64/nginx/modules"), Path("/usr/share/nginx/modules"))

    def version(self) -> str:
        return _first_line([_program("nginx"), "-v"]).removeprefix("nginx version: ")

    def configure(self, setting: Setting) -> Sequence[str | Path]:
        credentials, folder = setting.credentials, setting.folder
        lines = [
            *self._load_stream(),
            "daemon off;",
            f"worker_processes {setting.workers};",
            f"pid {folder}/nginx.pid;",
            "error_log stderr warn;",
            "events { worker_connections 8192; }",
            "stream {",
            f"  ssl_certificate {credentials.certificate};",
            f"  ssl_certificate_key {credentials.key};",
            f"  ssl_client_certificate {credentials.authority};",
            "  ssl_verify_client on;",
            "  ssl_protocols TLSv1.3;",
            "  ssl_session_cache off;",
            "  ssl_session_tickets off;",
            "  ssl_conf_command NumTickets 0;",
            "  tcp_nodelay on;",
            "  proxy_timeout 1h;",
        ]
        for service, port in setting.doors.items():
            upstream = setting.upstreams[service]
            lines += [f"  server {{ listen 127.0.0.1:{port} ssl; proxy_pass 127.0.0.1:{upstream}; }}"]
        configuration = folder / "nginx.conf"
        configuration.write_text("\n".join([*lines, "}"]) + "\n")
        return [_program("nginx"), "-p", folder, "-e", "stderr", "-c", configuration]

    def _load_stream(self) -> list[str]:
        for folder in self._modules:
            if (folder / "ngx_stream_module.so").exists():
                return [f"load_module {folder}/ngx_stream_module.so;"]
        return []


class Stunnel(Peer):
    """stunnel in server mode; it has a thread for each session."""

    name = "stunnel"

    def version(self) -> str:
        lines = _output([_program("stunnel", "stunnel4"), "-version"]).splitlines()
        return next((line.partition(" on ")[0] for line in lines if line.startswith("stunnel ")), "stunnel")

    def configure(self, setting: Setting) -> Sequence[str | Path]:
        lines = [
            "foreground = yes",
            "pid =",
            "syslog = no",
            "debug = err",
            "socket = l:TCP_NODELAY=1",
            "socket = r:TCP_NODELAY=1",
            f"cert = {setting.credentials.certificate}",
            f"key = {setting.credentials.key}",
            f"CAfile = {setting.credentials.authority}",
            "requireCert = yes",
            "verifyChain = yes",
            "sslVersionMin = TLSv1.3",
            "options = NO_TICKET",
            "config = NumTickets:0",
        ]
        for service, port in setting.doors.items():
            upstream = setting.upstreams[service]
            lines += [f"[{service}]", f"accept = 127.0.0.1:{port}", f"connect = 127.0.0.1:{upstream}"]
        configuration = setting.folder / "stunnel.conf"
        configuration.write_text("\n".join(lines) + "\n")
        return [_program("stunnel", "stunnel4"), configuration]


class Portguard(Peer):
    """The repository's package, with a policy of one role. The client names its service by SNI: there is one port.

    It is as one would run it: with quotas and rates that are never reached, and an audit that sessions wait for.
    """

    name = "portguard"
    _limits = (
        "max_sessions = 8000\n"
        'connect_rate = "100000/s"\n'
        'quota = ["1TB/hour", "10TB/day", "100TB/month"]\n'
        'pooled_quota = ["1000TB/month"]\n'
    )
    _audit = ""

    # -P: the folder in which it runs is no place to import from.
    _command = (sys.executable, "-P", "-m", "portguard")

    def version(self) -> str:
        return _first_line([*self._command, "--version"]).replace(", version", "")

    def doors(self, upstreams: Mapping[str, int]) -> dict[str, int]:
        return dict.fromkeys(upstreams, free_ports(1)[0])

    def configure(self, setting: Setting) -> Sequence[str | Path]:
        credentials, folder = setting.credentials, setting.folder
        [metrics] = free_ports(1)
        port = next(iter(setting.doors.values()))
        configuration = folder / "portguard.toml"
        configuration.write_text(
            f"""\
[gateway]
name = "{NAME}"
listen = ["127.0.0.1:{port}"]
certificate = "{credentials.certificate}"
key = "{credentials.key}"
policy = "policy.toml"
state = "state"
control = "control.sock"
workers = {setting.workers}
[trusts.local]
ca = "{credentials.authority}"
identity = "spiffe"
trust_domain = "{NAME}"
[capacity]
max_sessions = 8000
[metrics]
listen = "127.0.0.1:{metrics}"
[log]
level = "warning"
{self._audit}"""
        )
        services = "".join(
            f'[services.{service}]\nupstream = ["127.0.0.1:{upstream}"]\n'
            for service, upstream in setting.upstreams.items()
        )
        role = f'[[roles]]\nname = "bench"\nmembers = ["alice"]\nservices = ["*"]\n{self._limits}'
        (folder / "policy.toml").write_text(services + role)
        return [*self._command, "serve", "-c", configuration]


class Unaccounted(Portguard):
    """The same with nothing limited, and an audit that nobody waits for: what accounting costs is the difference."""

    name = "unaccounted"
    _limits = ""
    _audit = "[audit]\nrequired = false\n"


PEERS: tuple[Peer, ...] = (Portguard(), Unaccounted(), HAProxy(), Nginx(), Stunnel())


@dataclass(frozen=True, slots=True)
class Running:
    """A peer that accepts connections."""

    peer: Peer
    doors: Doors
    family: Family
    output: Path = field(repr=False)


@contextlib.contextmanager
def running(peer: Peer, folder: Path, credentials: Credentials, upstreams: Mapping[str, int]) -> Iterator[Running]:
    """Start `peer` in `folder`, wait until it accepts on every port, and end it with all its processes.

    Raises Unavailable, with what the program said, when it does not get that far.
    """
    folder.mkdir()
    # An unprivileged worker, as nginx has, may have to look inside.
    folder.chmod(0o755)
    workers = len(os.sched_getaffinity(0))
    setting = Setting(folder, credentials, workers, peer.doors(upstreams), upstreams)
    command = peer.configure(setting)
    output = folder / "output"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
    try:
        for port in set(setting.doors.values()):
            _wait_until_accepting(peer, process, port, output)
        addresses = {service: ("127.0.0.1", port) for service, port in setting.doors.items()}
        yield Running(peer, Doors(addresses, credentials.client_context(), NAME), Family(process.pid), output)
    finally:
        _end(process)


@contextlib.contextmanager
def upstream() -> Iterator[dict[str, int]]:
    """Run sink, source and echo, and yield their ports by service."""
    command = [sys.executable, "-m", "bench.upstream"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        ports: dict[str, int] = json.loads(process.stdout.readline() or "{}")
        if set(ports) != set(SERVICES):
            raise Unavailable(f"upstream: expected ports of {', '.join(SERVICES)}, got {ports}")
        yield ports
    finally:
        _end(process)


def free_ports(count: int) -> list[int]:
    """Find TCP ports that are free on 127.0.0.1 now, for programs that cannot tell which one they got."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _wait_until_accepting(peer: Peer, process: subprocess.Popen[bytes], port: int, output: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            said = output.read_text(errors="backslashreplace").strip()[-2000:]
            what = "ended" if ended else f"did not accept within {_PATIENCE_S:.0f} s"
            raise Unavailable(f"{peer.name}: {what}; it said: {said or 'nothing'}")
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the whole group to end, then make it. The leader may be gone while others of its group live on."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _program(*names: str) -> str:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SERVER_FOLDERS])
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    raise Unavailable(f"{names[0]}: not installed")


def _output(command: Sequence[str]) -> str:
    # HAProxy tells its version on standard output, nginx and stunnel on standard error.
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=20)
    return done.stdout


def _first_line(command: Sequence[str]) -> str:
    return next(iter(_output(command).splitlines()), "").strip()
