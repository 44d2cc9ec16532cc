"""A folder with all that a first gateway needs: authority, certificates, configuration, policy and profiles.

    with StarterFolder.claim(path) as folder:
        folder.issue(at=now)                       # what is missing, or ends soon
        folder.write(services, port=8443)          # except what its owner has changed

What is in it can be served as it is, `portguard serve -c FOLDER/portguard.toml`, and edited: files begin with a hash of
what was written, so that one which was changed is told from one which may be written anew.
"""

import contextlib
import grp
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from portguard.errors import UsageError
from portguard.pki import files
from portguard.pki.authority import Authority
from portguard.pki.directory_lock import locked
from portguard.pki.errors import PkiError
from portguard.pki.files import PUBLIC, NewFile
from portguard.pki.issued import IssuedCertificate
from portguard.pki.revocation import ListStatus, published_lists, write_lists
from portguard.policy.addresses import HostPort

GATEWAY_NAME = "gateway.localhost"
"""Names below localhost stand for the machine itself on every system (RFC 6761 6.3). Two labels, so that TLS clients
match *.gateway.localhost."""

ALLOWED, WITHOUT_RIGHTS = "alice", "bob"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+")

_RENEW_BEFORE = timedelta(days=1)

_MARK = "# Written by portguard quickstart. Change it as you like: then it stays as you left it. sha256 "
_MARKED = re.compile(rb"# Written by portguard quickstart\..* sha256 (?P<hash>[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class StarterService:
    """A service of the policy. `name` and `alpn` are as a policy takes them; `local_port` is 1 to 65535."""

    name: str
    upstream: HostPort
    local_port: int
    description: str = ""
    alpn: tuple[str, ...] = ()


class StarterFolder:
    """The folder, held by this process alone. Made by `claim`."""

    def __init__(self, path: Path):
        self.path = path
        self.ca = path / "ca" / "ca.crt"
        self.configuration = path / "portguard.toml"
        self.policy = path / "policy.toml"

    @classmethod
    @contextlib.contextmanager
    def claim(cls, path: Path) -> Iterator["StarterFolder"]:
        """Take the folder, which is made (0700) if it is missing; it is free again after the block.

        Raises UsageError when it holds something else or another process has it, and PkiError when it cannot be made.
        """
        folder = cls(path.absolute())
        files.make_directory(folder.path, 0o700)
        taken = UsageError(f"{path}: expected a folder that no other quickstart uses, got one in use")
        with locked(folder.path, taken=taken):
            entries = sorted(os.listdir(folder.path))
            if entries and not folder.ca.exists():
                found = f"one with other files, such as {entries[0]!r}"
                raise UsageError(f"{path}: expected a new folder, or one of an earlier quickstart, got {found}")
            yield folder

    def certificate(self, client: str) -> tuple[Path, Path]:
        """Where the certificate and the key of a client are."""
        return self.path / f"{client}.crt", self.path / f"{client}.key"

    def profile(self, client: str) -> Path:
        """Where the profile of a client is, for `portguard connect`."""
        return self.path / f"{client}.toml"

    def issue(self, *, at: datetime) -> list[str]:
        """Make the authority, its revocation list and the certificates that are missing or end within a day.

        A certificate that was revoked counts as missing. Returns the names of what was made.

        Raises PkiError.
        """
        made = []
        if self.ca.exists():
            authority = Authority.open(self.ca.parent)
        else:
            authority = Authority.create(self.ca.parent, trust_domain=GATEWAY_NAME, at=at)
            made.append("authority")
        if not self._lasts("gateway", authority, at):
            names = [GATEWAY_NAME, f"*.{GATEWAY_NAME}", "localhost", "127.0.0.1"]
            self._write_certificate("gateway", authority.issue_gateway(names, at=at))
            made.append("gateway")
        for client in (ALLOWED, WITHOUT_RIGHTS):
            if not self._lasts(client, authority, at):
                self._write_certificate(client, authority.issue_client(client, at=at))
                made.append(client)
        lists = published_lists(authority, at + _RENEW_BEFORE)
        if lists.status is not ListStatus.CURRENT:
            write_lists(authority, at=at)
            made.append("revocation list")
        return made

    def write(self, services: Sequence[StarterService], *, port: int) -> list[Path]:
        """Write configuration and policy; return those that were left alone, because their owner changed them.

        The gateway listens on `port` (1 to 65535) of the loopback address. Raises PkiError.
        """
        files.make_directory(self.path / "state", 0o700)
        texts = ((self.configuration, _configuration(port)), (self.policy, _policy(services)))
        return [path for path, text in texts if not self._write_text(path, text)]

    def write_profiles(self, gateway: HostPort, server_name: str) -> list[Path]:
        """Write the profiles of both clients; return those that were left alone. Raises PkiError."""
        return [
            self.profile(client)
            for client in (ALLOWED, WITHOUT_RIGHTS)
            if not self._write_text(self.profile(client), _profile(client, gateway, server_name))
        ]

    def _lasts(self, stem: str, authority: Authority, at: datetime) -> bool:
        certificate, key = self.certificate(stem)
        try:
            leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (OSError, ValueError):
            return False
        record = authority.store.record_of(leaf)
        good = record is not None and record.revocation is None
        return key.exists() and good and leaf.not_valid_after_utc - at > _RENEW_BEFORE

    def _write_certificate(self, stem: str, issued: IssuedCertificate) -> None:
        issued.write(self.path, stem, overwrite=True)

    def _write_text(self, path: Path, text: str) -> bool:
        try:
            if not _is_unchanged(path.read_bytes()):
                return False
        except FileNotFoundError:
            pass
        except OSError as error:
            raise PkiError(path, "a file that can be read", f"“{error.strerror}”") from error
        content = text.encode()
        marked = f"{_MARK}{hashlib.sha256(content).hexdigest()}\n".encode() + content
        files.publish([NewFile(path, marked, PUBLIC)], overwrite=True)
        return True


def _is_unchanged(content: bytes) -> bool:
    first, _, rest = content.partition(b"\n")
    mark = _MARKED.fullmatch(first)
    return mark is not None and mark["hash"] == hashlib.sha256(rest).hexdigest().encode()


def _configuration(port: int) -> str:
    return f"""\
[gateway]
name = "{GATEWAY_NAME}"
listen = ["127.0.0.1:{port}"]
certificate = "gateway.crt"
key = "gateway.key"
policy = "policy.toml"
state = "state"
control = "control.sock"
workers = 2
watch = true  # these files count as soon as they change

[metrics]
listen = "127.0.0.1:0"
{_control()}
[trusts.local]
ca = "ca/ca.crt"
identity = "spiffe"
trust_domain = "{GATEWAY_NAME}"
crl = ["ca/ca.crl"]  # once it is out of date nobody gets in: `portguard ca crl --ca ca` makes it anew
"""


def _control() -> str:
    """The user's own group for the control socket, as the default one is hardly there; nobody gets a level by it."""
    try:
        group = grp.getgrgid(os.getgid()).gr_name
    except KeyError:
        return ""
    return f'\n[control]\ngroup = "{group}"\n' if _PLAIN_NAME.fullmatch(group) else ""


def _policy(services: Iterable[StarterService]) -> str:
    services = tuple(services)
    names = _strings(service.name for service in services)
    tables = "\n".join(map(_service_table, services))
    return f"""\
{tables}
# Who is in no role reaches nothing: {WITHOUT_RIGHTS} has a certificate, and that is all.
[[roles]]
name = "friends"
members = ["{ALLOWED}"]
services = [{names}]

# Tests run whenever the policy is loaded. One that fails refuses the whole policy.
[[tests]]
identity = "{ALLOWED}"
service = "{services[0].name}"
expect = "allow"

[[tests]]
identity = "{WITHOUT_RIGHTS}"
service = "{services[0].name}"
expect = "deny"
reason = "no_role"
"""


def _service_table(service: StarterService) -> str:
    lines = [f"[services.{service.name}]", f'upstream = ["{service.upstream}"]']
    if service.description:
        lines.append(f'description = "{service.description}"')
    lines.append(f"local_port = {service.local_port}")
    if service.alpn:
        lines.append(f"alpn = [{_strings(service.alpn)}]")
    return "\n".join([*lines, ""])


def _strings(texts: Iterable[str]) -> str:
    return ", ".join(f'"{text}"' for text in texts)


def _profile(client: str, gateway: HostPort, server_name: str) -> str:
    return f"""\
gateway = "{gateway}"
server_name = "{server_name}"
ca = "ca/ca.crt"
certificate = "{client}.crt"
key = "{client}.key"
"""
