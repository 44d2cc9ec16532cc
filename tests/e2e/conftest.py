"""Real programs in processes of their own: started, waited for, and always ended.

Every test in this folder carries the mark `e2e` without saying so.
"""

import contextlib
import os
import pwd
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from portguard.pki.authority import Authority
from tests.e2e.services import postgresql, redis, ssh_keys, sshd  # noqa: F401  # fixtures
from tests.echo import echo_service
from tests.patience import PATIENCE_S
from tests.ports import reserved_port
from tests.trusting import trusting


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@dataclass(frozen=True)
class Running:
    """A program that runs. Its standard output and error are in the file `output`."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def said(self) -> str:
        return self.output.read_text(errors="backslashreplace")

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Return once `ready()` is true; fail the test, with what the program said, when it ends or takes too long."""
        deadline = time.monotonic() + PATIENCE_S
        ended = os.pidfd_open(self.process.pid)
        try:
            while not ready():
                if select.select([ended], [], [], 0.02)[0]:
                    pytest.fail(f"{self.process.args!r} ended before {what}; it said:\n{self.said}", pytrace=False)
                if time.monotonic() > deadline:
                    pytest.fail(f"{self.process.args!r}: no {what} in time; it said:\n{self.said}", pytrace=False)
        finally:
            os.close(ended)

    def wait_until_it_says(self, text: str) -> None:
        self.wait_until(lambda: text in self.said, f"it said {text!r}")

    def wait_until_it_listens(self, address: tuple[str, int] | str) -> None:
        """`address` is host and port, or the path of a unix socket."""
        self.wait_until(lambda: _accepts(address), f"it accepted at {address}")

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """Send `sign`, and SIGKILL to the whole process group when that is not enough; the exit status."""
        try:
            self.process.send_signal(sign)
            self.process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            pass  # it gets SIGKILL below
        finally:
            # The group may outlive its leader: nginx and PostgreSQL leave workers behind when the parent is killed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait(timeout=PATIENCE_S)


Start = Callable[..., Running]


def _accepts(address: tuple[str, int] | str) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


@contextlib.contextmanager
def _programs(folder: Path) -> Iterator[Start]:
    """Yield a `start` whose programs write to files in `folder` and end with the block."""
    running: list[Running] = []

    def run(argv: Sequence[str], **popen: object) -> Running:
        output = folder / f"{len(running)}-{Path(argv[0]).name}.out"
        with output.open("wb") as sink:
            process = subprocess.Popen(  # type: ignore[call-overload]  # popen's keywords pass through
                argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True, **popen
            )
        running.append(Running(process, output))
        return running[-1]

    try:
        yield run
    finally:
        for program in reversed(running):
            program.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(argv, **popen)` runs a program in a process group of its own; it ends with the test, whatever happens."""
    with _programs(tmp_path) as run:
        yield run


@pytest.fixture(scope="module")
def start_for_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """As `start`, for servers that all tests of a module share: they end with the last one."""
    with _programs(tmp_path_factory.mktemp("servers")) as run:
        yield run


@pytest.fixture(scope="session")
def free_port() -> Iterator[Callable[[], int]]:
    """`free_port()` is a TCP port of 127.0.0.1 that is kept for who asked, as in tests.ports."""
    with contextlib.ExitStack() as held:
        yield lambda: held.enter_context(reserved_port())


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """The address of a service that sends back what it gets, to all tests of a file."""
    with echo_service() as address:
        yield address


@pytest.fixture(scope="session")
def unprivileged() -> pwd.struct_passwd | None:
    """Whom to run a program as that refuses to run as root (PostgreSQL); None when the tests do not run as root.

    pytest's temporary folders are 0700: give that user a folder of its own outside them.
    """
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


GATEWAY_NAME = "gw.localhost"  # curl and others resolve what ends in .localhost to loopback by themselves
PORTGUARD = (sys.executable, "-P", "-m", "portguard")


@dataclass
class Gateway:
    """A gateway that serves, in a folder with its authority and its clients' certificates.

    `alice` is in the role that the policy's author gave her; `bob` has a certificate and nothing else.
    """

    folder: Path
    authority: Authority
    program: Running
    port: int
    ports: dict[str, int]  # of services with a port of their own
    metrics_port: int
    log_from: int = 0
    name: str = GATEWAY_NAME

    @property
    def log(self) -> str:
        return self.program.said[self.log_from :]

    def from_now(self) -> "Gateway":
        """The same gateway with a log that begins now, for the next test of those that share it."""
        return replace(self, log_from=len(self.program.said))

    @property
    def ca(self) -> Path:
        return self.folder / "ca" / "ca.crt"

    def certificate(self, name: str) -> tuple[Path, Path]:
        """The certificate and key of a client; issued on first use."""
        paths = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        if not paths[0].exists():
            self.authority.issue_client(name, at=datetime.now(UTC)).write(self.folder, name)
        return paths

    def context(self, name: str | None, *alpn: str) -> ssl.SSLContext:
        """A client's context; None for a client without a certificate."""
        context = trusting(cafile=str(self.ca))
        if name is not None:
            context.load_cert_chain(*self.certificate(name))
        if alpn:
            context.set_alpn_protocols(alpn)
        return context

    def connect(self, service: str, name: str | None = "alice") -> ssl.SSLSocket:
        """A TLS connection to a service by SNI, as that client."""
        return self.connect_with(self.context(name), service)

    def connect_with(self, context: ssl.SSLContext, service: str | None) -> ssl.SSLSocket:
        """A TLS connection to a service by SNI; None: to the gateway itself, which speaks HTTP."""
        name = GATEWAY_NAME if service is None else f"{service}.{GATEWAY_NAME}"
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        # Or the first bytes wait 40 ms for the acknowledgement of the handshake's last.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            return context.wrap_socket(sock, server_hostname=name, suppress_ragged_eofs=False)
        except BaseException:
            sock.close()
            raise

    def wait_for_log(self, pattern: str, count: int = 1) -> None:
        """Wait until the log has `count` lines that the regular expression finds."""
        self.program.wait_until(
            lambda: sum(bool(re.search(pattern, line)) for line in self.log.splitlines()) >= count,
            f"{count} lines of {pattern!r} in its log",
        )


StartGateway = Callable[..., Gateway]


def _serve(
    start: Start,
    folder: Path,
    services: dict[str, str],
    *,
    policy: str | None = None,
    configuration: str = "",
    gateway: str = "",
    metrics: str = "",
    workers: int = 2,
    **popen: object,
) -> Gateway:
    folder.mkdir()
    now = datetime.now(UTC)
    # Not of this second, in which no other root can follow it.
    authority = Authority.create(folder / "ca", trust_domain="gateway.test", at=now - timedelta(minutes=1))
    names = [GATEWAY_NAME, f"*.{GATEWAY_NAME}", "127.0.0.1"]
    authority.issue_gateway(names, at=now).write(folder, "gateway")
    folder.joinpath("portguard.toml").write_text(
        f'''[gateway]
name = "{GATEWAY_NAME}"
listen = ["127.0.0.1:0"]
certificate = "gateway.crt"
key = "gateway.key"
policy = "policy.toml"
state = "state"
control = "control.sock"
workers = {workers}
{gateway}
[metrics]
listen = "127.0.0.1:0"
{metrics}
[trusts.local]
ca = "ca/ca.crt"
identity = "spiffe"
trust_domain = "gateway.test"
{configuration}'''
    )
    tables = [
        f"[services.{name}]\n" + (text if "=" in text else f'upstream = ["{text}"]') for name, text in services.items()
    ]
    role = '[[roles]]\nname = "team"\nmembers = ["alice"]\nservices = ["*"]'
    folder.joinpath("policy.toml").write_text("\n".join([role if policy is None else policy, *tables, ""]))
    return _run(start, folder, authority, **popen)


def _run(start: Start, folder: Path, authority: Authority, **popen: object) -> Gateway:
    program = start([*PORTGUARD, "serve", "-c", str(folder / "portguard.toml")], **popen)
    program.wait_until_it_says("gateway.ready")
    listening = re.findall(r"gateway\.listen address=\S+:(\d+)(?: service=(\S+))?", program.said)
    ports = {service: int(port) for port, service in listening}
    [metrics_port] = re.findall(r"metrics\.listen address=\S+:(\d+)", program.said)
    return Gateway(folder, authority, program, ports.pop(""), ports, int(metrics_port))


@pytest.fixture
def start_gateway(tmp_path: Path, start: Start) -> StartGateway:
    """`start_gateway(services, policy="", configuration="", gateway="", metrics="", workers=2)` runs `portguard serve`.

    `services` are upstream addresses by name, or the TOML of a service's table. Without `policy`, alice may reach all
    of them. `gateway` is added to the table [gateway], `metrics` to [metrics], `configuration` to the end of
    portguard.toml.
    """
    return partial(_serve, start, tmp_path / "gateway")


@pytest.fixture
def start_one_of_several(tmp_path: Path, start: Start) -> StartGateway:
    """`start_one_of_several(folder, services, …)` is as `start_gateway`, for tests of several gateways side by side."""
    return lambda folder, services, **more: _serve(start, tmp_path / folder, services, **more)


@pytest.fixture
def start_again(start: Start) -> Callable[[Gateway], Gateway]:
    """`start_again(gateway)` runs one that has ended anew, in the same folder."""
    return lambda gateway: _run(start, gateway.folder, gateway.authority)


@pytest.fixture(scope="module")
def start_gateway_for_module(tmp_path_factory: pytest.TempPathFactory, start_for_module: Start) -> StartGateway:
    """As `start_gateway`, for those that all tests of a module share; each takes its own `from_now()`."""
    return lambda services, **more: _serve(
        start_for_module, tmp_path_factory.mktemp("shared") / "gateway", services, **more
    )
