"""`portguard quickstart`: a gateway that works, in one folder, with a client who may use it and one who may not."""

import asyncio
import contextlib
import socket
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from portguard.cli import quickstart_service
from portguard.cli.quickstart_lines import Paste
from portguard.cli.rendering import printable
from portguard.client.credentials import read_credentials
from portguard.client.forwarding import Broken, Forwarding
from portguard.client.gateway import Gateway
from portguard.client.probe import HTTP, POSTGRESQL, POSTGRESQL_PORT, Exchange, converse
from portguard.client.profile import read_profile
from portguard.client.refusal import RefusedByGateway
from portguard.client.signals import STOP, Signals, Stopped
from portguard.errors import ConfigurationError, PortguardError, Problem, UsageError
from portguard.gateway.background import BackgroundGateway
from portguard.gateway.bundle import read_bundle
from portguard.gateway.snapshot import Snapshot, build
from portguard.pki.starter import ALLOWED, WITHOUT_RIGHTS, StarterFolder, StarterService
from portguard.policy.addresses import HostPort, parse_host_port
from portguard.policy.kinds import SERVICE_NAME_EXPECTED, is_service_name
from portguard.policy.quantities import Unexpected

_PORT = 8443
_WEB_LOCAL_PORT = 8080


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    short_help="Make a gateway with two clients in a folder, and show it.",
)
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="NAME=HOST:PORT",
    help="What to forward to; may be repeated. Without it, to a small web service that is built in.",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    default="quickstart",
    metavar="DIR",
    help='Where everything is kept and found again; "quickstart" by default.',
)
@click.option("--once", is_flag=True, help="Show it and end: exit code 0 when everything worked, else 1.")
@click.pass_context
def quickstart(context: click.Context, services: tuple[str, ...], folder: Path, once: bool) -> None:
    """Make a gateway with two clients in a folder, start it, and show who gets through.

    It makes a certificate authority, a certificate for the gateway, a client alice with a role and a client bob without
    one, and stays up until Ctrl-C.
    """
    given = tuple(map(_service, services))
    names = [service.name for service in given]
    if len(set(names)) < len(names):
        raise UsageError(f"--service: expected each name once, got {', '.join(names)}")
    with StarterFolder.claim(folder) as starter, contextlib.ExitStack() as held:
        made = starter.issue(at=datetime.now(UTC))
        _say(f"folder     {starter.path} ({'made ' + ', '.join(made) if made else 'found'})")
        if not given:
            port = held.enter_context(quickstart_service.serve((*_port_of_last_time(starter), 0)))
            given = (_built_in(port),)
        kept = starter.write(given, port=held.enter_context(_free_port()))
        snapshot = build(read_bundle(str(starter.configuration)))
        address = _address(starter, snapshot)
        _check_services(starter, snapshot, given)
        kept += starter.write_profiles(address, snapshot.configuration.gateway.name)
        for path in kept:
            _say(f"           {path.name} is as you changed it")
        demonstration = _Demonstration(starter, snapshot, address, given)
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            context.exit(runner.run(demonstration.run(once=once)))


def _service(text: str) -> StarterService:
    """Read NAME=HOST:PORT. Raises UsageError."""
    name, _, address = text.partition("=")
    try:
        if not is_service_name(name):
            raise Unexpected(f"NAME=HOST:PORT with {SERVICE_NAME_EXPECTED}")
        upstream = parse_host_port(address)
    except Unexpected as error:
        raise UsageError(f"--service: expected {error}, got {text!r}") from None
    alpn = ("postgresql",) if upstream.port == POSTGRESQL_PORT else ()
    return StarterService(name, upstream, upstream.port, alpn=alpn)


def _built_in(port: int) -> StarterService:
    upstream = HostPort("127.0.0.1", port)
    return StarterService(quickstart_service.NAME, upstream, _WEB_LOCAL_PORT, "built into the quickstart")


def _port_of_last_time(folder: StarterFolder) -> tuple[int, ...]:
    """Where the policy of an earlier run, which may have been changed since, expects the built-in service."""
    try:
        policy = tomllib.loads(folder.policy.read_text())
        upstream = parse_host_port(policy["services"][quickstart_service.NAME]["upstream"][0])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return ()  # what is wrong with it is told when it is loaded
    return (upstream.port,) if upstream.host == "127.0.0.1" else ()


def _check_services(folder: StarterFolder, snapshot: Snapshot, given: Sequence[StarterService]) -> None:
    """Raise ConfigurationError when a policy that was changed by hand leads elsewhere than this run shows."""
    problems = []
    for service in given:
        known = snapshot.policy.services.get(service.name)
        upstreams = () if known is None else tuple(map(str, known.upstreams))
        if str(service.upstream) not in upstreams:
            expected = f"{service.upstream}, or the policy as the quickstart writes it (remove the file)"
            key = f"services.{service.name}.upstream"
            problems.append(Problem(str(folder.policy), key, expected, ", ".join(upstreams) or "no such service"))
    if problems:
        raise ConfigurationError(problems)


@contextlib.contextmanager
def _free_port() -> Iterator[int]:
    """A port of 127.0.0.1 for the gateway to listen at, which no other quickstart gets while the block lasts."""
    for port in (_PORT, 0):
        with contextlib.ExitStack() as held:
            try:
                if port != 0:
                    # A name in the abstract namespace, which ends as ports do where another network namespace begins:
                    # between this look at the port and the gateway's own, another quickstart would find it free too.
                    held.enter_context(socket.socket(socket.AF_UNIX)).bind(f"\0portguard quickstart {port}")
                probe = held.enter_context(socket.socket())
                # As the gateway does, so both can be bound; bound is enough to keep a port from who asks for any.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            yield probe.getsockname()[1]
            return
    raise PortguardError("127.0.0.1: expected a free port, got none")


def _address(folder: StarterFolder, snapshot: Snapshot) -> HostPort:
    """Where clients on this machine find the gateway. Raises ConfigurationError when its owner left that open."""
    listen = snapshot.configuration.gateway.listen[0]
    if listen.port == 0:
        expected = "a port that the quickstart can name, 1 to 65535"
        raise ConfigurationError([Problem(str(folder.configuration), "gateway.listen", expected, "0")])
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared with, not listened on
    return HostPort(loopback.get(listen.host, listen.host), listen.port)


@dataclass
class _Demonstration:
    """One run: the gateway starts, alice gets through, bob does not, and the lines to paste follow."""

    folder: StarterFolder
    snapshot: Snapshot
    address: HostPort
    given: Sequence[StarterService]
    failed: bool = False

    async def run(self, *, once: bool) -> int:
        """Return the exit code."""
        with Signals(STOP) as signals:
            gateway = await BackgroundGateway.start(self.folder.configuration)
            try:
                await signals.unless(gateway.ready())
                _say(f"gateway    {self.address}, known as {self.snapshot.configuration.gateway.name}")
                await signals.unless(self._show())
                if once:
                    return 1 if self.failed else 0
                _say("\nCtrl-C ends it. From here on, the log of the gateway:\n")
                gateway.listen(lambda line: click.echo(printable(line), err=True))
                with contextlib.suppress(Stopped):
                    await signals.unless(gateway.ended())
                return 0
            except Stopped as stopped:
                return stopped.exit_code
            finally:
                await gateway.stop()

    async def _show(self) -> None:
        clients = {}
        for client in (ALLOWED, WITHOUT_RIGHTS):
            profile = read_profile(self.folder.profile(client))
            clients[client] = Gateway(read_credentials(profile, _no_passphrase))
        forwarding = Forwarding(clients[ALLOWED], _say)
        paste = Paste(self.folder, self.address, self.snapshot.configuration.gateway.name)
        printed = []
        try:
            for service in self.given:
                _say(f"\nservice    {service.name}, at {service.upstream}")
                exchange = await self._as_alice(clients[ALLOWED], forwarding, service)
                await self._as_bob(clients[WITHOUT_RIGHTS], service)
                printed += paste.lines(
                    service.name,
                    port=self.snapshot.policy.services[service.name].local_port,
                    http=exchange is not None and exchange.is_http,
                    postgresql=service.upstream.port == POSTGRESQL_PORT,
                )
        finally:
            await forwarding.close(0)
        _say("\nTo paste into another terminal:")
        for line in [*printed, paste.revoke()]:
            _say(f"\n  # {line.shows}\n  {line.text}")

    async def _as_alice(self, gateway: Gateway, forwarding: Forwarding, service: StarterService) -> Exchange | None:
        """Push bytes through, both ways in which a service can be named."""
        question = None
        if service.upstream.port == POSTGRESQL_PORT:
            question = POSTGRESQL
        elif service.name == quickstart_service.NAME and service.local_port == _WEB_LOCAL_PORT:
            question = HTTP
        asked = "PostgreSQL's" if question is POSTGRESQL else "an HTTP"
        exchange, reached = None, False
        for way in ("CONNECT", "name"):
            subject = f"{ALLOWED} by {way}".ljust(19)
            try:
                if way == "CONNECT":
                    tunnel = await gateway.connect(service.name)
                    reached = True  # the gateway answers only then
                else:
                    tunnel = await gateway.connect_by_name(service.name, service.alpn)
                exchange = await converse(forwarding, tunnel, question)
            except PortguardError as error:
                if reached and question is not HTTP and isinstance(error, Broken) and error.why is None:
                    _say(f"  {subject} connected; it broke the connection off at {asked} request")
                    continue
                self.failed = True
                _say(f"  {subject} FAILED: {error}")
                continue
            if not exchange.received:
                # Only of the built-in service is it known that it should have answered.
                self.failed = self.failed or question is HTTP
                _say(f"  {subject} connected; it said nothing to {asked} request ({exchange.sent_bytes} bytes sent)")
                continue
            first_line = exchange.received.partition(b"\n")[0][:60].decode("ascii", errors="backslashreplace").rstrip()
            _say(f"  {subject} {exchange.sent_bytes} bytes sent, {len(exchange.received)} received: {first_line}")
        return exchange

    async def _as_bob(self, gateway: Gateway, service: StarterService) -> None:
        """Show the refusal. Were there none, the gateway would let in whoever has a certificate."""
        try:
            tunnel = await gateway.connect(service.name)
        except RefusedByGateway as refusal:
            _say(f"  {WITHOUT_RIGHTS.ljust(19)} refused: {refusal.reason}, {refusal.message}")
            return
        tunnel.end.sock.close()
        self.failed = True
        _say(f"  {WITHOUT_RIGHTS.ljust(19)} FAILED: expected a refusal, got a session")


def _no_passphrase(path: Path) -> str:
    raise UsageError(f"{path}: expected a key without a passphrase in the quickstart, got an encrypted one")


def _say(text: str) -> None:
    click.echo("\n".join(map(printable, text.split("\n"))))
