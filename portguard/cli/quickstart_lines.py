"""Commands that the quickstart prints, ready to paste into another terminal: quoted, with absolute paths."""

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from portguard.pki.starter import ALLOWED, WITHOUT_RIGHTS, StarterFolder
from portguard.policy.addresses import HostPort


@dataclass(frozen=True, slots=True)
class Line:
    """A command, and what it shows."""

    text: str
    shows: str


@dataclass(frozen=True, slots=True)
class Paste:
    """What the lines are about. `address` is where the gateway listens, `name` its TLS name."""

    folder: StarterFolder
    address: HostPort
    name: str

    def lines(self, service: str, *, port: int | None, http: bool, postgresql: bool) -> list[Line]:
        """Return the lines for a service. `port` is its `local_port`, with which CONNECT names it."""
        if http:
            return self._http(service, port)
        if postgresql:
            return self._postgresql(service)
        return [
            Line(self._s_client(service), "any TLS client, by the service's name"),
            Line(f"{self._connect(service)}", "a local port for programs without TLS"),
            Line(self._connect_as_bob(service), f"{WITHOUT_RIGHTS} is refused"),
        ]

    def revoke(self) -> Line:
        """Return the line that takes the certificate of the client with rights away. None of the others works then."""
        return Line(
            f"{own_command()} cert revoke {_quoted(self.folder.certificate(ALLOWED)[0])} "
            f"--ca {_quoted(self.folder.ca.parent)}",
            f"the end of all this: the certificate of {ALLOWED} is revoked, the next quickstart makes another",
        )

    def _http(self, service: str, port: int | None) -> list[Line]:
        target = service if port is None else f"{service}:{port}"
        request = "printf 'GET / HTTP/1.0\\r\\n\\r\\n'"
        return [
            Line(
                f"curl {self._curl(ALLOWED)} {self._resolve(service)} "
                f"https://{service}.{self.name}:{self.address.port}/",
                "the service by its name, with any TLS client",
            ),
            Line(f"{request} | {self._s_client(service)}", "the same by hand"),
            Line(f"curl {self._proxy(ALLOWED)} http://{target}/", "by CONNECT, which answers with a status"),
            Line(f"curl -v {self._proxy(WITHOUT_RIGHTS)} http://{target}/", f"{WITHOUT_RIGHTS} is refused: 403"),
            Line(f"{self._connect(service)} -- curl 'http://{{host}}:{{port}}/'", "programs without TLS"),
            Line(self._connect_as_bob(service), f"{WITHOUT_RIGHTS} is told why"),
            Line(self._explain(service), "why, entry by entry"),
        ]

    def _postgresql(self, service: str) -> list[Line]:
        settings = {
            "host": f"{service}.{self.name}",
            "hostaddr": self.address.host,
            "port": str(self.address.port),
            "sslnegotiation": "direct",
            "sslmode": "verify-full",
            "sslrootcert": str(self.folder.ca),
            "sslcert": str(self.folder.certificate(ALLOWED)[0]),
            "sslkey": str(self.folder.certificate(ALLOWED)[1]),
            "dbname": "postgres",
            "user": "postgres",
        }
        conninfo = " ".join(f"{key}={_conninfo_value(value)}" for key, value in settings.items())
        return [
            Line(f"psql {shlex.quote(conninfo)}", "psql 17 and newer, by itself"),
            Line(f"{self._connect(service)} -- psql -U postgres -d postgres", "any psql"),
            Line(f"{self._s_client(service)} -alpn postgresql", "any TLS client, by the service's name"),
            Line(self._connect_as_bob(service), f"{WITHOUT_RIGHTS} is refused"),
        ]

    def _s_client(self, service: str) -> str:
        certificate, key = map(_quoted, self.folder.certificate(ALLOWED))
        return (
            f"openssl s_client -quiet -verify_return_error -connect {self.address} "
            f"-servername {service}.{self.name} -CAfile {_quoted(self.folder.ca)} -cert {certificate} -key {key}"
        )

    def _curl(self, client: str) -> str:
        certificate, key = map(_quoted, self.folder.certificate(client))
        return f"--cacert {_quoted(self.folder.ca)} --cert {certificate} --key {key}"

    def _resolve(self, service: str) -> str:
        return f"--resolve {service}.{self.name}:{self.address.port}:{self.address.host}"

    def _proxy(self, client: str) -> str:
        certificate, key = map(_quoted, self.folder.certificate(client))
        return (
            f"--proxytunnel --proxy https://{self.name}:{self.address.port} "
            f"--resolve {self.name}:{self.address.port}:{self.address.host} "
            f"--proxy-cacert {_quoted(self.folder.ca)} --proxy-cert {certificate} --proxy-key {key}"
        )

    def _connect(self, service: str, client: str = ALLOWED) -> str:
        return f"{own_command()} connect {service} --profile {_quoted(self.folder.profile(client))}"

    def _connect_as_bob(self, service: str) -> str:
        return self._connect(service, WITHOUT_RIGHTS)

    def _explain(self, service: str) -> str:
        return f"{own_command()} policy explain {WITHOUT_RIGHTS} {service} -c {_quoted(self.folder.configuration)}"


def own_command() -> str:
    """Return how this portguard is called from another shell: by its name where that leads to this installation."""
    script = Path(sys.argv[0])
    if script.name != "portguard":
        return f"{_quoted(Path(sys.executable))} -m portguard"
    found = shutil.which("portguard")
    if found is not None and Path(found).resolve() == script.resolve():
        return "portguard"
    return _quoted(script.absolute())


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _conninfo_value(text: str) -> str:
    """A value of a connection string (PostgreSQL, section 32.1.1.1), quoted where it has to be."""
    if text and not set(text) & set(" '\\"):
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
