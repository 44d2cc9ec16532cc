"""A folder with all that a gateway is configured by, right as it stands and easy to spoil, for tests.

folder = GatewayFolder(tmp_path)
folder.write("policy.toml", "")
read_bundle(folder.configuration)
"""

from pathlib import Path

from tests.certificates import SERVER_AUTH, Authority, Holder, dns

NAME = "bastion.example.com"
CONFIGURATION = f"""
[gateway]
name = "{NAME}"
listen = ["127.0.0.1:0"]

[trusts.local]
ca = "ca.crt"
identity = "spiffe"
trust_domain = "gateway.test"
"""
POLICY = """
[services.orders-db]
upstream = ["10.0.3.7:5432"]

[[roles]]
name = "dba"
members = ["alice"]
services = ["orders-db"]
"""


class GatewayFolder:
    """`portguard.toml`, `policy.toml`, `ca.crt`, and in `tls/` the gateway's certificate and key."""

    def __init__(self, path: Path):
        self.path = path
        self.authority = Authority.root()
        self.gateway = self.issue(NAME, f"*.{NAME}")
        self.write("portguard.toml", CONFIGURATION)
        self.write("policy.toml", POLICY)
        self.write("ca.crt", self.authority.pem)
        self.write("tls/gateway.crt", self.gateway.pem)
        self.write("tls/gateway.key", self.gateway.key_pem)

    @property
    def configuration(self) -> str:
        return str(self.path / "portguard.toml")

    def issue(self, *names: str, **keywords: object) -> Holder:
        """A server certificate for DNS names."""
        return self.authority.issue("gateway", sans=[dns(name) for name in names], usages=[SERVER_AUTH], **keywords)

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file; whatever is called `*.key` is readable by its owner only."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(0o600 if name.endswith(".key") else 0o644)
        return path

    def add(self, name: str, content: str) -> Path:
        """Append to a text file."""
        return self.write(name, (self.path / name).read_text() + content)
